"""Corrupted and lying images: the right picture or a clear error, wherever they come.

They go to the processor, to the decoder of served models and to a training pipeline.
Each is drawn from a seed. Many go through one test: each test makes TensorFlow forget
its functions, and prepare them again.
"""

import itertools
import logging
import random
import struct
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, features

import keras_mae
from keras_mae import data
from keras_mae.data import CorruptImages
from keras_mae.data.decoding import decode
from keras_mae.export.image_decoding import DEFAULT_MAX_PIXELS, decode_pixels
from tests.pictures import encode, processor_for

RNG = np.random.default_rng(0)
RGB = Image.fromarray(RNG.integers(0, 256, (6, 8, 3), "uint8"))
RGB = RGB.resize((61, 43), Image.Resampling.BICUBIC)
RGBA = RGB.copy()
RGBA.putalpha(RGB.convert("L"))
DEEP = Image.fromarray(RNG.integers(0, 65536, (20, 30)).astype("uint16"))
TURNED = Image.Exif()
TURNED[274] = 6
MORE = {"save_all": True, "append_images": [RGBA.rotate(90), RGBA.rotate(180)]}
SOUND = {
    "jpeg": encode(RGB, "jpg"),
    "jpeg, progressive": encode(RGB, "jpg", progressive=True),
    "jpeg, cmyk": encode(RGB.convert("CMYK"), "jpg"),
    "jpeg, turned by EXIF": encode(RGB, "jpg", exif=TURNED),
    "png": encode(RGB),
    "png, 16 bits": encode(DEEP),
    "png, transparent palette": encode(RGB.quantize(30), transparency=3),
    "png, grey with alpha": encode(RGBA.convert("LA")),
    "png, turned by EXIF": encode(RGB, exif=TURNED),
    "webp": encode(RGB, "webp"),
    "webp, lossless": encode(RGBA, "webp", lossless=True),
    "webp, animated": encode(RGBA, "webp", lossless=True, exact=True, **MORE),
    "bmp": encode(RGB, "bmp"),
    "bmp, palette": encode(RGB.quantize(17), "bmp"),
    "bmp, 32 bits": encode(RGBA, "bmp"),
    "gif": encode(RGB, "gif"),
    "gif, animated": encode(
        RGB.convert("P"), "gif", save_all=True, append_images=[RGB.rotate(90)]
    ),
    "one pixel": encode(RGB.resize((1, 1))),
    "one row": encode(RGB.resize((500, 1)), "jpg"),
}
PROCESSOR = keras_mae.MAEImageProcessor(16)
# the most that an image may take, whatever it promises
MEMORY, SECONDS = 800 * 2**20, 60


@pytest.fixture(scope="module")
def served():
    return tf.function(
        lambda image_bytes: decode_pixels(image_bytes, PROCESSOR),
        input_signature=[tf.TensorSpec((None,), tf.string)],
    )


def peak():
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def answer(function, content, kind, message, name):
    """Returns pixels, or `None` where the one documented error was raised."""
    try:
        # Pillow says what it thinks of a picture, and then reads it
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pixels = np.asarray(function(content))
    except kind as error:
        assert message in str(error), name
        return None
    assert pixels.shape == (1, 16, 16, 3) and np.isfinite(pixels).all(), name
    return pixels


def both(served, content, name):
    """Asks processor and served decoder; watches time and memory."""
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")  # the peak begins anew
        start = peak()
    begin = time.process_time()
    wanted = "An image must be a readable picture"
    ours = answer(PROCESSOR, content, ValueError, wanted, name)
    kind = tf.errors.InvalidArgumentError
    theirs = answer(lambda c: served(tf.constant([c])), content, kind, "", name)
    assert time.process_time() - begin < SECONDS, name
    if reset.exists():
        assert peak() - start < MEMORY, name
    return ours, theirs


@pytest.mark.slow
def test_sound_pictures_are_the_same_everywhere(served, tmp_path):
    for name, content in SOUND.items():
        ours, theirs = both(served, content, name)
        np.testing.assert_array_equal(ours, theirs, name)
        # the bytes say what it is, whatever the name
        path = tmp_path / "picture.jpg"
        path.write_bytes(content)
        np.testing.assert_array_equal(PROCESSOR(path), ours, name)


@pytest.mark.parametrize("name", ["jpeg", "png"])
def test_nothing_is_turned(name):
    lying = PROCESSOR(SOUND[f"{name}, turned by EXIF"])
    np.testing.assert_array_equal(lying, PROCESSOR(SOUND[name]))


def cut(content, rng):
    return content[: rng.randrange(len(content) - 2)]


def flip(content, rng, end=None):
    content = bytearray(content)
    for _ in range(rng.choice([1, 2, 8])):
        content[rng.randrange(min(end or len(content), len(content)))] ^= 1 << (
            rng.randrange(8)
        )
    return bytes(content)


def lie(content, rng):
    """Puts the largest and other odd numbers into a header."""
    content = bytearray(content)
    for _ in range(rng.choice([1, 2, 4])):
        content[rng.randrange(4, min(60, len(content)))] = rng.choice(
            [0, 127, 128, 255]
        )
    return with_sums(bytes(content))


def with_sums(content):
    """Corrects the check sums of a PNG, which would give a lie away."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return content
    out, place = content[:8], 8
    while place + 12 <= len(content):
        (size,) = struct.unpack(">I", content[place : place + 4])
        chunk = content[place + 4 : place + 8 + size]
        out += struct.pack(">I", size) + chunk + struct.pack(">I", zlib.crc32(chunk))
        place += 12 + size
    return out


WAYS = {
    "cut": cut,
    "flip": flip,
    "flip header": lambda content, rng: with_sums(flip(content, rng, 80)),
    "lie": lie,
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_corrupted_pictures(way, served):
    """Nineteen pictures, four ways, four times each."""
    read, count = 0, 4 * len(SOUND)
    for name, seed in itertools.product(SOUND, range(4)):
        case = f"{name}, {way} {seed}"
        ours, theirs = both(served, WAYS[way](SOUND[name], random.Random(case)), case)
        read += ours is not None
        if ours is not None and theirs is not None and way == "cut":
            # what both take to be whole, both read alike
            np.testing.assert_array_equal(ours, theirs, case)
    assert read < 2 * count / 3


@pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")
def test_formats_of_pillow_alone():
    """AVIF's reader raises errors of no kind that Pillow's others do."""
    content = encode(RGB, "avif")
    assert PROCESSOR(content).shape == (1, 16, 16, 3)
    refused = 0
    for seed in range(100):
        spoilt = flip(content, random.Random(seed))
        wanted = "An image must be a readable picture"
        refused += answer(PROCESSOR, spoilt, ValueError, wanted, seed) is None
    assert refused > 20


def png(width, height, rows=1, deep=False):
    """A PNG that promises a size, and holds some rows of zeros; deep: 16 bits, grey."""
    bits, colour, pixel = (16, 0, 2) if deep else (8, 2, 3)
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    packer, row = zlib.compressobj(), bytes(pixel * width + 1 if width < 10**6 else 1)
    data = b"".join(packer.compress(row) for _ in range(rows)) + packer.flush()
    parts = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(d)) + n + d + bytes(4) for n, d in parts]
    return with_sums(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def patched(name, place, data):
    content = bytearray(SOUND[name])
    content[place : place + len(data)] = data
    return bytes(content)


FRAME = SOUND["gif"].index(b"\x2c")
SOF = SOUND["jpeg"].index(b"\xff\xc0")
LIES = {
    "png of 2 ** 31 pixels a side": png(2**31 - 1, 2**31 - 1),
    "png of no pixels": png(0, 0),
    "png of 60000 pixels a side": png(60_000, 60_000),
    "png of a row without end": png(2**31 - 1, 1),
    "png of 60000 pixels a side, 16 bits": png(60_000, 60_000, deep=True),
    "jpeg of 65500 pixels a side": patched("jpeg", SOF + 5, b"\xff\xdc" * 2),
    "jpeg of no pixels": patched("jpeg", SOF + 5, bytes(4)),
    "bmp of 2 ** 31 pixels a side": patched("bmp", 18, b"\xff\xff\xff\x7f" * 2),
    "bmp of negative width": patched("bmp", 18, b"\xff\xff\xff\xff"),
    "bmp of no pixels": patched("bmp", 18, bytes(8)),
    "bmp whose pixels lie elsewhere": patched("bmp", 10, b"\xff\xff\xff\x7f"),
    "bmp whose pixels lie before it": patched("bmp, palette", 10, b"\xff\xff\xff\xff"),
    "bmp of a palette without end": patched("bmp, palette", 14, b"\xff\xff\xff\x7f"),
    "webp canvas of 2 ** 24 pixels a side": patched("webp, animated", 24, b"\xff" * 6),
    "webp canvas of 2 ** 24 columns": patched("webp, animated", 24, b"\xff\xff\xfe"),
    "webp of 16384 pixels a side": patched("webp, lossless", 21, b"\xff\xff\xff\x0f"),
    "webp of a size without end": patched("webp", 4, b"\xff" * 4),
    "gif of 65535 pixels a side": patched("gif", 6, b"\xff" * 4),
    "gif frame of 65535 pixels a side": patched("gif", FRAME + 5, b"\xff" * 4),
    "gif frame of no pixels": patched("gif", FRAME + 5, bytes(4)),
    "nothing": b"",
    "a text": b"this is no picture",
    "zeros": bytes(1000),
    "html": b"<!DOCTYPE html><html></html>",
    "only a mark, jpeg": b"\xff\xd8\xff",
    "only a mark, png": b"\x89PNG\r\n\x1a\n",
    "only a mark, gif": b"GIF89a",
    "only a mark, bmp": b"BM",
    "only a mark, webp": b"RIFF\0\0\0\0WEBPVP8X",
}


@pytest.mark.slow
def test_lying_pictures(served):
    for name, content in LIES.items():
        ours, theirs = both(served, content, name)
        assert theirs is None or ours is not None, name


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"x", LIES["a text"], LIES["html"], bytes(9999)])
def test_what_is_no_picture_is_said_to_be_none(content, served):
    with pytest.raises(tf.errors.InvalidArgumentError, match="Unknown image file"):
        served(tf.constant([content]))


def test_too_many_pixels_are_refused(served):
    names = ["webp canvas of 2 ** 24 columns", "gif of 65535 pixels a side"]
    names += ["png of 60000 pixels a side", "jpeg of 65500 pixels a side"]
    names += ["png of 60000 pixels a side, 16 bits"]
    for name in names:
        with pytest.raises(
            tf.errors.InvalidArgumentError, match=str(DEFAULT_MAX_PIXELS)
        ):
            served(tf.constant([LIES[name]]))


@pytest.mark.parametrize("kind", ["png", "bmp"])
def test_a_side_longer_than_any_jpegs_is_refused(served, kind):
    """Resizing takes memory for each pixel of a side, however narrow the image."""
    for size in ((65_536, 1), (1, 65_536)):
        content = encode(Image.new("RGB", size), kind)
        with pytest.raises(ValueError, match="at most 65535 pixels"):
            PROCESSOR(content)
        with pytest.raises(tf.errors.InvalidArgumentError, match="most 65535 pixels"):
            served(tf.constant([content]))
        with pytest.raises(tf.errors.InvalidArgumentError, match="most 65535 pixels"):
            decode(content)
    ours, theirs = both(served, encode(Image.new("RGB", (65_535, 1)), kind), kind)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_a_picture_that_unpacks_to_too_much(served):
    """A PNG of 600 kB that would be 600 MB is refused by both, of 16 bits as well."""
    for deep in (False, True):
        content = png(14_000, 14_000, rows=14_000, deep=deep)
        assert len(content) < 10**6
        assert both(served, content, f"bomb, deep: {deep}") == (None, None)


def spoilt_pictures():
    """Yields 200 pictures, most of them spoilt."""
    for number, (name, content) in enumerate(list(SOUND.items()) * 11):
        way = list(WAYS)[number % len(WAYS)]
        yield WAYS[way](content, random.Random(f"{name}{number}"))
    yield from LIES.values()


@pytest.mark.slow
def test_a_training_reads_past_them(tmp_path, caplog):
    """Two hundred and more in one folder, beside twenty that are sound."""
    for number, content in enumerate(spoilt_pictures()):
        (tmp_path / f"spoilt-{number:03}.jpg").write_bytes(content)
    for number in range(20):
        (tmp_path / f"sound-{number:03}.png").write_bytes(SOUND["png"])
    source = data.load_source(f"folder:{tmp_path}", held_out="photos")
    assert source.epoch_size > 220
    corrupt = CorruptImages(limit=source.epoch_size)
    pipeline = data.training_pipeline(
        source, processor_for(source), source.epoch_size // 4, 0, corrupt=corrupt
    )
    with caplog.at_level(logging.WARNING, "keras_mae"):
        batches = list(pipeline.take(4).as_numpy_iterator())
    assert np.isfinite(batches).all()
    assert 100 < corrupt.count < source.epoch_size - 20
    assert all("spoilt" in name for name in corrupt.names)
    for name in corrupt.names:  # each is named, once
        assert caplog.text.count(name) == 1
    corrupt.check()
    with pytest.raises(ValueError, match="At most 99 corrupt"):
        strict = CorruptImages(limit=99)
        for name in corrupt.names:
            strict.report(name)
        strict.check()
