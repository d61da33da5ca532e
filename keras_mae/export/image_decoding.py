"""Decodes, preprocesses and encodes images in a graph, as `MAEImageProcessor`."""

import math

import numpy as np
import tensorflow as tf

from keras_mae.data.decoding import checked_png, decode, to_luma
from keras_mae.data.exif_orientation import orientation_of_file, upright
from keras_mae.data.image_bytes import has
from keras_mae.export.pillow_resize import resize_like_pillow

# as in TFRecords of image data sets
_IMAGE_KEY = "image/encoded"
# of an image, whose header is read before it is decoded
DEFAULT_MAX_PIXELS = 50_000_000


def decode_pixels(image_bytes, processor, max_pixels=DEFAULT_MAX_PIXELS):
    """Decodes, resizes and normalizes `(B,)` strings, bit-equal to a processor."""
    # but for a CMYK JPEG, which TensorFlow and Pillow round differently
    shape = (*processor.image_size, processor.num_channels)

    def decode_one(encoded):
        image = _decode(encoded, max_pixels)
        if processor.exif_orientation:
            image = upright(image, orientation_of_file(encoded))
        if processor.num_channels == 1:
            image = to_luma(image)
        return resize_like_pillow(image, processor.image_size, processor.resample)

    # decoders have CPU kernels only
    with tf.device("/cpu:0"):
        images = tf.map_fn(
            decode_one,
            tf.ensure_shape(image_bytes, (None,)),
            fn_output_signature=tf.TensorSpec(shape, tf.uint8),
        )
        return _normalize(images, processor)  # (B, H, W, C)


def decode_examples(examples, processor, max_pixels=DEFAULT_MAX_PIXELS):
    """Decodes the images in serialized `tf.train.Example`s, as `decode_pixels`."""
    feature = {_IMAGE_KEY: tf.io.FixedLenFeature((), tf.string)}
    examples = tf.ensure_shape(examples, (None,))
    encoded = tf.io.parse_example(examples, feature)[_IMAGE_KEY]
    return decode_pixels(encoded, processor, max_pixels)


def unpack_pixels(rows, processor):
    """Normalizes `(B,)` strings of `H * W * C` uint8; NaN those of other lengths."""
    # they can't fail, and so may share a batch with those of other clients
    shape = (*processor.image_size, processor.num_channels)
    rows = tf.ensure_shape(rows, (None,))
    size = math.prod(shape)
    # strings have CPU kernels only
    with tf.device("/cpu:0"):
        levels = tf.io.decode_raw(rows, tf.uint8, fixed_length=size)  # (B, H * W * C)
        fits = tf.equal(tf.strings.length(rows), size)[:, None, None, None]
        images = tf.reshape(levels, (-1, *shape))  # (B, H, W, C)
        return tf.where(fits, _normalize(images, processor), float("nan"))


def encode_pngs(levels):
    """Encodes grey levels `(B, H, W, C)` to `(B,)` PNG files; those with NaN to ""."""
    rounded = tf.cast(tf.round(tf.where(tf.math.is_nan(levels), 0.0, levels)), tf.uint8)
    missing = tf.reduce_any(tf.math.is_nan(levels), axis=(1, 2, 3))  # (B,)
    with tf.device("/cpu:0"):
        return tf.where(missing, "", tf.io.encode_png(rounded))


def _normalize(images, processor):
    """Normalizes uint8 images by a table of the processor's own results."""
    channels = processor.num_channels
    # a graph multiplies by inverses where NumPy divides, and so rounds differently
    levels = np.repeat(np.arange(256)[:, None], channels, axis=1)
    table = tf.constant(processor.normalize(levels).ravel())  # (256 * C,)
    indices = tf.cast(images, tf.int32) * channels + tf.range(channels)
    return tf.gather(table, indices)


def _decode(encoded, max_pixels):
    """Decodes an image to `(H, W, 3)` uint8, as Pillow and `MAEImageProcessor`."""
    # MAEImageProcessor divides 16-bit grey by 257; TensorFlow drops the last 8 bits
    is_png = has(encoded, 0, b"\x89PNG")
    is_deep_grey = has(encoded, 24, b"\x10\x00")
    return tf.cond(
        tf.logical_and(is_png, is_deep_grey),
        lambda: _decode_deep_grey(encoded, max_pixels),
        lambda: decode(encoded, max_pixels),
    )


def _decode_deep_grey(encoded, max_pixels):
    encoded = checked_png(encoded, max_pixels)
    grey = tf.io.decode_png(encoded, 1, tf.uint16) // 257
    return tf.repeat(tf.cast(grey, tf.uint8), 3, axis=-1)  # (H, W, 3)
