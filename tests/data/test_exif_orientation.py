"""EXIF orientation: processor, pipelines and served graph turn images alike."""

import io
import itertools
import random

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from keras_mae import MAEImageProcessor, data
from keras_mae.data.exif_orientation import (
    decode_upright,
    decode_window_upright,
    orientation_of_file,
)
from keras_mae.export.image_decoding import decode_pixels
from keras_mae.preprocessing import exif_orientation
from tests.pictures import encode, processor_for

RNG = np.random.default_rng(0)
RGB = Image.fromarray(RNG.integers(0, 256, (5, 7, 3), "uint8"))
RGB = RGB.resize((45, 31), Image.Resampling.BICUBIC)
FORMATS = {
    "jpg": {"quality": 95, "subsampling": 0},
    "png": {},
    "webp": {"lossless": True},
}
CASES = list(itertools.product(FORMATS, range(1, 9), "<>"))


def exif(orientation, order="<"):
    block = Image.Exif()
    block.endian = order
    block[271] = "a camera"  # before the orientation, and one after it
    block[274] = orientation
    block[305] = "its program"
    return block.tobytes()


def turned(ending, orientation, order="<"):
    return encode(RGB, ending, exif=exif(orientation, order), **FORMATS[ending])


def pillow(content):
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    return np.asarray(image.convert("RGB"))


def png_with_exif_last(orientation):
    """A PNG whose pixels come before its EXIF."""
    content = turned("png", orientation)
    begin = content.index(b"eXIf") - 4
    end = begin + 12 + int.from_bytes(content[begin : begin + 4], "big")
    return content[:begin] + content[end:-12] + content[begin:end] + content[-12:]


def with_fill_bytes(orientation):
    content = turned("jpg", orientation)
    return content[:2] + b"\xff\xff" + content[2:]


@pytest.fixture(scope="module")
def in_graph():
    """The graph's readers of orientation and of the upright image."""
    scalar = [tf.TensorSpec((), tf.string)]
    return [tf.function(f, scalar) for f in (orientation_of_file, decode_upright)]


@pytest.mark.slow
def test_all_orientations_are_pillows(in_graph):
    read, decode = in_graph
    for case in CASES:
        content = turned(*case)
        assert exif_orientation.orientation_of_file(content) == case[1], case
        assert read(content) == case[1], case
        np.testing.assert_array_equal(decode(content), pillow(content), str(case))
    for content in (png_with_exif_last(6), with_fill_bytes(6)):
        assert exif_orientation.orientation_of_file(content) == read(content) == 6
        np.testing.assert_array_equal(decode(content), pillow(content))


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3])
def test_processor_and_served_graph_are_equal(channels, tmp_path):
    arguments = {"image_mean": [0.5] * channels, "image_std": [0.5] * channels}
    off = MAEImageProcessor((16, 24), **arguments)
    on = MAEImageProcessor((16, 24), **arguments, exif_orientation=True)
    contents = [turned(*case) for case in CASES] + [encode(RGB), encode(RGB, "bmp")]
    batch = on(contents)
    upright = on([Image.fromarray(pillow(content)) for content in contents])
    np.testing.assert_array_equal(batch, upright)
    for processor in (on, off):
        served = tf.function(lambda c, p=processor: decode_pixels(c, p))
        np.testing.assert_array_equal(
            served(tf.constant(contents)), processor(contents)
        )
    # open images and files as well
    path = tmp_path / "picture"
    path.write_bytes(contents[5])
    for image in (path, io.BytesIO(contents[5]), Image.open(path)):
        np.testing.assert_array_equal(on(image), batch[5:6])


@pytest.mark.slow
def test_windows_are_parts_of_the_upright_image():
    @tf.function
    def part(content, window):
        return decode_window_upright(content, lambda shape: (window[0], window[1]))

    for ending, orientation in itertools.product(FORMATS, range(1, 9)):
        content = turned(ending, orientation)
        whole = pillow(content)
        top, left = RNG.integers(0, 20, 2)
        height, width = RNG.integers(1, 12, 2)
        window = tf.constant([[top, left, 0], [height, width, -1]], tf.int32)
        np.testing.assert_array_equal(
            part(tf.constant(content), window),
            whole[top : top + height, left : left + width],
        )


@pytest.mark.nightly
def test_pipelines_turn_images_if_the_processor_does(tmp_path):
    for name, orientation in (("train", 6), ("val", 8)):
        content = turned("jpg", orientation)
        for folder, ending, file in (
            ("turned", "jpg", content),
            ("upright", "png", encode(pillow(content))),
        ):
            path = tmp_path / folder / name / f"a.{ending}"
            path.parent.mkdir(parents=True)
            path.write_bytes(file)
    batches = {}
    for folder, on in itertools.product(("turned", "upright"), (True, False)):
        source = data.load_source(f"folder:{tmp_path}/{folder}")
        config = processor_for(source).get_config() | {"exif_orientation": on}
        processor = MAEImageProcessor(**config)
        pipeline = data.training_pipeline(source, processor, 1, seed=0)
        held_out = data.held_out_images(source, processor)
        batches[folder, on] = [*pipeline.take(1).as_numpy_iterator(), held_out]
    for wanted in (batches["upright", True], batches["upright", False]):
        np.testing.assert_array_equal(batches["turned", True], wanted)
    for turned_image, stored in zip(
        batches["turned", True], batches["turned", False], strict=True
    ):
        assert np.abs(turned_image - stored).max() > 0.1


def malformed():
    """Yields images whose EXIF is spoilt: cut, of odd numbers, in another place."""
    for ending, number in itertools.product(FORMATS, range(80)):
        rng = random.Random(f"{ending}{number}")
        content = bytearray(turned(ending, rng.randint(0, 9), rng.choice("<>")))
        begin = content.index(b"II*\0" if b"II*\0" in content else b"MM\0*") - 12
        for _ in range(rng.choice([1, 1, 2, 6])):
            place = begin + rng.randrange(60)
            content[place] = rng.choice([0, 1, 3, 6, 12, 18, 127, 255])
        yield bytes(content)
        yield bytes(content[: begin + rng.randrange(60)])
    yield from (b"", b"\xff\xd8\xff", b"\x89PNG", b"\x89PNG\r\n\x1a\n\xff\xff\xff\xff")
    # more segments, and more chunks, than are looked at
    yield turned("jpg", 6)[:2] + b"\xff" * 20_000 + turned("jpg", 6)[2:]
    yield turned("png", 6)[:8] + bytes(12 * 20_000) + turned("png", 6)[8:]
    yield from (b"RIFF\0\0\0\0WEBP", b"RIFF\0\0\0\0WEBPEXIF\xff\xff\xff\xff")


def test_malformed_exif_is_no_error_and_the_same_everywhere(in_graph):
    read, _ = in_graph
    found = []
    for content in malformed():
        found.append(exif_orientation.orientation_of_file(content))
        assert read(content) == found[-1], content
    assert {1, 6} <= set(found) <= set(range(1, 9))
    # with the first bytes of another file, or a type that isn't EXIF's
    spoilt = turned("jpg", 6).replace(b"II*\0", b"II+\0")
    assert exif_orientation.orientation_of_file(spoilt) == read(spoilt) == 1
    short = turned("jpg", 6).replace(b"\x12\x01\x03\0", b"\x12\x01\x04\0")
    assert exif_orientation.orientation_of_file(short) == read(short) == 1
