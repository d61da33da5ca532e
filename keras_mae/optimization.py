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


@keras.saving.register_keras_serializable(package="keras_mae")
class MatrixDecayAdamW(keras.optimizers.AdamW):
    """AdamW that decays matrices and tokens, and no vectors: biases and norms.

    `exclude_from_weight_decay` says the same, but is forgotten by a saved model.

    Args:
        **kwargs: Those of `keras.optimizers.AdamW`.

    Example:

    ```python
    optimizer = MatrixDecayAdamW(learning_rate=1e-3, weight_decay=0.05)
    ```
    """

    def _use_weight_decay(self, variable):
        return len(variable.shape) > 1 and super()._use_weight_decay(variable)


def pretraining_optimizer(learning_rate, weight_decay=0.05):
    """Builds the published AdamW for pretraining (paper, table 8).

    Betas are (0.9, 0.95) and epsilon is 1e-8. Biases and norms are not decayed; the CLS
    and mask tokens are.

    Args:
        learning_rate: Float or schedule.
        weight_decay: Float.

    Returns:
        A `MatrixDecayAdamW`.

    Example:

    ```python
    model = keras_mae.MAEPretrainer.from_preset("mae_tiny")
    model.compile(optimizer=pretraining_optimizer(1e-3))
    ```
    """
    return MatrixDecayAdamW(
        learning_rate, weight_decay=weight_decay, beta_1=0.9, beta_2=0.95, epsilon=1e-8
    )
