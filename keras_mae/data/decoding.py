"""Decodes JPEG, PNG, WebP, BMP and a GIF's first frame to RGB in a graph.

The format is detected from the bytes, not from the file's name. Every image becomes
8-bit RGB: grey is repeated, alpha dropped, CMYK converted, 16 bits are shortened.
EXIF's orientation is not applied; `exif_orientation.py` decodes upright images. What
TensorFlow can't read is an error: BMPs of 1 or 4 bits or compressed, most animated
WebPs; so is a decompression bomb.
"""

import tensorflow as tf

# Pillow's limit for decompression bombs; TensorFlow's is higher, and counts one frame
# of an animation
MOST_PIXELS = 178_956_970
# as Pillow and PyTorch's loaders decode; TensorFlow's default trades quality for speed
_DCT = "INTEGER_ACCURATE"


def decode(encoded):
    """Decodes a scalar string to `(H, W, 3)` uint8."""
    kinds = [
        (tf.io.is_jpeg(encoded), lambda: _decode_jpeg(encoded)),
        (has(encoded, 0, b"BM"), lambda: _decode_bmp(encoded)),
        (has(encoded, 8, b"WEBP"), lambda: _decode_webp(encoded)),
    ]
    image = tf.case(kinds, default=lambda: _decode_png_or_gif(encoded))
    return tf.ensure_shape(image, (None, None, 3))


def decode_window(encoded, window):
    """Decodes a part, `begin, size = window(shape)`; of a JPEG nothing else."""

    def part_of_jpeg():
        begin, size = window(_jpeg_shape(encoded))
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


def checked_png(encoded):
    """Returns a PNG, or an error if its header claims more than `MOST_PIXELS`."""
    sizes = tf.io.decode_raw(_header(encoded, 16, 8), tf.int32, little_endian=False)
    with tf.control_dependencies([_check_pixels(sizes[0], sizes[1])]):
        return tf.identity(encoded)


def has(encoded, begin, magic):
    """Whether certain bytes stand at a place; false past the end."""
    return tf.equal(_part(encoded, begin, len(magic)), magic)


def _decode_jpeg(encoded):
    with tf.control_dependencies([_jpeg_shape(encoded)]):
        return tf.io.decode_jpeg(encoded, 3, dct_method=_DCT)


def _jpeg_shape(encoded):
    shape = tf.image.extract_jpeg_shape(encoded)
    with tf.control_dependencies([_check_pixels(shape[0], shape[1])]):
        return tf.identity(shape)


def _decode_png_or_gif(encoded):
    kinds = [
        (has(encoded, 0, b"GIF8"), lambda: _checked_gif(encoded)),
        (has(encoded, 0, b"\x89PNG"), lambda: checked_png(encoded)),
    ]
    # decode_image itself raises on anything else
    encoded = tf.case(kinds, default=lambda: tf.identity(encoded))
    return tf.io.decode_image(encoded, 3, expand_animations=False)


def _checked_gif(encoded):
    sizes = tf.io.decode_raw(_header(encoded, 6, 4), tf.uint16)  # width, height
    with tf.control_dependencies([_check_pixels(sizes[0], sizes[1])]):
        return tf.identity(encoded)


def _decode_webp(encoded):
    """Decodes a WebP; of an animated one the first frame, which must have alpha."""
    extended = has(encoded, 12, b"VP8X")
    flags = tf.io.decode_raw(_header(encoded, 20, 1), tf.uint8)[0]
    animated = tf.logical_and(extended, flags & 2 > 0)

    def frames():
        # 24 bits each, one less than the size
        canvas = tf.io.decode_raw(_header(encoded, 24, 6), tf.uint8)
        canvas = tf.reshape(tf.cast(canvas, tf.int64), (2, 3))  # width, height
        canvas = tf.reduce_sum(canvas * tf.constant([1, 2**8, 2**16], tf.int64), axis=1)
        count = tf.size(tf.strings.split(encoded, b"ANMF")) - 1
        check = _check_pixels(canvas[0] + 1, canvas[1] + 1, count)
        with tf.control_dependencies([check]):
            return tf.image.decode_webp(encoded, 4)

    # 0: the image's own channels, as 3 is an error with alpha. Of an animation without
    # alpha TensorFlow then writes past its buffer; 4 is an error.
    image = tf.cond(animated, frames, lambda: tf.image.decode_webp(encoded, 0))
    return image[0, ..., :3]  # (H, W, 3)


def _decode_bmp(encoded):
    """Decodes a BMP of 24 or 32 bits, or of 8 with a palette, uncompressed."""
    header = tf.io.decode_raw(_header(encoded, 10, 24), tf.int32)
    begin, header_size, compression = header[0], header[1], header[5]
    # TensorFlow checks neither: it would return other pixels
    checks = [
        tf.debugging.assert_greater_equal(header_size, 40),
        # 3: bit masks of 32 bits, usually in this order
        tf.debugging.assert_equal(compression % 3, 0),
    ]
    with tf.control_dependencies(checks):
        image = tf.io.decode_bmp(encoded)

    def look_up():
        palette_begin = 14 + header_size
        palette = _part(encoded, palette_begin, begin - palette_begin)
        palette = tf.reshape(tf.io.decode_raw(palette, tf.uint8), (-1, 4))  # B, G, R, 0
        return tf.gather(palette[:, 2::-1], tf.cast(image[..., 0], tf.int32))

    return tf.cond(tf.shape(image)[-1] == 1, look_up, lambda: image[..., :3])


def _check_pixels(width, height, frames=1):
    sizes = [tf.cast(size, tf.int64) for size in (width, height, frames)]
    return tf.debugging.assert_less_equal(
        tf.reduce_prod(sizes),
        tf.constant(MOST_PIXELS, tf.int64),
        f"all frames together must have at most {MOST_PIXELS} pixels",
    )


def _header(encoded, begin, length):
    """Returns bytes at a place; past the end they are 0, as in no image."""
    padded = _part(encoded, begin, length) + b"\0" * length
    return tf.strings.substr(padded, 0, length)


def _part(encoded, begin, length):
    """Returns bytes at a place; past the end there are none."""
    # substr's own error would quote all bytes, which Python can't decode
    begin = tf.minimum(begin, tf.strings.length(encoded))
    return tf.strings.substr(encoded, begin, length)
