"""`Source`: a data set's training and held-out images, statistics and labels."""

from typing import Any, NamedTuple

from keras_mae.data.augmentation import PRETRAINING, WHOLE, Augmentation

# of folders and splits; of several the first is taken
TRAINING_NAMES = ("train", "training")
HELD_OUT_NAMES = ("val", "validation", "valid", "test", "testing")


class Source(NamedTuple):
    """A data set: training and held-out images, their statistics and labels.

    `load_source` makes one of a name, `with_labels` adds labels, and the pipelines read
    it. Make one of your own from arrays or files.

    Args:
        training: List of `(H, W, C)` uint8 arrays, or a collection of encoded images
            (`ImageFiles` of `keras_mae.data.folder`, `ImageRecords` of
            `keras_mae.data.tfrecord`, `ImageTable` of `keras_mae.data.image_table`).
        held_out: The same, the images of validation.
        mean: Tuple of floats, the channels' means in [0, 1].
        std: Tuple of floats, the channels' standard deviations in [0, 1].
        crop: Whether pretraining uses random crops and flips, or whole images.
        repeats: Int, how often an epoch visits an image.
        training_labels: Int array, or `None`.
        held_out_labels: Int array, or `None`.
        class_names: Tuple of str, which `with_labels` fills, or `None`.

    Example:

    ```python
    images = [np.zeros((32, 32, 3), "uint8")] * 10
    source = Source(
        images[:8],
        images[8:],
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        crop=True,
        repeats=4,
    )
    assert source.epoch_size == 32
    assert source.augmentation == keras_mae.data.PRETRAINING
    ```
    """

    training: Any
    held_out: Any
    mean: tuple
    std: tuple
    crop: bool
    repeats: int = 1
    training_labels: Any = None
    held_out_labels: Any = None
    class_names: tuple[str, ...] | None = None

    @property
    def augmentation(self) -> Augmentation:
        """The default `Augmentation` of pretraining."""
        return PRETRAINING if self.crop else WHOLE

    @property
    def epoch_size(self) -> int:
        """Int, the images in an epoch of training."""
        return len(self.training) * self.repeats

    @property
    def num_classes(self) -> int:
        """Int, the number of classes that `with_labels` found."""
        if self.class_names is None:
            raise ValueError("num_classes needs labels: call with_labels(source) first")
        return len(self.class_names)
