"""What a data set is: images for training, held-out ones, and their statistics."""

from typing import Any, NamedTuple

from keras_mae.data.augmentation import PRETRAINING, WHOLE, Augmentation


class Source(NamedTuple):
    """Images of a data set, with what is known of them.

    `training` and `held_out` are lists of `(H, W, C)` uint8 arrays, or collections of
    encoded images (`ImageFiles`, `ImageRecords`); `mean` and `std` are the channels'
    statistics in [0, 1]; `crop` says whether pretraining crops at random and mirrors,
    as photographs need, or takes images whole; `repeats` how often an epoch visits an
    image; `training_labels` and `held_out_labels` are int arrays or `None`;
    `class_names` is a tuple of str once `with_labels` has seen to them.
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
        """The `Augmentation` that pretraining applies where nobody says otherwise."""
        return PRETRAINING if self.crop else WHOLE

    @property
    def epoch_size(self) -> int:
        """Int, the images that an epoch of training visits."""
        return len(self.training) * self.repeats

    @property
    def num_classes(self) -> int:
        """Int, how many classes `with_labels` found."""
        if self.class_names is None:
            raise ValueError("The source must come from with_labels")
        return len(self.class_names)


def epoch_size(source: Source) -> int:
    """Counts the images that an epoch of training visits.

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
