"""Image sources, and the `tf.data` pipelines that feed pretraining.

A source gives uint8 images, split into training and held-out ones. Built in, and in
need of no download: `digits` (scikit-learn's) and `photos` (scikit-image's).
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_mae.image_processor import IMAGENET_MEAN, IMAGENET_STD

DIGITS_SIZE = 32
DIGITS_HELD_OUT = 360
# a photograph is large: an epoch takes this many random crops of it
CROPS_PER_PHOTO = 64
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


class Source(NamedTuple):
    """Images of a data set, with what is known of them.

    `training` and `held_out` are lists of `(H, W, C)` uint8 arrays, `training_labels`
    and `held_out_labels` int arrays or `None`; `mean` and `std` are the channels'
    statistics in [0, 1]; `crop` says whether pipelines take random crops, as
    photographs need, or whole images; `repeats` how often an epoch visits an image.
    """

    training: list
    held_out: list
    mean: tuple
    std: tuple
    crop: bool
    repeats: int = 1
    training_labels: np.ndarray | None = None
    held_out_labels: np.ndarray | None = None


def load_digits():
    """Loads the 1,797 handwritten digits that scikit-learn ships, enlarged to 32x32.

    The last 360 in file order are held out. Neighbours in the file often share a
    writer, so a shuffled split would be easier than new handwriting is.

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
        digits.images[..., None] * (255 / 16), (DIGITS_SIZE, DIGITS_SIZE), "bicubic"
    )  # (1797, 32, 32, 1)
    images = np.rint(np.clip(images, 0, 255)).astype("uint8")
    training, held_out = images[:-DIGITS_HELD_OUT], images[-DIGITS_HELD_OUT:]
    return Source(
        training=list(training),
        held_out=list(held_out),
        mean=(float(training.mean() / 255),),
        std=(float(training.std() / 255),),
        crop=False,
        training_labels=digits.target[:-DIGITS_HELD_OUT],
        held_out_labels=digits.target[-DIGITS_HELD_OUT:],
    )


def load_photos():
    """Loads the photographs inside scikit-image's wheel; three are held out.

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
        repeats=CROPS_PER_PHOTO,
    )


SOURCES = {"digits": load_digits, "photos": load_photos}


def load_source(name):
    """Loads a data set by name.

    Args:
        name: A name in `SOURCES`.

    Returns:
        A `Source`.

    Raises:
        ValueError: If the name is unknown, or the package that ships the data is
            missing.

    Example:

    ```python
    source = load_source("digits")
    ```
    """
    if name not in SOURCES:
        raise ValueError(
            f"dataset must be one of {', '.join(SOURCES)}. Received: {name!r}"
        )
    return SOURCES[name]()


def _require(module, package, dataset):
    """Imports a module, or says which package to install."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"dataset {dataset!r} comes with {package}: pip install 'keras-mae[demo]'"
        ) from error


def training_pipeline(source, processor, batch_size, seed):
    """Feeds a source's training images without end: shuffled, cropped, normalized.

    The same seed gives the same batches. Batches are always full, so that shapes stay
    static.

    Args:
        source: A `Source`.
        processor: A `MAEImageProcessor` with the wanted size.
        batch_size: Int, images a batch over all replicas.
        seed: Int.

    Returns:
        A `tf.data.Dataset` of `(batch_size, H, W, C)` float32 batches.

    Raises:
        ValueError: If an epoch holds less than one batch.

    Example:

    ```python
    source = load_digits()
    processor = keras_mae.MAEImageProcessor(32, source.mean, source.std)
    batch = next(iter(training_pipeline(source, processor, batch_size=8, seed=0)))
    assert batch.shape == (8, 32, 32, 1)
    ```
    """
    if not 0 < batch_size <= epoch_size(source):
        raise ValueError(
            f"batch_size must be in [1, {epoch_size(source)}], the images of an epoch. "
            f"Received: {batch_size}"
        )
    indices = tf.data.Dataset.range(len(source.training)).repeat(source.repeats)
    indices = indices.shuffle(epoch_size(source), seed=seed).repeat()
    images = _prepare(indices, source.training, source.crop, processor, seed)
    return images.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def held_out_images(source, processor, count=None):
    """Prepares held-out images, always the same ones.

    Args:
        source: A `Source`.
        processor: A `MAEImageProcessor` with the wanted size.
        count: Int, how many; by default each image once.

    Returns:
        `(count, H, W, C)` float32 array. Photographs are visited in turn, with fixed
        crops.

    Example:

    ```python
    source = load_digits()
    processor = keras_mae.MAEImageProcessor(32, source.mean, source.std)
    assert held_out_images(source, processor, count=4).shape == (4, 32, 32, 1)
    ```
    """
    count = len(source.held_out) if count is None else count
    indices = tf.data.Dataset.range(len(source.held_out)).repeat().take(count)
    images = _prepare(indices, source.held_out, source.crop, processor, seed=0)
    return np.stack(list(images.as_numpy_iterator()))


def epoch_size(source):
    """Counts the images that an epoch of training visits.

    Args:
        source: A `Source`.

    Returns:
        Int.

    Example:

    ```python
    assert epoch_size(load_digits()) == 1437
    ```
    """
    return len(source.training) * source.repeats


def _prepare(indices, images, crop, processor, seed):
    """Maps indices to normalized images, each with a seed of its own for its crop."""
    # bytes, because images of several sizes don't stack
    raw = tf.constant([image.tobytes() for image in images])
    shapes = tf.constant([image.shape for image in images])
    channels = images[0].shape[-1]
    if processor.num_channels != channels:
        raise ValueError(
            f"The data set has {channels} channels. Received: a processor for "
            f"{processor.num_channels}"
        )

    def load(position, index):
        image = tf.io.decode_raw(raw[index], tf.uint8)
        image = tf.reshape(image, shapes[index])  # (H, W, C)
        image = tf.ensure_shape(image, (None, None, channels))
        if crop:
            crop_seed = tf.stack([tf.constant(seed, tf.int64), position])
            image = random_resized_crop(image, processor.image_size, crop_seed)
        else:
            image = resize(image, processor.image_size, processor.resample)
        return processor.normalize(image)  # (H, W, C) float32

    return indices.enumerate().map(load, num_parallel_calls=tf.data.AUTOTUNE)


def resize(images, image_size, resample):
    """Resizes inside a graph, as `MAEImageProcessor` does outside: antialiased.

    Args:
        images: `(H, W, C)` or `(B, H, W, C)` tensor of grey levels.
        image_size: Pair `(height, width)`, in pixels.
        resample: `"bilinear"` or `"bicubic"`.

    Returns:
        Float32 tensor of whole grey levels in [0, 255].

    Example:

    ```python
    assert resize(np.zeros((9, 7, 3), "uint8"), (4, 4), "bilinear").shape == (4, 4, 3)
    ```
    """
    images = tf.image.resize(images, image_size, resample, antialias=True)
    return tf.clip_by_value(tf.round(images), 0.0, 255.0)


def random_resized_crop(image, image_size, seed, scale=(0.2, 1.0)):
    """Cuts a random window, resizes it bicubically and flips it half of the time.

    The paper's only augmentation (appendix A.1): an area share in `scale`, an aspect
    ratio in [3/4, 4/3].

    Args:
        image: `(H, W, C)` uint8 tensor.
        image_size: Pair `(height, width)`, in pixels.
        seed: `(2,)` int tensor; the same seed gives the same window.
        scale: Pair of floats, the least and the largest share of the area.

    Returns:
        `(height, width, C)` float32 tensor of grey levels in [0, 255].

    Example:

    ```python
    photo = np.zeros((90, 70, 3), "uint8")
    assert random_resized_crop(photo, (32, 32), seed=[0, 1]).shape == (32, 32, 3)
    ```
    """
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.shape(image),
        bounding_boxes=tf.zeros((1, 0, 4)),
        seed=seed,
        min_object_covered=0.0,
        aspect_ratio_range=(3 / 4, 4 / 3),
        area_range=scale,
        use_image_if_no_bounding_boxes=True,
    )
    image = resize(tf.slice(image, begin, size), image_size, "bicubic")
    return tf.image.stateless_random_flip_left_right(image, seed)
