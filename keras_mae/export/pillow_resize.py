"""Pillow's antialiased resize in a TensorFlow graph, bit-equal.

`PIL.Image.resize` works in two passes, along the rows and along the columns, and rounds
to 8 bits after each. A pass is a sparse matrix of integers: the filter's weights in
fixed point with 22 bits, computed in double precision. Sums of integers don't depend on
their order, so the result is Pillow's on every machine.
"""

import PIL
import tensorflow as tf

_BITS = 22  # Pillow's PRECISION_BITS, for images of 8 bits
# from 13 on columns are first where the height shrinks far more than the width
_PILLOW_CHOOSES = int(PIL.__version__.partition(".")[0]) >= 13
# rows at a time: as int32 and transposed, a photo of 12 megapixels would be 144 MB
_ROWS = 256


def resize_like_pillow(image, image_size, resample):
    """Resizes an image as `PIL.Image.resize` does."""
    if resample not in _FILTERS:
        raise ValueError(
            f"resample must be one of {', '.join(_FILTERS)}. Received: {resample!r}"
        )
    height, width = image_size
    rows, columns = tf.shape(image)[0], tf.shape(image)[1]
    shrinks_most = rows - height > tf.maximum(2 * (columns - width), 0)
    columns_first = tf.logical_and(_PILLOW_CHOOSES, shrinks_most)

    def transposed():
        turned = tf.transpose(image, (1, 0, 2))  # (W, H, C)
        turned = _two_passes(turned, (width, height), resample)
        return tf.transpose(turned, (1, 0, 2))  # (h, w, C)

    return tf.cond(
        columns_first, transposed, lambda: _two_passes(image, image_size, resample)
    )


def _two_passes(image, image_size, resample):
    """Resizes along the rows, then along the columns."""
    height, width = image_size
    narrow = _resize_rows(image, width, resample)  # (H, w, C)
    channels = image.shape[-1]
    columns = tf.reshape(narrow, (-1, width * channels))  # (H, w * C)
    matrix = _resampling_matrix(tf.shape(image)[0], height, resample)
    return tf.reshape(_apply(matrix, columns), (height, width, channels))  # (h, w, C)


def _resize_rows(image, width, resample):
    """First pass, some rows at a time: `(H, W, C)` to `(H, width, C)`."""
    rows, old_width = tf.shape(image)[0], tf.shape(image)[1]
    channels = image.shape[-1]
    matrix = _resampling_matrix(old_width, width, resample)

    def resize_part(first):
        part = image[first : first + _ROWS]
        count = tf.shape(part)[0]
        part = tf.transpose(part, (1, 0, 2))  # (W, rows, C)
        part = _apply(matrix, tf.reshape(part, (old_width, -1)))  # (width, rows * C)
        part = tf.reshape(part, (width, count, channels))  # (width, rows, C)
        part = tf.transpose(part, (1, 0, 2))  # (rows, width, C)
        return tf.pad(part, [[0, _ROWS - count], [0, 0], [0, 0]])

    parts = tf.map_fn(
        resize_part,
        tf.range(0, rows, _ROWS),
        fn_output_signature=tf.TensorSpec((_ROWS, width, channels), tf.uint8),
    )
    return tf.reshape(parts, (-1, width, channels))[:rows]  # (H, width, C)


def _apply(matrix, values):
    """Multiplies by a fixed-point matrix and rounds: uint8 in and out."""
    sums = tf.sparse.sparse_dense_matmul(matrix, tf.cast(values, tf.int32))
    levels = tf.bitwise.right_shift(sums + (1 << (_BITS - 1)), _BITS)
    return tf.cast(tf.clip_by_value(levels, 0, 255), tf.uint8)


def _resampling_matrix(old, new, resample):
    """Builds a pass along an axis as a `(new, old)` sparse matrix of int32."""
    filter_of, reach = _FILTERS[resample]
    scale = tf.cast(old, tf.float64) / new
    stretch = tf.maximum(scale, 1.0)  # antialiasing: the filter grows with the pixels
    centers = (tf.range(new, dtype=tf.float64) + 0.5) * scale
    first = tf.cast(centers - reach * stretch + 0.5, tf.int32)
    first = tf.maximum(first, 0)
    end = tf.minimum(tf.cast(centers + reach * stretch + 0.5, tf.int32), old)
    taps = tf.range(tf.reduce_max(end - first))
    columns = first[:, None] + taps  # (new, taps)
    # times the inverse, as Pillow: a division may round otherwise
    distances = tf.cast(columns, tf.float64) - centers[:, None] + 0.5
    weights = filter_of(tf.abs(distances * (1.0 / stretch)))
    weights = tf.where(columns < end[:, None], weights, tf.zeros_like(weights))
    # a running sum adds from left to right, as Pillow
    weights /= tf.cumsum(weights, axis=1)[:, -1:]
    fixed = tf.cast(weights * 2.0**_BITS + 0.5 * tf.sign(weights), tf.int32)
    # behind the edge weights are zero, but indices must exist
    columns = tf.minimum(columns, old - 1)
    rows = tf.broadcast_to(tf.range(new)[:, None], tf.shape(columns))
    indices = tf.reshape(tf.stack([rows, columns], axis=-1), (-1, 2))  # (new * taps, 2)
    return tf.SparseTensor(
        tf.cast(indices, tf.int64),
        tf.reshape(fixed, (-1,)),  # (new * taps,)
        tf.cast([new, old], tf.int64),
    )


def _triangle(x):
    return tf.maximum(1.0 - x, 0.0)


def _keys_cubic(x):
    """Keys's cubic with a = -0.5, in the order in which Pillow multiplies."""
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    return tf.where(x < 1.0, near, tf.where(x < 2.0, far, tf.zeros_like(x)))


# name -> filter of a distance of 0 or more, and the distance from which it is 0
_FILTERS = {"bilinear": (_triangle, 1.0), "bicubic": (_keys_cubic, 2.0)}
