"""Decodes JPEG, PNG, WebP, BMP and a GIF's first frame to RGB in a graph.

The format is detected from the bytes, not from the file's name. Every image becomes
8-bit RGB: grey is repeated, alpha dropped, CMYK converted, 16 bits are shortened.
EXIF's orientation is not applied; `exif_orientation.py` decodes upright images. What
TensorFlow can't read is an error: BMPs of 1 or 4 bits or compressed, most animated
WebPs; so is an image whose header announces too many pixels, undecoded.
"""

import tensorflow as tf

from keras_mae.data.gif import decode_gif
from keras_mae.data.image_bytes import MOST_PIXELS, check_pixels, has, header, part

# as Pillow and PyTorch's loaders decode; TensorFlow's default trades quality for speed
_DCT = "INTEGER_ACCURATE"
# ITU-R 601 luma, in the fixed point of Pillow's convert("L")
_LUMA, _LUMA_BITS = (19595, 38470, 7471), 16


def decode(encoded, max_pixels=MOST_PIXELS):
    """Decodes a scalar string to `(H, W, 3)` uint8."""
    is_webp = tf.logical_and(has(encoded, 0, b"RIFF"), has(encoded, 8, b"WEBP"))
    kinds = [
        (tf.io.is_jpeg(encoded), lambda: _decode_jpeg(encoded, max_pixels)),
        (has(encoded, 0, b"BM"), lambda: _decode_bmp(encoded, max_pixels)),
        (has(encoded, 0, b"GIF8"), lambda: decode_gif(encoded, max_pixels)),
        (is_webp, lambda: _decode_webp(encoded, max_pixels)),
    ]
    image = tf.case(kinds, default=lambda: _decode_png(encoded, max_pixels))
    return tf.ensure_shape(image, (None, None, 3))


def decode_window(encoded, window):
    """Decodes a part, `begin, size = window(shape)`; of a JPEG nothing else."""

    def part_of_jpeg():
        begin, size = window(_jpeg_shape(encoded, MOST_PIXELS))
        part = tf.concat([begin[:2], size[:2]], axis=0)
        return tf.image.decode_and_crop_jpeg(encoded, part, 3, dct_method=_DCT)

    def part_of_whole():
        image = decode(encoded)
        return tf.slice(image, *window(tf.shape(image)))

    # Decoding a part does not notice that the file ends after it. A JPEG whose last
    # bytes are not its end marker is truncated, or something was appended: decoding it
    # as a whole fails in the first case only.
    end = tf.maximum(tf.strings.length(encoded) - 2, 0)
    complete = has(encoded, end, b"\xff\xd9")
    image = tf.cond(
        tf.logical_and(tf.io.is_jpeg(encoded), complete), part_of_jpeg, part_of_whole
    )
    return tf.ensure_shape(image, (None, None, 3))


def to_luma(image):
    """Turns colours into grey: `(H, W, 3)` to `(H, W, 1)` uint8."""
    sums = tf.linalg.matvec(tf.cast(image, tf.int32), _LUMA)
    grey = tf.bitwise.right_shift(sums + (1 << (_LUMA_BITS - 1)), _LUMA_BITS)
    return tf.cast(grey, tf.uint8)[..., None]  # (H, W, 1)


def checked_png(encoded, max_pixels=MOST_PIXELS):
    """Returns a PNG, or an error if its header announces more than `max_pixels`."""
    sizes = tf.io.decode_raw(header(encoded, 16, 8), tf.int32, little_endian=False)
    with tf.control_dependencies([check_pixels(max_pixels, sizes[0], sizes[1])]):
        return tf.identity(encoded)


def _decode_jpeg(encoded, max_pixels):
    with tf.control_dependencies([_jpeg_shape(encoded, max_pixels)]):
        return tf.io.decode_jpeg(encoded, 3, dct_method=_DCT)


def _jpeg_shape(encoded, max_pixels):
    shape = tf.image.extract_jpeg_shape(encoded)
    with tf.control_dependencies([check_pixels(max_pixels, shape[0], shape[1])]):
        return tf.identity(shape)


def _decode_png(encoded, max_pixels):
    # decode_image itself raises on anything else
    is_png = has(encoded, 0, b"\x89PNG")
    encoded = tf.cond(
        is_png, lambda: checked_png(encoded, max_pixels), lambda: tf.identity(encoded)
    )
    return tf.io.decode_image(encoded, 3, expand_animations=False)


def _decode_webp(encoded, max_pixels):
    """Decodes a WebP; of an animated one the first frame, which must have alpha."""
    extended = has(encoded, 12, b"VP8X")
    flags = tf.io.decode_raw(header(encoded, 20, 1), tf.uint8)[0]
    animated = tf.logical_and(extended, flags & 2 > 0)
    width, height = _webp_size(encoded)

    def frames():
        count = tf.size(tf.strings.split(encoded, b"ANMF")) - 1
        with tf.control_dependencies([check_pixels(max_pixels, width, height, count)]):
            return tf.image.decode_webp(encoded, 4)

    def alone():
        with tf.control_dependencies([check_pixels(max_pixels, width, height)]):
            return tf.image.decode_webp(encoded, 0)

    # 0: the image's own channels, as 3 is an error with alpha. Of an animation without
    # alpha TensorFlow then writes past its buffer; 4 is an error.
    image = tf.cond(animated, frames, alone)
    return image[0, ..., :3]  # (H, W, 3)


def _webp_size(encoded):
    """Returns width and height of a WebP's canvas, int64; its first chunk has them."""

    def number(begin, bits, shift=0):
        found = tf.io.decode_raw(header(encoded, begin, 8), tf.int64)[0]
        return (found // 2**shift) % 2**bits

    kinds = [
        (has(encoded, 12, b"VP8X"), lambda: (number(24, 24) + 1, number(27, 24) + 1)),
        (
            has(encoded, 12, b"VP8L"),
            lambda: (number(21, 14) + 1, number(21, 14, shift=14) + 1),
        ),
        (has(encoded, 12, b"VP8 "), lambda: (number(26, 14), number(28, 14))),
    ]

    def unknown():
        check = tf.debugging.Assert(False, ["WebP: no image in the first chunk"])
        with tf.control_dependencies([check]):
            return tf.zeros((), tf.int64), tf.zeros((), tf.int64)

    return tf.case(kinds, default=unknown)


def _decode_bmp(encoded, max_pixels):
    """Decodes a BMP of 24 or 32 bits, or of 8 with a palette, uncompressed."""
    fields = tf.io.decode_raw(header(encoded, 10, 24), tf.int32)
    begin, header_size, compression = fields[0], fields[1], fields[5]
    # TensorFlow checks neither: it would return other pixels
    checks = [
        tf.debugging.assert_greater_equal(header_size, 40),
        # 3: bit masks of 32 bits, usually in this order
        tf.debugging.assert_equal(compression % 3, 0),
        # a negative height: the first row is on top
        check_pixels(max_pixels, fields[2], tf.abs(tf.cast(fields[3], tf.int64))),
    ]
    with tf.control_dependencies(checks):
        image = tf.io.decode_bmp(encoded)

    def look_up():
        palette_begin = 14 + header_size
        palette = part(encoded, palette_begin, begin - palette_begin)
        palette = tf.reshape(tf.io.decode_raw(palette, tf.uint8), (-1, 4))  # B, G, R, 0
        return tf.gather(palette[:, 2::-1], tf.cast(image[..., 0], tf.int32))

    return tf.cond(tf.shape(image)[-1] == 1, look_up, lambda: image[..., :3])
