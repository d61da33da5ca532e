"""Calls `on_train_batch_end` every N steps, so that a GPU or TPU need not wait."""

import math
import time
from collections.abc import Sequence
from typing import Any

import keras

from keras_mae.utils.typing import Logs


class OccasionalCallbackList(keras.callbacks.CallbackList):
    """Calls `on_train_batch_end` at every Nth update, not at each."""

    def __init__(
        self,
        callbacks: Sequence[keras.callbacks.Callback],
        model: keras.Model,
        every: int,
        steps: int,
        epochs: int,
        verbose: int = 0,
    ) -> None:
        super().__init__(
            list(callbacks),
            add_history=True,
            add_progbar=verbose != 0,
            model=model,
            verbose=verbose,
            epochs=epochs,
            steps=steps,
        )
        self._every = every
        self._steps = steps

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        super().on_epoch_begin(epoch, logs)
        self._called, self._called_at = -1, -math.inf

    # to give numbers Keras waits for the device, which then waits for the next step
    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        passed = (batch + 1) // self._every > (self._called + 1) // self._every
        # so that a signal is noticed
        second = time.monotonic() - self._called_at >= 1
        if passed or second or batch + 1 == self._steps:
            super().on_train_batch_end(batch, logs)
            self._called, self._called_at = batch, time.monotonic()


def hears_each_update(callback: keras.callbacks.Callback) -> bool:
    """Whether a callback has a hook of its own for the end of an update."""
    base = keras.callbacks.Callback
    return any(
        getattr(getattr(callback, name), "__func__", None) is not getattr(base, name)
        for name in ("on_train_batch_end", "on_batch_end")
    )
