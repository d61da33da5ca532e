"""export_savedmodel: signatures, equality with the model, and safe replacement."""

import io

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import keras_mae
from keras_mae.export import (
    build_signatures,
    export_runtime,
    export_savedmodel,
    savedmodel,
    verify_savedmodel,
)
from tests.scripts import load, refusal, run
from tests.stand_ins import mae_client

SCRIPT = "serving/export.py"
SUFFIXES = ("", "_from_pixels", "_from_pixels_u8")
RECONSTRUCT = tuple(f"reconstruct{kind}" for kind in ("", "_with_mask", "_with_noise"))


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


@pytest.fixture(scope="module")
def pretrainer_signatures(tmp_path_factory):
    """The signatures of a small pretrainer, for requests that are refused."""
    model = keras_mae.MAEPretrainer.from_preset(
        "mae_tiny", patch_size=8, depth=1, decoder_depth=1
    )
    folder = tmp_path_factory.mktemp("served") / "1"
    processor = keras_mae.MAEImageProcessor(image_size=32)
    export_savedmodel(model, processor, folder, warmup_batch_sizes=())
    loaded = tf.saved_model.load(folder)
    yield loaded.signatures


@pytest.mark.slow
@pytest.mark.parametrize(
    "policy, norm_pix_loss",
    [
        ("float32", False),
        pytest.param("mixed_bfloat16", True, marks=pytest.mark.nightly),
    ],
)
def test_every_signature_answers_as_the_model(
    make_model, processor, tmp_path, policy, norm_pix_loss
):
    model = make_model(dtype=policy, norm_pix_loss=norm_pix_loss)
    export_savedmodel(model, processor, tmp_path / "1")
    signatures = tf.saved_model.load(tmp_path / "1").signatures
    assert set(signatures) == {
        "serving_default",
        *(
            name + suffix
            for name in ("features", "embed", *RECONSTRUCT, "reconstruct_png_bytes")
            for suffix in SUFFIXES
        ),
    }
    photos = [photo(seed=seed) for seed in range(3)]
    # PNG pictures of the model's size: nothing is lost on the way in
    photos = [picture.resize((32, 32)) for picture in photos]
    encoded = tf.constant([encode(picture) for picture in photos])
    pixels = processor(photos)
    mask = np.float32([[1, 0] * 8, [0, 1] * 8, [1, 1, 0, 0] * 4])
    seeds = np.int64([3, 4, 5])
    noise = np.random.default_rng(0).random((3, 16), "float32")
    tolerance = 1e-4 if policy == "float32" else 0.05
    features = np.asarray(tf.cast(model.encoder(pixels), tf.float32))
    painted = model.reconstruct(pixels, mask=mask)
    grey = np.asarray(painted["reconstruction"]) * processor.image_std
    grey = np.clip(grey + processor.image_mean, 0, 1) * 255
    for suffix, images in {
        "": {"image_bytes": encoded},
        "_from_pixels": {"pixels": tf.constant(pixels)},
        "_from_pixels_u8": {
            "pixels_u8": tf.constant([np.asarray(it).tobytes() for it in photos])
        },
    }.items():
        got = signatures["features" + suffix](**images)["features"]
        np.testing.assert_allclose(got, features, atol=tolerance)
        got = signatures["reconstruct_with_mask" + suffix](**images, mask=mask)
        np.testing.assert_array_equal(got["mask"], mask)
        np.testing.assert_allclose(got["loss"], painted["loss"], rtol=tolerance)
        np.testing.assert_allclose(got["reconstruction"], grey, atol=255 * tolerance)
        got = signatures["reconstruct_with_noise" + suffix](**images, noise=noise)
        wanted = model.reconstruct(pixels, noise=noise)
        np.testing.assert_array_equal(got["mask"], wanted["mask"])
        np.testing.assert_allclose(got["loss"], wanted["loss"], rtol=tolerance)
        got = signatures["reconstruct" + suffix](**images, seed=seeds)
        for index, seed in enumerate(seeds):
            alone = model.reconstruct(pixels[index : index + 1], seed=int(seed))
            np.testing.assert_array_equal(got["mask"][index], alone["mask"][0])
        np.testing.assert_array_equal(got.pop("patch_size"), [[8, 8]] * 3)
        assert {value.dtype for value in got.values()} == {tf.float32}


@pytest.mark.slow
def test_serving_default_takes_encoded_pictures_of_any_kind(
    make_model, processor, tmp_path
):
    encoder = make_model().encoder
    export_savedmodel(encoder, processor, tmp_path / "1")
    serve = tf.saved_model.load(tmp_path / "1").signatures["serving_default"]
    picture = photo()
    kinds = ("PNG", "JPEG", "BMP", "WEBP", "GIF")
    encoded = [encode(picture, kind) for kind in kinds]
    encoded += [encode(picture.convert(mode)) for mode in ("L", "RGBA", "P")]
    got = serve(image_bytes=tf.constant(encoded))["features"]
    np.testing.assert_allclose(got, encoder(processor(encoded)), atol=1e-5)
    nothing = serve(image_bytes=tf.constant([], tf.string))["features"]
    assert nothing.shape == (0, 17, 16)


@pytest.mark.slow
def test_grey_models_read_colour_as_pillow_does(make_model, tmp_path):
    processor = keras_mae.MAEImageProcessor(32, (0.5,), (0.25,))
    encoder = make_model(num_channels=1).encoder
    export_savedmodel(encoder, processor, tmp_path / "1")
    serve = tf.saved_model.load(tmp_path / "1").signatures["serving_default"]
    picture = photo((32, 32))
    got = serve(image_bytes=tf.constant([encode(picture)]))["features"]
    np.testing.assert_allclose(got, encoder(processor(picture)), atol=1e-4)


@pytest.mark.nightly
def test_five_channels_are_served_by_pixels(make_model, tmp_path):
    processor = keras_mae.MAEImageProcessor(32, (0.5,) * 5, (0.25,) * 5)
    export_savedmodel(make_model(num_channels=5).encoder, processor, tmp_path / "1")
    signatures = tf.saved_model.load(tmp_path / "1").signatures
    assert "features" not in signatures
    pixels = np.zeros((2, 32, 32, 5), "float32")
    got = signatures["serving_default"](pixels=tf.constant(pixels))
    assert got["features"].shape == (2, 17, 16)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mask, message",
    [
        ([[0.5] * 16] * 2, "mask must hold only 0"),
        ([[1] + [0] * 15, [1] * 2 + [0] * 14], "same number"),
        ([[0] * 16] * 2, "remove at least one patch"),
        ([[1] * 16] * 2, "keep at least one patch"),
    ],
)
def test_bad_masks_are_invalid_arguments(pretrainer_signatures, mask, message):
    serve = pretrainer_signatures["reconstruct_with_mask_from_pixels"]
    pixels = tf.zeros((2, 32, 32, 3))
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        serve(pixels=pixels, mask=tf.constant(mask, tf.float32))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, wrong, message",
    [
        ("noise", np.full((2, 16), np.nan, "float32"), "noise must hold numbers"),
        ("noise", np.zeros((3, 16), "float32"), "noise must have a row for each image"),
        ("noise", np.zeros((2, 4), "float32"), "shape|compatible"),
        ("seed", np.int64([1, 2**31]), "seed must fit into 32 bits"),
        ("seed", np.int64([1]), "seed must have a row for each image"),
    ],
)
def test_bad_noise_and_seeds_are_invalid_arguments(
    pretrainer_signatures, name, wrong, message
):
    suffix = {"noise": "_with_noise", "seed": ""}[name]
    serve = pretrainer_signatures[f"reconstruct{suffix}_from_pixels"]
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        serve(pixels=tf.zeros((2, 32, 32, 3)), **{name: tf.constant(wrong)})


@pytest.mark.nightly
def test_an_encoder_serves_its_tokens(make_model, processor, tmp_path):
    encoder = make_model().encoder
    export_savedmodel(encoder, processor, tmp_path / "1")
    signatures = tf.saved_model.load(tmp_path / "1").signatures
    names = {name + suffix for name in ("features", "embed") for suffix in SUFFIXES}
    assert set(signatures) == {"serving_default", *names}
    pixels = processor(photo())
    got = signatures["features_from_pixels"](pixels=tf.constant(pixels))["features"]
    np.testing.assert_allclose(got, encoder(pixels), atol=1e-5)


@pytest.mark.slow
def test_weights_are_stored_once(make_model, processor, tmp_path):
    model = make_model(hidden_dim=128, mlp_dim=512, depth=2)
    export_savedmodel(model, processor, tmp_path / "1", batching=True)
    stored = sum(p.stat().st_size for p in (tmp_path / "1" / "variables").iterdir())
    assert stored < 1.1 * 4 * model.count_params() + 10_000


@pytest.mark.slow
def test_a_failed_export_changes_nothing(make_model, processor, tmp_path, monkeypatch):
    model = make_model().encoder
    export_savedmodel(model, processor, tmp_path / "1")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    saved = (tmp_path / "1" / "saved_model.pb").read_bytes()

    def fail(*arguments):
        raise ValueError("not equal")

    monkeypatch.setattr(savedmodel, "verify_savedmodel", fail)
    with pytest.raises(ValueError, match="not equal"):
        export_savedmodel(model, processor, tmp_path / "1", overwrite=True)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    assert (tmp_path / "1" / "saved_model.pb").read_bytes() == saved


@pytest.mark.nightly
def test_verification_notices_other_weights(make_model, processor, tmp_path):
    export_savedmodel(make_model().encoder, processor, tmp_path / "1")
    with pytest.raises(ValueError, match="must equal the model's"):
        verify_savedmodel(
            tmp_path / "1", build_signatures(make_model().encoder, processor)
        )


@pytest.mark.nightly
def test_the_script_exports_refuses_and_overwrites(run_folder, tmp_path):
    arguments = (f"--model={run_folder}", f"--out={tmp_path / 'mae'}", "--version=3")
    finished = run(SCRIPT, *arguments)
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    assert [path.name for path in (tmp_path / "mae").iterdir()] == ["3"]
    finished = run(SCRIPT, *arguments)
    assert finished.returncode == 2
    assert "already exists: --overwrite replaces it" in finished.stderr
    assert run(SCRIPT, *arguments, "--overwrite").returncode == 0
    assert [path.name for path in (tmp_path / "mae").iterdir()] == ["3"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "broken, message",
    [
        ("model.keras", "is not a readable model"),
        ("preprocessor_config.json", "can't be read as JSON"),
    ],
)
def test_broken_runs_are_named(run_folder, tmp_path, broken, message):
    path = run_folder / broken
    path.write_bytes(path.read_bytes()[:100])
    error = refusal(SCRIPT, f"--model={run_folder}", f"--out={tmp_path / 'mae'}")
    assert message in error and broken in error
    assert not (tmp_path / "mae").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags, message",
    [
        (["--model=nowhere"], "must be a file, a folder, or a hub id"),
        (["--version=0"], "required: --model"),
        (["--model=nowhere", "--version=0"], "version must be at least 1"),
        (["--model=nowhere", "--warmup_batch_sizes=1,x"], "must be ints of at least 1"),
    ],
)
def test_bad_flags_are_one_line(flags, message):
    assert message in refusal(SCRIPT, *flags)


def test_flags_that_the_model_has_no_use_for_are_refused(make_model, tmp_path):
    make_model().save(tmp_path / "mae.keras")
    make_model(num_channels=4).save(tmp_path / "four.keras")
    three, four = (f"--model={tmp_path / name}.keras" for name in ("mae", "four"))
    for flags, message in (
        ((three, "--top_k=3"), "--top_k needs a MAEClassifier. Received: a MAEPretr"),
        ((four, "--max_pixels=9999"), "1 or 3 channels: others take no image files"),
        ((three, "--max_pixels=9999", "--batching"), "can't be given with --batching"),
    ):
        assert message in refusal(SCRIPT, *flags, f"--out={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()


def test_a_version_that_exists_is_refused_before_the_model_is_read(tmp_path):
    (tmp_path / "3").mkdir()
    flags = ("--model=missing.keras", f"--out={tmp_path}", "--version=3")
    error = refusal(SCRIPT, *flags)
    assert error.endswith("3 already exists: --overwrite replaces it")


def config(model, out, **flags):
    return load(SCRIPT).ExportConfig(model=str(model), out=str(out), **flags)


@pytest.mark.nightly
def test_another_precision_has_the_same_weights(run_folder, tmp_path):
    main = load(SCRIPT).main
    main(config(run_folder, tmp_path / "mae", precision="mixed_bfloat16"))
    serve = tf.saved_model.load(tmp_path / "mae" / "1").signatures["serving_default"]
    encoded = tf.constant([encode(photo())])
    got = serve(image_bytes=encoded)["features"]
    assert got.dtype == tf.float32
    model = keras.models.load_model(run_folder / "model.keras")
    processor = keras_mae.MAEImageProcessor.from_pretrained(run_folder)
    wanted = np.asarray(model.encoder(processor(photo())))
    np.testing.assert_allclose(got, wanted, atol=0.1)
    # not the same bits: it did compute in another precision
    assert np.abs(got - wanted).max() > 1e-4


@pytest.mark.slow
def test_half_precision_stores_half_and_keeps_the_bits(processor, tmp_path):
    model = keras_mae.MAEEncoder.from_preset(
        "mae_tiny", depth=2, dtype="mixed_bfloat16"
    )
    folder = tmp_path / "1"
    export_savedmodel(model, processor, folder, warmup_batch_sizes=())
    kernels = [weight for weight in model.weights if "kernel" in weight.path]
    stored = sum(file.stat().st_size for file in folder.glob("variables/*"))
    saved = 2 * sum(int(np.prod(kernel.shape)) for kernel in kernels)
    assert stored < 4 * model.count_params() - 0.99 * saved + 20_000
    pixels = np.random.default_rng(0).random((2, 32, 32, 3), "float32")
    wanted = tf.function(model, autograph=False)(tf.constant(pixels))
    signature = tf.saved_model.load(folder).signatures["features_from_pixels"]
    got = signature(pixels=tf.constant(pixels))["features"]
    np.testing.assert_array_equal(got, tf.cast(wanted, "float32"))


@pytest.mark.nightly
def test_published_weights_are_served_as_what_they_hold(make_model, tmp_path, capsys):
    main = load(SCRIPT).main
    model = make_model()
    model.save_pretrained(tmp_path / "theirs")
    weights = tmp_path / "theirs" / "model.safetensors"
    main(config(weights, tmp_path / "mae", warmup_batch_sizes=""))
    assert "No preprocessor_config.json was found" in capsys.readouterr().out
    served = tmp_path / "mae" / "1"
    assert set(RECONSTRUCT) < set(tf.saved_model.load(served).signatures)
    assert not (served / "assets.extra").exists()
    model.encoder.save_pretrained(tmp_path / "encoder")
    keras_mae.MAEImageProcessor(32, resample="bicubic").save_pretrained(
        tmp_path / "encoder"
    )
    main(config(tmp_path / "encoder", tmp_path / "mae", version=2))
    assert "preprocessor_config" not in capsys.readouterr().out
    signatures = tf.saved_model.load(tmp_path / "mae" / "2").signatures
    assert "reconstruct" not in signatures


@pytest.mark.nightly
def test_patches_that_are_no_squares_are_drawn_as_they_are(processor, tmp_path):
    """Of 16x4 there are as many as of 8x8, and other pixels are grey."""
    model = keras_mae.MAEPretrainer.from_preset(
        "mae_tiny", patch_size=(16, 4), depth=1, decoder_depth=1
    )
    export_savedmodel(model, processor, tmp_path / "1", warmup_batch_sizes=[])
    answer = tf.saved_model.load(tmp_path / "1").signatures["reconstruct_with_mask"]
    mask = np.eye(1, 16, dtype="float32")  # the first patch is removed
    levels = np.full((32, 32, 3), 50, "uint8")
    encoded = tf.constant([encode(Image.fromarray(levels))])
    got = answer(image_bytes=encoded, mask=tf.constant(mask))
    got = mae_client.Reconstruction(**{key: got[key].numpy() for key in got})
    assert got.patch_size.tolist() == [[16, 4]] and got.patch_size.dtype == np.int32
    got.save(tmp_path / "picture.png", levels)
    with Image.open(tmp_path / "picture.png") as picture:
        masked = np.asarray(picture)[22:180:5, 166:324:5, 0]  # the second panel
    levels[:16, :4] = 127
    np.testing.assert_array_equal(masked, levels[..., 0])


@pytest.mark.nightly
def test_a_keras_file_alone_is_served_as_published_weights(
    make_model, tmp_path, capsys
):
    make_model().save(tmp_path / "mae.keras")
    flags = config(tmp_path / "mae.keras", tmp_path / "mae", warmup_batch_sizes="")
    load(SCRIPT).main(flags)
    assert "No preprocessor_config.json was found" in capsys.readouterr().out
    assert (tmp_path / "mae" / "1" / "saved_model.pb").exists()


@pytest.mark.slow
def test_a_processor_for_other_images_is_refused(make_model, tmp_path):
    processor = keras_mae.MAEImageProcessor(image_size=48)
    with pytest.raises(ValueError, match=r"\(32, 32, 3\).*Received: \(48, 48, 3\)"):
        export_savedmodel(make_model(), processor, tmp_path / "1")
    assert not (tmp_path / "1").exists()


@pytest.mark.parametrize("export", [export_savedmodel, export_runtime])
def test_exports_need_the_tensorflow_backend(export, make_model, tmp_path, monkeypatch):
    arguments = {"processor": keras_mae.MAEImageProcessor(image_size=32)}
    if export is export_runtime:
        arguments["format"] = "openvino"
    model = make_model()
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ValueError, match=r"TensorFlow backend.*KERAS_BACKEND=jax"):
        export(model, path=tmp_path / "1", **arguments)
    assert not (tmp_path / "1").exists()
