"""Decoding: Pillow's pixels in every format, windows, and unsupported images."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_mae import data
from keras_mae.data.augmentation import resize_and_flip
from keras_mae.data.decoding import decode, decode_window
from keras_mae.data.random_crop import random_window
from tests.pictures import encode

skimage = pytest.importorskip("skimage")

PHOTO = skimage.data.astronaut()[:101, :143]
RGB = Image.fromarray(PHOTO)
RGBA = RGB.copy()
RGBA.putalpha(RGB.convert("L"))
TURNED = {"save_all": True, "append_images": [RGBA.rotate(90)]}
ENCODED = {
    "png": encode(RGB),
    "png_grey": encode(RGB.convert("L")),
    "png_grey_alpha": encode(RGBA.convert("LA")),
    "png_palette": encode(RGB.convert("P")),
    "png_alpha": encode(RGBA),
    "png_bits": encode(RGB.convert("1")),
    "bmp": encode(RGB, "bmp"),
    "bmp_grey": encode(RGB.convert("L"), "bmp"),
    "bmp_palette": encode(RGB.quantize(17), "bmp"),
    "bmp_alpha": encode(RGBA, "bmp"),
    "webp": encode(RGB, "webp"),
    "webp_lossless": encode(RGB, "webp", lossless=True),
    "webp_alpha": encode(RGBA, "webp", lossless=True, exact=True),
    "webp_animated": encode(RGBA, "webp", lossless=True, exact=True, **TURNED),
    "jpeg": encode(RGB, "jpg", subsampling=0),
    "jpeg_subsampled": encode(RGB, "jpg"),
    "jpeg_progressive": encode(RGB, "jpg", progressive=True),
    "jpeg_grey": encode(RGB.convert("L"), "jpg"),
    "jpeg_cmyk": encode(RGB.convert("CMYK"), "jpg"),
    "gif": encode(RGB, "gif"),
}


def pillow(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def random_windows(seed, count=20):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        height, width = rng.integers(1, 102), rng.integers(1, 144)
        top, left = rng.integers(0, 102 - height), rng.integers(0, 144 - width)
        yield top, left, height, width


@pytest.mark.parametrize("name", ENCODED)
def test_pixels_are_pillows(name):
    np.testing.assert_array_equal(decode(ENCODED[name]), pillow(ENCODED[name]))


def test_cmyk_with_black_is_a_level_off_at_most():
    """TensorFlow cuts off where Pillow rounds; it gives no CMYK to convert anew."""
    levels = np.random.default_rng(0).integers(0, 256, (64, 64, 4), "uint8")
    content = encode(Image.fromarray(levels, "CMYK"), "jpg")
    off = np.abs(decode(content).numpy().astype(int) - pillow(content))
    assert off.max() == 1


def test_sixteen_bits_are_shortened():
    levels = np.arange(65536, dtype="uint16").reshape(256, 256)
    wanted = np.repeat((levels >> 8)[..., None], 3, axis=-1)
    np.testing.assert_array_equal(decode(encode(levels)), wanted)


@pytest.mark.parametrize("name", ENCODED)
def test_windows_are_parts_of_the_whole(name):
    whole = decode(ENCODED[name]).numpy().astype(int)
    differences = []
    for top, left, height, width in random_windows(0):
        part = decode_window(
            ENCODED[name],
            lambda _, t=top, y=left, h=height, w=width: ([t, y, 0], [h, w, -1]),
        )
        wanted = whole[top : top + height, left : left + width]
        differences.append(np.abs(part.numpy().astype(int) - wanted).ravel())
    differences = np.concatenate(differences)
    if name in ("jpeg_subsampled", "jpeg_progressive"):
        # colours of half the size are interpolated from those inside the window
        assert differences.max() <= 16 and np.mean(differences > 0) < 0.01
    else:
        assert not differences.any()


@pytest.mark.parametrize("name", ["jpeg", "png", "webp", "bmp"])
def test_crops_of_encoded_images_are_those_of_arrays(name):
    for number in range(5):
        seed = [0, number]
        window = decode_window(
            ENCODED[name], lambda shape, seed=seed: random_window(shape, seed)
        )
        np.testing.assert_array_equal(
            resize_and_flip(window, (32, 32), seed),
            data.random_resized_crop(pillow(ENCODED[name]), (32, 32), seed),
        )


@pytest.mark.parametrize("tail", [b"\0", b"\0" * 99, b"appended"])
def test_what_follows_a_jpeg_is_ignored(tail):
    part = decode_window(ENCODED["jpeg"] + tail, lambda _: ([3, 4, 0], [5, 6, 3]))
    np.testing.assert_array_equal(part, pillow(ENCODED["jpeg"])[3:8, 4:10])


@pytest.mark.parametrize("cut", [2, 9, 1000])
@pytest.mark.parametrize("name", sorted(ENCODED))
def test_images_that_break_off_are_refused(name, cut):
    with pytest.raises(tf.errors.OpError):
        # the first rows alone would still be there
        decode_window(ENCODED[name][:-cut], lambda _: ([0, 0, 0], [2, 3, 3]))


def refused():
    compressed = bytearray(ENCODED["bmp_palette"])
    compressed[30] = 1
    animated = encode(RGB, "webp", **{**TURNED, "append_images": [RGB.rotate(90)]})
    return {
        "bmp_bits": encode(RGB.convert("1"), "bmp"),
        "bmp_compressed": bytes(compressed),
        "bmp_header": ENCODED["bmp"][:20],
        "webp_animated_without_alpha": animated,
        "webp_header": ENCODED["webp"][:14],
        "text": b"text",
        "nothing": b"",
    }


@pytest.mark.parametrize("name", refused())
def test_what_tensorflow_would_misread_is_refused(name):
    with pytest.raises(tf.errors.OpError):
        decode(refused()[name])
