"""Opening checkpoints: nothing of a pickle is executed, and errors name what is bad."""

import argparse
import collections
import datetime
import functools
import json
import os
import pathlib
import pickle
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import keras_mae
from keras_mae.weights import PortError, export_weights
from keras_mae.weights.checkpoint_reader import open_checkpoint
from keras_mae.weights.key_mapping import FACEBOOK
from keras_mae.weights.pickles import Stub
from keras_mae.weights.pytorch_files import read_pytorch_file
from tests.scripts import ROOT


@pytest.fixture
def folder(make_model, tmp_path):
    """A folder with the smallest model, as Hugging Face stores it."""
    make_model().save_pretrained(tmp_path)
    return tmp_path


def zipped(content, path, **others):
    """Writes a pickle into the container that PyTorch reads."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        for name, data in others.items():
            archive.writestr(f"archive/data/{name}", data)
    return path


class Crafted:
    """Runs a command where it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("container", ["zip", "bare"])
def test_a_crafted_pickle_raises_and_runs_nothing(container, tmp_path):
    marker, path = tmp_path / "executed", tmp_path / "model.pth"
    content = pickle.dumps({"model": Crafted(marker)}, protocol=2)
    if container == "zip":
        zipped(content, path)
    else:
        path.write_bytes(content)
    with pytest.raises(PortError, match=r"which is never unpickled|is not a PyTorch"):
        keras_mae.MAEEncoder.from_pretrained(path)
    assert not marker.exists()
    # the test can fail: an ordinary reader runs the command
    pickle.loads(content)
    assert marker.exists()


@pytest.mark.parametrize("name", ["os.system", "antigravity.geohash", "no.such"])
def test_names_are_never_looked_up(name, tmp_path):
    module, _, attribute = name.rpartition(".")
    content = f"c{module}\n{attribute}\n.".encode()
    read = read_pytorch_file(zipped(content, tmp_path / "model.pth"))
    assert type(read) is Stub and read.name == name
    assert "antigravity" not in sys.modules


STORAGE = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0" + b"0X\3\0\0\0cpuK\4tQ"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
# what would stand for a storage, the rest of a tensor, and the complaint
FORGED = {
    "no storage": (
        b"(cargparse\nNamespace\n)\x81X\1\0\0\x000K\4t",
        b"K\0K\4\x85K\1\x85\x89N",
        "a tensor is malformed",
    ),
    "a float for an offset": (
        STORAGE,
        b"G\x7f\xf8\0\0\0\0\0\0K\4\x85K\1\x85\x89N",
        "a tensor is malformed",
    ),
    "a negative step": (
        STORAGE,
        b"K\0K\4\x85J\xff\xff\xff\xff\x85\x89N",
        "a tensor is malformed",
    ),
    "too many elements": (
        STORAGE,
        b"K\0K\5\x85K\1\x85\x89N",
        "a tensor lies outside its storage",
    ),
}


@pytest.mark.parametrize(("storage", "rest", "message"), FORGED.values(), ids=FORGED)
def test_forged_tensors_are_refused(storage, rest, message, tmp_path):
    content = b"\x80\2" + REBUILD + b"(" + storage + rest + b"tR."
    path = zipped(content, tmp_path / "model.pth", **{"0": b"\0" * 16})
    with pytest.raises(PortError, match=message):
        read_pytorch_file(path)


def test_the_forger_can_write_a_sound_tensor(tmp_path):
    """Else the refusals above would prove nothing."""
    rest = b"K\0K\4\x85K\1\x85\x89N"
    for state in (b"", b"}X\3\0\0\0keyX\1\0\0\x001sb"):  # which changes no storage
        content = b"\x80\2" + REBUILD + b"(" + STORAGE + state + rest + b"tR."
        path = zipped(content, tmp_path / "model.pth", **{"0": b"\0" * 16})
        assert read_pytorch_file(path).read().tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    {
        b"\x80\2(i__main__\nX\n.": "opcode INST at byte 3: only state dicts are read",
        b"\x80\2\x82\1.": "unsupported pickle opcode EXT1 at byte 2",
        b"\x80\2\xff.": r"unsupported pickle opcode b'.xff'",
    }.items(),
)
def test_what_no_state_dict_needs_is_refused(content, message, tmp_path):
    with pytest.raises(PortError, match=message):
        read_pytorch_file(zipped(content, tmp_path / "model.pth"))


class Row:
    """A class that only the writer of a file has."""


def foreign_objects():
    """What training scripts save beside the weights."""
    row = Row()
    row.scale, row.nested = 1.5, {"a": Row()}
    return {
        "best": np.float64(83.6),
        "array": np.arange(6).reshape(2, 3),
        "set": {1, 2},
        "frozen": frozenset("ab"),
        "slice": slice(1, 2),
        "date": datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC),
        "counts": collections.Counter("hello"),
        "default": collections.defaultdict(list, {"a": [1]}),
        "partial": functools.partial(np.zeros, 3),
        "windows": pathlib.PureWindowsPath("C:/runs"),
        "posix": pathlib.PurePosixPath("/runs"),
        "object": row,
        "keys": {(1, 2): 3, 1.5: 4, None: 5, 2**70: 6, b"a": 7},
        "complex": 1j,
        "bytes": bytearray(b"ab"),
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_what_stands_beside_the_weights_is_passed_over(legacy, protocol, tmp_path):
    torch = pytest.importorskip("torch")
    args = argparse.Namespace(device=torch.device("cpu"), output=Path("/tmp"), lr=0.1)
    content = {
        "model": {"a": torch.zeros(3)},
        "args": args,
        "dtype": torch.float32,
        "complex": torch.zeros(2, dtype=torch.complex64),
        "state": torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))]).state_dict(),
        **foreign_objects(),
    }
    torch.save(
        content, tmp_path / "run.pth", pickle_protocol=protocol,
        _use_new_zipfile_serialization=not legacy,
    )  # fmt: skip
    checkpoint = open_checkpoint(tmp_path / "run.pth")
    assert list(checkpoint.tensors) == ["a"] and checkpoint.args["lr"] == 0.1


@pytest.mark.parametrize("name", foreign_objects())
def test_but_not_in_the_place_of_a_tensor(name, make_model, tmp_path):
    torch = pytest.importorskip("torch")
    state = keras_mae.weights.export_weights(make_model().encoder, FACEBOOK)
    state = {key: torch.tensor(value) for key, value in state.items()}
    state["norm.weight"] = foreign_objects()[name]
    torch.save({"model": state}, tmp_path / "run.pth")
    with pytest.raises(PortError, match=r"norm\.weight must be a tensor. Received: "):
        keras_mae.MAEEncoder.from_pretrained(tmp_path / "run.pth", num_heads=2)


@pytest.mark.parametrize(
    "name", ["pathlib._local.PosixPath", "omegaconf.dictconfig.DictConfig"]
)
def test_classes_that_are_not_installed_are_passed_over(name, tmp_path):
    """As Python 3.13 writes a path, and others a configuration."""
    module, _, attribute = name.rpartition(".")
    call = f"c{module}\n{attribute}\n".encode() + b")\x81}X\1\0\0\0aK\1sb"
    state = b"}X\1\0\0\0a" + REBUILD + b"(" + STORAGE + b"K\0K\4\x85K\1\x85\x89NtRs"
    content = b"\x80\2}(X\5\0\0\0model" + state + b"X\1\0\0\0b" + call + b"u."
    path = zipped(content, tmp_path / "model.pth", **{"0": b"\0" * 16})
    assert list(open_checkpoint(path).tensors) == ["a"]


def test_a_whole_model_is_not_built(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pth")
    with pytest.raises(PortError, match=r"Linear>\), which is never.*state_dict\(\)"):
        open_checkpoint(tmp_path / "model.pth")


def test_a_tensor_outside_its_storage_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"model": {"a": torch.zeros(4)}}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
        content = archive.read(name)
    # the count of elements, and the storage's bytes, cut to three
    path = zipped(content, tmp_path / "b.pth", **{"0": b"\0" * 12})
    with pytest.raises(PortError, match="storage 0 is missing or truncated"):
        read_pytorch_file(path)
    larger = content.replace(b"K\x04\x85", b"K\x09\x85")
    assert larger != content
    path = zipped(larger, tmp_path / "c.pth", **{"0": b"\0" * 16})
    with pytest.raises(PortError, match="a tensor lies outside its storage 0"):
        read_pytorch_file(path)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_tensors_of_every_kind_are_read(legacy, tmp_path):
    torch = pytest.importorskip("torch")
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tensors = {
        "plain": base,
        "view": base.t()[1:3],
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "half": base.half(),
        "bfloat16": base.bfloat16(),
        "double": base.double(),
        "parameter": torch.nn.Parameter(base),
    }
    path = tmp_path / "tensors.pth"
    args = argparse.Namespace(norm_pix_loss=True, device="cuda", betas=(0.9, 0.95))
    torch.save(
        {"model": tensors, "args": args, "epoch": 3},
        path,
        _use_new_zipfile_serialization=not legacy,
    )
    checkpoint = open_checkpoint(path)
    assert checkpoint.args["norm_pix_loss"] is True
    assert set(checkpoint.tensors) == set(tensors)
    for key, wanted in tensors.items():
        got = checkpoint.tensors[key]
        assert got.shape == tuple(wanted.shape)
        np.testing.assert_array_equal(
            np.asarray(got.read(), "float64"), wanted.detach().double().numpy()
        )


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_file_cut_off_anywhere_is_named(kind, tmp_path):
    if kind == "safetensors":
        whole = tmp_path / "whole.safetensors"
        save_file({"a": np.ones((3, 50), "float32")}, whole)
    else:
        torch = pytest.importorskip("torch")
        whole = tmp_path / "whole.pth"
        torch.save(
            {"model": {"a": torch.ones(3, 50)}},
            whole,
            _use_new_zipfile_serialization=kind == "zip",
        )
    content = whole.read_bytes()
    open_checkpoint(whole)
    for size in [0, 5, 20, len(content) // 2, len(content) - 1]:
        path = tmp_path / "model.pth"
        path.write_bytes(content[:size])
        with pytest.raises(PortError, match=r"model\.pth"):
            open_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    {
        b"\x89HDF\r\n\x1a\n" + bytes(20): "HDF5",
        b"hello, this is no file of weights": "is not a PyTorch file",
        pickle.dumps(7, protocol=2): "is not a PyTorch file",
    }.items(),
)
def test_other_files_are_refused(content, message, tmp_path):
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(PortError, match=message):
        open_checkpoint(tmp_path / "x.bin")


def test_a_keras_file_is_not_taken_for_pytorch(make_model, tmp_path):
    make_model().save(tmp_path / "m.keras")
    with pytest.raises(PortError, match=r"m\.keras is a zip file, but not one of"):
        open_checkpoint(tmp_path / "m.keras")


def test_a_pickle_without_tensors_is_refused(tmp_path):
    path = zipped(pickle.dumps({"model": {"a": 1}}, 2), tmp_path / "a.pth")
    with pytest.raises(PortError, match="does not hold a dict of tensors"):
        open_checkpoint(path)


def shards(folder, parts, weight_map):
    for name, keys in parts.items():
        save_file({key: np.zeros(2, "float32") for key in keys}, folder / name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))


def test_a_key_in_two_shards_is_named(tmp_path):
    parts = {"one.safetensors": "ab", "two.safetensors": "bc"}
    shards(tmp_path, parts, {"a": "one.safetensors", "c": "two.safetensors"})
    with pytest.raises(PortError, match=r"b is in .*one\.safe.* and in .*two\.safe"):
        open_checkpoint(tmp_path)


def test_an_index_that_does_not_fit_lists_both_differences(tmp_path):
    one = "one.safetensors"
    shards(tmp_path, {one: "ab"}, {"a": one, "z": one, "c": one})
    with pytest.raises(PortError) as error:
        open_checkpoint(tmp_path)
    lines = str(error.value).splitlines()
    assert lines[1:] == [
        "  missing key: c",
        "  missing key: z",
        "  unused key: b (2,)",
    ]


@pytest.mark.parametrize(
    "weight_map", [None, {}, {"a": 3}, {"a": "../secret"}, {"a": ".."}, {"a": ""}]
)
def test_an_index_names_files_beside_it(weight_map, tmp_path):
    shards(tmp_path, {}, weight_map)
    with pytest.raises(PortError, match="weight_map must give a file name"):
        open_checkpoint(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    shards(tmp_path, {}, {"a": "one.safetensors"})
    with pytest.raises(PortError, match=r"has no one\.safetensors"):
        open_checkpoint(tmp_path)


def test_a_missing_index_is_named(tmp_path):
    for number in (1, 2):
        (tmp_path / f"model-0000{number}-of-00002.safetensors").touch()
    wanted = r"; the index of its shards is missing: model-00001-of-00002\.safetensors"
    with pytest.raises(PortError, match=wanted):
        open_checkpoint(tmp_path)


def test_a_key_twice_in_one_header_is_named(tmp_path):
    entries = [f'"a":{{"dtype":"F32","shape":[1],"data_offsets":[{i},{i + 4}]}}'
               for i in (0, 4)]  # fmt: skip
    header = f"{{{','.join(entries)}}}".encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(PortError, match=r"model\.safetensors.*`a`"):
        open_checkpoint(path)


def test_a_key_with_and_without_wrapper_is_refused(make_model):
    state = keras_mae.weights.export_weights(make_model())
    model = make_model()
    for wrapper in ("_orig_mod.module.", "module._orig_mod.", "module."):
        wrapped = {f"{wrapper}{key}": value for key, value in state.items()}
        keras_mae.weights.load_weights(model, wrapped)
    key = "vit.layernorm.weight"
    with pytest.raises(PortError, match=rf"unused key: {key}"):
        keras_mae.weights.load_weights(model, {**wrapped, key: state[key]})
    with pytest.raises(PortError, match=rf"{key} appears twice, with and without"):
        keras_mae.weights.load_weights(model, {**state, f"_orig_mod.{key}": state[key]})


@pytest.mark.parametrize("text", ["", "[]", "nonsense", '"text"'])
def test_wrong_json_is_named(text, folder):
    (folder / "config.json").write_text(text)
    with pytest.raises(
        PortError, match=r"config\.json (can.t be read as|must be a).* JSON"
    ):
        keras_mae.MAEPretrainer.from_pretrained(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bert"}, r"model_type must be vit_mae or vit. Received: bert"),
        ({"hidden_act": "quick_gelu"}, r"hidden_act must be .* Received: quick_gelu"),
        ({"hidden_size": 99}, r"hidden_dim is 99, but .*_token \(1, 1, 16\) gives 16"),
        ({"num_hidden_layers": 7}, r"depth is 7, but the keys .*gives"),
        ({"decoder_hidden_size": 5}, r"decoder_hidden_dim is 5, but decoder.mask"),
        ({"patch_size": 16}, r"patch_size is \(16, 16\), but .*projection.weight"),
        ({"image_size": 64}, r"16 positions of patches 8x8 don.t fit .*64"),
        ({"image_size": "big"}, r"config\.json: image_size must be a positive int"),
        ({"num_attention_heads": None}, r"num_attention_heads must be a positive int"),
        ({"num_attention_heads": "3"}, r"must be a positive int. Received: '3'"),
        ({"layer_norm_eps": True}, r"layer_norm_eps must be a number.*True"),
        ({"layer_norm_eps": -1}, r"layer_norm_eps must be a number, 0 or more"),
        ({"hidden_act": ["gelu"]}, r"hidden_act must be a string"),
        ({"norm_pix_loss": "yes"}, r"norm_pix_loss must be a bool.*'yes'"),
        ({"mask_ratio": None}, r"mask_ratio must be a number.*None"),
    ],
)  # fmt: skip
def test_a_configuration_that_contradicts_is_named(change, message, folder):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=message):
        keras_mae.MAEPretrainer.from_pretrained(folder)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"norm_pix_loss": [True]}, r"model\.pth: args.norm_pix_loss must be a bool"),
        ({"num_heads": [3]}, r"args.num_heads must be a positive int"),
        ({"input_size": 16.0}, r"args.input_size must be a positive int or a pair"),
        (
            {"layer_norm_epsilon": float("nan")},
            r"args.layer_norm_epsilon must be",
        ),
    ],
)
def test_odd_training_arguments_are_named(args, message, make_model, tmp_path):
    torch = pytest.importorskip("torch")
    make_model().save_pretrained(tmp_path, "facebook")
    content = torch.load(tmp_path / "model.pth")
    torch.save({**content, "args": {**content["args"], **args}}, tmp_path / "model.pth")
    with pytest.raises(PortError, match=message):
        keras_mae.MAEPretrainer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 99}, r"depth is 99, but"),
        ({"embed_dim": 99}, r"hidden_dim is 99, but cls_token"),
        ({"patch_size": 99}, r"patch_size is \(99, 99\), but"),
        ({"mlp_ratio": 9}, r"mlp_dim is 144, but blocks\.0\.mlp\.fc1"),
        ({"qkv_bias": False}, r"qkv_bias is False, but"),
        ({"class_token": False}, r"class_token must be true"),
        ({"num_heads": "3"}, r"num_heads must be a positive int. Received: '3'"),
        ({"pre_norm": True}, r"unsupported model_args: pre_norm"),
        (["list"], r"model_args must be an object"),
    ],
)
def test_a_timm_configuration_that_contradicts_is_named(
    change, message, make_model, tmp_path
):
    make_model().encoder.save_pretrained(tmp_path, "timm")
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["model_args"] = (
        {**config["model_args"], **change} if isinstance(change, dict) else change
    )
    path.write_text(json.dumps(config))
    with pytest.raises(PortError, match=message):
        keras_mae.MAEEncoder.from_pretrained(tmp_path)


def test_a_configuration_of_something_else_says_nothing(make_model, tmp_path):
    state = keras_mae.weights.export_weights(make_model().encoder, FACEBOOK)
    save_file(state, tmp_path / "vit.safetensors")
    (tmp_path / "config.json").write_text('{"architecture": "resnet50"}')
    path = tmp_path / "vit.safetensors"
    encoder = keras_mae.MAEEncoder.from_pretrained(path, num_heads=2)
    assert encoder.port_report.format == "facebook, safetensors"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, r"source must be a hub id, a path, or a dict.*NoneType"),
        (3, r"source must be a hub id, a path, or a dict.*int"),
        ("", r"source must be a file, a folder, or a hub id"),
        ({"a": "text"}, r"does not hold a dict of tensors"),
        ({"a": {}}, r"does not hold a dict of tensors"),
        ({3: np.zeros(2)}, r"does not hold a dict of tensors"),
        ({"a": np.zeros(2)}, r"in an unknown format.*Received keys: a"),
    ],
)
def test_no_source_at_all_is_refused(source, message):
    with pytest.raises(PortError, match=message):
        keras_mae.MAEEncoder.from_pretrained(source)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("pos_embed", np.zeros((1, 1, 16)), r"pos_embed is empty"),
        ("pos_embed", np.zeros((1, 0, 16)), r"pos_embed is empty"),
        ("patch_embed.proj.weight", np.zeros((16, 3, 0, 0)), r"proj\.weight is empty"),
        (
            "cls_token",
            np.zeros((1, 1, 16), "int64"),
            r"dtype of cls_token: expected fl",
        ),
    ],
)
def test_empty_and_whole_number_tensors_are_named(key, value, message, make_model):
    state = keras_mae.weights.export_weights(make_model(), FACEBOOK)
    with pytest.raises(PortError, match=message):
        keras_mae.weights.load_weights(make_model(), {**state, key: value})


def test_a_pooler_is_left_out(make_model):
    """Hugging Face's plain ViT has one; the features don't go through it."""
    state = keras_mae.weights.export_weights(make_model())
    pooler = {f"vit.pooler.dense.{name}": np.zeros(3) for name in ("weight", "bias")}
    report = keras_mae.weights.load_weights(make_model(), {**state, **pooler})
    assert report.left_out == ("vit.pooler.dense.bias", "vit.pooler.dense.weight")


def test_a_live_pytorch_model_is_a_source(make_model):
    torch = pytest.importorskip("torch")
    state = keras_mae.weights.export_weights(make_model())
    tensors = {
        key: torch.nn.Parameter(torch.tensor(value)).bfloat16()
        for key, value in state.items()
    }
    model = make_model()
    keras_mae.weights.load_weights(model, tensors)
    token = tensors["decoder.mask_token"].detach().float().numpy()
    np.testing.assert_array_equal(model.decoder.mask_token.numpy(), token)


def test_an_unknown_format_says_what_is_known(tmp_path):
    save_file({"conv1.weight": np.zeros(3, "float32")}, tmp_path / "r.safetensors")
    with pytest.raises(PortError, match=r"unknown format.*Hugging.*conv1\.w"):
        keras_mae.MAEEncoder.from_pretrained(tmp_path / "r.safetensors")


def test_a_folder_without_weights_says_what_is_wanted(tmp_path):
    with pytest.raises(PortError, match=r"has none of model\.safetensors"):
        open_checkpoint(tmp_path)
    for name in ("a.pth", "b.pth"):
        (tmp_path / name).touch()
    with pytest.raises(PortError, match=r"name one of a\.pth, b\.pth"):
        open_checkpoint(tmp_path)


@pytest.mark.nightly
def test_reading_needs_no_pytorch(folder, make_model, tmp_path):
    torch = pytest.importorskip("torch")
    state = keras_mae.weights.export_weights(make_model())
    tensors = {key: torch.tensor(value) for key, value in state.items()}
    torch.save(tensors, tmp_path / "pytorch_model.pth")
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'torch': raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import keras_mae\n"
        f"for path in ({str(folder)!r}, {str(tmp_path / 'pytorch_model.pth')!r}):\n"
        "    model = keras_mae.MAEPretrainer.from_pretrained(path)\n"
        "    print(model.port_report.filled)\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.split() == [str(len(state))] * 2


def test_two_files_share_nothing_that_a_pickle_could_change(tmp_path):
    content = pickle.dumps(argparse.Namespace(a=1), protocol=2)
    path = zipped(content, tmp_path / "n.pth")
    one, two = read_pytorch_file(path), read_pytorch_file(path)
    assert one == two == {"a": 1} and one is not two


@pytest.mark.parametrize(
    ("content", "message"),
    {
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a": "Git LFS",
        b"\n<!DOCTYPE html><html><body>404</body></html>": "a page of HTML",
        b"\x1f\x8b\x08" + bytes(40): "compressed by gzip",
    }.items(),
)
def test_what_a_download_may_leave_is_told_apart(content, message, tmp_path):
    for name in ("model.safetensors", "pytorch_model.bin", "tf_model.h5"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(PortError, match=message):
            open_checkpoint(tmp_path / name)


def test_torchscript_and_adapters_are_told_apart(tmp_path):
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from PyTorch 2.13 on
        torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "model.pt")
    with pytest.raises(PortError, match="it is TorchScript"):
        open_checkpoint(tmp_path / "model.pt")
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(PortError, match="holds an adapter"):
        open_checkpoint(folder)


@pytest.mark.parametrize("format", ["huggingface", "timm"])
def test_class_names_survive_the_round_trip(format, make_model, tmp_path):
    pooling = "cls" if format == "huggingface" else "mean"
    model = keras_mae.MAEClassifier(make_model().encoder, 3, pooling=pooling)
    model.save_pretrained(tmp_path / "numbers", format)
    loaded = keras_mae.MAEClassifier.from_pretrained(tmp_path / "numbers")
    assert loaded.class_names is None
    loaded.class_names = ("cat", "dog", "Käse")
    loaded.save_pretrained(tmp_path / "names", format)
    again = keras_mae.MAEClassifier.from_pretrained(tmp_path / "names")
    assert again.class_names == ("cat", "dog", "Käse")


def test_gelu_python_is_exact_gelu(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["hidden_act"] == "gelu"
    (folder / "config.json").write_text(
        json.dumps({**config, "hidden_act": "gelu_python"})
    )
    model = keras_mae.MAEPretrainer.from_pretrained(folder)
    assert model.encoder.get_config()["activation"] == "gelu"


def test_a_header_that_begins_like_html_is_none(make_model, tmp_path):
    state = export_weights(make_model().encoder, FACEBOOK)
    path = tmp_path / "model.safetensors"
    # the header's length in eight bytes, of which the first two would be " <"
    wanted = int.from_bytes(b" <", "little")
    save_file(state, path, metadata={"a": ""})
    length = int.from_bytes(path.read_bytes()[:8], "little")
    save_file(state, path, metadata={"a": "x" * (wanted - length)})
    assert path.read_bytes()[:2] == b" <"
    assert open_checkpoint(path).tensors.keys() == state.keys()


def test_strangers_of_other_types_can_be_left_out(make_model, tmp_path):
    state = export_weights(make_model().encoder, FACEBOOK)
    types = ("bool", "uint8", "int8", "int16", "int32", "int64")
    strangers = {f"aux.{name}": np.zeros(3, name) for name in types}
    save_file(state | strangers, tmp_path / "model.safetensors")
    encoder = keras_mae.MAEEncoder.from_pretrained(
        tmp_path, num_heads=2, ignore=("aux.*",)
    )
    assert set(encoder.port_report.left_out) == set(strangers)


@pytest.mark.parametrize(
    "name", ["sampler.bin", "zero_pp_rank_0_mp_rank_00_optim_states.pt"]
)
def test_what_training_leaves_is_never_taken_for_weights(name, tmp_path):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(PortError, match="has none of"):
        open_checkpoint(tmp_path)


def test_assumptions_about_weights_alone_are_reported(make_model):
    state = export_weights(make_model())
    model = keras_mae.MAEPretrainer.from_pretrained(
        state, num_heads=2, decoder_num_heads=2
    )
    assert "layer_norm_epsilon 1e-12, activation gelu" in str(model.port_report)


@pytest.mark.parametrize("dtype", ["complex64", "complex128", "uint16", "float8_e5m2"])
@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_of_no_weights_are_passed_over(dtype, legacy, make_model, tmp_path):
    torch = pytest.importorskip("torch")
    encoder = export_weights(make_model().encoder, FACEBOOK)
    state = {key: torch.tensor(value) for key, value in encoder.items()}
    other = torch.zeros(3).to(getattr(torch, dtype))
    path = tmp_path / "run.pth"
    content = {"first": other, "model": state, "last": other}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    tensors = open_checkpoint(path).tensors
    for key, value in encoder.items():
        np.testing.assert_array_equal(tensors[key].read(), value)


@pytest.mark.parametrize("name", ["filename", "subfolder"])
def test_a_file_has_no_place_in_itself(name, folder):
    path = folder / "model.safetensors"
    with pytest.raises(PortError, match=rf"folder or a hub id.*with {name}=other"):
        keras_mae.MAEEncoder.from_pretrained(path, **{name: "other"})
