"""Callbacks whose failed writes do not end the training."""

import sys

import keras


class IgnoreWriteErrors(keras.callbacks.Callback):
    """Lets a training go on where what another callback writes does not fit the disk.

    Args:
        callback: A callback whose `OSError` is worth a line, and not the training.

    Example:

    ```python
    callback = IgnoreWriteErrors(keras.callbacks.CSVLogger("history.csv"))
    ```
    """

    def __init__(self, callback):
        super().__init__()
        self.callback = callback

    def set_model(self, model):
        self.callback.set_model(model)

    def set_params(self, params):
        self.callback.set_params(params)

    def on_train_begin(self, logs=None):
        # what can't be written now is wrong from the start
        self.callback.on_train_begin(logs)

    def on_train_batch_end(self, batch, logs=None):
        self._try("on_train_batch_end", batch, logs)

    def on_epoch_end(self, epoch, logs=None):
        self._try("on_epoch_end", epoch, logs)

    def on_train_end(self, logs=None):
        self._try("on_train_end", logs)

    def _try(self, method, *arguments):
        try:
            getattr(self.callback, method)(*arguments)
        except OSError as error:
            name = type(self.callback).__name__
            print(f"{name} failed: {error}", file=sys.stderr, flush=True)
