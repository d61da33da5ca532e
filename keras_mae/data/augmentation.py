"""Image augmentation in tf.data: random resized crop, flip, RandAugment, erasing."""

from typing import NamedTuple

import tensorflow as tf

from keras_mae.data.randaugment import rand_augment
from keras_mae.data.random_crop import random_window
from keras_mae.data.random_erasing import random_erasing
from keras_mae.data.seeding import seeds_for
from keras_mae.utils.typing import Tensor

# as published: up to this size the center crop leaves out an eighth of the side
_MOST_CROPPED, _CENTER_SHARE = 224, 0.875


class Augmentation(NamedTuple):
    """Random augmentation of a training image; by default that of pretraining.

    Args:
        scale: Pair of floats, the least and the largest share of the area that a random
            resized crop takes; `(1.0, 1.0)` resizes whole images.
        flip: Whether images are flipped horizontally half of the time.
        magnitude: Float in [0, 10], RandAugment's magnitude; 0 for none.
        erase: Float in [0, 1], the probability of random erasing.
        clip_sides: Whether to draw a crop once and clip its sides to the image's, as
            the published linear probe does.

    Example:

    ```python
    augmentation = Augmentation(scale=(0.5, 1.0), flip=False, erase=0.25)
    source = keras_mae.data.load_digits()
    processor = keras_mae.MAEImageProcessor(32, source.mean, source.std)
    batches = keras_mae.data.training_pipeline(
        source, processor, batch_size=8, seed=0, augmentation=augmentation
    )
    assert next(iter(batches)).shape == (8, 32, 32, 1)
    ```
    """

    scale: tuple = (0.2, 1.0)
    flip: bool = True
    magnitude: float = 0.0
    erase: float = 0.0
    clip_sides: bool = False

    @property
    def crops(self) -> bool:
        """Whether images are cropped; then those of evaluation are center crops."""
        return self.scale[0] < 1

    def rand_augment(self, image: tf.Tensor, seed: Tensor) -> tf.Tensor:
        """Applies RandAugment to an `(H, W, C)` image in [0, 255], if it is on."""
        if not self.magnitude:
            return image
        return rand_augment(image, seed, magnitude=self.magnitude)

    def random_erasing(self, image: tf.Tensor, seed: Tensor) -> tf.Tensor:
        """Applies random erasing to a normalized `(H, W, C)` image, if it is on."""
        if not self.erase:
            return image
        return random_erasing(image, seed, probability=self.erase)

    def check(self) -> None:
        """Raises `ValueError` if a value is out of range."""
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale must be in (0, 1]. Received: {low}")
        if not 0 <= self.erase <= 1:
            raise ValueError(f"erase must be in [0, 1]. Received: {self.erase}")
        if not 0 <= self.magnitude <= 10:
            raise ValueError(
                f"magnitude must be in [0, 10]. Received: {self.magnitude}"
            )


PRETRAINING = Augmentation()
# whole images
WHOLE = Augmentation(scale=(1.0, 1.0), flip=False)


def resize(images: Tensor, image_size: tuple[int, int], resample: str) -> tf.Tensor:
    """Resizes with antialiasing, as `MAEImageProcessor` does outside a graph.

    Args:
        images: `(H, W, C)` or `(B, H, W, C)` tensor of grey levels.
        image_size: Pair `(height, width)`, in pixels.
        resample: `"bilinear"` or `"bicubic"`.

    Returns:
        Float32 tensor of integers in [0, 255].

    Example:

    ```python
    assert resize(np.zeros((9, 7, 3), "uint8"), (4, 4), "bilinear").shape == (4, 4, 3)
    ```
    """
    images = tf.image.resize(images, image_size, resample, antialias=True)
    return _grey_levels(images)


def random_flip(image, seed):
    """Flips an image horizontally half of the time, whatever its crop is."""
    seed = seeds_for("flip", seed, 1)[0]
    return tf.image.stateless_random_flip_left_right(image, seed)


def resize_and_flip(window, image_size, seed, flip=True):
    """Resizes a window bicubically and flips it half of the time."""
    image = resize(window, image_size, "bicubic")
    return random_flip(image, seed) if flip else image


def random_resized_crop(
    image: Tensor,
    image_size: tuple[int, int],
    seed: Tensor,
    scale: tuple[float, float] = (0.2, 1.0),
    flip: bool = True,
    clip_sides: bool = False,
) -> tf.Tensor:
    """Random resized crop, bicubic, with a horizontal flip half of the time.

    The paper's only augmentation (appendix A.1), distributed as torchvision's
    `RandomResizedCrop`: the crop's share of the area is in `scale`, its aspect ratio in
    [3/4, 4/3].

    Args:
        image: `(H, W, C)` uint8 tensor.
        image_size: Pair `(height, width)`, in pixels.
        seed: `(2,)` int tensor; the same seed gives the same crop.
        scale: Pair of floats, the least and the largest share of the area.
        flip: Whether crops are flipped.
        clip_sides: Whether to draw once and clip the sides to the image's, as the
            published linear probe does.

    Returns:
        `(height, width, C)` float32 tensor in [0, 255].

    Example:

    ```python
    photo = np.zeros((90, 70, 3), "uint8")
    assert random_resized_crop(photo, (32, 32), seed=[0, 1]).shape == (32, 32, 3)
    ```
    """
    place = random_window(tf.shape(image), seed, scale, clip_sides)
    window = tf.slice(image, *place)
    window = tf.ensure_shape(window, (None, None, image.shape[-1]))
    return resize_and_flip(window, image_size, seed, flip)


def center_crop(image, image_size):
    """Bicubic resize and center crop as in evaluations on ImageNet."""
    shape = tf.shape(image)
    # of the shorter side; above 224 pixels all of it
    share = _CENTER_SHARE if max(image_size) <= _MOST_CROPPED else 1.0
    wanted = tf.constant(image_size, tf.float32) / share
    old = tf.cast(shape[:2], tf.float32)
    new = tf.round(old * tf.reduce_max(wanted / old))
    # rounding must not make it smaller than the crop
    new = tf.maximum(tf.cast(new, tf.int32), image_size)
    begin = (new - image_size) // 2
    # `resize`'s own operation, but of the crop alone: a whole image of extreme aspect
    # ratio would fill the memory
    images = tf.raw_ops.ScaleAndTranslate(
        images=image[None],
        size=image_size,
        scale=tf.cast(new, tf.float32) / old,
        translation=-tf.cast(begin, tf.float32),
        kernel_type="keyscubic",
        antialias=True,
    )
    return _grey_levels(tf.ensure_shape(images[0], (*image_size, image.shape[-1])))


def _grey_levels(images):
    return tf.clip_by_value(tf.round(images), 0.0, 255.0)
