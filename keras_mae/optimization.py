"""The published optimisation: warm-up and half cosine, AdamW, what is not decayed."""

import keras


def warmup_cosine(learning_rate, total_steps, warmup_steps, min_learning_rate=0.0):
    """Builds the schedule of the paper (appendix A.1): linear warm-up, half cosine.

    Args:
        learning_rate: Float, the peak.
        total_steps: Int, updates in all.
        warmup_steps: Int, updates of the linear rise from 0.
        min_learning_rate: Float, the value at the end.

    Returns:
        A `keras.optimizers.schedules.LearningRateSchedule`.

    Raises:
        ValueError: If the warm-up is not shorter than the training, or the peak not
            positive.

    Example:

    ```python
    schedule = warmup_cosine(1e-3, total_steps=100, warmup_steps=10)
    assert float(schedule(0)) == 0.0 and abs(float(schedule(10)) - 1e-3) < 1e-9
    ```
    """
    if learning_rate <= 0:
        raise ValueError(f"learning_rate must be positive. Received: {learning_rate}")
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            "The warm-up must be shorter than the training. "
            f"Received: warmup_steps={warmup_steps}, total_steps={total_steps}"
        )
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup_steps else learning_rate,
        decay_steps=total_steps - warmup_steps,
        alpha=min_learning_rate / learning_rate,
        warmup_target=learning_rate if warmup_steps else None,
        warmup_steps=warmup_steps,
    )


def pretraining_optimizer(model, learning_rate, weight_decay=0.05):
    """Builds the published AdamW for pretraining (paper, table 8).

    Betas are (0.9, 0.95) and epsilon is 1e-8. Vectors, that is biases and norms, are
    not decayed; the CLS and mask tokens are.

    Args:
        model: The `MAEPretrainer` to train.
        learning_rate: Float or schedule.
        weight_decay: Float.

    Returns:
        A `keras.optimizers.AdamW`.

    Example:

    ```python
    model = keras_mae.MAEPretrainer.from_preset("mae_tiny")
    model.compile(optimizer=pretraining_optimizer(model, 1e-3))
    ```
    """
    optimizer = keras.optimizers.AdamW(
        learning_rate, weight_decay=weight_decay, beta_1=0.9, beta_2=0.95, epsilon=1e-8
    )
    vectors = [v for v in model.trainable_variables if len(v.shape) <= 1]
    optimizer.exclude_from_weight_decay(var_list=vectors)
    return optimizer
