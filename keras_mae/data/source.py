"""`Source`: a data set's training and held-out images, statistics and labels."""

from typing import Any, NamedTuple

from keras_mae.data.augmentation import PRETRAINING, WHOLE, Augmentation


class Source(NamedTuple):
    """A data set.

    `training` and `held_out` are lists of `(H, W, C)` uint8 arrays, or collections of
    encoded images (`ImageFiles`, `ImageRecords`); `mean` and `std` are the channels'
    statistics in [0, 1]; `crop` is whether pretraining uses random crops and flips, or
    whole images; `repeats` is how often an epoch visits an image; `training_labels` and
    `held_out_labels` are int arrays or `None`; `class_names` is a tuple of str in what
    `with_labels` returns.
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


def epoch_size(source: Source) -> int:
    """Returns the number of images in an epoch of training.

    Args:
        source: A `Source`.

    Returns:
        Int.

    Example:

    ```python
    assert epoch_size(keras_mae.data.load_digits()) == 1437
    ```
    """
    return source.epoch_size
