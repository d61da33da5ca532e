"""Writes PyTorch files opcode by opcode, valid and forged ones, and sound shards."""

import itertools
import json
import struct
import zipfile

import numpy as np
from safetensors.numpy import save_file

KINDS = {np.dtype("float32"): "FloatStorage", np.dtype("int64"): "LongStorage"}
MAGIC = 0x1950A86A20F9469CFC6C
HUGE = 2**40


def text(value):
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def number(value):
    encoded = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(encoded)]) + encoded


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def row(*parts):
    """A tuple."""
    return b"(" + b"".join(parts) + b"t"


def mapping(*items):
    return b"}(" + b"".join(itertools.chain(*items)) + b"u"


def call(function, *arguments):
    return function + row(*arguments) + b"R"


REBUILD = name("torch._utils", "_rebuild_tensor_v2")


def storage(key, count, kind="FloatStorage"):
    parts = text("storage"), name("torch", kind), text(key), text("cpu")
    return row(*parts, number(count)) + b"Q"


def tensor(key, count, shape, strides=None, offset=0, kind="FloatStorage"):
    """A tensor; by default one that fills its storage in rows."""
    if strides is None:
        strides = np.cumprod([1, *shape[:0:-1]])[::-1].tolist()
    return call(
        REBUILD,
        storage(key, count, kind),
        number(offset),
        row(*map(number, shape)),
        row(*map(number, strides)),
        b"\x89",
        call(name("collections", "OrderedDict")),
    )


def program(body):
    return b"\x80\2" + body + b"."


def state_program(state, extra=b""):
    """A pickle of `{"model": arrays, ...}`, each array a storage of its own."""
    items = [
        (
            text(key),
            tensor(str(index), array.size, array.shape, kind=KINDS[array.dtype]),
        )
        for index, (key, array) in enumerate(state.items())
    ]
    return program(mapping((text("model"), mapping(*items)), (extra,)))


def write_zip(path, content, storages, **options):
    """Writes the container since PyTorch 1.6."""
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("archive/data.pkl", content)
        for key, array in storages.items():
            archive.writestr(f"archive/data/{key}", np.asarray(array).tobytes())
    return path


def write_legacy(path, content, storages):
    """Writes the container before that: pickles in a row, then the storages."""
    keys = b"](" + b"".join(map(text, storages)) + b"e"
    parts = [program(number(MAGIC)), program(number(1001)), program(b"}")]
    parts += [content, program(keys)]
    for array in storages.values():
        array = np.asarray(array)
        parts += [struct.pack("<Q", array.size), array.tobytes()]
    path.write_bytes(b"".join(parts))
    return path


def storages_of(state):
    return {str(index): array for index, array in enumerate(state.values())}


def first_state(**tensors):
    """A state that seems to be facebook's, each tensor given by instructions."""
    items = [(text(key.replace("__", ".")), value) for key, value in tensors.items()]
    return mapping((text("model"), mapping(*items)))


# facebook's training arguments, of which a `.pth` of unusual sizes needs the heads
ARGS = mapping((text("num_heads"), number(2)), (text("decoder_num_heads"), number(2)))


def write_shards(folder, state):
    """Writes safetensors in two shards with their index; returns the folder."""
    keys = sorted(state)
    parts = {"a.safetensors": keys[::2], "b.safetensors": keys[1::2]}
    for file, names in parts.items():
        save_file({key: state[key] for key in names}, folder / file)
    index = {key: file for file, names in parts.items() for key in names}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": index}))
    return folder
