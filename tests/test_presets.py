"""Presets: parameter counts, overrides, and what is refused."""

import pytest

import keras_mae
from keras_mae.presets import preset_sizes, pretrainer_config

pytestmark = pytest.mark.backends

# all parameters, and the encoder's; base, large and huge as in the PyTorch classes
COUNTS = {
    "mae_tiny": (923_760, 808_064),
    "mae_small": (25_171_840, 21_665_664),
    "mae_base": (111_907_840, 85_798_656),
    "mae_large": (329_541_888, 303_301_632),
    "mae_huge": (657_074_508, 630_764_800),
}
# the kernels' values don't matter here, and zeros are quick to draw
ZEROS = {"kernel_initializer": "zeros"}


def test_every_preset_is_pinned():
    assert set(COUNTS) == set(keras_mae.PRESETS)


@pytest.mark.slow
@pytest.mark.parametrize("preset", COUNTS)
def test_parameter_counts(preset):
    model = keras_mae.MAEPretrainer.from_preset(preset, **ZEROS)
    counts = (model.count_params(), model.encoder.count_params())
    assert counts == COUNTS[preset]


@pytest.mark.parametrize("preset", ["mae_base", "mae_large", "mae_huge"])
def test_counts_are_those_of_the_pytorch_classes(preset):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    sizes = keras_mae.PRESETS[preset]
    config = transformers.ViTMAEConfig(
        hidden_size=sizes["hidden_dim"],
        num_hidden_layers=sizes["depth"],
        num_attention_heads=sizes["num_heads"],
        intermediate_size=sizes["mlp_dim"],
        patch_size=sizes["patch_size"],
    )
    with torch.device("meta"):
        theirs = transformers.ViTMAEForPreTraining(config)
    count = sum(p.numel() for p in theirs.parameters())
    assert (count, sum(p.numel() for p in theirs.vit.parameters())) == COUNTS[preset]


def test_overrides_reach_encoder_and_decoder():
    model = keras_mae.MAEPretrainer.from_preset(
        "mae_tiny",
        image_size=(16, 24),
        patch_size=(4, 8),
        num_channels=2,
        hidden_dim=24,
        depth=1,
        num_heads=3,
        mlp_dim=20,
        decoder_hidden_dim=12,
        decoder_depth=3,
        decoder_num_heads=1,
        decoder_mlp_dim=8,
        activation="relu",
        dropout_rate=0.1,
        attention_dropout_rate=0.2,
        qkv_bias=False,
        layer_norm_epsilon=1e-12,
        initializer_range=0.5,
        mask_ratio=0.5,
        norm_pix_loss=True,
    )
    encoder, decoder = model.encoder.get_config(), model.decoder.get_config()
    assert (encoder["hidden_dim"], decoder["hidden_dim"]) == (24, 12)
    assert (encoder["depth"], decoder["depth"]) == (1, 3)
    assert (decoder["grid"], decoder["patch_dim"]) == ((4, 3), 64)
    for config in (encoder, decoder):
        assert config["activation"] == "relu" and config["qkv_bias"] is False
        assert config["dropout_rate"] == 0.1
        assert config["attention_dropout_rate"] == 0.2
        assert config["layer_norm_epsilon"] == 1e-12
        assert config["initializer_range"] == 0.5
    assert model.mask_ratio == 0.5 and model.norm_pix_loss


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"preset must be one of .*mae_base.*'vit'"):
        preset_sizes("vit")
    with pytest.raises(ValueError, match="Received: colour, deptth"):
        pretrainer_config({}, {"deptth": 3, "colour": 1})
    with pytest.raises(ValueError, match="Received: decoder_width"):
        keras_mae.MAEPretrainer.from_preset("mae_tiny", decoder_width=3)


def test_no_two_kernels_start_alike():
    model = keras_mae.MAEPretrainer.from_preset("mae_tiny")
    kernels = [w.numpy().ravel() for w in model.weights if w.path.endswith("kernel")]
    starts = {tuple(kernel[:4] / abs(kernel).max()) for kernel in kernels}
    assert len(starts) == len(kernels)


def test_an_encoder_has_no_decoder_to_override():
    with pytest.raises(ValueError, match="Received: decoder_depth"):
        keras_mae.MAEEncoder.from_preset("mae_tiny", decoder_depth=3)
