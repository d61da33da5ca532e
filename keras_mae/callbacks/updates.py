"""Counting the updates of a model, and intervals between what callbacks do."""

import keras


def count_updates(model):
    """Counts the updates that a model has had.

    Args:
        model: A compiled Keras model.

    Returns:
        Int.

    Example:

    ```python
    model = keras_mae.MAEPretrainer.from_preset("mae_tiny")
    model.compile(optimizer=keras.optimizers.SGD())
    assert count_updates(model) == 0
    ```
    """
    # not int(iterations), which a mirrored variable is not
    return int(keras.ops.convert_to_numpy(model.optimizer.iterations))


def check_interval(every):
    if every < 1:
        raise ValueError(f"every must be at least 1. Received: {every}")
    return every
