"""Random erasing (Zhong et al., 2017) for fine-tuning: a rectangle of noise.

The rectangle's area is uniform in `area`, its aspect ratio log-uniform in `aspect`, as
in timm (uniform in the paper), its position uniform inside the image. The paper draws
until a rectangle fits, timm ten times; here ten are drawn at once and the first that
fits is taken, which is the same.

`keras.layers.RandomErasing` differs, beside having a random state of its own. Each side
is the root of a draw from `scale`, so the aspect ratio can't be set: it is in [0.25, 4]
at the default, and large and small areas are rarer. `factor` is the maximum of a
uniform probability, so 0.25 erases an eighth of the images. Corners are fractions of
pixels. Noise is multiplied by the value range's upper end and clipped to the range, not
made for normalized images: half of it is black and a sixth white.
"""

import math

import tensorflow as tf

from keras_mae.data.seeding import seeds_for

_ATTEMPTS = 10


def random_erasing(
    image, seed, probability=0.25, area=(0.02, 1 / 3), aspect=(0.3, 1 / 0.3)
):
    """Replaces a random rectangle of a normalized image by standard normal noise."""
    if not (0 <= probability <= 1 and 0 <= area[0] <= area[1] <= 1):
        raise ValueError(
            "probability must be in [0, 1], area a rising pair in it. "
            f"Received: {probability} and {area}"
        )
    if not 0 < aspect[0] <= aspect[1]:
        raise ValueError(f"aspect must be a rising positive pair. Received: {aspect}")
    image = tf.convert_to_tensor(image, tf.float32)
    seeds = seeds_for("random_erasing", seed, 3)
    shape = tf.shape(image)
    size = _first_fitting_size(shape[:2], seeds[0], area, aspect)
    chances = tf.random.stateless_uniform((3,), seeds[1])
    # an empty rectangle where nothing is to be erased
    size = tf.where(chances[0] < probability, size, 0)
    free = tf.cast(shape[:2] - size + 1, tf.float32)
    begin = tf.cast(chances[1:] * free, tf.int32)
    begin, size = tf.pad(begin, [[0, 1]]), tf.concat([size, shape[2:]], axis=0)
    erased = tf.raw_ops.TensorStridedSliceUpdate(
        input=image,
        begin=begin,
        end=begin + size,
        strides=[1, 1, 1],
        value=tf.random.stateless_normal(size, seeds[2]),
    )
    return tf.ensure_shape(erased, image.shape)


def _first_fitting_size(shape, seed, area, aspect):
    """Draws a rectangle's `(height, width)`; `(0, 0)` if none fits into the image."""
    shares, ratios = tf.unstack(tf.random.stateless_uniform((2, _ATTEMPTS), seed))
    areas = area[0] + shares * (area[1] - area[0])
    areas *= tf.cast(tf.reduce_prod(shape), tf.float32)
    low, high = math.log(aspect[0]), math.log(aspect[1])
    ratios = tf.exp(low + ratios * (high - low))
    sizes = tf.stack([areas * ratios, areas / ratios], axis=1)  # (10, 2)
    sizes = tf.cast(tf.round(tf.sqrt(sizes)), tf.int32)
    fits = tf.reduce_all(sizes < shape, axis=1)
    return tf.where(tf.reduce_any(fits), sizes[tf.argmax(fits)], 0)
