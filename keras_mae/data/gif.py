"""Decodes a GIF's first frame in a graph, as Pillow does.

TensorFlow decodes every frame to return the first, crops the canvas to it, and paints
transparent pixels black. Here the first frame alone is written to a GIF of its own,
without transparency, and pasted to the canvas afterwards.
"""

import tensorflow as tf

from keras_mae.data.image_bytes import check_pixels, part

# Pillow paints colours that a palette lacks as grey
_GREY = bytes(level for level in range(256) for _ in range(3))
# blocks of one size are skipped at once, so many at most; in a file so many such runs,
# of all extensions and the image together
_BLOCKS, _RUNS = 4096, 10_000


def decode_gif(encoded, max_pixels):
    """Decodes the first frame on its canvas: a scalar string to `(H, W, 3)` uint8."""
    data = tf.io.decode_raw(encoded, tf.uint8)
    screen = _numbers(data, 6)
    global_begin, global_length = 13, _palette_length(data[10])
    begin, transparent, runs = _find_image(data, global_begin + global_length)
    place, size, flags = _numbers(data, begin + 1), _numbers(data, begin + 5), begin + 9
    canvas = tf.maximum(screen, place + size)  # width, height
    local_length = _palette_length(data[flags])
    raster = flags + 1 + local_length
    checks = [
        check_pixels(max_pixels, canvas[0], canvas[1]),
        tf.debugging.Assert(tf.reduce_all(size > 0), ["GIF: a frame without pixels"]),
    ]
    with tf.control_dependencies(checks):
        # a byte before the blocks: the size of LZW codes
        end = _skip_blocks(data, raster + 1, runs)[0] + 1
    has_own = local_length > 0
    palette = part(
        encoded,
        tf.where(has_own, flags + 1, global_begin),
        tf.where(has_own, local_length, global_length),
    )
    palette += part(_GREY, tf.strings.length(palette), len(_GREY))
    sizes = part(encoded, begin + 5, 4)
    interlaced = tf.where(data[flags] & 0x40 > 0, b"\x40", b"\0")
    frame = tf.strings.join(
        [
            *(b"GIF89a", sizes, b"\xf7\0\0", palette),
            *(b",\0\0\0\0", sizes, interlaced),
            *(part(encoded, raster, end - raster), b";"),
        ]
    )
    image = tf.image.decode_gif(frame)[0]  # (h, w, 3)
    return _paste(image, place, canvas, palette, transparent)


def _paste(image, place, canvas, palette, transparent):
    """Pastes a frame on a canvas of the transparent colour, or of the first one."""
    colour = tf.io.decode_raw(part(palette, 3 * transparent, 3), tf.uint8)
    # not [1::-1], on which the layout optimizer fails
    after = canvas - place - tf.gather(tf.shape(image), [1, 0])
    columns, rows = tf.unstack(tf.stack([place, after], axis=-1))
    paddings = tf.stack([rows, columns, [0, 0]])
    # so that the zeros of the padding become the colour
    image = tf.pad(tf.bitwise.bitwise_xor(image, colour), paddings)
    return tf.bitwise.bitwise_xor(image, colour)  # (H, W, 3)


def _find_image(data, begin):
    """Skips extensions; returns the image's place, its transparent index, runs left."""

    def skip_extension(place, transparent, runs):
        check = tf.debugging.Assert(
            tf.equal(data[place], ord("!")), ["GIF: no image in the file"]
        )
        with tf.control_dependencies([check]):
            is_control = tf.equal(data[place + 1], 0xF9)
        # label, block size, flags, delay (2), transparent index
        flagged = tf.logical_and(is_control, data[place + 3] & 1 > 0)
        index = tf.cond(
            flagged, lambda: tf.cast(data[place + 6], tf.int32), lambda: transparent
        )
        # an extension without blocks counts too
        place, runs = _skip_blocks(data, place + 2, runs - 1)
        return place + 1, index, runs

    return tf.while_loop(
        lambda place, *_: tf.not_equal(data[place], ord(",")),
        skip_extension,
        (begin, 0, _RUNS),
    )


def _skip_blocks(data, begin, runs):
    """Returns the place of the empty block after those at `begin`, and runs left."""

    def skip_run(place):
        # most blocks are of one size
        size = tf.cast(data[place], tf.int32)
        stop = place + _BLOCKS * (size + 1)
        sizes = tf.strided_slice(data, [place], [stop], [size + 1])
        same = tf.cast(tf.equal(tf.cast(sizes, tf.int32), size), tf.int32)
        return place + tf.reduce_sum(tf.math.cumprod(same)) * (size + 1)

    place, runs = tf.while_loop(
        lambda place, runs: tf.logical_and(data[place] > 0, runs > 0),
        lambda place, runs: (skip_run(place), runs - 1),
        (begin, runs),
    )
    ended = tf.logical_and(tf.equal(data[place], 0), runs >= 0)
    check = tf.debugging.Assert(ended, ["GIF: too many blocks"])
    with tf.control_dependencies([check]):
        return tf.identity(place), runs


def _palette_length(flags):
    """Returns the bytes of a palette, int32; 0 if the flags say that there is none."""
    length = 3 * tf.bitwise.left_shift(2, tf.cast(flags & 7, tf.int32))
    return tf.where(flags & 0x80 > 0, length, 0)


def _numbers(data, begin):
    """Reads two numbers of 16 bits, int32."""
    low, high = data[begin : begin + 4 : 2], data[begin + 1 : begin + 4 : 2]
    numbers = tf.cast(low, tf.int32) + 256 * tf.cast(high, tf.int32)
    return tf.ensure_shape(numbers, (2,))
