"""Random resized crops: the window that is cut out, as published."""

import math

import tensorflow as tf

ASPECT_RATIOS = (3 / 4, 4 / 3)
_TRIES = 10


def random_window(shape, seed, scale=(0.2, 1.0), clip_sides=False):
    """Window of torchvision's `RandomResizedCrop`: `(begin, size)`, `(3,)` int32."""
    height, width = tf.unstack(tf.cast(shape[:2], tf.float32))
    # the published linear probe has one try, and clips its sides to the image's
    tries = 1 if clip_sides else _TRIES
    draws = tf.random.stateless_uniform((tries + 1, 2), seed)  # [0, 1)
    low, high = map(math.log, ASPECT_RATIOS)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * draws[1:, 0])
    ratio = tf.exp(low + (high - low) * draws[1:, 1])  # width / height
    sizes = tf.round(tf.sqrt(tf.stack([area / ratio, area * ratio], -1)))  # (tries, 2)
    whole = tf.stack([height, width])
    if clip_sides:
        size, place = tf.minimum(sizes[0], whole), draws[0]
    else:
        fits = tf.reduce_all((sizes > 0) & (sizes <= whole), axis=-1)  # (tries,)
        # in the middle, of the nearest aspect ratio
        fallback = tf.round(
            tf.minimum(
                whole,
                tf.stack([width / ASPECT_RATIOS[0], height * ASPECT_RATIOS[1]]),
            )
        )
        found = tf.reduce_any(fits)
        size = tf.where(found, sizes[tf.argmax(fits)], fallback)
        place = tf.where(found, draws[0], 0.5)
    size = tf.maximum(size, 1.0)
    # each of the places that there are is as likely as another
    begin = tf.minimum(tf.floor(place * (whole - size + 1)), whole - size)
    ends = [tf.zeros(1, tf.int32)], [tf.fill((1,), -1)]
    return tuple(
        tf.concat([tf.cast(values, tf.int32), *end], axis=0)
        for values, end in zip((begin, size), ends, strict=True)
    )
