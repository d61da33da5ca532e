"""serving/export.py: signatures, equality with the model, and safe replacement."""

import io

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import keras_mae
from tests.scripts import load, run

SCRIPT = "serving/export.py"
export = load(SCRIPT)


@pytest.fixture
def processor():
    return keras_mae.MAEImageProcessor(image_size=32)


@pytest.fixture
def run_folder(make_model, processor, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    make_model().save(folder / "model.keras")
    processor.save_pretrained(folder)
    return folder


def photo(size=(40, 50), seed=0):
    levels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), "uint8")
    return Image.fromarray(levels).resize(size, Image.Resampling.BICUBIC)


def encode(image, kind="PNG"):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_every_signature_answers_as_the_model(
    make_model, processor, tmp_path, policy, norm_pix_loss
):
    model = make_model(dtype=policy, norm_pix_loss=norm_pix_loss)
    export.export(model, processor, tmp_path / "1")
    signatures = tf.saved_model.load(tmp_path / "1").signatures
    assert set(signatures) == {
        "serving_default",
        *(
            name + suffix
            for name in ("features", "reconstruct", "reconstruct_with_mask")
            for suffix in ("", "_from_pixels")
        ),
    }
    photos = [photo(seed=seed) for seed in range(3)]
    # PNG pictures of the model's size: nothing is lost on the way in
    photos = [picture.resize((32, 32)) for picture in photos]
    encoded = tf.constant([encode(picture) for picture in photos])
    pixels = processor(photos)
    mask = np.float32([[1, 0] * 8, [0, 1] * 8, [1, 1, 0, 0] * 4])
    seeds = np.int64([3, 4, 5])
    tolerance = 1e-4 if policy == "float32" else 0.05
    features = np.asarray(tf.cast(model.encoder(pixels), tf.float32))
    painted = model.reconstruct(pixels, mask=mask)
    grey = np.asarray(painted["reconstruction"]) * processor.image_std
    grey = np.clip(grey + processor.image_mean, 0, 1) * 255
    for suffix, images in {
        "": {"image_bytes": encoded},
        "_from_pixels": {"pixels": tf.constant(pixels)},
    }.items():
        got = signatures["features" + suffix](**images)["features"]
        np.testing.assert_allclose(got, features, atol=tolerance)
        got = signatures["reconstruct_with_mask" + suffix](**images, mask=mask)
        np.testing.assert_array_equal(got["mask"], mask)
        np.testing.assert_allclose(got["loss"], painted["loss"], rtol=tolerance)
        np.testing.assert_allclose(got["reconstruction"], grey, atol=255 * tolerance)
        got = signatures["reconstruct" + suffix](**images, seed=seeds)
        for index, seed in enumerate(seeds):
            alone = model.reconstruct(pixels[index : index + 1], seed=int(seed))
            np.testing.assert_array_equal(got["mask"][index], alone["mask"][0])
        assert {value.dtype for value in got.values()} == {tf.float32}


def test_serving_default_takes_encoded_pictures_of_any_kind(
    make_model, processor, tmp_path
):
    model = make_model()
    export.export(model, processor, tmp_path / "1")
    serve = tf.saved_model.load(tmp_path / "1").signatures["serving_default"]
    picture = photo()
    for image in (picture, picture.convert("L"), picture.convert("RGBA")):
        got = serve(image_bytes=tf.constant([encode(image)]))["features"]
        wanted = model.encoder(processor(image))
        # Pillow rounds between its two passes of resizing
        np.testing.assert_allclose(got, wanted, atol=0.05)
    kinds = tf.constant([encode(picture, k) for k in ("JPEG", "BMP", "WEBP", "GIF")])
    assert serve(image_bytes=kinds)["features"].shape == (4, 17, 16)
    assert serve(image_bytes=tf.constant([], tf.string))["features"].shape == (
        0,
        17,
        16,
    )


def test_grey_models_read_colour_as_pillow_does(make_model, tmp_path):
    processor = keras_mae.MAEImageProcessor(32, (0.5,), (0.25,))
    model = make_model(num_channels=1)
    export.export(model, processor, tmp_path / "1")
    serve = tf.saved_model.load(tmp_path / "1").signatures["serving_default"]
    picture = photo((32, 32))
    got = serve(image_bytes=tf.constant([encode(picture)]))["features"]
    np.testing.assert_allclose(got, model.encoder(processor(picture)), atol=1e-4)


def test_five_channels_are_served_by_pixels(make_model, tmp_path):
    processor = keras_mae.MAEImageProcessor(32, (0.5,) * 5, (0.25,) * 5)
    export.export(make_model(num_channels=5), processor, tmp_path / "1")
    signatures = tf.saved_model.load(tmp_path / "1").signatures
    assert "features" not in signatures
    pixels = np.zeros((2, 32, 32, 5), "float32")
    got = signatures["serving_default"](pixels=tf.constant(pixels))
    assert got["features"].shape == (2, 17, 16)


@pytest.mark.parametrize(
    "mask, message",
    [
        ([[0.5] * 16] * 2, "mask must hold only 0"),
        ([[1] + [0] * 15, [1] * 2 + [0] * 14], "equally many"),
        ([[0] * 16] * 2, "remove at least one patch"),
        ([[1] * 16] * 2, "keep at least one patch"),
    ],
)
def test_bad_masks_are_invalid_arguments(
    make_model, processor, tmp_path, mask, message
):
    export.export(make_model(), processor, tmp_path / "1")
    loaded = tf.saved_model.load(tmp_path / "1")
    serve = loaded.signatures["reconstruct_with_mask_from_pixels"]
    pixels = tf.zeros((2, 32, 32, 3))
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        serve(pixels=pixels, mask=tf.constant(mask, tf.float32))


def test_weights_are_stored_once(make_model, processor, tmp_path):
    model = make_model(hidden_dim=128, mlp_dim=512, depth=2)
    export.export(model, processor, tmp_path / "1")
    stored = sum(p.stat().st_size for p in (tmp_path / "1" / "variables").iterdir())
    assert stored < 1.1 * 4 * model.count_params() + 10_000


def test_a_failed_export_changes_nothing(make_model, processor, tmp_path, monkeypatch):
    model = make_model()
    export.export(model, processor, tmp_path / "1")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    saved = (tmp_path / "1" / "saved_model.pb").read_bytes()

    def fail(*arguments):
        raise ValueError("not equal")

    monkeypatch.setattr(export, "verify", fail)
    with pytest.raises(ValueError, match="not equal"):
        export.export(model, processor, tmp_path / "1", overwrite=True)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    assert (tmp_path / "1" / "saved_model.pb").read_bytes() == saved


def test_verification_notices_other_weights(make_model, processor, tmp_path):
    export.export(make_model(), processor, tmp_path / "1")
    with pytest.raises(ValueError, match="must equal the model's"):
        export.verify(tmp_path / "1", make_model(), processor)


def test_the_script_exports_refuses_and_overwrites(run_folder, tmp_path):
    arguments = (f"--model={run_folder}", f"--out={tmp_path / 'mae'}", "--version=3")
    finished = run(SCRIPT, *arguments)
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    assert [path.name for path in (tmp_path / "mae").iterdir()] == ["3"]
    finished = run(SCRIPT, *arguments)
    assert finished.returncode == 2
    assert "exists already: give --overwrite" in finished.stderr
    assert run(SCRIPT, *arguments, "--overwrite").returncode == 0
    assert [path.name for path in (tmp_path / "mae").iterdir()] == ["3"]


@pytest.mark.parametrize(
    "broken, message",
    [
        ("model.keras", "is no readable model"),
        ("preprocessor_config.json", "no readable JSON"),
    ],
)
def test_broken_runs_are_named(run_folder, tmp_path, broken, message):
    path = run_folder / broken
    path.write_bytes(path.read_bytes()[:100])
    finished = run(SCRIPT, f"--model={run_folder}", f"--out={tmp_path / 'mae'}")
    assert finished.returncode == 2
    assert len(finished.stderr.splitlines()) == 1
    assert message in finished.stderr and broken in finished.stderr
    assert not (tmp_path / "mae").exists()


@pytest.mark.parametrize(
    "flags, message",
    [(["--model=nowhere"], "folder of a run"), (["--version=0"], "required: --model")],
)
def test_bad_flags_are_one_line(flags, message):
    finished = run(SCRIPT, *flags)
    assert finished.returncode == 2 and message in finished.stderr
    assert len(finished.stderr.splitlines()) == 1


def test_a_loaded_run_is_the_saved_one(run_folder, images):
    model, processor = export.load_run(run_folder)
    wanted = keras.models.load_model(run_folder / "model.keras")
    np.testing.assert_array_equal(model.encoder(images), wanted.encoder(images))
    assert processor.image_size == (32, 32)
