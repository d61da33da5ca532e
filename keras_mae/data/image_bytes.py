"""Bytes of an encoded image in a graph, and the limits of pixels it may announce."""

import tensorflow as tf

from keras_mae.preprocessing.image_decoding import MOST_SIDE

# Pillow's limit for decompression bombs; TensorFlow's is higher, and counts one frame
# of an animation
MOST_PIXELS = 178_956_970


def has(encoded, begin, magic):
    """Whether certain bytes stand at a place; false past the end."""
    return tf.equal(part(encoded, begin, len(magic)), magic)


def header(encoded, begin, length):
    """Returns bytes at a place; past the end they are 0, as in no image."""
    padded = part(encoded, begin, length) + b"\0" * length
    return tf.strings.substr(padded, 0, length)


def part(encoded, begin, length):
    """Returns bytes at a place; past the end there are none."""
    # substr's own error would quote all bytes, which Python can't decode
    begin = tf.minimum(begin, tf.strings.length(encoded))
    return tf.strings.substr(encoded, begin, length)


def check_pixels(max_pixels, width, height, frames=1):
    """Returns an operation that fails on more than `max_pixels`, or on a long side."""
    sizes = [tf.cast(size, tf.int64) for size in (width, height, frames)]
    # one by one: the product of three may be beyond int64
    area = sizes[0] * sizes[1]
    limit = tf.constant(max_pixels, tf.int64)
    fits = tf.logical_and(area <= limit, sizes[2] <= limit)
    fits = tf.logical_and(fits, area * tf.minimum(sizes[2], limit) <= limit)
    message = f"all frames together must have at most {max_pixels} pixels"
    with tf.control_dependencies([tf.debugging.Assert(fits, [message])]):
        longest = tf.maximum(sizes[0], sizes[1])
    message = f"width and height must be at most {MOST_SIDE} pixels"
    return tf.debugging.Assert(longest <= MOST_SIDE, [message])
