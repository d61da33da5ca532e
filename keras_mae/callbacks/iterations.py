"""Optimizer iterations, by which callbacks count."""

import keras


def optimizer_iterations(model: keras.Model) -> int:
    """Returns `model.optimizer.iterations` as an int."""
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()  # between two steps JAX's trainer holds the values
    # not int(iterations), which a mirrored variable is not
    return int(keras.ops.convert_to_numpy(model.optimizer.iterations))


def check_interval(every: int) -> int:
    if every < 1:
        raise ValueError(f"every must be at least 1. Received: {every}")
    return every
