"""Presets: parameter counts, overrides, and what is refused."""

import keras
import numpy as np
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


def test_sizes_are_a_copy():
    preset_sizes("mae_tiny").clear()
    assert preset_sizes("mae_tiny")


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


@pytest.mark.backends
def test_a_saved_preset_comes_back_with_its_weights(make_model, images, tmp_path):
    model = make_model()
    model.save_to_preset(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "model.weights.h5",
    }
    wanted = keras.ops.convert_to_numpy(model(images, seed=0)["logits"])
    again = keras_mae.MAEPretrainer.from_preset(str(tmp_path))
    found = keras.ops.convert_to_numpy(again(images, seed=0)["logits"])
    np.testing.assert_array_equal(found, wanted)
    encoder = keras_mae.MAEEncoder.from_preset(tmp_path)
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(encoder(images)),
        keras.ops.convert_to_numpy(model.encoder(images)),
    )
    classifier = keras_mae.MAEClassifier.from_preset(tmp_path, num_classes=3)
    assert classifier(images).shape == (4, 3)


def test_a_saved_preset_without_its_weights_is_fresh(make_model, images, tmp_path):
    model = make_model()
    model.save_to_preset(tmp_path)
    (tmp_path / "model.weights.h5").unlink()
    fresh = keras_mae.MAEPretrainer.from_preset(tmp_path, load_weights=False)
    assert fresh.get_config()["encoder"] == model.get_config()["encoder"]
    with pytest.raises(ValueError, match=r"model\.weights\.h5 can't be read"):
        keras_mae.MAEPretrainer.from_preset(tmp_path)


def test_a_folder_of_another_library_is_refused(make_model, tmp_path):
    make_model().save_pretrained(tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(ValueError, match="read by from_pretrained"):
        keras_mae.MAEPretrainer.from_preset(tmp_path)
    with pytest.raises(ValueError, match="must be a folder of save_to_preset"):
        make_model().save_to_preset(tmp_path)
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_preset_is_not_replaced_by_another_librarys_files(make_model, tmp_path):
    make_model().save_to_preset(tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(ValueError, match="must not hold a run or a preset"):
        make_model().save_pretrained(tmp_path)
    assert (tmp_path / "config.json").read_bytes() == before
    keras_mae.MAEPretrainer.from_preset(tmp_path)


def test_sizes_load_weights_only_where_some_are_published(monkeypatch):
    with pytest.raises(
        ValueError, match="only mae_base, mae_large, mae_huge have them"
    ):
        keras_mae.MAEEncoder.from_preset("mae_tiny", load_weights=True)
    asked = []
    monkeypatch.setattr(
        keras_mae.MAEEncoder,
        "from_pretrained",
        classmethod(lambda cls, source, **options: asked.append((source, options))),
    )
    keras_mae.MAEEncoder.from_preset("mae_base", load_weights=True, num_channels=1)
    assert asked == [("facebook/vit-mae-base", {"num_channels": 1})]


def test_other_settings_of_a_saved_preset_are_refused(make_model, tmp_path):
    make_model().save_to_preset(tmp_path)
    with pytest.raises(ValueError, match="must be built as it was saved"):
        keras_mae.MAEPretrainer.from_preset(tmp_path, mask_ratio=0.5)
    with pytest.raises(ValueError, match="num_classes must be given"):
        keras_mae.MAEClassifier.from_preset(tmp_path)
    with pytest.raises(ValueError, match=r"new head takes num_cl.*Received: dtype"):
        keras_mae.MAEClassifier.from_preset(
            tmp_path, num_classes=3, dtype="mixed_bfloat16"
        )
    make_model().encoder.save_to_preset(tmp_path)
    with pytest.raises(ValueError, match="must hold a MAEPretrainer"):
        keras_mae.MAEPretrainer.from_preset(tmp_path)
