"""Signatures embed, reconstruct_png_bytes, and those of packed uint8 pixels."""

import io

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import keras_mae
from keras_mae.export import build_signatures, export_savedmodel

PROCESSOR = keras_mae.MAEImageProcessor(image_size=32)
SEEDS = np.int64([3, 4, 5, 6])


def encoder(**options):
    return keras_mae.MAEEncoder.from_preset(
        "mae_tiny", patch_size=8, depth=1, **options
    )


def levels(count=4, channels=3):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, 32, 32, channels), "uint8")


def packed(images):
    return [image.tobytes() for image in images]


@pytest.fixture(scope="module")
def pretrainer(tmp_path_factory):
    """A model and its SavedModel for batching."""
    keras.utils.set_random_seed(0)
    model = keras_mae.MAEPretrainer.from_preset(
        "mae_tiny", patch_size=8, depth=1, decoder_depth=1
    )
    folder = tmp_path_factory.mktemp("mae") / "1"
    export_savedmodel(model, PROCESSOR, folder, batching=True, embedding="cls")
    yield model, folder, tf.saved_model.load(folder).signatures


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    keras.utils.set_random_seed(0)
    model = keras_mae.MAEClassifier(encoder(), 3, head_range=1.0)
    folder = tmp_path_factory.mktemp("mae") / "1"
    options = {"batching": True, "normalize_embedding": False}
    export_savedmodel(model, PROCESSOR, folder, labels=["a", "b", "c"], **options)
    yield model, tf.saved_model.load(folder).signatures


def test_embeddings_pool_features_as_asked():
    model = encoder()
    pixels = tf.constant(PROCESSOR(levels()))
    features = np.asarray(model(pixels))
    for embedding, wanted in {
        None: features[:, 1:].mean(axis=1),
        "mean": features[:, 1:].mean(axis=1),
        "cls": features[:, 0],
    }.items():
        served = build_signatures(
            model, PROCESSOR, embedding=embedding, normalize_embedding=False
        )
        got = served.encode(pixels)["embedding"]
        np.testing.assert_allclose(got, wanted, atol=1e-5)
        served = build_signatures(model, PROCESSOR, embedding=embedding)
        got = served.encode(pixels)["embedding"]
        wanted = wanted / np.linalg.norm(wanted, axis=1, keepdims=True)
        np.testing.assert_allclose(got, wanted, atol=1e-5)
    with pytest.raises(ValueError, match=r"one of mean, cls\. Received: 'max'"):
        build_signatures(model, PROCESSOR, embedding="max")
    with pytest.raises(ValueError, match=r"what its head takes\. Received: 'cls'"):
        model = keras_mae.MAEClassifier(model, 3)
        build_signatures(model, PROCESSOR, embedding="cls")


@pytest.mark.slow
def test_packed_pixels_are_the_processors(pretrainer, classifier):
    model, _, signatures = pretrainer
    rows = tf.constant(packed(levels()))
    pixels = PROCESSOR(levels())
    got = signatures["serving_default"](pixels_u8=rows)["features"]
    features = np.asarray(model.encoder(pixels))
    np.testing.assert_allclose(got, features, atol=1e-5)
    got = signatures["embed_from_pixels_u8"](pixels_u8=rows)["embedding"]
    wanted = features[:, 0] / np.linalg.norm(features[:, 0], axis=1, keepdims=True)
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    model, signatures = classifier
    got = signatures["embed_from_pixels_u8"](pixels_u8=rows)["embedding"]
    np.testing.assert_allclose(got, model.pooled(pixels), atol=1e-5)
    got = signatures["classify_from_pixels_u8"](pixels_u8=rows)["class_ids"]
    best = np.asarray(model(pixels)).argmax(axis=1)
    np.testing.assert_array_equal(got[:, 0], best)


@pytest.mark.slow
def test_pngs_hold_the_reconstruction_under_the_visible_patches(pretrainer):
    model, _, signatures = pretrainer
    images = levels()
    ask = signatures["reconstruct_png_bytes_from_pixels_u8"]
    got = ask(pixels_u8=tf.constant(packed(images)), seed=SEEDS)
    assert set(got) == {"png_bytes", "mask", "loss", "patch_size"}
    assert got["png_bytes"].shape == (4,)
    for index, seed in enumerate(SEEDS):
        pixels = PROCESSOR(images[index : index + 1])
        wanted = model.reconstruct(pixels, seed=int(seed))
        np.testing.assert_array_equal(got["mask"][index], wanted["mask"][0])
        np.testing.assert_allclose(got["loss"][index], wanted["loss"][0], rtol=1e-4)
        with Image.open(io.BytesIO(got["png_bytes"][index].numpy())) as picture:
            assert (picture.format, picture.mode) == ("PNG", "RGB")
            picture = np.asarray(picture)
        wanted_picture = PROCESSOR.to_uint8(wanted["pasted"])[0]
        assert np.abs(picture.astype(int) - wanted_picture).max() <= 1
        visible = np.repeat(1 - np.asarray(wanted["mask"]).reshape(4, 4), 8, axis=0)
        visible = np.repeat(visible, 8, axis=1) == 1
        np.testing.assert_array_equal(picture[visible], images[index][visible])


@pytest.mark.slow
def test_grey_models_have_grey_pngs_and_five_channels_none():
    for channels, mode in ((1, "L"), (5, None)):
        model = keras_mae.MAEPretrainer.from_preset(
            "mae_tiny",
            **{"patch_size": 8, "depth": 1, "decoder_depth": 1},
            num_channels=channels,
        )
        statistics = ((0.5,) * channels, (0.25,) * channels)
        processor = keras_mae.MAEImageProcessor(32, *statistics)
        served = build_signatures(model, processor)
        signatures = served.signatures()
        assert ("reconstruct_png_bytes_from_pixels" in signatures) == (mode == "L")
        images = levels(2, channels)
        signature = signatures["embed_from_pixels_u8"]
        pixels = signature.read(tf.constant(packed(images)))
        np.testing.assert_array_equal(pixels, processor(images))
        if mode is not None:
            found = served.as_png(served.reconstruct(pixels, tf.constant(SEEDS[:2])))
            with Image.open(io.BytesIO(found["png_bytes"][0].numpy())) as picture:
                assert picture.mode == mode


def check_rows(ask, bad, **inputs):
    """Compares answers with a bad row with those where it is right, bit by bit."""
    right = ask(**{key: tf.constant(value) for key, value in inputs.items()})
    for key, (index, value) in bad.items():
        wrong = list(inputs[key])
        wrong[index] = value
        found = ask(
            **{**inputs, key: tf.constant(wrong, dtype=right_type(inputs[key]))}
        )
        for name, values in found.items():
            others = [bits(value) for value in (values, right[name])]
            for one in others:
                del one[index]
            assert others[0] == others[1], name
            row = values[index].numpy()
            if name in ("mask", "patch_size"):
                assert np.isfinite(row).all()
            elif name == "png_bytes":
                assert row == b""
            elif name == "class_ids":
                assert (row == -1).all()
            elif name == "labels":
                assert set(row) == {b""}
            else:
                assert np.isnan(row).all(), name


def bits(values):
    """Returns a row's bytes, or strings, in a list."""
    rows = values.numpy()
    if rows.dtype == object:
        return rows.tolist()
    return [row.tobytes() for row in rows]


def right_type(values):
    return tf.int64 if isinstance(values, np.ndarray) else tf.string


@pytest.mark.slow
@pytest.mark.parametrize("length", [0, 32 * 32 * 3 - 1, 32 * 32 * 3 + 1])
def test_a_row_of_another_length_spoils_no_other_row(pretrainer, classifier, length):
    rows = packed(levels())
    for name, ask in {**pretrainer[2], **classifier[1]}.items():
        inputs = {"pixels_u8": rows}
        if name.startswith("reconstruct"):
            inputs["seed"] = SEEDS
        check_rows(ask, {"pixels_u8": (2, bytes(length))}, **inputs)


@pytest.mark.slow
def test_a_seed_above_32_bits_spoils_no_other_row(pretrainer):
    for name in ("reconstruct", "reconstruct_png_bytes"):
        ask = pretrainer[2][f"{name}_from_pixels_u8"]
        bad = {"seed": (1, 2**31)}
        check_rows(ask, bad, pixels_u8=packed(levels()), seed=SEEDS)


@pytest.mark.slow
@pytest.mark.parametrize("images, seeds", [(1, 3), (3, 1), (2, 3)])
def test_a_seed_too_many_or_too_few_is_refused(pretrainer, images, seeds):
    for name in ("reconstruct", "reconstruct_png_bytes"):
        rows = tf.constant([packed(levels())[0]] * images)
        with pytest.raises(tf.errors.InvalidArgumentError, match="row for each image"):
            pretrainer[2][f"{name}_from_pixels_u8"](
                pixels_u8=rows, seed=tf.range(seeds, dtype=tf.int64)
            )


@pytest.mark.slow
def test_batching_leaves_what_is_safe_and_says_how(pretrainer, classifier):
    _, folder, signatures = pretrainer
    names = ("features", "embed", "reconstruct", "reconstruct_png_bytes")
    names = {f"{name}_from_pixels_u8" for name in names}
    assert set(signatures) == {"serving_default", *names}
    names = {f"{name}_from_pixels_u8" for name in ("features", "embed", "classify")}
    assert set(classifier[1]) == {"serving_default", *names}
    none = tf.constant([], tf.string)
    seeds = tf.constant([], tf.int64)
    for name, ask in {**signatures, **classifier[1]}.items():
        extra = {"seed": seeds} if name.startswith("reconstruct") else {}
        for value in ask(pixels_u8=none, **extra).values():
            assert value.shape[0] == 0
    assert (folder / "batching_params.pbtxt").is_file()
