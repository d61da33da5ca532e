"""RandAugment for fine-tuning, in a graph: timm's `rand-m9-mstd0.5-inc1`.

Two of fifteen operations are drawn with replacement, each is applied half of the time,
at a magnitude drawn around 9 of 10. Rounding is Pillow's. What differs: rotation, shear
and translation are bilinear, where the recipe's are bicubic, and at the image's edge
they blend one pixel into the fill. At a magnitude of 10, posterizing keeps no bits and
the image is black; Pillow did so when the recipe was published, today's raises.

`keras.layers.RandAugment` differs, beside having a random state of its own:

- Operations: eleven. Invert is missing, shear and translation take both axes at once,
  solarize-add and solarize are one operation.
- Chance: operations are chosen once a call, so for a whole batch, and always applied;
  all of them are computed each time, and the results of the others thrown away.
- Magnitudes: uniform in a range instead of near one level. At the default `factor` of
  0.5 most have one direction: rotated by 0 to 180 degrees, shifted right and down by up
  to half of the side, brighter, more contrast, less sharp, less color; posterizing
  keeps 1 to 3 bits, shear is up to 0.5, solarizing adds, with a threshold up to 127.5.
- Arithmetic: brightness is added instead of multiplied, contrast pivots on each
  channel's mean instead of the grey mean, sharpness smooths the border as well, and
  grey levels aren't whole numbers.
- Fill: the image's reflection instead of the mean grey levels.
"""

import math

import tensorflow as tf

from keras_mae.data.seeding import seeds_for

_MAX_MAGNITUDE = 10
# ImageNet's mean in [0, 255], and its luma
_FILLS = {3: (124.0, 116.0, 104.0), 1: (117.0,)}


def rand_augment(image, seed, magnitude=9, magnitude_std=0.5, num_ops=2):
    """Applies RandAugment to `(H, W, C)` float32 integers in [0, 255]."""
    image = tf.convert_to_tensor(image, tf.float32)
    if image.shape.rank != 3 or image.shape[-1] not in _FILLS:
        raise ValueError(
            "image must be (height, width, channels) with 1 or 3 channels. "
            f"Received: shape {image.shape}"
        )
    if not 0 <= magnitude <= _MAX_MAGNITUDE or magnitude_std < 0 or num_ops < 0:
        raise ValueError(
            "magnitude must be in [0, 10], magnitude_std and num_ops must not be "
            f"negative. Received: {magnitude}, {magnitude_std} and {num_ops}"
        )
    indices, levels, signs = _draw(seed, magnitude, magnitude_std, num_ops)
    for step in range(num_ops):
        image = _apply(image, indices[step], levels[step], signs[step])
    return image


def _draw(seed, magnitude, magnitude_std, num_ops):
    """Draws an index into `OPS` (or past it), a level and a sign for each step."""
    seeds = seeds_for("rand_augment", seed, 2)
    uniform = tf.random.stateless_uniform((3, num_ops), seeds[0])
    op, skip, sign = tf.unstack(uniform)
    indices = tf.where(skip < 0.5, len(OPS), tf.cast(op * len(OPS), tf.int32))
    levels = tf.random.stateless_normal((num_ops,), seeds[1], magnitude, magnitude_std)
    levels = tf.clip_by_value(levels, 0.0, _MAX_MAGNITUDE) / _MAX_MAGNITUDE
    return indices, levels, tf.where(sign < 0.5, -1.0, 1.0)


def _apply(image, index, level, sign):
    """Applies one operation: `level` is in [0, 1], `sign` is -1 or 1."""
    branches = [lambda op=op: op(image, level, sign) for op in OPS.values()]
    shape = image.shape
    image = tf.switch_case(index, [*branches, lambda: image])
    return tf.ensure_shape(image, shape)


def _auto_contrast(image, level, sign):
    low, high = tf.reduce_min(image, (0, 1)), tf.reduce_max(image, (0, 1))
    # a channel of one level stays as it is
    low, high = tf.unstack(tf.where(low < high, [low, high], [[0.0], [255.0]]))
    # in this order the division is the only rounding
    return tf.floor((image - low) * 255.0 / (high - low))


def _equalize(image, level, sign):
    channels = image.shape[-1]
    cells = tf.cast(image, tf.int32) + 256 * tf.range(channels)
    counts = tf.math.bincount(cells, minlength=256 * channels)
    counts = tf.reshape(counts, (channels, 256))  # (C, 256)
    before = tf.cumsum(counts, axis=1, exclusive=True)
    # all but the brightest pixels, over the steps between 256 levels
    step = tf.reduce_max(tf.where(counts > 0, before, 0), 1, keepdims=True) // 255
    table = tf.minimum((before + step // 2) // tf.maximum(step, 1), 255)
    # few pixels, or pixels of one level, stay as they are
    table = tf.where(step > 0, table, tf.range(256))
    return tf.gather(tf.cast(tf.reshape(table, (-1,)), tf.float32), cells)  # (H, W, C)


def _invert(image, level, sign):
    return 255.0 - image


def _rotate(image, level, sign):
    angle = sign * level * math.radians(30)
    cos, sin = tf.cos(angle), tf.sin(angle)
    shape = tf.cast(tf.shape(image), tf.float32)
    y, x = shape[0] / 2, shape[1] / 2
    return _affine(
        image, cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y
    )


def _posterize(image, level, sign):
    # drops the lowest four bits or more
    unit = 2.0 ** (4 + tf.floor(level * 4))
    return tf.floor(image / unit) * unit


def _solarize(image, level, sign):
    return tf.where(image < 256 - tf.floor(level * 256), image, 255.0 - image)


def _solarize_add(image, level, sign):
    brighter = tf.minimum(image + tf.floor(level * 110), 255.0)
    return tf.where(image < 128, brighter, image)


def _color(image, level, sign):
    return _enhance(_grey(image), image, level, sign)


def _contrast(image, level, sign):
    mean = tf.floor(tf.reduce_mean(_grey(image)) + 0.5)
    return _enhance(mean, image, level, sign)


def _brightness(image, level, sign):
    return _enhance(0.0, image, level, sign)


def _sharpness(image, level, sign):
    rows = image[:-2] + image[1:-1] + image[2:]
    box = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    centre = image[1:-1, 1:-1]
    smoothed = tf.round((box + 4.0 * centre) / 13.0)
    # the border isn't smoothed
    change = tf.pad(smoothed - centre, [[1, 1], [1, 1], [0, 0]])  # (H, W, C)
    return _enhance(image + change, image, level, sign)


def _shear_x(image, level, sign):
    return _affine(image, 1.0, 0.3 * sign * level, 0.0, 0.0, 1.0, 0.0)


def _shear_y(image, level, sign):
    return _affine(image, 1.0, 0.0, 0.0, 0.3 * sign * level, 1.0, 0.0)


def _translate_x(image, level, sign):
    pixels = 0.45 * sign * level * tf.cast(tf.shape(image)[1], tf.float32)
    return _affine(image, 1.0, 0.0, pixels, 0.0, 1.0, 0.0)


def _translate_y(image, level, sign):
    pixels = 0.45 * sign * level * tf.cast(tf.shape(image)[0], tf.float32)
    return _affine(image, 1.0, 0.0, 0.0, 0.0, 1.0, pixels)


# with timm's names, in its order
OPS = {
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
    "Invert": _invert,
    "Rotate": _rotate,
    "PosterizeIncreasing": _posterize,
    "SolarizeIncreasing": _solarize,
    "SolarizeAdd": _solarize_add,
    "ColorIncreasing": _color,
    "ContrastIncreasing": _contrast,
    "BrightnessIncreasing": _brightness,
    "SharpnessIncreasing": _sharpness,
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateXRel": _translate_x,
    "TranslateYRel": _translate_y,
}


def _grey(image):
    """Returns Pillow's luma, `(H, W, 1)`."""
    if image.shape[-1] == 1:
        return image
    # integers below 2**24: exact in float32
    weighted = tf.reduce_sum(image * (19595.0, 38470.0, 7471.0), -1, keepdims=True)
    return tf.floor((weighted + 32768.0) / 65536.0)


def _enhance(base, image, level, sign):
    """Extrapolates from `base` or blends with it; level 0 is the identity."""
    factor = tf.maximum(1.0 + 0.9 * sign * level, 0.1)
    return tf.floor(tf.clip_by_value(base + factor * (image - base), 0.0, 255.0))


def _affine(image, a, b, c, d, e, f):
    """Takes pixel `(x, y)` from `(a x + b y + c, d x + e y + f)`, as Pillow does."""
    fill = tf.constant(_FILLS[image.shape[-1]])
    # pixel centers are at halves in Pillow, at integers in TensorFlow
    c, f = c + (a + b - 1) / 2, f + (d + e - 1) / 2
    # TensorFlow's fill is the same in all channels: shifted to 0
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=(image - fill)[None],
        transforms=[tf.stack([a, b, c, d, e, f, 0.0, 0.0])],
        output_shape=tf.shape(image)[:2],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )
    # rounds down, but for rounding errors of float32
    return tf.floor(moved[0] + fill + 1 / 64)
