"""Crafted and corrupted checkpoints: a clear error each, and nothing of them is run.

Each is drawn from a seed. Beside the error, what is watched is that no command is run,
that memory does not grow, and that the model which was to be filled stays as it was.
"""

import base64
import json
import marshal
import os
import pickle
import pickletools
import random
import struct
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import keras_mae
from keras_mae.loading import load_model
from keras_mae.weights import export_weights, load_weights
from keras_mae.weights.tables import FACEBOOK
from tests import crafted_pickles as forge
from tests.crafted_pickles import call, mapping, name, number, program, row, text

MEMORY = 128 * 2**20
# what an interpreter reports when it starts something, or unpickles by itself
EVENTS = {"os.system", "os.exec", "os.posix_spawn", "subprocess.Popen"}
EVENTS |= {"pickle.find_class", "socket.connect"}
SIZES = {"hidden_dim": 16, "depth": 1, "num_heads": 2, "mlp_dim": 16, "patch_size": 8}
SIZES |= {"decoder_hidden_dim": 8, "decoder_depth": 1, "decoder_num_heads": 2}
SIZES |= {"decoder_mlp_dim": 8}

_watched = []


def _watch(event, arguments):
    if _watched and event in EVENTS:
        _watched[0].append((event, arguments))


@pytest.fixture(scope="module")
def model():
    # a hook can't be taken out: it sleeps when no test listens
    sys.addaudithook(_watch)
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
            return write_shards(folder, state)
        for file, content in saved[kind].items():
            (folder / file).write_bytes(content)
        return folder

    return write


ARGS = mapping((text("num_heads"), number(2)), (text("decoder_num_heads"), number(2)))


def write_shards(folder, state):
    keys = sorted(state)
    parts = {"a.safetensors": keys[::2], "b.safetensors": keys[1::2]}
    for file, names in parts.items():
        save_file({key: state[key] for key in names}, folder / file)
    index = {key: file for file, names in parts.items() for key in names}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": index}))
    return folder


def peak():
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def refuse(model, path, kind=ValueError):
    """Holds a source against all that is promised of a bad one."""
    before = [weight.numpy() for weight in model.weights]
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")  # the peak begins anew
        start = peak()
    events = []
    _watched[:] = [events]
    try:
        for read in (
            keras_mae.MAEPretrainer.from_pretrained,
            lambda source: load_weights(model, source),
        ):
            with pytest.raises(kind) as error:
                read(path)
            # which file or folder, and shortly what is wrong with it
            assert os.path.basename(str(path)) in str(error.value)
            assert len(str(error.value)) < 20_000
    finally:
        _watched.clear()
    assert events == []
    if reset.exists():
        assert peak() - start < MEMORY
    for weight, old in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), old)


@pytest.mark.parametrize("kind", ["huggingface", "shards", "zip", "legacy"])
def test_the_sound_sources_are_read(kind, write, model, state):
    """Else the refusals below would prove nothing."""
    path = write(kind)
    heads = {"num_heads": 2, "decoder_num_heads": 2} if kind == "shards" else {}
    loaded = keras_mae.MAEPretrainer.from_pretrained(path, **heads)
    for key, value in export_weights(loaded, FACEBOOK).items():
        np.testing.assert_array_equal(value, state[key])


CUTS = ["huggingface/model.safetensors", "huggingface/config.json", "zip/model.pth"]
CUTS += ["shards/b.safetensors", "shards/model.safetensors.index.json"]
CUTS += ["legacy/model.pth", "timm/model.safetensors"]


def spoilt(write, what, change):
    """Changes one file of a sound source; returns the source's path."""
    kind, _, file = what.partition("/")
    path = write(kind)
    spoilt = path.parent / file if path.is_file() else path / file
    spoilt.write_bytes(change(spoilt.read_bytes()))
    return path


@pytest.mark.parametrize("seed", range(7))
@pytest.mark.parametrize("what", CUTS)
def test_files_that_break_off(what, seed, write, model):
    def cut(content):
        whole = content.rstrip()
        # a sixth of the way, two sixths, ..., but for the last byte
        return whole[: min(seed * len(whole) // 6, len(whole) - 1)]

    refuse(model, spoilt(write, what, cut))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("what", CUTS)
def test_flipped_bits_are_an_error_or_stay_numbers(what, seed, write, model):
    """What lies in the data of a tensor can't be seen; no file holds a sum of it."""
    rng = random.Random(f"{what}{seed}")

    def flip(content):
        content = bytearray(content)
        # names and shapes come first, but for zip's own directory
        ends = [min(len(content), 3000), len(content)]
        for _ in range(1 + seed):
            content[rng.randrange(ends[rng.random() < 0.2])] ^= 1 << rng.randrange(8)
        return bytes(content)

    path = spoilt(write, what, flip)
    before = [weight.numpy() for weight in model.weights]
    try:
        load_weights(model, path)
    except ValueError as error:
        assert path.name in str(error)
        for weight, old in zip(model.weights, before, strict=True):
            np.testing.assert_array_equal(weight.numpy(), old)
    else:
        model.set_weights(before)


# what exploits name; any other name would do as well
NAMES = [
    *("os.system", "posix.system", "os.popen", "os.execv", "os.unlink"),
    *("subprocess.Popen", "subprocess.check_output", "builtins.eval"),
    *("builtins.exec", "builtins.getattr", "builtins.open", "builtins.__import__"),
    *("__builtin__.eval", "importlib.import_module", "runpy.run_path"),
    *("shutil.rmtree", "pickle.loads", "marshal.loads", "types.FunctionType"),
    *("types.CodeType", "operator.attrgetter", "functools.partial"),
    *("webbrowser.open", "socket.socket", "torch.load", "torch.hub.load"),
    *("torch.jit.load", "torch._utils._rebuild_sparse_tensor"),
    *("torch.storage._load_from_bytes", "torch.serialization.load", "numpy.load"),
    *("numpy.core.multiarray._reconstruct", "keras.models.load_model"),
    *("keras.layers.Lambda", "collections.OrderedDict.fromkeys"),
    *("collections.Counter", "_codecs.decode", "pathlib.Path"),
    *("argparse.ArgumentParser", "torch.FloatStorage.__class__", "torch.Tensor"),
]


def touch(marker):
    """The instructions that run a command."""
    return call(name("os", "system"), text(f"touch {marker}"))


@pytest.mark.parametrize("place", NAMES)
def test_named_functions_are_not_called(place, tmp_path, model):
    module, _, attribute = place.rpartition(".")
    stacked = text(module) + text(attribute) + b"\x93"  # as protocol 4 names things
    for index, function in enumerate([name(module, attribute), stacked]):
        content = program(
            mapping((text("model"), call(function, text("touch executed"))))
        )
        writer = [forge.write_zip, forge.write_legacy][index]
        refuse(model, writer(tmp_path / f"{index}.pth", content, {}))
    assert not (tmp_path / "executed").exists()


# where else a call may hide, given the instructions of one
HIDING = {
    "alone": lambda bad: bad,
    "in a state": lambda bad: mapping((text("model"), mapping((text("a"), bad)))),
    "as a key": lambda bad: mapping((bad, number(1))),
    "as a shape": lambda bad: call(
        name("torch._utils", "_rebuild_tensor_v2"),
        forge.storage("0", 1), number(0), bad, row(), b"\x89", b"}",
    ),
    "as a storage": lambda bad: row(
        text("storage"), bad, text("0"), text("cpu"), number(1)
    ) + b"Q",
    "as an id": lambda bad: bad + b"Q",
    "in a list": lambda bad: b"](" + bad + b"e",
    "as arguments": lambda bad: name("torch", "Size") + bad + b"R",
    "as attributes": lambda bad: name("argparse", "Namespace") + b")\x81" + bad + b"b",
    "as a class": lambda bad: bad + b")\x81",
    "in 500 calls": lambda bad: name("torch", "Size") * 500 + bad + b"\x85R" * 500,
    "behind the weights": lambda bad: b"}" + bad,
}  # fmt: skip


@pytest.mark.parametrize("place", HIDING)
def test_calls_are_not_hidden(place, tmp_path, model):
    marker = tmp_path / "executed"
    content = program(HIDING[place](touch(marker)))
    refuse(model, forge.write_zip(tmp_path / "model.pth", content, {}))
    assert not marker.exists()


def test_an_ordinary_reader_runs_them(tmp_path):
    marker = tmp_path / "executed"
    pickle.loads(program(HIDING["in a state"](touch(marker))))
    assert marker.exists()


REFUSED = [
    *("INT", "LONG", "LONG4", "STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES8", "BYTEARRAY8", "OBJ", "NEXT_BUFFER", "READONLY_BUFFER"),
    *("UNICODE", "BINUNICODE8", "FLOAT", "LIST", "DICT", "EMPTY_SET", "ADDITEMS"),
    *("FROZENSET", "POP", "DUP", "POP_MARK", "GET", "PUT", "EXT1", "EXT2", "EXT4"),
    *("INST", "NEWOBJ_EX", "PERSID"),
]


@pytest.mark.parametrize("instruction", REFUSED)
def test_instructions_that_no_weights_need(instruction, tmp_path, model):
    (code,) = (code for code in pickletools.opcodes if code.name == instruction)
    lines = code.arg is not None and "nl" in code.arg.name
    argument = b"'0'\n0\n" if lines else bytes(8)
    content = program(b"}" + code.code.encode("latin-1") + argument)
    refuse(model, forge.write_zip(tmp_path / "model.pth", content, {}))


def again(slot, times, kind):
    """Puts a thing that is remembered into a tuple or list several times."""
    get = b"j" + slot.to_bytes(4, "little")
    put = b"r" + (slot + 1).to_bytes(4, "little")
    return (
        b"(" + get * times + b"t" if kind == "tuple" else b"](" + get * times + b"e"
    ) + put


def laughs(kind, levels=40):
    """Ten of ten of ten ...: a few hundred bytes, and 10 ** 40 things."""
    start = (b")" if kind == "tuple" else b"]") + b"r" + bytes(4)
    steps = [again(level, 10, kind) for level in range(levels)]
    # all but the last would stay on the stack: a row takes them
    return b"(" + start + b"".join(steps) + b"t"


def first_state(**tensors):
    """A state that seems to be facebook's, each tensor given by instructions."""
    items = [(text(key.replace("__", ".")), value) for key, value in tensors.items()]
    return mapping((text("model"), mapping(*items)))


HUGE = 2**40
DEEP = 200_000
BOMBS = {
    "a deep key": mapping((b")" + b"\x85" * DEEP, number(1))),
    "a deep key, remembered": mapping(
        (b")" + b"\x94\x85" * DEEP, number(1)),
    ),
    "a deep name of a storage": row(
        text("storage"), b")" + b"\x85" * DEEP, text("0"), text("cpu"), number(1)
    ) + b"Q",
    "a deep list": b"]" * DEEP + b"a" * (DEEP - 1),
    "laughs as a key": mapping((laughs("tuple"), number(1))),
    "laughs as a storage": row(
        text("storage"), name("torch", "FloatStorage"), laughs("list"), text("cpu"),
        number(1),
    ) + b"Q",
    "laughs as an id": laughs("list") + b"Q",
    "laughs as a shape": call(name("torch", "Size"), laughs("list")),
    "laughs as a call": call(name("argparse", "Namespace"), laughs("list")),
    "a state in itself": b"}r" + bytes(4) + text("model") + b"j" + bytes(4) + b"s",
    "a list in itself": b"]r" + bytes(4) + b"j" + bytes(4) + b"a",
    "bytes without end": b"B" + b"\xff" * 4,
    "text without end": b"X" + b"\xff\xff\xff\x7f",
    "a frame without end": b"\x95" + b"\xff" * 7 + b"\0",
    "a name without end": b"c" + b"a" * 2**24,
    "a memory without end": b"}r\xff\xff\xff\x7f",
    "dicts without end": b"}" * 2**24,
    "a storage without end": first_state(a=forge.tensor("0", HUGE, (HUGE,))),
    "a shape without end": first_state(a=forge.tensor("0", 4, (HUGE,))),
    "one number for all": first_state(a=forge.tensor("0", 4, (HUGE,), (0,))),
    "too many axes": first_state(a=forge.tensor("0", 4, (1,) * 65)),
    "a step too many": first_state(a=forge.tensor("0", 4, (4,), (1, 1))),
    "a negative size": first_state(a=forge.tensor("0", 4, (-1, -4))),
    "an offset without end": first_state(a=forge.tensor("0", 4, (4,), offset=2**99)),
    "a storage twice": first_state(
        a=forge.tensor("0", 4, (4,)), b=forge.tensor("0", 4, (4,), kind="IntStorage")
    ),
    "no type of number": first_state(a=forge.tensor("0", 4, (4,), kind="Storage")),
    "a storage elsewhere": first_state(a=forge.tensor("../0", 4, (4,))),
    "not a number for a key": mapping(
        (text("model"), mapping((b"G\x7f\xf8" + bytes(6), forge.tensor("0", 4, (4,))))),
    ),
    "an array for a key": mapping((forge.tensor("0", 4, (4,)), number(1))),
    "a name beside tensors": first_state(a=forge.tensor("0", 4, (4,)), b=number(1)),
    "attributes of a class": name("argparse", "Namespace") + row(b"N", mapping(
        (text("__getattribute__"), name("torch", "Size")))) + b"b",
    "a method of a dict": call(name("collections", "OrderedDict")) + mapping(
        (text("items"), number(1)), (text("get"), number(1))) + b"b",
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_few_bytes_don_t_become_many(bomb, tmp_path, model):
    content, numbers = program(BOMBS[bomb]), {"0": np.zeros(4, "float32")}
    refuse(model, forge.write_zip(tmp_path / "model.pth", content, numbers))


def write_long(archive, file, size):
    """Writes zeros, a thousand times as many as they take compressed."""
    with archive.open(file, "w") as stream:
        for _ in range(size // 2**20):
            stream.write(bytes(2**20))


def bomb_in_zip(file, begin=b""):
    """Spoils a container by an entry that is long once it is unpacked."""

    def write(path, content):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            if file != "data.pkl":
                archive.writestr("archive/data.pkl", content, zipfile.ZIP_STORED)
            write_long(archive, f"archive/{file}", 2**28)

    return write


def entries(**files):
    """Spoils a container by other entries beside, or in place of, the pickle."""

    def write(path, content):
        with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
            warnings.simplefilter("ignore")  # of names that are there twice
            archive.writestr("archive/data.pkl", content)
            for file, data in files.items():
                archive.writestr(file.replace("__", "/"), data or content)

    return write


def patched(old, new):
    """Spoils the bytes of a container's directory."""

    def write(path, content):
        forge.write_zip(path, content, {"0": np.zeros(4, "float32")})
        spoilt = path.read_bytes()
        assert old in spoilt
        path.write_bytes(spoilt.replace(old, new))

    return write


CONTAINERS = {
    "a pickle that unpacks to 256 MB": bomb_in_zip("data.pkl"),
    "a byte order that unpacks to 256 MB": bomb_in_zip("byteorder"),
    "a storage that unpacks to 256 MB": bomb_in_zip("data/0"),
    "two pickles": entries(**{"other/data.pkl": None}),
    "a name twice": entries(archive__data__0=b"1", archive__data__1=b"", **{
        "archive/data/0": b"2"}),
    "big endian": entries(archive__byteorder=b"big", archive__data__0=bytes(16)),
    "no storage": entries(),
    "a short storage": entries(archive__data__0=bytes(12)),
    "an empty zip": lambda path, content: zipfile.ZipFile(path, "w").close(),
    "a storage outside": patched(b"archive/data/0", b"archive/../../0"[:14]),
    "an encrypted pickle": patched(b"PK\1\2\x14\3\x14\0\0", b"PK\1\2\x14\3\x14\0\1"),
    "a directory elsewhere": patched(b"PK\5\6", b"PK\5\7"),
    "no zip behind its mark": lambda path, content: path.write_bytes(b"PK" + content),
}  # fmt: skip


@pytest.mark.parametrize("container", CONTAINERS)
def test_containers_are_checked(container, tmp_path, model):
    content = program(first_state(a=forge.tensor("0", 4, (4,))))
    CONTAINERS[container](tmp_path / "model.pth", content)
    refuse(model, tmp_path / "model.pth")


def entry(**changes):
    return {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **changes}


HEADERS = {
    "no length": b"",
    "zero": {},
    "a list": [entry()],
    "a text": "a",
    "not closed": b'{"a":',
    "nested": b'{"a":' * 5000,
    "nested metadata": {"__metadata__": {"a": {"b": {}}}, "a": entry()},
    "not a text": b'{"\xff\xfe": 1}',
    "half a letter": b'{"\\ud800": {"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
    "no fields": {"a": {}},
    "no type": {"a": {"shape": [4], "data_offsets": [0, 16]}},
    "an unknown type": {"a": entry(dtype="F31")},
    "a type of 8 bits": {"a": entry(dtype="F8_E4M3", shape=[16])},
    "a number for a type": {"a": entry(dtype=7)},
    "a negative size": {"a": entry(shape=[-4])},
    "a size of a half": {"a": entry(shape=[4.5])},
    "a size without end": {"a": entry(shape=[2**62, 2**62])},
    "a size that wraps": {"a": entry(shape=[2**63, 2])},
    "no numbers": {"a": entry(shape=[0])},
    "reversed": {"a": entry(data_offsets=[16, 0])},
    "beyond the end": {"a": entry(shape=[8], data_offsets=[0, 32])},
    "far beyond it": {"a": entry(shape=[HUGE], data_offsets=[0, 4 * HUGE])},
    "a gap": {"a": entry(shape=[2], data_offsets=[8, 16])},
    "overlapping": {"a": entry(), "b": entry()},
    "negative": {"a": entry(data_offsets=[-16, 0])},
    "not a number": b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,16]}}',
}
LENGTHS = [0, 1, 2**31, 2**62, 2**64 - 1]


@pytest.mark.parametrize("header", [*HEADERS, *LENGTHS])
def test_headers_are_checked(header, tmp_path, model):
    content = HEADERS.get(header, {"a": entry()})
    if not isinstance(content, bytes):
        content = json.dumps(content).encode()
    length = header if isinstance(header, int) else len(content)
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + content + bytes(16))
    refuse(model, path)


@pytest.mark.parametrize("kind", ["safetensors", "pickle"])
@pytest.mark.parametrize("seed", range(10))
def test_other_tensors_are_named(seed, kind, state, tmp_path, model):
    rng = random.Random(seed)
    state = dict(state)
    key = rng.choice(sorted(state))
    wrong = rng.choice(["missing", "renamed", "a row more", "whole", "an axis more"])
    value = state.pop(key)
    if wrong == "renamed":
        state[f"{key}.0"] = value
    elif wrong == "a row more":
        state[key] = np.concatenate([value, value[:1]])
    elif wrong == "whole":
        state[key] = value.astype("int64")
    elif wrong == "an axis more":
        state[key] = value[None]
    if kind == "safetensors":
        save_file(state, tmp_path / "model.safetensors")
    else:
        content = forge.state_program(state, text("args") + ARGS)
        storages = forge.storages_of(state)
        forge.write_zip(tmp_path / "model.pth", content, storages)
    refuse(model, tmp_path)


# of a width of a million the first matrix alone would take four terabytes
@pytest.mark.parametrize("key", ["cls_token", "mask_token"])
def test_a_shape_alone_builds_no_model(key, state, tmp_path, model):
    many = {**state, key: np.zeros((1, 1, 10**6), "float32")}
    content = forge.state_program(many, text("args") + ARGS)
    path = tmp_path / "model.pth"
    refuse(model, forge.write_zip(path, content, forge.storages_of(many)))
    with pytest.raises(ValueError, match=r"hidden_dim is 1000000 by \w+_token"):
        keras_mae.MAEPretrainer.from_pretrained(path)


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
    change = {rng.choice(KINDS[kind]): rng.choice(WRONG[kind])}
    refuse_config(model, folder, change)


def refuse_config(model, folder, change, **timm):
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **change}
    if timm:
        config["model_args"] = {**config["model_args"], **timm}
    path.write_text(json.dumps(config))
    refuse(model, folder)


@pytest.mark.parametrize(
    "change",
    [{"hidden_dropout_prob": 2.0}, {"attention_probs_dropout_prob": 1e300},
     {"mask_ratio": 1.0}, {"num_attention_heads": 3},
     {"decoder_num_attention_heads": 7}],
    ids=str,
)  # fmt: skip
def test_numbers_that_no_layer_takes_name_the_source(change, write):
    folder = write("huggingface")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
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
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["model_args"] = {**config["model_args"], **change}
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="source"):
        keras_mae.MAEEncoder.from_pretrained(folder)
    with pytest.raises(ValueError, match="source"):
        load_weights(encoder, folder)


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


def make_sources(folder):
    """Yields what is no source of weights at all."""
    rng = random.Random(0)
    for size in (1, 8, 9, 100, 10_000):
        path = folder / f"random-{size}.pth"
        path.write_bytes(rng.randbytes(size))
        yield path
    starts = [b"", b"\x80", b"\x80\2", b"PK", b"PK\3\4", b"\x1f\x8b", b"BZh9", b"GGUF"]
    starts += [b"\x89HDF\r\n", b"\x93NUMPY", b"<html>", b"version https://git-lfs"]
    for index, start in enumerate(starts):
        path = folder / f"start-{index}.bin"
        path.write_bytes(start)
        yield path
    (folder / "loop").symlink_to("loop")
    yield folder / "loop"
    (folder / "empty").mkdir()
    yield folder / "empty"
    (folder / "folders" / "model.safetensors").mkdir(parents=True)
    yield folder / "folders"
    (folder / "single" / "vit.pth").mkdir(parents=True)
    yield folder / "single"
    os.mkfifo(folder / "pipe.pth")
    yield folder / "pipe.pth"
    yield folder / "start-0.bin" / "model.pth"
    yield f"{folder}/{'a' * 5000}.pth"
    yield f"{folder}/a\0b.pth"
    if os.path.exists("/proc/self/mem"):
        yield "/proc/self/mem"  # a file that can be opened, and not read


def test_what_is_no_source_at_all(tmp_path, model):
    for source in make_sources(tmp_path):
        refuse(model, source)


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
        with pytest.raises(ValueError, match=r"model\.keras is no readable model"):
            load_model(path)
    assert not marker.exists()
