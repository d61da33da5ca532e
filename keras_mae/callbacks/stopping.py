"""Callbacks that stop training: NaN or infinite loss, corrupt images."""

import math

import keras
import numpy as np

from keras_mae.callbacks.iterations import optimizer_iterations
from keras_mae.data.corrupt_images import CorruptImages
from keras_mae.utils.typing import Logs


class StopOnNonFiniteLoss(keras.callbacks.Callback):
    """Stops training when the loss is NaN or infinite, before a checkpoint is saved.

    Like `keras.callbacks.TerminateOnNaN`, but raises, with the step.

    Raises:
        FloatingPointError: From `fit`, with the step.

    Example:

    ```python
    callback = StopOnNonFiniteLoss()
    ```
    """

    _checked = 0  # the last update whose numbers were seen

    def on_train_begin(self, logs: Logs = None) -> None:
        self._checked = optimizer_iterations(self.model)

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        self._check(logs)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        self._checked -= 1  # the validation loss shows what the last step did
        self._check(logs)

    def _check(self, logs):
        optimizer = getattr(self.model, "optimizer", None)
        # dynamic loss scaling: an overflowing gradient is skipped, and the scale halved
        dynamic = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        for name, value in (logs or {}).items():
            value = float(np.mean(value))
            if not math.isfinite(value) and not (dynamic and name == "gradient_norm"):
                raise FloatingPointError(f"the {name} is {value} at {self._steps()}")
        self._checked = optimizer_iterations(self.model)

    def _steps(self):
        last = optimizer_iterations(self.model)
        first = min(self._checked + 1, last)  # a skipped update has no number
        return (
            f"step {last}" if first == last else f"one of the steps {first} to {last}"
        )


class StopOnCorruptImages(keras.callbacks.Callback):
    """Stops training when the data has more corrupt images than allowed.

    Args:
        corrupt: The `keras_mae.data.CorruptImages` of the pipelines.

    Raises:
        ValueError: From `fit`, with their number and some of their names.

    Example:

    ```python
    corrupt = keras_mae.data.CorruptImages(limit=10)
    callback = StopOnCorruptImages(corrupt)
    ```
    """

    def __init__(self, corrupt: CorruptImages) -> None:
        super().__init__()
        self.corrupt = corrupt

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        self.corrupt.check()
