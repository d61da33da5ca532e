"""Other libraries' names of the same layers, by rules written apart from our table."""

import re

import numpy as np
import pytest

import keras_mae
from keras_mae.weights import PortError, export_weights
from keras_mae.weights.key_mapping import FACEBOOK

HEADS = {"num_heads": 2, "decoder_num_heads": 2}
# facebook's name, as a regular expression -> that of the library
MMPRETRAIN = {
    r"^blocks\.": "backbone.layers.",
    r"^norm\.": "backbone.ln1.",
    r"^fc_norm\.": "backbone.ln2.",
    r"^head\.": "head.fc.",
    r"^(cls_token|pos_embed)": r"backbone.\1",
    r"^patch_embed\.proj\.": "backbone.patch_embed.projection.",
    r"^decoder_norm\.": "neck.ln1.",
    r"^(mask_token|decoder)": r"neck.\1",
    r"\.norm([12])\.": r".ln\1.",
    r"\.mlp\.fc1\.": ".ffn.layers.0.0.",
    r"\.mlp\.fc2\.": ".ffn.layers.1.",
}
MMSELFSUP = {
    **MMPRETRAIN,
    r"^fc_norm\.": "backbone.fc_norm.",
    r"^head\.": "head.head.",
}
SAPIENS = {**MMPRETRAIN, r"^backbone\.": ""}
SOLO_LEARN = {r"^(mask_token|decoder)": r"decoder.\1", r"^(?!decoder\.)": "backbone."}
LIGHTLY = {r"^(mask_token|decoder)": r"decoder.\1", r"^(?!decoder\.)": "backbone.vit."}


def renamed(state, rules):
    result = {}
    for key, value in state.items():
        for pattern, replacement in rules.items():
            key = re.sub(pattern, replacement, key)
        result[key] = value
    return result


@pytest.fixture
def model(make_model):
    return make_model(layer_norm_epsilon=1e-6)


def same_weights(one, two):
    one, two = export_weights(one, FACEBOOK), export_weights(two, FACEBOOK)
    return all(np.array_equal(one[key], two[key]) for key in one | two)


@pytest.mark.parametrize(
    ("library", "rules", "beside"),
    [
        ("mmpretrain", MMPRETRAIN, {"data_preprocessor.mean": np.zeros(3)}),
        ("solo-learn", SOLO_LEARN, {"classifier.weight": np.zeros((4, 16))}),
        ("lightly", LIGHTLY, {"backbone.mask_token": np.zeros((1, 1, 16))}),
    ],
)
def test_pretrainers_are_read(library, rules, beside, model):
    state = renamed(export_weights(model, FACEBOOK), rules) | beside
    loaded = keras_mae.MAEPretrainer.from_pretrained({"state_dict": state}, **HEADS)
    assert loaded.port_report.format == f"{library}, state dict"
    assert loaded.port_report.left_out == tuple(beside)
    assert same_weights(loaded, model)
    assert loaded.encoder.blocks[0].norm1.epsilon == 1e-6
    decoder_epsilon = 1e-5 if library == "solo-learn" else 1e-6
    assert loaded.decoder.blocks[0].norm1.epsilon == decoder_epsilon


@pytest.mark.parametrize("key", ["cfg", "config"])
def test_the_configuration_in_mmengines_checkpoints_is_read(key, model):
    text = """
model = dict(
    backbone=dict(type='MAEViT', arch='b', mask_ratio=0.6),
    neck=dict(type='MAEPretrainDecoder', decoder_num_heads=2),
    head=dict(type='MAEPretrainHead', norm_pix=True, patch_size=8))
"""
    state = renamed(export_weights(model, FACEBOOK), MMPRETRAIN)

    def load(text):
        content = {"meta": {key: text}, "state_dict": state}
        return keras_mae.MAEPretrainer.from_pretrained(content, num_heads=2)

    loaded = load(text)
    assert (loaded.norm_pix_loss, loaded.mask_ratio) == (True, 0.6)
    assert loaded.decoder.blocks[0].attention.num_heads == 2
    # of a model and another nobody knows which is meant
    twice = load(text + "teacher = dict(head=dict(norm_pix=False), mask_ratio=0.9)")
    assert (twice.norm_pix_loss, twice.mask_ratio) == (False, 0.75)


@pytest.mark.parametrize("rules", [MMPRETRAIN, SAPIENS], ids=["mmpretrain", "sapiens"])
def test_encoders_are_read(rules, model):
    state = renamed(export_weights(model.encoder, FACEBOOK), rules)
    loaded = keras_mae.MAEEncoder.from_pretrained(state, num_heads=2)
    assert "mmpretrain" in loaded.port_report.format
    assert same_weights(loaded, model.encoder)


@pytest.mark.parametrize(
    ("rules", "pooling"),
    [(MMPRETRAIN, "mean"), (MMPRETRAIN, "cls"), (MMSELFSUP, "mean")],
)
def test_classifiers_of_mmpretrain_are_read(rules, pooling, model):
    classifier = keras_mae.MAEClassifier(model.encoder, num_classes=5, pooling=pooling)
    classifier.head.kernel.assign(np.random.rand(16, 5))
    state = renamed(export_weights(classifier, FACEBOOK), rules)
    assert {"head.fc.weight", "head.head.weight"} & state.keys()
    loaded = keras_mae.MAEClassifier.from_pretrained(state, num_heads=2)
    assert loaded.pooling == pooling
    assert same_weights(loaded, classifier)


@pytest.mark.parametrize(
    ("library", "rules"),
    [("mmpretrain", MMPRETRAIN), ("solo-learn", SOLO_LEARN), ("lightly", LIGHTLY)],
)
def test_they_are_written_back(library, rules, model, tmp_path):
    torch = pytest.importorskip("torch")
    model.save_pretrained(tmp_path, format=library)
    state = torch.load(tmp_path / "model.pth", weights_only=True)["state_dict"]
    wanted = renamed(export_weights(model, FACEBOOK), rules)
    extra = {"backbone.mask_token"} if library == "lightly" else set()
    assert state.keys() == wanted.keys() | extra
    for key, value in wanted.items():
        np.testing.assert_array_equal(state[key].numpy(), value)
    loaded = keras_mae.MAEPretrainer.from_pretrained(tmp_path, **HEADS)
    assert same_weights(loaded, model)


def settings(model):
    decoder = model.decoder.blocks[0].attention
    heads = model.encoder.blocks[0].attention.num_heads, decoder.num_heads
    return heads, model.encoder.image_size, model.norm_pix_loss, model.mask_ratio


CHANGED = {
    "image_size": (16, 64),
    "mask_ratio": 0.6,
    "norm_pix_loss": True,
    "num_heads": 4,
}


def test_mmpretrains_files_tell_what_no_shape_does(make_model, tmp_path):
    pytest.importorskip("torch")
    model = make_model(**CHANGED, layer_norm_epsilon=1e-6)
    report = model.save_pretrained(tmp_path, format="mmpretrain")
    wanted = "not stored: image_size (16, 64); pass them to from_pretrained"
    assert report.notes == (wanted,)
    loaded = keras_mae.MAEPretrainer.from_pretrained(tmp_path, image_size=(16, 64))
    assert settings(loaded) == settings(model)
    (tmp_path / "model.pth").unlink()
    model.encoder.save_pretrained(tmp_path, format="mmpretrain")
    encoder = keras_mae.MAEEncoder.from_pretrained(tmp_path)
    assert encoder.blocks[0].attention.num_heads == 4


@pytest.mark.parametrize("library", ["solo-learn", "lightly"])
def test_what_a_format_does_not_tell_is_noted(library, make_model, tmp_path):
    pytest.importorskip("torch")
    model = make_model(**CHANGED, layer_norm_epsilon=1e-6)
    notes = model.save_pretrained(tmp_path, format=library).notes
    for name in ("image_size (16, 64)", "mask_ratio 0.6", "norm_pix_loss True"):
        assert name in notes[-1]
    assert "num_heads 4, decoder_num_heads 2" in notes[-1]
    plain = make_model(layer_norm_epsilon=1e-6)
    note = plain.save_pretrained(tmp_path, format=library).notes[-1]
    assert "num_heads 2" in note
    assert not any(name in note for name in set(CHANGED) - {"num_heads"})


def test_a_head_on_batch_statistics_has_no_name_there(model, tmp_path):
    pytest.importorskip("torch")
    classifier = keras_mae.MAEClassifier(model.encoder, num_classes=5, batch_norm=True)
    with pytest.raises((PortError, ValueError), match="has no name for batch_norm"):
        classifier.save_pretrained(tmp_path, format="mmpretrain")


def test_solo_learn_s_epsilon_survives_the_round_trip(model, tmp_path):
    pytest.importorskip("torch")
    report = model.save_pretrained(tmp_path / "one", format="solo-learn")
    assert "decoder_layer_norm_epsilon is 1e-06; that library uses 1e-05" in str(report)
    loaded = keras_mae.MAEPretrainer.from_pretrained(tmp_path / "one", **HEADS)
    report = loaded.save_pretrained(tmp_path / "two", format="solo-learn")
    assert report.notes == (
        "not stored: num_heads 2, decoder_num_heads 2; pass them to from_pretrained",
    )


@pytest.mark.parametrize("library", ["solo-learn", "lightly"])
def test_a_head_has_no_name_there(library, model, tmp_path):
    pytest.importorskip("torch")
    classifier = keras_mae.MAEClassifier(model.encoder, num_classes=5)
    with pytest.raises(ValueError, match="no names for a classifier's head"):
        classifier.save_pretrained(tmp_path, format=library)
