"""Decoding and resizing in a graph: bit-equal to MAEImageProcessor and Pillow."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import keras_mae
from keras_mae.data.tfrecord import image_example
from keras_mae.export.image_decoding import (
    decode_examples,
    decode_pixels,
)
from keras_mae.export.pillow_resize import resize_like_pillow

MODES = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
# (height, width): odd, tiny and flat ones, tall ones, whose columns Pillow resizes
# first, and what a filter divides evenly
SIZES = [
    *[(1, 1), (1, 2), (2, 1), (3, 500), (500, 3), (5, 3), (31, 33), (32, 32)],
    *[(400, 20), (900, 300), (300, 200), (479, 641), (750, 1000)],
    *[(64, 64), (255, 257), (256, 1024)],
]
RANDOM_SIZES = np.random.default_rng(0).integers(1, 400, (25, 2)).tolist()


def resize(resample, size, channels=3):
    return tf.function(
        lambda image: resize_like_pillow(image, size, resample),
        input_signature=[tf.TensorSpec((None, None, channels), tf.uint8)],
    )


def noise(height, width, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, channels), "uint8")


@pytest.mark.slow
@pytest.mark.parametrize("resample", MODES)
@pytest.mark.parametrize("size", [(32, 32), (224, 224), (17, 96)])
def test_resizing_is_pillows_to_the_bit(resample, size):
    function = resize(resample, size)
    for height, width in [*SIZES, *RANDOM_SIZES]:
        image = noise(height, width)
        wanted = Image.fromarray(image).resize(size[::-1], MODES[resample])
        np.testing.assert_array_equal(function(image), wanted, str(image.shape))


@pytest.mark.slow
@pytest.mark.parametrize("resample", MODES)
def test_a_photo_of_12_megapixels_is_pillows_to_the_bit(resample):
    # black and white: what cubic weights overshoot is cut off
    image = noise(3000, 4000) // 128 * 255
    wanted = Image.fromarray(image).resize((224, 224), MODES[resample])
    got = resize(resample, (224, 224))(image)
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("resample", MODES)
def test_a_weight_that_lies_between_two_numbers_is_rounded_as_pillow_does(resample):
    # a scale of 2 ** 11: weights are odd multiples of 2 ** -23
    image = noise(1, 2**12, 1)
    wanted = Image.fromarray(image[..., 0]).resize((2, 1), MODES[resample])
    got = resize(resample, (1, 2), 1)(image)
    np.testing.assert_array_equal(got[..., 0], wanted)


def test_another_filter_is_refused():
    with pytest.raises(ValueError, match=r"bilinear, bicubic. Received: 'lanczos'"):
        resize_like_pillow(tf.zeros((2, 2, 3), tf.uint8), (1, 1), "lanczos")


def encoded_pictures():
    """Yields names and bytes of pictures of every format and mode."""
    small = Image.fromarray(noise(9, 12)).resize((133, 77), Image.Resampling.BICUBIC)
    alpha = small.convert("RGBA")
    alpha.putalpha(Image.fromarray(noise(77, 133, 1)[..., 0]))
    deep = Image.fromarray((noise(50, 60, 2).view("uint16"))[..., 0])

    def encode(image, kind, **options):
        file = io.BytesIO()
        image.save(file, kind, **options)
        return file.getvalue()

    for quality in (50, 75, 95):
        for subsampling in (0, 1, 2):
            options = {"quality": quality, "subsampling": subsampling}
            yield f"JPEG {options}", encode(small, "JPEG", **options)
    yield "JPEG, progressive", encode(small, "JPEG", progressive=True)
    for mode in ("L", "CMYK"):
        yield f"JPEG {mode}", encode(small.convert(mode), "JPEG")
    for mode in ("RGB", "L", "P", "1"):
        yield f"PNG {mode}", encode(small.convert(mode), "PNG")
    for mode in ("RGBA", "LA"):
        yield f"PNG {mode}", encode(alpha.convert(mode), "PNG")
    transparent = encode(small.quantize(30), "PNG", transparency=3)
    yield "PNG, a palette with a transparent colour", transparent
    yield "PNG, grey of 16 bits", encode(deep, "PNG")
    colours = noise(20, 30, 6).view("uint16")
    yield "PNG, colours of 16 bits", tf.io.encode_png(colours).numpy()
    yield "WebP", encode(small, "WEBP")
    yield "WebP, lossless", encode(small, "WEBP", lossless=True)
    yield "WebP, alpha", encode(alpha, "WEBP")
    for mode in ("RGB", "L", "P"):
        yield f"BMP {mode}", encode(small.convert(mode), "BMP")
    yield "GIF", encode(small, "GIF")


@pytest.mark.slow
@pytest.mark.parametrize("resample", MODES)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_picture_is_the_processors_to_the_bit(resample, channels):
    mean, std = (0.485, 0.456, 0.406)[:channels], (0.229, 0.224, 0.225)[:channels]
    processor = keras_mae.MAEImageProcessor((24, 48), mean, std, resample)
    decode = tf.function(
        lambda image_bytes: decode_pixels(image_bytes, processor),
        input_signature=[tf.TensorSpec((None,), tf.string)],
    )
    for name, encoded in encoded_pictures():
        got = decode(tf.constant([encoded]))
        np.testing.assert_array_equal(got, processor(encoded), name)
    assert decode(tf.constant([], tf.string)).shape == (0, 24, 48, channels)


def test_examples_are_decoded_and_others_refused():
    processor = keras_mae.MAEImageProcessor(image_size=32)
    pictures = [encoded for _, encoded in encoded_pictures()][:3]
    examples = tf.constant([image_example(picture) for picture in pictures])
    got = decode_examples(examples, processor)
    np.testing.assert_array_equal(got, processor(pictures))
    for wrong in (b"", b"no example"):
        with pytest.raises(tf.errors.InvalidArgumentError):
            decode_examples(tf.constant([wrong]), processor)


@pytest.mark.parametrize("wrong", [b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_bytes_of_no_picture_are_invalid_arguments(wrong):
    processor = keras_mae.MAEImageProcessor(image_size=32)
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode_pixels(tf.constant([wrong]), processor)
