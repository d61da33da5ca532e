"""Invalid JSON beside the weights, and Keras files that try to execute code."""

import base64
import json
import marshal
import os
import random
import zipfile

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import keras_mae
from keras_mae.models.loading import load_model, load_pretrainer
from keras_mae.weights import PortError, export_weights, load_weights
from keras_mae.weights.key_mapping import FACEBOOK
from tests.crafted.refusing import refuse


def deep(levels):
    return json.loads("[" * levels + "]" * levels)


NEVER = (-1, "x", [], {}, [1, 2, 3], float("inf"), float("nan"), deep(40), [[]])
WRONG = {
    # name of a kind -> what is none
    "int": (*NEVER, 0, 1.5, True, None, 10**400, 10**30),
    "float": (*NEVER, True, None, 10**400),
    "bool": (*NEVER, 0, 1, None, "true"),
    "size": (*NEVER, 0, 1.5, None, [float("inf"), 32], 10**400, [32, -32], {"a": 1}),
    "text": (*NEVER, None, "softplus", 5),
}
KINDS = {
    "int": ["hidden_size", "num_hidden_layers", "num_attention_heads", "num_channels",
            "intermediate_size", "decoder_hidden_size", "decoder_num_hidden_layers",
            "decoder_num_attention_heads", "decoder_intermediate_size"],
    "float": ["layer_norm_eps", "hidden_dropout_prob", "mask_ratio",
              "attention_probs_dropout_prob", "initializer_range"],
    "bool": ["qkv_bias", "norm_pix_loss"],
    "size": ["image_size", "patch_size"],
    "text": ["hidden_act", "model_type"],
}  # fmt: skip


@pytest.mark.parametrize("seed", range(45))
def test_nonsense_in_a_configuration(seed, write, model):
    rng = random.Random(seed)
    folder = write("huggingface")
    kind = rng.choice(list(KINDS))
    change_config(folder, {rng.choice(KINDS[kind]): rng.choice(WRONG[kind])})
    refuse(model, folder)


def change_config(folder, change, key=None):
    """Changes a configuration, or the object that lies in it under a key."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    (config if key is None else config[key]).update(change)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    "change",
    [{"hidden_dropout_prob": 2.0}, {"attention_probs_dropout_prob": 1e300},
     {"mask_ratio": 1.0}, {"num_attention_heads": 3},
     {"decoder_num_attention_heads": 7}],
    ids=str,
)  # fmt: skip
def test_numbers_that_no_layer_takes_name_the_source(change, write):
    folder = write("huggingface")
    change_config(folder, change)
    with pytest.raises(ValueError, match="source"):
        keras_mae.MAEPretrainer.from_pretrained(folder)


TIMM = [{"embed_dim": -1}, {"depth": 10**30}, {"num_heads": 0}, {"img_size": [1, 2, 3]},
        {"img_size": [float("inf"), 32]}, {"mlp_ratio": 1e308}, {"mlp_ratio": -1},
        {"mlp_ratio": None}, {"mlp_ratio": 10**400}, {"patch_size": {}},
        {"qkv_bias": 0}, {"in_chans": "3"}, {"num_heads": deep(40)}]  # fmt: skip


@pytest.mark.parametrize("change", TIMM, ids=lambda change: str(change)[:30])
def test_nonsense_in_a_configuration_of_timms(change, write, saved):
    folder = write("timm")
    encoder = keras_mae.MAEEncoder.from_pretrained(folder)
    change_config(folder, change, "model_args")
    with pytest.raises(ValueError, match="source"):
        keras_mae.MAEEncoder.from_pretrained(folder)
    with pytest.raises(ValueError, match="source"):
        load_weights(encoder, folder)


def without_positions(state):
    return {key: value for key, value in state.items() if "pos" not in key}


@pytest.mark.parametrize(
    ("kind", "key", "name"),
    [("huggingface", None, "image_size"), ("timm", "model_args", "img_size")],
)
def test_positions_of_endless_images_are_not_computed(kind, key, name, write):
    folder = write(kind)
    path = folder / "model.safetensors"
    save_file(without_positions(load_file(path)), path)
    keras_mae.MAEEncoder.from_pretrained(folder)
    change_config(folder, {name: 8000}, key)
    with pytest.raises(PortError, match=r"source.*at most 65536 patches.*\(8000, 8000"):
        keras_mae.MAEEncoder.from_pretrained(folder)


def test_nor_by_facebooks_arguments(model, state):
    source = {"model": without_positions(state), "args": {"input_size": 8000}}
    for read in (
        keras_mae.MAEPretrainer.from_pretrained,
        lambda source: load_weights(model, source),
    ):
        with pytest.raises(PortError, match=r"at most 65536 patches.*\(8000, 8000"):
            read(source)


@pytest.mark.parametrize(
    "change",
    [{"decoder_num_hidden_layers": 300}, {"decoder_hidden_size": 2**20}],
    ids=str,
)
def test_a_fresh_decoder_is_of_a_size_that_is_known(change, model, tmp_path):
    model.encoder.save_pretrained(tmp_path)
    change_config(tmp_path, change)
    for read in (
        lambda source: keras_mae.MAEPretrainer.from_pretrained(
            source, allow_missing_decoder=True
        ),
        load_pretrainer,
    ):
        with pytest.raises(PortError, match=r"config\.json describes a decoder"):
            read(tmp_path)


def test_a_head_is_as_wide_as_its_encoder(model):
    state = export_weights(model.encoder, FACEBOOK)
    state["head.weight"] = np.zeros((50_000, 1), "float32")
    state["head.bias"] = np.zeros(50_000, "float32")
    with pytest.raises(PortError, match=r"but its shapes describe(.|\n)*num_classes"):
        keras_mae.MAEClassifier.from_pretrained(state, num_heads=2)


TEXTS = {
    "nothing": b"",
    "a list": b"[]",
    "null": b"null",
    "infinity": b"Infinity",
    "two": b"{} {}",
    "zeros": bytes(100),
    "another encoding": '{"a": 1}'.encode("utf-16"),
    "no text": b'{"a": "\xff"}',
    "deep": b'{"a":' * 900 + b"1" + b"}" * 900,
    "too deep to read": b"[" * 10**6,
    "a long number": b'{"image_size": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("file", ["config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("content", TEXTS)
def test_what_is_no_object_in_json(content, file, write, model):
    folder = write("shards")
    (folder / file).write_bytes(TEXTS[content])
    refuse(model, folder)


def test_a_configuration_without_end(write, model):
    folder = write("huggingface")
    with open(folder / "config.json", "wb") as file:
        file.truncate(2**33)  # takes no room on the disk
    refuse(model, folder)


PLACES = ["../other", "/etc/passwd", "..", ".", "", "a/b", "./a.safetensors", "a\0b",
          "a" * 5000, "absent", "model.safetensors.index.json", "loop", "folder",
          "pipe", 3, None, [], {}, True]  # fmt: skip


@pytest.mark.parametrize("place", PLACES, ids=lambda place: repr(place)[:30])
def test_shards_lie_beside_their_index(place, write, model):
    folder = write("shards")
    (folder.parent / "other").write_bytes((folder / "a.safetensors").read_bytes())
    (folder / "loop").symlink_to("loop")
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"][min(index["weight_map"])] = place
    path.write_text(json.dumps(index))
    refuse(model, folder)


def crafted_keras(marker):
    """Configurations that ask Keras to run something."""
    code = f"__import__('os').system('touch {marker}')"
    function = marshal.dumps(compile(code, "x", "eval"))
    function = base64.b64encode(function).decode()
    yield {
        "module": "keras.layers", "class_name": "Lambda", "registered_name": None,
        "config": {"function": {"class_name": "__lambda__", "config": {
            "code": function, "defaults": None, "closure": None}}},
    }  # fmt: skip
    for module, attribute in (("os", "system"), ("builtins", "eval"),
                              ("subprocess", "Popen"), ("keras.utils", "get_file"),
                              ("keras_mae", "nothing")):  # fmt: skip
        for config in ({"command": f"touch {marker}"}, [f"touch {marker}"], {}):
            yield {"module": module, "class_name": attribute, "config": config,
                   "registered_name": attribute}  # fmt: skip
    yield {"class_name": "function", "module": "os", "config": "system",
           "registered_name": "function"}  # fmt: skip


def test_keras_files_run_nothing(tmp_path, model):
    marker, path = tmp_path / "executed", tmp_path / "model.keras"
    keras_mae.MAEImageProcessor(32).save_pretrained(tmp_path)
    model.save(path)
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    for config in crafted_keras(marker):
        with zipfile.ZipFile(path, "w") as archive:
            for file, content in {**files, "config.json": json.dumps(config)}.items():
                archive.writestr(file, content)
        with pytest.raises(ValueError, match=r"model\.keras is not a readable model"):
            load_model(path)
    assert not marker.exists()


LONG = "a" * 10**6
LONG_TEXTS = [
    ("huggingface", None, {"model_type": LONG}),
    ("huggingface", None, {"hidden_act": LONG}),
    ("timm", None, {"model_args": LONG}),
    ("timm", "model_args", {LONG: 1}),
]


@pytest.mark.parametrize(("kind", "key", "change"), LONG_TEXTS)
def test_errors_do_not_repeat_long_texts(kind, key, change, write):
    folder = write(kind)
    change_config(folder, change, key)
    with pytest.raises(PortError) as error:
        keras_mae.MAEEncoder.from_pretrained(folder)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("name", ["size", "crop_pct", "do_pad", "image_mean"])
def test_nor_those_of_an_image_processor(name, tmp_path):
    processor = keras_mae.MAEImageProcessor(32)
    processor.save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: LONG}))
    with pytest.raises(ValueError) as error:
        keras_mae.MAEImageProcessor.from_pretrained(tmp_path)
    assert len(str(error.value)) < 1000
