"""Callback that writes the logs of `fit` for TensorBoard."""

from pathlib import Path

import keras
import numpy as np

from keras_mae.callbacks.iterations import check_interval, optimizer_iterations
from keras_mae.callbacks.write_errors import tensorflow_writes
from keras_mae.utils.typing import Logs, PathLike


class TensorBoardScalars(keras.callbacks.Callback):
    """Writes the logs of `fit` as TensorBoard scalars, by optimizer iteration.

    Unlike `keras.callbacks.TensorBoard`, it goes on counting in a resumed run, and
    writes every epoch's values, whatever the interval.

    Args:
        folder: Path of an existing folder, for `train` and `validation`.
        every: Int, updates between two points; the end of an epoch is one as well.

    Raises:
        ValueError: If `every` is less than 1, or TensorBoard is not installed.

    Example:

    ```python
    callback = TensorBoardScalars("run/logs", every=50)
    ```
    """

    def __init__(self, folder: PathLike, every: int = 1) -> None:
        super().__init__()
        try:
            import tensorboard  # noqa: F401, without it TensorFlow writes nothing
        except ImportError as error:
            raise ValueError(
                "TensorBoardScalars needs TensorBoard: pip install 'keras-mae[train]'"
            ) from error
        self.folder = Path(folder)
        self.every = check_interval(every)

    def on_train_begin(self, logs: Logs = None) -> None:
        import tensorflow as tf

        self._writers = {
            name: tf.summary.create_file_writer(str(self.folder / name))
            for name in ("train", "validation")
        }
        self._written = optimizer_iterations(self.model)

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        step = optimizer_iterations(self.model)
        # several updates may lie between two calls
        if step // self.every > self._written // self.every:
            self._write("train", logs, step)
            self._written = step

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        step = optimizer_iterations(self.model)
        prefix = "val_"
        theirs = {k: v for k, v in (logs or {}).items() if k.startswith(prefix)}
        ours = {k: v for k, v in (logs or {}).items() if k not in theirs}
        self._write("train", {**ours, "epoch": epoch + 1}, step)
        theirs = {name.removeprefix(prefix): v for name, v in theirs.items()}
        self._write("validation", theirs, step)
        with tensorflow_writes():
            for writer in self._writers.values():
                writer.flush()

    def _write(self, name, values, step):
        import tensorflow as tf

        with tensorflow_writes(), self._writers[name].as_default():
            for key, value in (values or {}).items():
                tf.summary.scalar(key, float(np.mean(value)), step=step)

    def on_train_end(self, logs: Logs = None) -> None:
        with tensorflow_writes():
            for writer in self._writers.values():
                writer.close()
