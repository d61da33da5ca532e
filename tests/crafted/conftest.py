"""Fixtures: a tiny model, and its files in each format."""

import pytest

import keras_mae
from keras_mae.weights import export_weights
from keras_mae.weights.key_mapping import FACEBOOK
from tests.crafted import forge
from tests.crafted.forge import ARGS, text

SIZES = {"hidden_dim": 16, "depth": 1, "num_heads": 2, "mlp_dim": 16, "patch_size": 8}
SIZES |= {"decoder_hidden_dim": 8, "decoder_depth": 1, "decoder_num_heads": 2}
SIZES |= {"decoder_mlp_dim": 8}


@pytest.fixture(scope="module")
def model():
    return keras_mae.MAEPretrainer.from_preset("mae_tiny", **SIZES)


@pytest.fixture(scope="module")
def state(model):
    return export_weights(model, FACEBOOK)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    """A folder of each library's, as bytes to spoil: file name -> content."""
    folders = {}
    for format, part in (("huggingface", model), ("timm", model.encoder)):
        folder = tmp_path_factory.mktemp(format)
        part.save_pretrained(folder, format)
        folders[format] = {p.name: p.read_bytes() for p in folder.iterdir()}
    return folders


@pytest.fixture
def write(saved, state, tmp_path):
    """Writes a sound source; returns its path."""

    def write(kind):
        folder = tmp_path / "source"
        folder.mkdir()
        if kind in ("zip", "legacy"):
            writer = forge.write_zip if kind == "zip" else forge.write_legacy
            content = forge.state_program(state, text("args") + ARGS)
            return writer(folder / "model.pth", content, forge.storages_of(state))
        if kind == "shards":
            return forge.write_shards(folder, state)
        for file, content in saved[kind].items():
            (folder / file).write_bytes(content)
        return folder

    return write
