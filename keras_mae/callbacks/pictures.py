"""Callback that draws reconstructions while training, for PNG and TensorBoard."""

from pathlib import Path

import keras
import numpy as np

from keras_mae.callbacks.iterations import check_interval
from keras_mae.callbacks.write_errors import tensorflow_writes
from keras_mae.optimizers.averaging import averaged_weights
from keras_mae.preprocessing.image_processor import MAEImageProcessor
from keras_mae.utils.typing import Logs, PathLike, Tensor
from keras_mae.visualization.reconstructions import draw_reconstructions


class ReconstructionPictures(keras.callbacks.Callback):
    """Draws reconstructions of the same images and masks after every few epochs.

    Where the optimizer averages weights (`use_ema`), the averages draw.

    Args:
        processor: The `MAEImageProcessor` that made `images`.
        images: `(B, H, W, C)` float array.
        folder: Path of an existing folder, for `epoch-0001.png` and so on, and
            TensorBoard's event files with the same pictures.
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

    def __init__(
        self,
        processor: MAEImageProcessor,
        images: Tensor,
        folder: PathLike,
        every: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not len(images):
            raise ValueError("A picture needs at least one image. Received: 0")
        self.processor = processor
        self.images = images
        self.folder = Path(folder)
        self.every = check_interval(every)
        self.seed = seed

    def on_train_begin(self, logs: Logs = None) -> None:
        import tensorflow as tf

        self._writer = tf.summary.create_file_writer(str(self.folder))

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        if (epoch + 1) % self.every and epoch + 1 != self.params["epochs"]:
            return
        import tensorflow as tf

        with averaged_weights(self.model):
            picture = draw_reconstructions(
                self.model, self.processor, self.images, seed=self.seed
            )
        picture.save(self.folder / f"epoch-{epoch + 1:04d}.png")
        pixels = np.asarray(picture)[None]
        with tensorflow_writes():
            with self._writer.as_default():
                tf.summary.image("reconstructions", pixels, step=epoch)
            self._writer.flush()

    def on_train_end(self, logs: Logs = None) -> None:
        with tensorflow_writes():
            self._writer.close()
