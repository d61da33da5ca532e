"""serving/mae_client: encoding of images, and pictures of reconstructions."""

import io
import struct

import numpy as np
import PIL.EpsImagePlugin
import pytest
import tensorflow as tf
from PIL import Image, ImageColor

from keras_mae.preprocessing.exif_orientation import orientation_of_file
from tests import stand_ins
from tests.stand_ins import connect, grey, mae_client

from mae_client.contact_sheet import draw_sheet  # isort: skip

stub, stub_class = stand_ins.stub, stand_ins.stub_class


def encoded(image, kind):
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind)
    return file.getvalue()


def sent(stub):
    """The encoded pictures of the only request."""
    ((_, inputs, _),) = stub.brain.calls
    return list(inputs["image_bytes"])


def test_known_formats_are_sent_unchanged(stub, tmp_path):
    kinds = ("JPEG", "PNG", "WEBP", "BMP")
    images = [encoded(grey(100), kind) for kind in kinds]
    path = tmp_path / "cat.jpg"
    path.write_bytes(images[0])
    with connect(stub) as asked:
        asked.features([*images, bytearray(images[1]), path, str(path)])
    assert sent(stub) == [*images, images[1], images[0], images[0]]


def test_other_images_become_png(stub, tmp_path):
    levels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), "uint8")
    grey_levels = levels[..., 0]
    picture = Image.fromarray(levels)
    alpha = picture.copy()
    alpha.putalpha(9)
    palette = picture.quantize(16)
    file = io.BytesIO()
    palette.save(file, "BMP")
    path = tmp_path / "cat.tiff"
    picture.save(path)
    kinds = [
        (picture, levels),
        (levels, levels),
        (levels[None], levels),
        (levels / 255, levels),
        (np.float32(levels) / np.float32(255), levels),
        (levels.astype("int64"), levels),
        (alpha, levels),
        (np.asarray(alpha), levels),
        (path, levels),
        (path.read_bytes(), levels),
        # TensorFlow would read the palette's indices as grey
        (file.getvalue(), np.asarray(palette.convert("RGB"))),
        (grey_levels, grey_levels),
        (grey_levels[..., None], grey_levels),
        (Image.fromarray(grey_levels * np.uint16(257)), grey_levels),
    ]
    with connect(stub, batch_size=99) as asked:
        for image, wanted in kinds:
            stub.brain.calls.clear()
            asked.features(image)
            (data,) = sent(stub)
            assert data.startswith(b"\x89PNG")
            np.testing.assert_array_equal(
                tf.io.decode_image(data, 3), Image.fromarray(wanted).convert("RGB")
            )


def test_of_an_animation_the_first_frame_is_sent():
    """TensorFlow fails on a WebP that moves without alpha."""
    file, frames = io.BytesIO(), [Image.fromarray(grey(n)) for n in (100, 200)]
    options = {"save_all": True, "append_images": frames[1:], "lossless": True}
    frames[0].save(file, "WEBP", **options)
    data = mae_client.images.encode(file.getvalue())
    # TensorFlow itself could write past its buffer
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"
        np.testing.assert_array_equal(image, grey(100))


def test_the_orientation_of_an_opened_image_is_sent(tmp_path):
    """A model with `exif_orientation` turns it, as `MAEImageProcessor` does."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "phone.jpg"
    Image.fromarray(grey(9, (4, 6))).save(path, exif=exif)
    for mode in ("RGB", "L"):
        with Image.open(path) as image:
            data = mae_client.images.encode(image.convert(mode))
        assert data.startswith(b"\x89PNG") and orientation_of_file(data) == 6


@pytest.mark.parametrize(
    "image",
    [
        b"",
        b"no picture",
        np.full((4, 4), np.nan),
        np.full((4, 4), 2.0),
        np.full((4, 4), -1),
        np.zeros((4, 4, 2), "uint8"),
        np.zeros((0, 4, 3), "uint8"),
        np.zeros(4, "uint8"),
        np.array(["a"]),
        Image.new("F", (4, 4)),
        7,
    ],
)
def test_invalid_images_are_rejected_by_the_client(stub, image):
    with connect(stub) as asked, pytest.raises(ValueError, match="Received"):
        asked.features([image])
    assert not stub.brain.calls


def test_no_program_of_a_stranger_is_run(tmp_path, monkeypatch):
    """Pillow tells EPS by its content, and hands it to Ghostscript."""
    ran = []
    monkeypatch.setattr(PIL.EpsImagePlugin.EpsImageFile, "load", ran.append)
    path = tmp_path / "cat.jpg"
    path.write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    )
    with pytest.raises(ValueError, match=r"cat\.jpg.*EPS is a program"):
        mae_client.images.encode(path)
    sheet = draw_sheet(path, [], tmp_path)
    assert sheet.getpixel((88, 104)) == ImageColor.getrgb("lightgrey")
    assert not ran


def test_readers_of_pillow_fail_in_their_own_ways(tmp_path):
    path = tmp_path / "cat.png"
    # a texture of no known compression: NotImplementedError
    numbers = struct.pack("<4i", 7, 1, 16, 16)
    path.write_bytes(b"BLP2" + numbers + bytes(1408))
    with pytest.raises(ValueError, match=r"Cannot read .*cat\.png"):
        mae_client.images.encode(path)
    sheet = draw_sheet(path, [], tmp_path)
    assert sheet.getpixel((88, 104)) == ImageColor.getrgb("lightgrey")


def test_picture_has_four_panels_per_row(tmp_path):
    answer = mae_client.Reconstruction(
        reconstruction=np.full((2, 8, 8, 3), 200.4, "float32"),
        mask=np.float32([[1, 0, 0, 1], [0, 1, 1, 0]]),
        loss=np.zeros(2, "float32"),
        patch_size=np.int32([[4, 4]] * 2),
    )
    path = tmp_path / "picture.png"
    answer.save(path, [grey(10), Image.fromarray(grey(20, (16, 16)))])
    with Image.open(path) as picture:
        levels = np.asarray(picture)
    # panels of 160 pixels, gaps of 4, a title of 20
    assert levels.shape == (20 + 2 * 164 - 4, 4 * 164 - 4, 3)
    corners = levels[[[60], [224]], [[40, 204, 368, 532]], 0]
    assert corners.tolist() == [[10, 127, 200, 200], [20, 20, 200, 20]]
    right = levels[[[60], [224]], [[120, 284, 448, 612]], 0]
    assert right.tolist() == [[10, 10, 200, 10], [20, 127, 200, 200]]


def test_a_grey_model_gives_a_picture(tmp_path):
    answer = mae_client.Reconstruction(
        np.zeros((1, 8, 16, 1)),
        np.float32([[1, 0]]),
        np.zeros(1),
        np.int32([[8, 8]]),
    )
    answer.save(tmp_path / "picture.png", grey(50, (8, 16)))
    assert (tmp_path / "picture.png").stat().st_size


@pytest.mark.parametrize(
    "shape, length, patch, count",
    [
        ((1, 8, 8, 3), 5, (4, 4), 1),
        ((1, 8, 8, 3), 2, (4, 4), 1),
        ((1, 8, 8, 3), 0, (4, 4), 1),
        ((1, 8, 8, 3), 4, (0, 0), 1),
        ((1, 8, 8, 3), 4, (8, 4), 1),
        ((1, 8, 8, 3), 4, (3, 3), 1),
        ((1, 8, 8, 4), 4, (4, 4), 1),
        ((1, 8, 8, 3), 4, (4, 4), 2),
        ((0, 8, 8, 3), 4, (4, 4), 0),
    ],
)
def test_reconstructions_that_cannot_be_drawn(tmp_path, shape, length, patch, count):
    answer = mae_client.Reconstruction(
        np.zeros(shape),
        np.zeros((shape[0], length)),
        np.zeros(shape[0]),
        np.tile(np.int32(patch), (shape[0], 1)),
    )
    with pytest.raises(ValueError):
        answer.save(tmp_path / "picture.png", [grey(1)] * count)
