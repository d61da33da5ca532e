"""KerasHub's ViTBackbone from our encoder and back: same outputs, or an error."""

import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_mae
from keras_mae.convert.keras_hub_backbone import from_keras_hub, to_keras_hub
from keras_mae.ops.activations import gelu_tanh
from keras_mae.weights import PortError
from tests.comparison import assert_same_weights

keras_hub = pytest.importorskip("keras_hub")

TINY = {"hidden_dim": 16, "depth": 2, "num_heads": 4, "mlp_dim": 24}
SIZES = {
    "square": {"image_size": 32, "patch_size": 8},
    "oblong": {"image_size": (16, 24), "patch_size": (4, 8)},
    "one channel": {"image_size": 16, "patch_size": 4, "num_channels": 1},
    "one head": {"image_size": 16, "patch_size": 2, "num_heads": 1},
    "settings": {
        "image_size": 16,
        "patch_size": 8,
        "attention_dropout_rate": 0.5,
        "layer_norm_epsilon": 1e-2,
    },
}


def fill(model, scale):
    """Sets every variable to random values, positions and CLS too."""
    rng = np.random.default_rng(1)
    for weight in model.weights:
        weight.assign(scale * rng.standard_normal(weight.shape))
        if weight.name == "gamma":
            weight.assign_add(np.ones(weight.shape))
    return model


def make_encoder(scale=0.3, **overrides):
    sizes = {**TINY, **SIZES["oblong"], **overrides}
    return fill(keras_mae.MAEEncoder(**sizes), scale)


def draw(encoder):
    shape = (2, *encoder.image_size, encoder.num_channels)
    return np.random.default_rng(2).standard_normal(shape).astype("float32")


def make_backbone(**overrides):
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 12}
    config = {"image_shape": (8, 8, 3), "patch_size": 4, **sizes, **overrides}
    return keras_hub.models.ViTBackbone(**config)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_outputs_are_equal_and_the_round_trip_is_exact(sizes):
    encoder = make_encoder(**sizes)
    backbone = to_keras_hub(encoder)
    wanted = encoder(draw(encoder)).numpy()
    assert wanted.std() > 0.5
    np.testing.assert_allclose(backbone(draw(encoder)), wanted, rtol=0, atol=1e-5)
    restored = from_keras_hub(backbone)
    assert_same_weights(restored, encoder)
    assert restored.get_config() == {**encoder.get_config(), "name": restored.name}


@pytest.mark.slow
def test_outputs_are_equal_at_the_width_of_base():
    encoder = keras_mae.MAEEncoder.from_preset("mae_base", depth=2)
    backbone = to_keras_hub(fill(encoder, 0.02))
    wanted = encoder(draw(encoder))
    np.testing.assert_allclose(backbone(draw(encoder)), wanted, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "mixed_bfloat16"])
def test_the_dtype_policy_goes_along(dtype):
    encoder = make_encoder(dtype=dtype)
    backbone = to_keras_hub(encoder)
    assert backbone(draw(encoder)).dtype == "bfloat16"
    restored = from_keras_hub(backbone)
    assert restored.dtype_policy.name == dtype
    assert_same_weights(restored, encoder)


@pytest.mark.slow
def test_a_backbone_of_kerashub_becomes_an_encoder():
    backbone = fill(make_backbone(layer_norm_epsilon=1e-12), 0.3)
    encoder = from_keras_hub(backbone)
    wanted = backbone(draw(encoder))
    np.testing.assert_allclose(encoder(draw(encoder)), wanted, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_classifier_of_kerashub_trains_the_ported_weights():
    backbone = to_keras_hub(make_encoder())
    model = keras_hub.models.ViTImageClassifier(backbone=backbone, num_classes=3)
    model.compile(
        optimizer=keras.optimizers.SGD(0.1),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    before = [weight.numpy() for weight in backbone.weights]
    images = draw(make_encoder())
    history = model.fit(images, np.array([0, 2]), verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    for weight, old in zip(backbone.weights, before, strict=True):
        change = np.abs(weight.numpy() - old).max()
        # softmax doesn't see what is added to every key
        assert change > 0 or weight.path.endswith("key/bias"), weight.path
    encoder = from_keras_hub(backbone)
    np.testing.assert_allclose(encoder(images), backbone(images), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_preset_holds_it(tmp_path):
    encoder = make_encoder()
    to_keras_hub(encoder).save_to_preset(tmp_path)
    restored = keras_hub.models.Backbone.from_preset(str(tmp_path))
    assert isinstance(restored, keras_hub.models.ViTBackbone)
    wanted = encoder(draw(encoder))
    np.testing.assert_allclose(restored(draw(encoder)), wanted, rtol=0, atol=1e-5)
    assert_same_weights(from_keras_hub(restored), encoder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, value",
    [
        ("activation", gelu_tanh),
        ("activation", "relu"),
        ("drop_path_rate", 0.1),
        ("dropout_rate", 0.1),
        ("final_norm", False),
        ("qkv_bias", False),
    ],
)
def test_an_encoder_that_kerashub_has_not(name, value):
    with pytest.raises(ValueError, match=rf"{name} must be .*\. Received: "):
        to_keras_hub(make_encoder(**{name: value}))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, value",
    [
        ("dropout_rate", 0.1),
        ("use_class_token", False),
        ("use_mha_bias", False),
        ("use_mlp_bias", False),
        ("use_patch_bias", False),
    ],
)
def test_a_backbone_that_we_have_not(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .* Received: {value}"):
        from_keras_hub(make_backbone(**{name: value}))


@pytest.mark.slow
def test_one_error_lists_every_setting():
    shape = {"image_shape": (3, 8, 8), "data_format": "channels_first"}
    with pytest.raises(ValueError) as error:
        from_keras_hub(make_backbone(use_class_token=False, **shape))
    assert str(error.value).splitlines()[1:] == [
        "  data_format must be 'channels_last'. Received: 'channels_first'",
        "  use_class_token must be True. Received: False",
    ]


@pytest.mark.slow
def test_other_models_are_refused(make_model):
    with pytest.raises(ValueError, match=r"must be a MAEEncoder\..*MAEPretrainer"):
        to_keras_hub(make_model())
    with pytest.raises(ValueError, match=r"must be a ViTBackbone\..*MAEEncoder"):
        from_keras_hub(make_encoder())


@pytest.mark.slow
def test_variables_beside_the_known_ones_are_listed():
    encoder = make_encoder()
    backbone = to_keras_hub(encoder)
    block = backbone.get_layer("vit_encoder").encoder_layers[0]
    block.mlp.dense_1.enable_lora(2)
    with pytest.raises(PortError) as error:
        from_keras_hub(backbone)
    root = "vit_encoder/transformer_block_1/mlp/dense_1"
    assert str(error.value).splitlines()[1:] == [
        f"  unused key: {root}/lora_kernel_a (16, 2)",
        f"  unused key: {root}/lora_kernel_b (2, 24)",
    ]
    encoder.blocks[0].mlp.fc1.enable_lora(2)
    with pytest.raises(PortError, match=r"variable without a key: .*lora_kernel_b"):
        to_keras_hub(encoder)


@pytest.mark.nightly
def test_kerashub_is_imported_by_need_only(monkeypatch):
    code = (
        "import sys, keras_mae.convert.keras_hub_backbone; "
        "print('keras_hub' in sys.modules)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert finished.stdout.strip() == "False", finished.stderr
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    for convert in (to_keras_hub, from_keras_hub):
        with pytest.raises(ValueError, match=r"pip install 'keras-mae\[keras-hub\]'"):
            convert(None)
