"""Opens .safetensors, .pth, .bin and .h5 checkpoints lazily, without PyTorch."""

import collections
import json
import math
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from keras_mae.weights.checkpoint import (
    Checkpoint,
    LazyTensor,
    PortError,
    Weights,
    key_differences,
    mapped_tensor,
    raise_problems,
)
from keras_mae.weights.hdf5 import open_hdf5, refuse_tensorflow_checkpoint, shard_key
from keras_mae.weights.hub import HubUnavailableError, Location, read_json
from keras_mae.weights.pickles import Stub
from keras_mae.weights.pytorch_files import read_pytorch_file

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
# what transformers' Trainer puts beside the weights
_NO_WEIGHTS = ("training_args.bin", "optimizer.pt", "scheduler.pt", "scaler.pt")
CONFIG_FILE = "config.json"
# keys under which a PyTorch file nests its state dict
_STATE_KEYS = ("model", "state_dict")
_SAFETENSORS_DTYPES = {
    "BF16": ml_dtypes.bfloat16,
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "I64": "int64",
}
_HDF5 = b"\x89HDF"


def open_checkpoint(source: Weights, **options: Any) -> Checkpoint:
    """Opens a source of weights; values are read when they are asked for."""
    if isinstance(source, Checkpoint):
        return source
    if isinstance(source, collections.abc.Mapping):
        return Checkpoint.from_state(source)
    if not isinstance(source, (str, os.PathLike)):
        raise PortError(
            "source must be a hub id, a path, or a dict of arrays. "
            f"Received: {type(source).__name__}"
        )
    source = os.path.expanduser(source)
    refuse_tensorflow_checkpoint(source)
    if os.path.isfile(source):
        path = Path(source)
        location = Location(path.parent)
    else:
        location = Location(source, **options)
        path = _find_weights(location)
    if path.name.endswith(".index.json"):
        checkpoint = _open_shards(location, path)
    else:
        checkpoint = _open_file(path)
    checkpoint.source = str(source)
    config = location.find(CONFIG_FILE)
    if config is not None:
        checkpoint.config, checkpoint.config_file = read_json(config), str(config)
    return checkpoint


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
    if unavailable:
        raise unavailable
    others = []
    if location.is_folder:
        endings = (".pth", ".pt", ".bin", ".safetensors", ".h5")
        files = sorted(Path(location.source).iterdir())
        others = [
            path
            for path in files
            if path.suffix in endings and path.name not in _NO_WEIGHTS
        ]
        for path in files:
            if path.suffix == ".index" and not others:
                refuse_tensorflow_checkpoint(str(path))
    if len(others) == 1:
        return others[0]
    found = f"; name one of {', '.join(p.name for p in others)}" if others else ""
    if Path(location.source, "model.keras").is_file():
        found += "; keras.models.load_model reads its model.keras"
    raise PortError(f"{location.source} has none of {', '.join(WEIGHT_FILES)}{found}")


def _open_shards(location, index):
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
                raise PortError(f"{key} is in {tensors[key].file} and in {tensor.file}")
            tensors[key] = tensor
    problems = key_differences(shards, tensors)
    raise_problems(f"{index} and its files don't fit", problems)
    return Checkpoint(str(index), tensors, container, file=str(index))


def _open_file(path):
    """Opens one file by its content, whatever its name."""
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError as error:
        raise PortError(f"{path} can't be read: {error}") from error
    if start[:4] == _HDF5:
        tensors = open_hdf5(path)
        _check_extent(path, tensors)
        return Checkpoint(str(path), tensors, "HDF5", file=str(path))
    if start[8:] == b"{":
        tensors = _open_safetensors(path)
        return Checkpoint(str(path), tensors, "safetensors", file=str(path))
    content = read_pytorch_file(path)
    state, args = content, {}
    if isinstance(content, dict):
        name = next((key for key in _STATE_KEYS if key in content), None)
        state = content[name] if name else content
        args = content.get("args", {})
    if isinstance(state, Stub):
        raise PortError(
            f"{path} holds an object, {state!r}, which is not built: nothing of a file "
            "is executed. Save its state_dict() instead"
        )
    if not isinstance(state, dict) or not any(
        isinstance(value, LazyTensor) for value in state.values()
    ):
        raise PortError(f"{path} does not hold a dict of tensors")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, LazyTensor):
            found = value if isinstance(value, Stub) else type(value).__name__
            raise PortError(
                f"{path}: {key!r:.60} must name a tensor. Received: {found}"
            )
    _check_extent(path, state)
    args = args if isinstance(args, dict) else {}
    args = {key: _plain(value) for key, value in args.items()}
    return Checkpoint(
        str(path), dict(state), "PyTorch pickle", file=str(path), args=args
    )


def _check_extent(path, state):
    """Raises where tensors are views that would take more memory than the file."""
    wanted = sum(math.prod(t.shape) * t.dtype.itemsize for t in state.values())
    # twice: two keys may share a tensor
    if wanted > 2 * os.path.getsize(path):
        raise PortError(
            f"{path} is smaller than its tensors, which need {wanted} bytes"
        )


def _plain(value):
    """Keeps numbers, strings and lists of them; else the type's name."""
    # errors print such values, and what a pickle builds may be endless
    items = value if isinstance(value, (list, tuple)) else [value]
    if all(isinstance(item, (bool, int, float, str, type(None))) for item in items):
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
            f"{path} is not a complete safetensors file: {error}"
        ) from error
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return {
        key: _mapped(path, key, entry, start=8 + size) for key, entry in header.items()
    }


def _mapped(path, key, entry, start):
    dtype = _SAFETENSORS_DTYPES.get(entry["dtype"])
    if dtype is None:
        raise PortError(f"{path}: {key} has unsupported dtype {entry['dtype']}")
    dtype, shape = np.dtype(dtype), tuple(entry["shape"])
    offset = start + entry["data_offsets"][0]
    return mapped_tensor(path, shape, dtype, offset)
