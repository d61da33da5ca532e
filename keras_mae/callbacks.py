"""Callbacks for pretraining: safe checkpoints, pictures, a stop on non-finite loss."""

import math
from pathlib import Path

import keras
import numpy as np

from keras_mae.files import replacing
from keras_mae.visualization import draw_reconstructions


def save_atomically(model, path):
    """Saves a model so that `path` holds a whole file at every instant.

    Args:
        model: A Keras model.
        path: Path of the `.keras` file; an older one is replaced in one step.

    Example:

    ```python
    import tempfile

    model = keras_mae.MAEPretrainer.from_preset("mae_tiny")
    with tempfile.TemporaryDirectory() as folder:
        save_atomically(model, f"{folder}/model.keras")
    ```
    """
    with replacing(path) as part:
        model.save(part)


def _check_interval(every):
    if every < 1:
        raise ValueError(f"every must be at least 1. Received: {every}")
    return every


class Checkpoint(keras.callbacks.Callback):
    """Saves the model and its optimizer after every few epochs, and at the end.

    A run killed at any instant leaves the last whole checkpoint, or none.

    Args:
        path: Path of the `.keras` file.
        every: Int, epochs between two checkpoints.

    Raises:
        ValueError: If `every` is less than 1.

    Example:

    ```python
    callback = Checkpoint("run/model.keras", every=10)
    ```
    """

    def __init__(self, path, every=1):
        super().__init__()
        self.path = Path(path)
        self.every = _check_interval(every)

    def on_train_begin(self, logs=None):
        self._saved = True

    def on_epoch_end(self, epoch, logs=None):
        self._saved = (epoch + 1) % self.every == 0
        if self._saved:
            save_atomically(self.model, self.path)

    def on_train_end(self, logs=None):
        # also where another callback stopped the training
        if not self._saved:
            save_atomically(self.model, self.path)


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
        for name, value in (logs or {}).items():
            value = float(np.mean(value))
            if not math.isfinite(value):
                step = int(self.model.optimizer.iterations)
                raise FloatingPointError(f"the {name} is {value} at step {step}")

    # the last step of an epoch shows in the validation loss alone
    on_epoch_end = on_train_batch_end


class ReconstructionPictures(keras.callbacks.Callback):
    """Draws the same images, with the same masks, after every few epochs.

    Args:
        processor: The `MAEImageProcessor` that made `images`.
        images: `(B, H, W, C)` float array.
        folder: Path of an existing folder, for `epoch-0001.png` and so on; TensorBoard
            reads the same pictures from its event files there.
        every: Int, epochs between two pictures; the last epoch has one as well.
        seed: Int, the seed of the masks.

    Raises:
        ValueError: If `every` is less than 1 or there is no image.

    Example:

    ```python
    images = np.zeros((2, 32, 32, 3), "float32")
    processor = keras_mae.MAEImageProcessor(image_size=32)
    callback = ReconstructionPictures(processor, images, "run/pictures", every=10)
    ```
    """

    def __init__(self, processor, images, folder, every=1, seed=0):
        super().__init__()
        if not len(images):
            raise ValueError("A picture needs at least one image. Received: 0")
        self.processor = processor
        self.images = images
        self.folder = Path(folder)
        self.every = _check_interval(every)
        self.seed = seed

    def on_train_begin(self, logs=None):
        import tensorflow as tf

        self._writer = tf.summary.create_file_writer(str(self.folder))

    def on_epoch_end(self, epoch, logs=None):
        if (epoch + 1) % self.every and epoch + 1 != self.params["epochs"]:
            return
        import tensorflow as tf

        picture = draw_reconstructions(
            self.model, self.processor, self.images, seed=self.seed
        )
        picture.save(self.folder / f"epoch-{epoch + 1:04d}.png")
        with self._writer.as_default():
            tf.summary.image("reconstructions", np.asarray(picture)[None], step=epoch)
        self._writer.flush()

    def on_train_end(self, logs=None):
        self._writer.close()


class UnwrapLogs(keras.callbacks.Callback):
    """Turns one-element arrays in the logs, as several replicas give, into numbers.

    Put it before callbacks that write logs down.

    Example:

    ```python
    callbacks = [UnwrapLogs(), keras.callbacks.CSVLogger("history.csv")]
    ```
    """

    def on_epoch_end(self, epoch, logs=None):
        for name, value in (logs or {}).items():
            logs[name] = float(np.mean(value))
