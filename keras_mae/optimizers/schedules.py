"""Learning rate schedules: linear warm-up, then cosine decay."""

import keras


def warmup_cosine(
    learning_rate: float,
    total_steps: int,
    warmup_steps: int,
    min_learning_rate: float = 0.0,
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Builds the paper's schedule (appendix A.1): linear warm-up, cosine decay.

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
