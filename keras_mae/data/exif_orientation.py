"""EXIF orientation in a graph, as `keras_mae/preprocessing/exif_orientation.py` does.

Positions are int64: a malformed file may hold any number of 32 bits.
"""

import tensorflow as tf

from keras_mae.data.decoding import decode, decode_window
from keras_mae.preprocessing.exif_orientation import MOST_PARTS

_TAG, _SHORT = 0x0112, 3
_PREFIX = b"Exif\0\0"
# orientations whose rows, and whose columns, are flipped
_ROWS, _COLUMNS = (3, 4, 7, 8), (2, 3, 6, 7)


def decode_upright(encoded):
    """Decodes a scalar string to `(H, W, 3)` uint8, upright."""
    return upright(decode(encoded), orientation_of_file(encoded))


def decode_window_upright(encoded, window):
    """Decodes a part of the upright image, `begin, size = window(shape)`."""
    orientation = orientation_of_file(encoded)
    swaps, flips = _turn(orientation)
    axes = tf.where(swaps, [1, 0], [0, 1])

    def stored_window(shape):
        shape = tf.concat([tf.gather(shape[:2], axes), shape[2:]], axis=0)
        begin, size = window(shape)
        places = tf.where(flips, shape[:2] - begin[:2] - size[:2], begin[:2])
        return tuple(
            tf.concat([tf.gather(sides, axes), rest[2:]], axis=0)
            for sides, rest in ((places, begin), (size[:2], size))
        )

    return upright(decode_window(encoded, stored_window), orientation)


def upright(image, orientation):
    """Turns or mirrors an `(H, W, C)` image so that it is upright."""
    swaps, flips = _turn(orientation)
    turned = tf.cond(swaps, lambda: tf.transpose(image, (1, 0, 2)), lambda: image)
    rows, columns = tf.unstack(tf.where(flips, -1, 1))
    turned = turned[::rows, ::columns]
    return tf.ensure_shape(turned, (None, None, image.shape[-1]))


def orientation_of_file(encoded):
    """Reads the orientation of an encoded image: int32, 1 to 8."""
    kinds = [
        (tf.io.is_jpeg(encoded), lambda: _jpeg_exif(encoded)),
        (
            tf.equal(_part(encoded, 0, 4), b"\x89PNG"),
            lambda: _chunk(encoded, 8, True, b"eXIf", 4, 12, 1),
        ),
        (
            tf.equal(_part(encoded, 8, 4), b"WEBP"),
            lambda: _chunk(encoded, 12, False, b"EXIF", 0, 8, 2),
        ),
    ]
    return _orientation_of_exif(tf.case(kinds, default=lambda: tf.constant(b"")))


def _turn(orientation):
    """Returns whether axes are swapped, then which of `(rows, columns)` are flipped."""
    flips = [tf.reduce_any(orientation == among) for among in (_ROWS, _COLUMNS)]
    return orientation >= 5, tf.stack(flips)


def _orientation_of_exif(exif):
    prefix = tf.where(tf.equal(_part(exif, 0, 6), _PREFIX), 6, 0)
    exif = _part(exif, prefix, tf.strings.length(exif))
    size = _length(exif)
    big = tf.equal(_part(exif, 0, 4), b"MM\0*")
    known = tf.logical_or(big, tf.equal(_part(exif, 0, 4), b"II*\0"))
    begin = _number(exif, 4, 4, big)
    count = tf.minimum(_number(exif, begin, 2, big), (size - begin - 2) // 12)
    entries = _part(exif, begin + 2, 12 * tf.maximum(count, 0))
    entries = tf.reshape(
        tf.cast(tf.io.decode_raw(entries, tf.uint8), tf.int32), (-1, 12)
    )
    # a row of zeros, which is what there is without any
    entries = tf.pad(entries, [[0, 1], [0, 0]])

    def shorts(column):
        first, second = entries[:, column], entries[:, column + 1]
        return tf.where(big, 256 * first + second, first + 256 * second)

    # the first entry of the tag, or else the first of all
    row = tf.argmax(shorts(0) == _TAG)
    tag, kind, value = (shorts(column)[row] for column in (0, 2, 8))
    valid = known & (size >= 8) & (tag == _TAG) & (kind == _SHORT)
    return tf.where(valid & (value >= 1) & (value <= 8), value, 1)


def _jpeg_exif(encoded):
    """Finds the first APP1 segment of EXIF, before the first scan."""
    size = _length(encoded)

    def at_marker(place, begin, count):
        marked = tf.equal(_part(encoded, place, 1), b"\xff")
        return (count < 0) & marked & (place + 4 <= size)

    def next_marker(place, begin, count):
        marker = _number(encoded, place + 1, 1, True)
        length = _number(encoded, place + 2, 2, True)
        fills = marker == 0xFF
        prefixed = tf.equal(_part(encoded, place + 4, 6), _PREFIX) & (length >= 8)
        found = (marker == 0xE1) & prefixed
        # the end, or a scan
        ends = (marker == 0xD9) | (marker == 0xDA) | (length < 2)
        count = tf.where(ends & ~fills, tf.zeros_like(count), count)
        count = tf.where(found, length - 2, count)
        return (
            place + tf.where(fills, tf.ones_like(length), 2 + length),
            place + 4,
            count,
        )

    return _search(encoded, at_marker, next_marker, 2)


def _chunk(encoded, place, big, name, name_at, frame, even):
    """Finds the first chunk of a name; `frame` bytes of each are not content."""
    size = _length(encoded)

    def at_chunk(place, begin, count):
        return (count < 0) & (place + 8 <= size)

    def next_chunk(place, begin, count):
        length = _number(encoded, place + 4 - name_at, 4, big)
        found = tf.equal(_part(encoded, place + name_at, 4), name)
        count = tf.where(found, length, count)
        return place + frame + -(-length // even) * even, place + 8, count

    return _search(encoded, at_chunk, next_chunk, place)


def _search(encoded, is_at, go_on, place):
    """Loops over `(place, begin of content, its length, -1 until found)`."""
    start = tuple(tf.constant(number, tf.int64) for number in (place, 0, -1))
    _, begin, count = tf.while_loop(is_at, go_on, start, maximum_iterations=MOST_PARTS)
    return _part(encoded, begin, tf.maximum(count, tf.constant(0, tf.int64)))


def _number(encoded, begin, length, big):
    """Reads an unsigned number; past the end bytes are 0."""
    padded = _part(encoded, begin, length) + b"\0" * length
    numbers = tf.io.decode_raw(tf.strings.substr(padded, 0, length), tf.uint8)
    numbers = tf.where(big, numbers[::-1], numbers)
    powers = tf.constant([256**power for power in range(length)], tf.int64)
    return tf.reduce_sum(tf.cast(numbers, tf.int64) * powers)


def _length(encoded):
    return tf.cast(tf.strings.length(encoded), tf.int64)


def _part(encoded, begin, length):
    """Returns bytes at a place; past the end there are none."""
    begin = tf.minimum(tf.cast(begin, tf.int64), _length(encoded))
    return tf.strings.substr(encoded, begin, tf.cast(length, tf.int64))
