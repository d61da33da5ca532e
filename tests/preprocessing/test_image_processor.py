"""Image processor: kinds of input, the inverse, Hugging Face parity, errors."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from keras_mae import MAEImageProcessor
from keras_mae.data import load_photos
from keras_mae.preprocessing.pretrained_processor import (
    find_processor,
    training_processor,
)

pytestmark = pytest.mark.backends


@pytest.fixture
def photo():
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (6, 8, 3), dtype="uint8")
    return Image.fromarray(small).resize((64, 48), Image.Resampling.BICUBIC)


def encode(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_all_kinds_of_input_give_the_same_array(photo, tmp_path):
    processor = MAEImageProcessor(image_size=(24, 32))
    photo.save(tmp_path / "photo.png")
    wanted = processor(photo)
    assert wanted.shape == (1, 24, 32, 3) and wanted.dtype == np.float32
    array = np.asarray(photo)
    for form in (
        encode(photo),
        bytearray(encode(photo)),
        tmp_path / "photo.png",
        str(tmp_path / "photo.png"),
        array,
        array.astype("int64"),
        array.astype("float32") / 255,
        array[None],
        [photo],
        (array,),
    ):
        np.testing.assert_array_equal(processor(form), wanted)


def test_batches_mix_forms_and_sizes(photo):
    processor = MAEImageProcessor(image_size=16)
    batch = processor([photo, np.zeros((5, 7), "uint8"), encode(photo, "JPEG")])
    assert batch.shape == (3, 16, 16, 3)
    assert processor([]).shape == (0, 16, 16, 3)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_becomes_grey_or_rgb(photo, mode, channels):
    half = (0.5,) * channels
    processor = MAEImageProcessor(16, half, half)
    assert processor(photo.convert(mode)).shape == (1, 16, 16, channels)


def test_alpha_is_dropped_and_grey_repeated(photo):
    processor = MAEImageProcessor(image_size=16)
    transparent = photo.copy()
    transparent.putalpha(0)
    np.testing.assert_array_equal(processor(transparent), processor(photo))
    grey = photo.convert("L")
    levels = processor.to_uint8(processor(grey))
    assert (levels[..., :1] == levels).all()
    np.testing.assert_array_equal(processor(grey), processor(np.asarray(grey)))


def test_sixteen_bit_grey_is_scaled_not_clipped():
    levels = np.linspace(0, 65535, 256, dtype="uint16").reshape(16, 16)
    processor = MAEImageProcessor(image_size=16)
    got = processor.to_uint8(processor(Image.fromarray(levels)))
    np.testing.assert_allclose(got[0, ..., 0], levels / 257, atol=1)


def test_many_channels_come_as_arrays():
    processor = MAEImageProcessor(8, (0.5,) * 5, (0.25,) * 5)
    assert processor(np.zeros((16, 16, 5), "uint8")).shape == (1, 8, 8, 5)


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
def test_resizing_is_pillows(photo, resample):
    processor = MAEImageProcessor(image_size=20, resample=resample)
    code = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    wanted = np.asarray(photo.resize((20, 20), code[resample]))
    np.testing.assert_array_equal(processor.to_uint8(processor(photo))[0], wanted)


def test_normalization_is_the_published_one():
    pixels = MAEImageProcessor(image_size=2)(np.full((2, 2, 3), 255, "uint8"))
    wanted = (1 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(pixels[0, 0, 0], wanted, rtol=1e-6)


def test_to_uint8_inverts_the_processor():
    processor = MAEImageProcessor(image_size=16, image_mean=(0.3,), image_std=(0.17,))
    levels = np.arange(256, dtype="uint8").reshape(16, 16, 1)
    np.testing.assert_array_equal(processor.to_uint8(processor(levels))[0], levels)
    assert processor.to_uint8(np.array([[99.0], [-99.0]])).tolist() == [[255], [0]]


def test_equals_the_hugging_face_processor(photo):
    pytest.importorskip("transformers")
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    theirs = ViTImageProcessorPil(
        image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
    )
    wanted = theirs(photo, return_tensors="np")["pixel_values"]
    got = MAEImageProcessor(image_size=224)(photo)
    np.testing.assert_allclose(got, wanted.transpose(0, 2, 3, 1), atol=1e-5)


def test_real_photographs_equal_the_hugging_face_processor(tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("skimage")
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    photos = load_photos()
    photos = [photo for photo in [*photos.training, *photos.held_out] if photo.ndim > 2]
    assert len(photos) >= 5
    # what the hub's vit-mae-base says, in the words of the day it was published
    config = {
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "ViTFeatureExtractor",
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 2,
        "size": 224,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    ours = MAEImageProcessor.from_pretrained(tmp_path)
    theirs = ViTImageProcessorPil.from_pretrained(tmp_path)
    for photo in photos:
        wanted = theirs(Image.fromarray(photo), return_tensors="np")["pixel_values"]
        wanted = ours.to_uint8(wanted.transpose(0, 2, 3, 1)).astype(int)
        got = ours.to_uint8(ours(photo)).astype(int)
        assert np.abs(got - wanted).max() <= 1


def test_files_round_trip(tmp_path):
    processor = MAEImageProcessor((96, 64), (0.5,), (0.2,), "bicubic")
    processor.save_pretrained(tmp_path)
    loaded = MAEImageProcessor.from_pretrained(tmp_path)
    assert loaded.get_config() == processor.get_config()
    copy = MAEImageProcessor.from_config(processor.get_config())
    assert copy.get_config() == processor.get_config()


@pytest.mark.parametrize("text", ["", "[]", "{}", "nonsense", None])
def test_broken_files_are_named(tmp_path, text):
    if text is not None:
        (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(ValueError, match=r"preprocessor_config\.json"):
        MAEImageProcessor.from_pretrained(tmp_path)


def test_unknown_resampling_in_a_file_is_refused(tmp_path):
    MAEImageProcessor().save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    config = {**json.loads(path.read_text()), "resample": 0}
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="resample must be one of bilinear, bicubic"):
        MAEImageProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "bad", [b"", b"not a picture", "no/such/file.png", b"\x89PNG\r\n\x1a\nxxxx"]
)
def test_unreadable_pictures_are_refused(bad):
    with pytest.raises(ValueError, match="must be a readable picture"):
        MAEImageProcessor()(bad)


def test_truncated_pictures_are_refused(photo):
    for kind in ("PNG", "JPEG"):
        encoded = encode(photo, kind)
        with pytest.raises(ValueError, match="must be a readable picture"):
            MAEImageProcessor()(encoded[: len(encoded) // 2])


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 4, 3), "uint8"),
        np.zeros((3,), "uint8"),
        np.zeros((1, 1, 4, 4, 3), "uint8"),
        np.zeros((4, 4, 2), "uint8"),
        np.full((4, 4, 3), 256),
        np.full((4, 4, 3), -1),
        np.full((4, 4, 3), 1.5),
        np.full((4, 4, 3), np.nan),
        np.zeros((4, 4, 3), complex),
        np.zeros((3, 224, 224), "uint8"),
    ],
)
def test_unusable_arrays_are_refused(array):
    with pytest.raises(ValueError, match="Received"):
        MAEImageProcessor()(array)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"image_size": 0}, "image_size must be"),
        ({"resample": "nearest"}, "resample must be one of"),
        ({"image_mean": (0.5,)}, "one value for each channel"),
        ({"image_mean": 0.5}, "must be sequences of floats"),
        ({"image_std": (0.2, 0.2, 0)}, "image_std must be positive"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        MAEImageProcessor(**arguments)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pictures_of_unknown_range_are_refused(mode):
    with pytest.raises(ValueError, match=f"Received: mode {mode}"):
        MAEImageProcessor()(Image.new(mode, (8, 8), 1))


@pytest.mark.parametrize(
    "key, value",
    [
        ("do_normalize", False),
        ("do_center_crop", True),
        ("rescale_factor", 1 / 127.5),
        ("do_convert_rgb", True),
        ("do_pad", True),
        ("offset", True),
        ("crop_pct", 0.9),
        ("size", {"shortest_edge": 224}),
    ],
)
def test_steps_that_are_not_taken_are_refused(tmp_path, key, value):
    MAEImageProcessor().save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(ValueError, match=f"{key} must be"):
        MAEImageProcessor.from_pretrained(tmp_path)


def test_eps_files_are_not_executed(monkeypatch):
    started = []
    monkeypatch.setattr("subprocess.Popen", lambda *a, **k: started.append(a))
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nquit\n"
    with pytest.raises(ValueError, match=r"readable picture.*EPS is a program"):
        MAEImageProcessor(image_size=32)(program)
    assert not started


def test_from_pretrained_takes_a_file_beside_the_config(tmp_path):
    weights = tmp_path / "model.pth"
    weights.touch()
    with pytest.raises(ValueError, match=r"has no preprocessor_config\.json"):
        MAEImageProcessor.from_pretrained(weights)
    MAEImageProcessor(image_size=48).save_pretrained(tmp_path)
    for path in (weights, str(weights), tmp_path / "preprocessor_config.json"):
        assert MAEImageProcessor.from_pretrained(path).image_size == (48, 48)


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    MAEImageProcessor(image_size=48).save_pretrained("~/mine")
    assert (tmp_path / "mine" / "preprocessor_config.json").exists()
    assert MAEImageProcessor.from_pretrained("~/mine").image_size == (48, 48)


def test_open_files_are_read():
    content = io.BytesIO()
    Image.fromarray(np.full((40, 30, 3), 77, "uint8")).save(content, "PNG")
    content.seek(0)
    processor = MAEImageProcessor(16)
    wanted = processor(content.getvalue())
    np.testing.assert_array_equal(processor(content), wanted)


def test_exif_orientation_is_kept_in_the_file_and_off_without_it(tmp_path):
    path = tmp_path / "preprocessor_config.json"
    for on in (True, False):
        MAEImageProcessor(16, exif_orientation=on).save_pretrained(tmp_path)
        assert MAEImageProcessor.from_pretrained(tmp_path).exif_orientation is on
        # training goes on as the weights began, unless told otherwise
        for given in (None, True, False):
            found = training_processor(tmp_path, 16, (0.5,) * 3, (0.5,) * 3, given)
            assert found.exif_orientation is (on if given is None else given)
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"exif_orientation": "yes"}))
    with pytest.raises(ValueError, match=r"must be a bool. Received: 'yes'"):
        MAEImageProcessor.from_pretrained(tmp_path)
    del config["exif_orientation"]
    path.write_text(json.dumps(config))
    assert not MAEImageProcessor.from_pretrained(tmp_path).exif_orientation


def test_photos_are_turned_only_if_asked_for(photo):
    exif = Image.Exif()
    exif[274] = 6
    content = encode(photo, exif=exif)
    off, on = MAEImageProcessor(32), MAEImageProcessor(32, exif_orientation=True)
    np.testing.assert_array_equal(off(content), off(photo))
    np.testing.assert_array_equal(on(content), off(np.rot90(photo, -1)))
    # an array has no EXIF
    np.testing.assert_array_equal(on(photo), off(photo))


def test_an_absent_resample_is_transformers_default(tmp_path):
    MAEImageProcessor(32, resample="bicubic").save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    config = json.loads(path.read_text())
    assert config.pop("resample") == 3
    path.write_text(json.dumps(config))
    assert MAEImageProcessor.from_pretrained(tmp_path).resample == "bilinear"


def timm_folder(folder, **card):
    card = {"input_size": [3, 48, 64], "mean": [0.5] * 3, "std": [0.2] * 3, **card}
    config = {"architecture": "vit_base_patch16_224", "pretrained_cfg": card}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_timms_configuration_makes_a_processor(tmp_path, capsys):
    folder = timm_folder(
        tmp_path, interpolation="bilinear", crop_pct=1.0, crop_mode="squash"
    )
    for processor in (
        MAEImageProcessor.from_pretrained(folder),
        find_processor(folder),
    ):
        assert processor.get_config() == {
            "image_size": (48, 64),
            "image_mean": (0.5, 0.5, 0.5),
            "image_std": (0.2, 0.2, 0.2),
            "resample": "bilinear",
            "exif_orientation": False,
        }
    assert not capsys.readouterr().out


def test_timms_older_configuration_is_flat(tmp_path):
    path = timm_folder(tmp_path) / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | config.pop("pretrained_cfg")))
    assert find_processor(tmp_path).image_mean == (0.5,) * 3


@pytest.mark.parametrize(
    "card, message",
    [
        ({}, "resizes the shorter edge and crops the centre (crop_pct 0.875)"),
        ({"crop_pct": 0.9}, "the shorter edge and crops the centre (crop_pct 0.9)"),
        ({"crop_pct": 1.0}, "the shorter edge and crops the centre (crop_pct 1.0)"),
        ({"crop_pct": 0.9, "crop_mode": "squash"}, "whole image and crops the centre"),
        ({"crop_pct": 1.0, "crop_mode": "border"}, "the longer edge and pads"),
    ],
)
def test_what_timm_would_crop_is_said(tmp_path, capsys, card, message):
    processor = find_processor(timm_folder(tmp_path, **card))
    assert (processor.image_mean, processor.image_std) == ((0.5,) * 3, (0.2,) * 3)
    (line,) = capsys.readouterr().out.splitlines()
    assert message in line and line.endswith("here whole images are resized to 48x64")


@pytest.mark.parametrize(
    "card, message",
    [
        ({"interpolation": "lanczos"}, "resample must be .*lanczos"),
        ({"input_size": 48}, "image_size must be"),
        ({"std": None}, "image_mean and image_std must be"),
    ],
)
def test_an_unsupported_timm_configuration_is_an_error(tmp_path, card, message):
    with pytest.raises(ValueError, match=rf"config\.json: {message}"):
        find_processor(timm_folder(tmp_path, **card))
