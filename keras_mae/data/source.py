"""What a data set is: images for training, held-out ones, and their statistics."""

from typing import NamedTuple

import numpy as np

from keras_mae.data.augmentation import PRETRAINING, WHOLE


class Source(NamedTuple):
    """Images of a data set, with what is known of them.

    `training` and `held_out` are lists of `(H, W, C)` uint8 arrays, or collections of
    encoded images (`ImageFiles`, `ImageRecords`); `mean` and `std` are the channels'
    statistics in [0, 1]; `crop` says whether pretraining crops at random and mirrors,
    as photographs need, or takes images whole; `repeats` how often an epoch visits an
    image; `training_labels` and `held_out_labels` are int arrays or `None`;
    `class_names` is a tuple of str once `with_labels` has seen to them.
    """

    training: object
    held_out: object
    mean: tuple
    std: tuple
    crop: bool
    repeats: int = 1
    training_labels: np.ndarray | None = None
    held_out_labels: np.ndarray | None = None
    class_names: tuple | None = None

    @property
    def augmentation(self):
        """The `Augmentation` that pretraining applies where nobody says otherwise."""
        return PRETRAINING if self.crop else WHOLE

    @property
    def epoch_size(self):
        """Int, the images that an epoch of training visits."""
        return len(self.training) * self.repeats


def epoch_size(source):
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
