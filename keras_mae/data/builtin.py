"""Data sets `digits` (scikit-learn) and `photos` (scikit-image), without download."""

import importlib

import numpy as np
import tensorflow as tf

from keras_mae.data.source import Source
from keras_mae.preprocessing.image_processor import IMAGENET_MEAN, IMAGENET_STD

_DIGITS_SIZE = 32
_DIGITS_HELD_OUT = 360
# random crops of a photo in an epoch
_CROPS_PER_PHOTO = 64
_TRAINING_PHOTOS = (
    "astronaut",
    "brick",
    "camera",
    "coffee",
    "grass",
    "gravel",
    "hubble_deep_field",
    "immunohistochemistry",
    "moon",
    "retina",
)
_HELD_OUT_PHOTOS = ("chelsea", "coins", "rocket")


def load_digits() -> Source:
    """Loads scikit-learn's 1,797 handwritten digits, resized to 32x32.

    The last 360 in file order are held out. Neighbours in the file often share a
    writer, so a shuffled split would be easier than new handwriting.

    Returns:
        A `Source` of grayscale images with labels 0 to 9.

    Example:

    ```python
    source = load_digits()
    assert len(source.held_out) == 360 and source.held_out[0].shape == (32, 32, 1)
    ```
    """
    datasets = _require("sklearn.datasets", "scikit-learn", "digits")
    digits = datasets.load_digits()
    images = tf.image.resize(
        digits.images[..., None] * (255 / 16), (_DIGITS_SIZE, _DIGITS_SIZE), "bicubic"
    )  # (1797, 32, 32, 1)
    images = np.rint(np.clip(images, 0, 255)).astype("uint8")
    training, held_out = images[:-_DIGITS_HELD_OUT], images[-_DIGITS_HELD_OUT:]
    return Source(
        training=list(training),
        held_out=list(held_out),
        mean=(float(training.mean() / 255),),
        std=(float(training.std() / 255),),
        crop=False,
        training_labels=digits.target[:-_DIGITS_HELD_OUT],
        held_out_labels=digits.target[-_DIGITS_HELD_OUT:],
    )


def load_photos() -> Source:
    """Loads the photographs that come with scikit-image; three are held out.

    Returns:
        A `Source` of RGB images of several sizes, without labels.

    Example:

    ```python
    assert len(load_photos().held_out) == 3
    ```
    """
    data = _require("skimage.data", "scikit-image", "photos")

    def load(name):
        photo = np.atleast_3d(getattr(data, name)())
        return np.broadcast_to(photo, (*photo.shape[:2], 3))  # (H, W, 3)

    return Source(
        training=[load(name) for name in _TRAINING_PHOTOS],
        held_out=[load(name) for name in _HELD_OUT_PHOTOS],
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        crop=True,
        repeats=_CROPS_PER_PHOTO,
    )


SOURCES = {"digits": load_digits, "photos": load_photos}


def _require(module, package, dataset):
    """Imports a module, or raises an error that names the package to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"dataset {dataset!r} needs {package}: pip install 'keras-mae[demo]'"
        ) from error
