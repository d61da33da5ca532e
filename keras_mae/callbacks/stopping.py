"""Callbacks that end a run: a loss that is NaN or infinite, corrupt images."""

import math

import keras
import numpy as np

from keras_mae.callbacks.updates import count_updates


class StopOnNonFiniteLoss(keras.callbacks.Callback):
    """Ends a run whose loss is no number, before such weights reach a checkpoint.

    Raises:
        FloatingPointError: Out of `fit`, with the step named.

    Example:

    ```python
    callback = StopOnNonFiniteLoss()
    ```
    """

    def on_train_batch_end(self, batch, logs=None):
        optimizer = getattr(self.model, "optimizer", None)
        # it finds its scale by trying: what overflows is left out, and tried smaller
        tries = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        for name, value in (logs or {}).items():
            value = float(np.mean(value))
            if not math.isfinite(value) and not (tries and name == "gradient_norm"):
                raise FloatingPointError(f"the {name} is {value} at {self._steps()}")

    def _steps(self):
        last = count_updates(self.model)
        several = getattr(self.model, "steps_per_execution", 1)
        if several == 1:
            return f"step {last}"
        return f"one of the steps {last - several + 1} to {last}"

    # the last step of an epoch shows in the validation loss alone
    on_epoch_end = on_train_batch_end


class StopOnCorruptImages(keras.callbacks.Callback):
    """Ends a run whose data has more corrupt images than it may.

    Args:
        corrupt: The `keras_mae.data.CorruptImages` of the pipelines.

    Raises:
        ValueError: Out of `fit`, with their number and some of their names.

    Example:

    ```python
    corrupt = keras_mae.data.CorruptImages(limit=10)
    callback = StopOnCorruptImages(corrupt)
    ```
    """

    def __init__(self, corrupt):
        super().__init__()
        self.corrupt = corrupt

    def on_train_batch_end(self, batch, logs=None):
        self.corrupt.check()
