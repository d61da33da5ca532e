"""Files of Hugging Face's TensorFlow classes, beside what the classes answered.

tests/fixtures/make_huggingface_tf.py wrote both.
"""

import json
import shutil

import h5py
import keras
import numpy as np
import pytest
from huggingface_hub import constants

import keras_mae
from keras_mae.models.loading import find_labels, load_model
from keras_mae.ops import patchify
from keras_mae.weights import PortError, export_weights, load_weights
from keras_mae.weights.checkpoint_reader import open_checkpoint
from keras_mae.weights.key_mapping import HUGGINGFACE_TENSORFLOW
from tests.comparison import assert_same_weights
from tests.hub_server import NAME, serve
from tests.scripts import ROOT

FOLDER = ROOT / "tests/fixtures/huggingface_tf"
# what holds the same pretrainer -> its container
PRETRAINER = {
    "pretrainer": "HDF5",
    "pretrainer/tf_model.h5": "HDF5",
    "shards": "sharded HDF5",
    "shards/tf_model.h5.index.json": "sharded HDF5",
    "safetensors": "safetensors",
    "safetensors_shards": "sharded safetensors",
}


def answers(name):
    with np.load(FOLDER / name / "answers.npz") as recorded:
        return dict(recorded)


def assert_close(ours, theirs):
    """Asserts a difference of at most 1e-6 of the scale."""
    ours = keras.ops.convert_to_numpy(ours)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-6 * np.abs(theirs).max()


@pytest.fixture(scope="module")
def pretrainer():
    return keras_mae.MAEPretrainer.from_pretrained(FOLDER / "pretrainer")


@pytest.fixture
def folder(tmp_path):
    """A copy of the pretrainer's folder, to change."""
    return shutil.copytree(FOLDER / "pretrainer", tmp_path / "tf")


@pytest.mark.parametrize("name", PRETRAINER)
def test_a_pretrainer_answers_as_its_class_did(name):
    model = keras_mae.MAEPretrainer.from_pretrained(FOLDER / name)
    wanted = answers("pretrainer")
    outputs = model(wanted["images"], noise=wanted["noise"])
    assert_close(outputs["logits"], wanted["logits"])
    for key in ("mask", "ids_restore"):
        np.testing.assert_array_equal(outputs[key], wanted[key])
    assert_close(outputs["loss"], wanted["loss"].reshape(()))
    report = model.port_report
    assert report.format == f"Hugging Face, TensorFlow, {PRETRAINER[name]}"
    assert (report.filled, report.target) == (62, "pixels")
    assert report.left_out == report.fresh == report.resized == report.notes == ()


def test_the_same_bits_by_the_same_names(pretrainer):
    ours = export_weights(pretrainer, HUGGINGFACE_TENSORFLOW)
    seen = []

    def compare(path, item):
        if isinstance(item, h5py.Dataset):
            layer, _, rest = path.split("/", 2)
            assert rest.startswith(f"{layer}/")
            np.testing.assert_array_equal(ours[rest], item[()])
            seen.append(rest)

    with h5py.File(FOLDER / "pretrainer/tf_model.h5") as file:
        file.visititems(compare)
    assert sorted(seen) == sorted(ours)


def test_only_the_loss_with_normalized_pixels_differed():
    """The class's targets had the biased variance."""
    model = keras_mae.MAEPretrainer.from_pretrained(
        FOLDER / "pretrainer", norm_pix_loss=True
    )
    wanted = answers("pretrainer")
    outputs = model(wanted["images"], noise=wanted["noise"])
    theirs = wanted["normalized_loss"].item()
    assert abs(float(outputs["loss"]) - theirs) > 1e-3 * theirs
    patches = np.asarray(patchify(wanted["images"], 4), "float64")  # (B, L, P)
    mean, variance = (f(patches, -1, keepdims=True) for f in (np.mean, np.var))
    targets = (patches - mean) / np.sqrt(variance + 1e-6)
    per_patch = ((wanted["logits"] - targets) ** 2).mean(axis=-1)  # (B, L)
    biased = (per_patch * wanted["mask"]).sum() / wanted["mask"].sum()
    assert biased == pytest.approx(theirs, rel=1e-5)


def test_what_save_weights_wrote_is_read():
    with pytest.raises(PortError, match=r"num_heads can't be inferred from shapes"):
        keras_mae.MAEEncoder.from_pretrained(FOLDER / "encoder/encoder.h5")
    for source in ("encoder/encoder.h5", "encoder"):
        encoder = keras_mae.MAEEncoder.from_pretrained(FOLDER / source, num_heads=3)
        wanted = answers("encoder")
        assert_close(encoder(wanted["images"]), wanted["last_hidden_state"])


def test_a_pooler_is_left_out():
    encoder = keras_mae.MAEEncoder.from_pretrained(FOLDER / "vit")
    wanted = answers("vit")
    assert_close(encoder(wanted["images"]), wanted["last_hidden_state"])
    left_out = ("vit/pooler/dense/bias:0", "vit/pooler/dense/kernel:0")
    assert encoder.port_report.left_out == left_out


def test_a_classifier_answers_as_its_class_did():
    model, _ = load_model(FOLDER / "classifier/tf_model.h5")
    assert isinstance(model, keras_mae.MAEClassifier) and model.pooling == "cls"
    wanted = answers("classifier")
    assert_close(model(wanted["images"]), wanted["logits"])
    assert find_labels(FOLDER / "classifier", 3) == ("cat", "dog", "owl")


def test_a_model_that_is_there_is_filled_and_others_resized(pretrainer):
    model = keras_mae.MAEPretrainer.from_config(pretrainer.get_config())
    load_weights(model, FOLDER / "shards")
    wanted = answers("pretrainer")
    outputs = model(wanted["images"], noise=wanted["noise"])
    assert_close(outputs["logits"], wanted["logits"])
    encoder = keras_mae.MAEEncoder.from_pretrained(
        FOLDER / "pretrainer", image_size=(8, 24), num_channels=1
    )
    assert encoder(np.zeros((1, 8, 24, 1))).shape == (1, 13, 12)
    assert len(encoder.port_report.resized) == 2


def test_a_hub_repository_of_tensorflow_files_is_read(
    pretrainer, tmp_path, monkeypatch
):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with serve({"main": FOLDER / "shards"}) as (_, endpoint):
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        loaded = keras_mae.MAEPretrainer.from_pretrained(NAME)
    ours, theirs = export_weights(loaded), export_weights(pretrainer)
    for key, value in theirs.items():
        np.testing.assert_array_equal(ours[key], value)


def test_pytorch_files_beside_it_come_first(pretrainer, folder, tmp_path):
    pretrainer.save_pretrained(tmp_path / "torch")
    shutil.copy(tmp_path / "torch/model.safetensors", folder)
    assert open_checkpoint(folder).container == "safetensors"


def test_what_a_trainer_leaves_is_not_taken_for_weights(folder):
    (folder / "tf_model.h5").rename(folder / "mine.h5")
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt"):
        (folder / name).write_bytes(b"no weights")
    assert open_checkpoint(folder).container == "HDF5"
    (folder / "mine.h5").unlink()
    with pytest.raises(PortError, match=r"has none of model\.safetensors"):
        open_checkpoint(folder)


def test_damage_is_named_and_nothing_changes(pretrainer, folder):
    model = keras_mae.MAEPretrainer.from_config(pretrainer.get_config())
    before = [weight.numpy() for weight in model.weights]
    path = "vit/tf_vi_tmae_for_pre_training/vit/layernorm/beta:0"
    with h5py.File(folder / "tf_model.h5", "r+") as file:
        del file[path]
        file[path] = np.zeros(5, "float32")
        file["vit/tf_vi_tmae_for_pre_training/vit/zebra:0"] = np.zeros(2, "float32")
    with pytest.raises(PortError, match=r"unused key: vit/zebra:0 \(2,\)"):
        load_weights(model, folder)
    with h5py.File(folder / "tf_model.h5", "r+") as file:
        del file["vit/tf_vi_tmae_for_pre_training/vit/zebra:0"]
    wanted = r"shape of vit/layernorm/beta:0: expected \(12,\) .*received \(5,\)"
    with pytest.raises(PortError, match=wanted):
        load_weights(model, folder)
    for weight, old in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), old)


def test_shapes_in_errors_are_those_of_the_file(pretrainer, folder):
    path = "vit/tf_vi_tmae_for_pre_training/vit/encoder/layer_._1/output/dense/kernel:0"
    with h5py.File(folder / "tf_model.h5", "r+") as file:
        del file[path]
        file[path] = np.zeros((12, 20), "float32")  # as PyTorch has it
    wanted = r"output/dense/kernel:0: expected \(20, 12\) .*received \(12, 20\)"
    with pytest.raises(PortError, match=wanted):
        keras_mae.MAEPretrainer.from_pretrained(folder)


def test_an_index_and_its_shards_are_compared(tmp_path):
    folder = shutil.copytree(FOLDER / "shards", tmp_path / "tf")
    path = folder / "tf_model.h5.index.json"
    index = json.loads(path.read_text())
    key = "tf_vi_tmae_for_pre_training/vit/layernorm/beta:0"
    file = index["weight_map"].pop(key)
    path.write_text(json.dumps(index))
    with pytest.raises(PortError, match=r"unused key: vit/layernorm/beta:0 \(12,\)"):
        open_checkpoint(folder)
    (folder / file).unlink()
    with pytest.raises(PortError, match=f"has no {file}"):
        open_checkpoint(folder)


def test_numbered_variables_are_an_error_that_names_the_way_out(pretrainer, tmp_path):
    pretrainer.save_weights(tmp_path / "x.weights.h5")
    wanted = r"x\.weights\.h5 is a \.weights\.h5 of Keras.*save_pretrained"
    for source in (tmp_path / "x.weights.h5", tmp_path):
        with pytest.raises(PortError, match=wanted):
            keras_mae.MAEPretrainer.from_pretrained(source)
    pretrainer.save_to_preset(tmp_path / "preset")
    with pytest.raises(PortError, match="is read by from_preset"):
        keras_mae.MAEPretrainer.from_pretrained(tmp_path / "preset")


def test_a_tensorflow_checkpoint_is_an_error_that_names_the_way_out(tmp_path):
    tf = pytest.importorskip("tensorflow")
    tf.train.Checkpoint(v=tf.Variable([1.0])).write(str(tmp_path / "ckpt"))
    files = ("ckpt", "ckpt.index", "ckpt.data-00000-of-00001", "")
    for source in (tmp_path / name for name in files):
        wanted = r"ckpt.* is a TensorFlow checkpoint .*save_pretrained"
        with pytest.raises(PortError, match=wanted):
            keras_mae.MAEPretrainer.from_pretrained(source)


def test_another_hdf5_file_is_told_by_its_keys(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["dense/dense/kernel:0"] = np.zeros((2, 3), "float32")
    with pytest.raises(PortError, match=r"unknown format \(known: .*TensorFlow; "):
        keras_mae.MAEEncoder.from_pretrained(tmp_path / "x.h5")


def test_written_for_pytorch_it_is_the_same(pretrainer, tmp_path):
    pretrainer.save_pretrained(tmp_path)
    again = keras_mae.MAEPretrainer.from_pretrained(tmp_path)
    assert again.port_report.format.startswith("Hugging Face, hub keys")
    assert_same_weights(again, pretrainer)
