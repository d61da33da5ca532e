"""The encoder: stable raster features, masking on request, any size and channels."""

import keras
import numpy as np
import pytest

import keras_mae

pytestmark = pytest.mark.backends


def test_features_are_the_same_at_each_call_and_in_training(make_model, images):
    encoder = make_model().encoder
    first = encoder(images)
    np.testing.assert_array_equal(first, encoder(images))
    np.testing.assert_array_equal(first, encoder(images, training=True))
    assert first.shape == (4, 1 + 16, 16)


def test_tokens_are_in_raster_order(make_model, images):
    encoder = make_model(depth=0).encoder
    before = np.asarray(encoder(images))
    changed = images.copy()
    changed[:, 8:16, 24:32] += 1  # row 1, column 3 of a 4 x 4 grid
    different = np.abs(np.asarray(encoder(changed)) - before).max(axis=(0, 2)) > 0
    assert np.flatnonzero(different).tolist() == [1 + 1 * 4 + 3]


def test_keeping_all_patches_permutes_the_features(make_model, images):
    encoder = make_model().encoder
    outputs = encoder(images, mask_ratio=0.0, seed=1)
    tokens = np.asarray(encoder(images))
    restored = np.take_along_axis(
        np.asarray(outputs["latent"])[:, 1:],
        np.asarray(outputs["ids_restore"])[..., None],
        axis=1,
    )
    np.testing.assert_allclose(restored, tokens[:, 1:], atol=1e-5)


def test_masks_may_be_lists(make_model, images):
    outputs = make_model().encoder(images, mask=[[0] * 8 + [1] * 8] * 4)
    assert outputs["latent"].shape == (4, 1 + 8, 16)


def test_removed_patches_do_not_reach_the_latent(make_model, images):
    encoder = make_model().encoder
    mask = np.zeros((4, 16))
    mask[:, 5] = 1
    latent = encoder(images, mask=mask)["latent"]
    changed = images.copy()
    changed[:, 8:16, 8:16] = 99  # row 1, column 1: patch 5
    np.testing.assert_array_equal(encoder(changed, mask=mask)["latent"], latent)


def test_hidden_states_and_attentions_come_on_request(make_model, images):
    encoder = make_model().encoder
    outputs = encoder(images, output_hidden_states=True, output_attentions=True)
    assert set(outputs) == {"latent", "hidden_states", "attentions"}
    assert [h.shape for h in outputs["hidden_states"]] == [(4, 17, 16)] * 3
    assert [a.shape for a in outputs["attentions"]] == [(4, 2, 17, 17)] * 2
    np.testing.assert_allclose(
        encoder.norm(outputs["hidden_states"][-1]), outputs["latent"], atol=1e-6
    )


def test_interpolation_takes_another_size(make_model):
    model = make_model()
    images = np.ones((2, 48, 16, 3), "float32")
    assert model.encoder(images, interpolate=True).shape == (2, 1 + 12, 16)
    outputs = model(images, seed=0, interpolate=True)
    assert outputs["logits"].shape == (2, 12, 192)
    pictures = model.reconstruct(images, seed=0, interpolate=True)
    assert pictures["pasted"].shape == images.shape


@pytest.mark.parametrize(
    "shape, message",
    [
        ((2, 32, 32, 1), r"\(batch, height, width, 3\), channels last"),
        ((2, 3, 32, 32), "channels last"),
        ((32, 32, 3), "channels last"),
        ((2, 40, 40, 3), r"interpolate=True.*Received: images.shape=\(2, 40, 40, 3\)"),
    ],
)
def test_images_are_checked(make_model, shape, message):
    with pytest.raises(ValueError, match=message):
        make_model().encoder(np.zeros(shape, "float32"))


def test_interpolated_sizes_must_be_divisible(make_model):
    with pytest.raises(ValueError, match="divisible"):
        make_model().encoder(np.zeros((1, 36, 32, 3), "float32"), interpolate=True)


def test_noise_or_seed_alone_is_refused(make_model, images):
    with pytest.raises(ValueError, match="noise and seed need mask_ratio"):
        make_model().encoder(images, seed=1)


def test_constructor_arguments_are_checked():
    with pytest.raises(ValueError, match="divisible"):
        keras_mae.MAEEncoder(image_size=30, patch_size=16)
    with pytest.raises(ValueError, match="num_heads"):
        keras_mae.MAEEncoder(hidden_dim=64, num_heads=5)


def test_a_frozen_encoder_stays_frozen(make_model, images, tmp_path):
    model = make_model()
    model.encoder.trainable = False
    count = len(model.trainable_variables)
    assert count == len(model.decoder.trainable_variables)
    copy = keras_mae.MAEPretrainer.from_config(model.get_config())
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for other in (copy, loaded):
        assert len(other.trainable_variables) == count
        assert other.encoder.trainable_variables == []


def test_numpy_integers_are_sizes():
    assert keras_mae.MAEEncoder.from_preset(
        "mae_tiny", image_size=np.int64(16)
    ).image_size == (16, 16)


@pytest.mark.parametrize("accelerated", [False, True])
def test_a_model_on_a_cpu_keeps_freed_memory(make_model, monkeypatch, accelerated):
    calls = []
    place = "keras_mae.models.encoder"
    monkeypatch.setattr(f"{place}.has_accelerator", lambda: accelerated)
    monkeypatch.setattr(f"{place}.tune_malloc", lambda: calls.append(None))
    make_model()
    assert bool(calls) != accelerated


def test_a_dict_is_returned_where_it_is_asked_for(make_model, images):
    encoder = make_model().encoder
    outputs = encoder(images, return_dict=True)
    assert set(outputs) == {"latent"}
    np.testing.assert_array_equal(outputs["latent"], encoder(images))


@pytest.mark.tensorflow  # other backends trace with sizes made up
def test_an_unknown_height_and_width_is_told_what_to_do(make_model):
    with pytest.raises(ValueError, match=r"known height and width: keras\.Input\(\(32"):
        make_model().encoder(keras.Input((None, None, 3)), interpolate=True)


@pytest.mark.tensorflow
def test_batches_of_another_size_after_others_are_told(make_model, images):
    encoder = make_model(depth=1).encoder
    encoder.predict(images, verbose=0)
    with pytest.raises(ValueError, match=r"After batches of \(32, 32\), some of"):
        encoder.predict(np.zeros((4, 48, 48, 3), "float32"), verbose=0)


def own_activation(x):
    return x


def own_initializer(shape, dtype=None):
    return keras.ops.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("activation", own_activation),
        ("activation", lambda x: x),
        ("kernel_initializer", own_initializer),
        ("activation", "nonsense"),
    ],
)
def test_what_cannot_be_saved_is_refused_at_once(name, value, make_model):
    with pytest.raises(ValueError, match=rf"{name} must be .*registered"):
        make_model(**{name: value})
