"""Opens .safetensors, .pth, .bin and .h5 checkpoints lazily, without PyTorch."""

import argparse
import codecs
import fnmatch
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from keras_mae.utils.text import shorten
from keras_mae.weights.checkpoint import (
    Checkpoint,
    PortError,
    Weights,
    key_differences,
    mapped_tensor,
    raise_problems,
    wrap_arrays,
)
from keras_mae.weights.config_readers import mmengine_settings
from keras_mae.weights.hdf5 import open_hdf5, refuse_tensorflow_checkpoint, shard_key
from keras_mae.weights.hub import (
    CONFIG_FILE,
    WEIGHT_ENDINGS,
    HubUnavailableError,
    Location,
    read_json,
)
from keras_mae.weights.naming_detection import fits_a_naming
from keras_mae.weights.pickles import Stub
from keras_mae.weights.pytorch_files import read_pytorch_file
from keras_mae.weights.state_choice import choose_state

# what a folder or repository may hold, in order of preference
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model.pth",
    "tf_model.h5",
    "tf_model.h5.index.json",
)
# beginnings of what training leaves beside the weights
_NO_WEIGHTS = (
    *(
        "training_args",
        "optimizer",
        "scheduler",
        "scaler",
        "rng_state",
        "random_states",
    ),
    *("trainer_state", "adapter_model", "sampler", "zero_pp_rank", "bf16_zero_pp_rank"),
)
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.")
_SAFETENSORS_DTYPES = {
    "BF16": ml_dtypes.bfloat16,
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
}
# of the training arguments that are kept
_LONGEST_LIST = 16
# in a checkpoint: a ViT-Huge with its decoder has some 800
_MOST_TENSORS = 10_000
_HDF5 = b"\x89HDF"
# beginnings of files that are no weights, and what they are
_OTHERS = {
    b"version https://git-lfs": "a pointer of Git LFS, not the file: git lfs pull",
    b"<": "a page of HTML or XML, which a download gave instead of the file",
    b"\x1f\x8b": "compressed by gzip: gunzip it first",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: unpack it first",
}


def open_checkpoint(
    source: Weights,
    state_key: str | None = None,
    ignore: Sequence[str] = (),
    **options: Any,
) -> Checkpoint:
    """Opens a source of weights; values are read when they are asked for."""
    if isinstance(source, Checkpoint):
        return source
    if isinstance(source, Mapping):
        _check_no_place("a dict", options)
        content = wrap_arrays(source)
        checkpoint = _from_content(content, state_key, "state dict", "state dict")
    else:
        checkpoint = _open_path(source, state_key, options)
    _check_count(checkpoint.source, checkpoint.tensors)
    for pattern in [ignore] if isinstance(ignore, str) else ignore:
        ignored = fnmatch.filter(checkpoint.tensors, pattern)
        checkpoint.ignored += tuple(ignored)
        for key in ignored:
            del checkpoint.tensors[key]
    return checkpoint


def _open_path(source, state_key, options):
    filename = options.pop("filename", None)
    if not isinstance(source, (str, os.PathLike)):
        raise PortError(
            "source must be a hub id, a path, or a dict of arrays. "
            f"Received: {type(source).__name__}"
        )
    source = os.path.expanduser(source)
    refuse_tensorflow_checkpoint(source)
    if os.path.isfile(source):
        _check_no_place(source, {"filename": filename, **options})
        path = Path(source)
        location = Location(path.parent)
    else:
        location = Location(source, **options)
        path = (
            _find_weights(location) if filename is None else _named(location, filename)
        )
    if path.name.endswith(".index.json"):
        checkpoint = _open_shards(location, path, state_key)
    else:
        checkpoint = _open_file(path, state_key)
    checkpoint.source = str(source)
    config = location.find(CONFIG_FILE)
    if config is not None:
        checkpoint.config, checkpoint.config_file = read_json(config), str(config)
    return checkpoint


def _check_no_place(source, options):
    """Raises where a place in a folder is given beside what is none."""
    names = ("filename", "subfolder")
    given = [f"{name}={options[name]}" for name in names if options.get(name)]
    if given:
        raise PortError(
            "filename and subfolder are for a source that is a folder or a hub id. "
            f"Received: {source} with {' and '.join(given)}"
        )


def _named(location, filename):
    path = location.find(filename)
    if path is None:
        files = shorten(", ".join(location.list_files()) or "no files")
        raise PortError(f"{location.source} has no {filename}. There are {files}")
    return path


def _find_weights(location):
    unavailable = None
    for name in WEIGHT_FILES:
        try:
            path = location.find(name)
        except HubUnavailableError as error:
            # another of the files may be in the cache
            unavailable = unavailable or error
            continue
        if path is not None:
            return path
    files = location.list_files()
    others = [
        name
        for name in files
        if name.endswith(WEIGHT_ENDINGS) and not name.startswith(_NO_WEIGHTS)
    ]
    if len(others) == 1 and others[0] not in WEIGHT_FILES:
        return location.require(others[0])
    if unavailable:
        raise unavailable
    if location.is_folder and not others:
        for name in files:
            refuse_tensorflow_checkpoint(os.path.join(location.source, name))
    found = f"; name one of {', '.join(others)} as filename" if others else ""
    if any(_SHARD.search(name) for name in others):
        found = f"; the index of its shards is missing: {', '.join(others)}"
    if "adapter_config.json" in files:
        found += "; it holds an adapter (LoRA): merge that into its model first"
    elif not others:
        found = f". There are {', '.join(files) or 'no files'}"
    if "model.keras" in files and location.is_folder:
        found += "; keras.models.load_model reads its model.keras"
    raise PortError(
        f"{location.source} has none of {', '.join(WEIGHT_FILES)}{shorten(found)}"
    )


def _open_shards(location, index, state_key):
    """Opens the files that an index names, and compares their keys with it."""
    shards = read_json(index).get("weight_map")
    if (
        not shards
        or not isinstance(shards, dict)
        or not all(
            isinstance(name, str) and name != ".." and Path(name).name == name != ""
            for name in shards.values()
        )
    ):
        raise PortError(f"{index}: weight_map must give a file name for each key")
    shards = {shard_key(key): name for key, name in shards.items()}
    tensors, container = {}, None
    for name in sorted(set(shards.values())):
        part = _open_file(location.require(name))
        container = f"sharded {part.container}"
        for key, tensor in part.tensors.items():
            if key in tensors:
                raise PortError(
                    f"{shorten(key)} is in {tensors[key].file} and in {tensor.file}"
                )
            tensors[key] = tensor
        _check_count(index, tensors)
    problems = key_differences(shards, tensors)
    raise_problems(f"{index} and its files don't fit", problems)
    return _from_tensors(index, tensors, container, state_key)


def _open_file(path, state_key=None):
    """Opens one file by its content, whatever its name."""
    try:
        with open(path, "rb") as file:
            start = file.read(32)
    except OSError as error:
        raise PortError(f"{path} can't be read: {error}") from error
    if start[:4] == _HDF5:
        tensors = open_hdf5(path)
        _check_extent(path, tensors)
        return _from_tensors(path, tensors, "HDF5", state_key)
    # before others, whose beginnings its length in eight bytes may look like
    length = int.from_bytes(start[:8], "little")
    safetensors = start[8:9] == b"{" and length < os.path.getsize(path)
    text = start.removeprefix(codecs.BOM_UTF8).lstrip()
    for beginning, kind in _OTHERS.items():
        if not safetensors and text.startswith(beginning):
            raise PortError(f"{path} is {kind}")
    if start[8:9] == b"{":
        tensors = _open_safetensors(path)
        return _from_tensors(path, tensors, "safetensors", state_key)
    checkpoint = _from_content(
        read_pytorch_file(path), state_key, "PyTorch pickle", str(path)
    )
    checkpoint.file = str(path)
    _check_extent(path, checkpoint.tensors)
    return checkpoint


def _from_tensors(path, tensors, container, state_key):
    """Chooses a model from a container that has no dicts, if one is asked for."""
    if state_key is not None:
        state, _ = choose_state(tensors, state_key, fits_a_naming, str(path))
        tensors = dict(state.tensors)
    return Checkpoint(str(path), tensors, container, file=str(path))


def _from_content(content, state_key, container, source):
    """Chooses a state dict from what a file or a dict in memory holds."""
    try:
        state, notes = choose_state(content, state_key, fits_a_naming, source)
    except PortError as error:
        items = content.values() if isinstance(content, Mapping) else [content]
        stubs = [item for item in items if isinstance(item, Stub)]
        if not stubs or state_key is not None:
            raise
        raise PortError(
            f"{error}. It holds a pickled Python object ({stubs[0]!r}), which is never "
            "unpickled: that could run code. Save model.state_dict() instead"
        ) from error
    args = content.get("args")
    # in memory, what a file has as attributes alone
    args = vars(args) if isinstance(args, argparse.Namespace) else args
    args = args if isinstance(args, Mapping) else {}
    return Checkpoint(
        source,
        dict(state.tensors),
        container,
        args={
            **mmengine_settings(content.get("meta")),
            **{key: _plain(value) for key, value in args.items()},
        },
        others=state.others,
        notes=tuple(notes),
    )


def _check_count(path, tensors):
    """Raises where keys may describe more blocks than can be gone through."""
    if len(tensors) > _MOST_TENSORS:
        raise PortError(
            f"{path} must hold at most {_MOST_TENSORS} tensors. "
            f"Received: {len(tensors)}"
        )


def _check_extent(path, state):
    """Raises where tensors are views that would take more memory than the file."""
    wanted = sum(math.prod(t.shape) * t.dtype.itemsize for t in state.values())
    # twice: two keys may share a tensor
    if wanted > 2 * os.path.getsize(path):
        raise PortError(
            f"{path} is smaller than its tensors, which need {wanted} bytes"
        )


def _is_short(item):
    if isinstance(item, str):
        return item == shorten(item)
    return isinstance(item, (bool, int, float, type(None)))


def _plain(value):
    """Keeps numbers, short strings and short lists of them; else the type's name."""
    # errors print such values, and what a pickle builds may be endless
    items = value if isinstance(value, (list, tuple)) else [value]
    if len(items) <= _LONGEST_LIST and all(map(_is_short, items)):
        return value
    return f"<{type(value).__name__}>"


def _open_safetensors(path):
    """Checks the file with the library, then maps it: its own reader copies twice."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        raise PortError(
            f"{path} is not a complete safetensors file: {shorten(str(error))}"
        ) from error
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    _check_count(path, header)
    return {
        key: _mapped(path, key, entry, start=8 + size) for key, entry in header.items()
    }


def _mapped(path, key, entry, start):
    dtype = _SAFETENSORS_DTYPES.get(entry["dtype"])
    if dtype is None:
        raise PortError(
            f"{path}: {shorten(key)} has unsupported dtype {entry['dtype']}"
        )
    dtype, shape = np.dtype(dtype), tuple(entry["shape"])
    offset = start + entry["data_offsets"][0]
    return mapped_tensor(path, shape, dtype, offset)
