"""Callback wrapper that ignores write errors, such as a full disk."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import keras

from keras_mae.utils.typing import Logs


@contextlib.contextmanager
def tensorflow_writes() -> Iterator[None]:
    """Raises TensorFlow's errors of a file as `OSError`."""
    import tensorflow as tf

    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError):
        raise  # another worker is gone
    except tf.errors.OpError as error:
        # without the name of the operation
        reason = error.message.partition("\n")[0].rpartition("}} ")[2]
        raise OSError(reason) from error


class IgnoreWriteErrors(keras.callbacks.Callback):
    """Wraps a callback so that its failed writes don't end the training.

    Args:
        callback: A callback, whose `OSError`s are printed to standard error.

    Example:

    ```python
    callback = IgnoreWriteErrors(keras.callbacks.CSVLogger("history.csv"))
    ```
    """

    def __init__(self, callback: keras.callbacks.Callback) -> None:
        super().__init__()
        self.callback = callback

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        self.callback.set_model(model)

    def set_params(self, params: dict[str, Any]) -> None:
        super().set_params(params)
        self.callback.set_params(params)

    def on_train_begin(self, logs: Logs = None) -> None:
        # a path that can't be written at the start is an error
        self.callback.on_train_begin(logs)


def _forwarded(name):
    """Makes a hook that calls that of the wrapped callback."""

    def hook(self: IgnoreWriteErrors, *args: Any, **kwargs: Any) -> None:
        try:
            getattr(self.callback, name)(*args, **kwargs)
        except OSError as error:
            kind = type(self.callback).__name__
            print(f"{kind} failed: {error}", file=sys.stderr, flush=True)

    return hook


for _name in dir(keras.callbacks.Callback):
    if _name.startswith("on_") and _name not in vars(IgnoreWriteErrors):
        setattr(IgnoreWriteErrors, _name, _forwarded(_name))
