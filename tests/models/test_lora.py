"""LoRA: what is trained, kept, merged and exported."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_mae
from keras_mae.models.loading import copy_encoder, without_lora
from tests.layers.test_freezing import copies, states

pytestmark = pytest.mark.backends
SLOW = pytest.mark.slow

LABELS = np.array([0, 1, 2, 0])


def values(variables):
    return [ops.convert_to_numpy(variable).copy() for variable in variables]


def assert_same(ours, theirs, atol=0.0):
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=atol)


def train(model, images, epochs=1):
    """Fits, with the optimizer that the model has or the one of fine-tuning."""
    if not model.compiled:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        optimizer = keras_mae.finetuning_optimizer(0.02, 0.75, depth=2)
        model.compile(optimizer=optimizer, loss=loss)
    return model.fit(images, LABELS, epochs=epochs, verbose=0, shuffle=False)


def make_classifier(make_model, rank=2, **options):
    model = keras_mae.MAEClassifier(make_model().encoder, 3, head_range=0.1)
    model.encoder.enable_lora(rank, **options)
    return model


def test_the_updates_and_the_head_alone_are_trained(make_model, images):
    model = make_classifier(make_model)
    names = [weight.path.partition("/")[2] for weight in model.trainable_weights]
    qkv = ("bias", "lora_kernel_a", "lora_kernel_b")
    wanted = [f"block_{i}/attention/qkv/{name}" for i in range(2) for name in qkv]
    head = ["head_norm/gamma", "head_norm/beta", "head/kernel", "head/bias"]
    assert names == wanted + head
    before, trained = (
        values(model.weights),
        {id(one) for one in model.trainable_weights},
    )
    losses = train(model, images, epochs=3).history["loss"]
    assert losses[-1] < losses[0]
    for weight, old in zip(model.weights, before, strict=True):
        moved = not np.array_equal(ops.convert_to_numpy(weight), old)
        assert moved == (id(weight) in trained), weight.path


def test_thawing_leaves_the_kernel_frozen(make_model):
    model = make_classifier(make_model)
    count = len(model.trainable_weights)
    model.trainable = False
    assert not model.trainable_weights
    model.encoder.blocks[0].attention.qkv.trainable = True
    model.trainable = True
    assert not model.encoder.blocks[0].attention.qkv._kernel.trainable
    assert len(model.trainable_weights) > count


@SLOW
@pytest.mark.parametrize(
    "quantized", [False, pytest.param(True, marks=pytest.mark.nightly)]
)
def test_a_saved_model_goes_on_training(make_model, images, tmp_path, quantized):
    model = keras_mae.MAEClassifier(make_model().encoder, 3, head_range=0.1)
    if quantized:
        model.encoder.quantize("int8")
    model.encoder.enable_lora(2, lora_alpha=3, target_layer_names=("qkv", "fc2"))
    train(model, images, epochs=2)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.encoder.blocks[0].mlp.fc2.lora_alpha == 3
    assert states(loaded) == states(model)
    assert_same(values(loaded.weights), values(model.weights))
    assert_same(values(loaded.optimizer.variables), values(model.optimizer.variables))
    losses = [train(one, images).history["loss"][0] for one in (model, loaded)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    for made in copies(model, tmp_path):
        assert states(made) == states(model)
        assert made.encoder.get_config()["lora"] == model.encoder.get_config()["lora"]


def test_a_file_from_before_lora_can_be_trained(make_model, tmp_path):
    encoder = make_model().encoder
    encoder.save_weights(tmp_path / "x.weights.h5")
    other = make_model().encoder
    other.enable_lora(2)
    other.load_weights(tmp_path / "x.weights.h5")
    ours, theirs = (one.blocks[0].attention.qkv for one in (other, encoder))
    assert_same(values([ours._kernel]), values([theirs.kernel]))
    assert np.abs(ops.convert_to_numpy(ours.lora_kernel_a)).min() > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "policy", ["float32", pytest.param("mixed_bfloat16", marks=pytest.mark.nightly)]
)
def test_merging_changes_no_answer(make_model, images, policy):
    encoder = make_model(dtype=policy).encoder
    model = keras_mae.MAEClassifier(encoder, 3, head_range=0.1, dtype=policy)
    encoder.enable_lora(2, lora_alpha=4)
    train(model, images, epochs=2)
    wanted = model.predict(images, verbose=0)
    qkv = encoder.blocks[0].attention.qkv
    kernel = values([qkv._kernel])[0].astype("float64")
    a, b = values([qkv.lora_kernel_a, qkv.lora_kernel_b])
    copy = without_lora(model)
    assert qkv.lora_enabled and copy is not model
    model.merge_lora()
    # to float32's digits, not the compute dtype's
    np.testing.assert_allclose(values([qkv.kernel])[0], kernel + 2 * a @ b, atol=1e-6)
    assert without_lora(model) is model
    assert len(model.weights) == len(copy.weights) == 2 * 12 + 4 + 2 + 4
    tolerance = 1e-5 if policy == "float32" else 0.05
    for merged in (model, copy):
        got = merged.predict(images, verbose=0)
        assert np.abs(got - wanted).max() <= tolerance * np.abs(wanted).max()
    assert model.encoder.get_config()["lora"] == {}
    assert any(one is qkv.kernel for one in model.trainable_weights)


@pytest.mark.nightly
def test_merging_into_a_quantized_kernel_rounds_once_more(make_model, images):
    encoder = make_model().encoder
    encoder.quantize("int8")
    encoder.enable_lora(2)
    qkv = encoder.blocks[0].attention.qkv
    qkv.lora_kernel_b.assign(np.full(qkv.lora_kernel_b.shape, 0.1, "float32"))
    (wanted,) = values([encoder(images)])
    encoder.merge_lora()
    (got,) = values([encoder(images)])
    assert keras.backend.standardize_dtype(qkv.kernel.dtype) == "int8"
    assert 0 < np.abs(got - wanted).max() < 0.05 * np.abs(wanted).max()


@pytest.mark.slow
def test_an_encoder_with_lora_is_copied_merged(make_model, images):
    model = make_classifier(make_model)
    train(model, images, epochs=2)
    copy = copy_encoder(model.encoder)
    assert copy.trainable_weights and not copy.get_config()["lora"]
    wanted, got = values([model.encoder(images), copy(images)])
    np.testing.assert_allclose(got, wanted, atol=1e-4)


def test_what_does_not_go_is_one_error(make_model, tmp_path):
    encoder = make_model().encoder
    for rank in (0, 2.0, True):
        with pytest.raises(ValueError, match="rank must be a positive int"):
            encoder.enable_lora(rank)
    for names in (("query",), ()):
        with pytest.raises(
            ValueError, match="must be among fc1, fc2, proj, projection"
        ):
            encoder.enable_lora(2, target_layer_names=names)
    encoder.enable_lora(2)
    with pytest.raises(ValueError, match="already enabled"):
        encoder.enable_lora(2)
    with pytest.raises(ValueError, match="already enabled"):
        encoder.enable_lora(2, target_layer_names=("fc1",))
    assert encoder.blocks[0].attention.qkv.lora_kernel_a.trainable
    for call in (
        lambda: keras_mae.weights.export_weights(encoder),
        lambda: keras_mae.weights.load_weights(encoder, {}),
    ):
        with pytest.raises(ValueError, match=r"after merge_lora.*a model with LoRA"):
            call()
    with pytest.raises(ValueError, match=r"after merge_lora.*a model with LoRA"):
        encoder.save_pretrained(tmp_path)
    config = {**encoder.get_config(), "lora": {"blocks.7.mlp": [2, 2]}}
    with pytest.raises(ValueError, match=r"lora must name parts.*blocks\.7"):
        keras_mae.MAEEncoder.from_config(config)


def test_what_was_merged_stays_merged(make_model):
    encoder = make_model().encoder
    encoder.enable_lora(2)
    loaded = keras_mae.MAEEncoder.from_config(encoder.get_config())
    loaded.merge_lora()
    loaded.enable_lora(2, target_layer_names=("fc1",))
    lora = loaded.get_config()["lora"]
    assert sorted(lora) == ["blocks.0.mlp.fc1", "blocks.1.mlp.fc1"]
