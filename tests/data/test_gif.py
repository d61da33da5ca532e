"""A GIF's first frame: the pixels of Pillow, whatever its canvas and palette."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_mae.data.decoding import decode
from keras_mae.data.gif import decode_gif
from keras_mae.preprocessing.image_decoding import decode_image

LIMIT = 1_000_000


def gif(seed=0, colors=100, size=(50, 40), **options):
    """Writes a GIF of one frame."""
    levels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), "uint8")
    file = io.BytesIO()
    Image.fromarray(levels).quantize(colors).save(file, "GIF", **options)
    return file.getvalue()


def moved(content, left, top, width, height, size=(50, 40)):
    """Moves a GIF's frame on another canvas."""
    content = bytearray(content)
    begin = content.index(
        b",\0\0\0\0" + b"".join(n.to_bytes(2, "little") for n in size)
    )
    for place, number in (
        (6, width),
        (8, height),
        (begin + 1, left),
        (begin + 3, top),
    ):
        content[place : place + 2] = number.to_bytes(2, "little")
    return bytes(content)


def animation():
    frames = [Image.open(io.BytesIO(gif(seed))) for seed in range(3)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], loop=0)
    return file.getvalue()


def grey():
    file = io.BytesIO()
    Image.fromarray(np.arange(200, dtype="uint8").reshape(10, 20)).save(file, "GIF")
    return file.getvalue()


def without_palette(content):
    """Cuts the palette of 256 colours out."""
    assert content[10] == 0x87
    return content[:10] + b"\x70" + content[11:13] + content[13 + 768 :]


GIFS = {
    "plain": gif(),
    "transparent": gif(transparency=3),
    "offset": moved(gif(), 5, 7, 70, 60),
    "offset and transparent": moved(gif(transparency=9), 5, 7, 70, 60),
    "beyond the canvas": moved(gif(transparency=9), 30, 30, 50, 40),
    "three colours": gif(colors=3),
    "interlaced": gif(interlace=1),
    "comment": gif(comment=b"words" * 500),
    "animated": animation(),
    "grey": grey(),
    "no palette": without_palette(gif(colors=256)),
    "many blocks": gif(size=(500, 400)),
}


@pytest.fixture(scope="module")
def decoder():
    signature = [tf.TensorSpec((), tf.string)]
    return tf.function(
        lambda content: decode(content, LIMIT), signature, autograph=False
    )


@pytest.mark.parametrize("name", GIFS)
def test_pixels_are_pillows(decoder, name):
    wanted = decode_image(GIFS[name], 3)
    np.testing.assert_array_equal(decoder(GIFS[name]), wanted)


def broken():
    plain = gif()
    begin = plain.index(b",\0\0\0\0")
    return {
        "no image": plain[:begin] + b";",
        "no end": plain[:-200],
        "unknown block": plain[:begin] + b"x" + plain[begin:],
        "no pixels": plain[: begin + 5] + b"\0\0" + plain[begin + 7 :],
        "a canvas of 4 gigapixels": moved(plain, 0, 0, 65535, 65535),
        "a large frame": plain[: begin + 5] + b"\xff" * 4 + plain[begin + 9 :],
        "a frame far away": moved(plain, 65000, 65000, 50, 40),
        "extensions without end": plain[:begin] + b"!\xfe\0" * 20_000,
        "many blocks in many extensions": plain[:begin]
        + (b"!\xfe" + b"\1-\2--" * 50 + b"\0") * 150
        + plain[begin:],
        "header alone": b"GIF89a",
    }


@pytest.mark.parametrize("name", broken())
def test_what_is_broken_or_too_large_is_refused(decoder, name):
    with pytest.raises(tf.errors.InvalidArgumentError):
        decoder(broken()[name])


def test_frames_after_the_first_are_not_decoded():
    """They are cut off: of a broken one nothing is said."""
    content = gif()[:-1] + b",\0\0\0\0\xff\xff\xff\xff\0\x08"
    np.testing.assert_array_equal(decode_gif(content, LIMIT), decode_image(gif(), 3))
