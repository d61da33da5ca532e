"""Reads the HDF5 files of Hugging Face's TensorFlow classes; tells others apart.

Names, types and places come from h5py; values are mapped from the file, as those of
safetensors are. Only what those classes write is read: plain datasets by hard links.
"""

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from keras_mae.weights.checkpoint import LazyTensor, PortError, mapped_tensor

# a ViT-Huge with its decoder has some 1,100 groups and datasets, ten levels deep, whose
# paths have up to 100 characters
_MOST_OBJECTS, _DEEPEST, _LONGEST = 10_000, 16, 256
_DTYPES = {"IEEE_F16LE": "<f2", "IEEE_F32LE": "<f4", "IEEE_F64LE": "<f8"}
# the end of the index of a TensorFlow checkpoint, which is a table of LevelDB
_INDEX_END = bytes.fromhex("57fb808b247547db")
_WAY_OUT = "docs/migration.md has the lines"


def open_hdf5(path: Path) -> dict[str, LazyTensor]:
    """Opens a `tf_model.h5`, a shard of one, or what `save_weights("x.h5")` wrote."""
    import h5py

    tensors: dict[str, LazyTensor] = {}
    try:
        # a lock may need rights to write
        with h5py.File(path, "r", locking=False) as file:
            for name, dataset in _walk(path, file.id):
                key = _without_layer_and_model(name)
                if key in tensors:
                    raise PortError(f"{path}: {key:.60} is there twice")
                tensors[key] = _tensor(path, key, dataset)
    except PortError:
        raise
    except Exception as error:  # the library raises many kinds on a damaged file
        raise PortError(f"{path} is not a readable HDF5 file: {error}") from error
    return tensors


def _walk(path: Path, root: Any) -> Iterator[tuple[str, Any]]:
    """Yields names and ids of all datasets; raises at whatever else there is."""
    from h5py import h5d, h5g, h5l, h5o

    groups, seen = [("", root)], {h5o.get_info(root).addr}
    while groups:
        prefix, group = groups.pop()
        if len(seen) + group.get_num_objs() > _MOST_OBJECTS:
            raise PortError(f"{path} holds more than {_MOST_OBJECTS} objects")
        if prefix.count("/") > _DEEPEST:
            raise PortError(f"{path} is nested deeper than {_DEEPEST} levels")
        for link in group:
            name = prefix + link.decode()
            if len(name) > _LONGEST:
                raise PortError(f"{path}: {name!r:.60}... is too long for a name")
            if link == b"vars":
                raise PortError(_keras_weights(path))
            # a slash in a link's name would be followed as a path
            kind = None if b"/" in link else group.links.get_info(link).type
            if kind != h5l.TYPE_HARD:
                raise PortError(
                    f"{path}: {name!r:.60} must be a hard link, not one to elsewhere"
                )
            item = h5o.open(group, link)
            address = h5o.get_info(item).addr
            if address in seen:
                raise PortError(
                    f"{path}: {name!r:.60} is a second hard link to one object"
                )
            seen.add(address)
            if isinstance(item, h5g.GroupID):
                groups.append((f"{name}/", item))
            elif isinstance(item, h5d.DatasetID):
                yield name, item
            else:
                raise PortError(f"{path}: {name!r:.60} must be a group or a dataset")


def _tensor(path, key, dataset):
    """Finds a dataset's place, if it lies in the file in one piece and as it is."""
    from h5py import h5d, h5t

    stored = dataset.get_create_plist()
    if (
        stored.get_layout() != h5d.CONTIGUOUS
        or stored.get_nfilters()
        or stored.get_external_count()
    ):
        raise PortError(
            f"{path}: {key!r:.60} must be contiguous, in this file and without filters"
        )
    kind = dataset.get_type()
    dtypes = (dtype for name, dtype in _DTYPES.items() if kind == getattr(h5t, name))
    dtype = np.dtype(next(dtypes, "V"))
    if dtype.kind != "f":
        raise PortError(f"{path}: {key!r:.60} must hold floats. Received: {kind.dtype}")
    shape, offset = dataset.shape, dataset.get_offset()
    size = math.prod(shape) * dtype.itemsize
    if offset is None or dataset.get_storage_size() != size:
        raise PortError(
            f"{path}: {key!r:.60}: its size in bytes does not match shape and dtype. "
            f"Received: {dataset.get_storage_size()} bytes for {shape} of {dtype}"
        )
    if offset + size > os.path.getsize(path):
        raise PortError(f"{path}: {key!r:.60} {shape} reaches beyond the end")
    return mapped_tensor(path, shape, dtype, offset)


def _without_layer_and_model(name):
    """Turns `vit/tf_vi_tmae_model/vit/layernorm/beta:0` into `vit/layernorm/beta:0`."""
    parts = name.split("/")
    return "/".join(parts[2:] if parts[2:] and parts[0] == parts[2] else parts)


def shard_key(key: str) -> str:
    """Turns an index's key into that of a shard, without the model's name before it."""
    # TensorFlow's alone differ: `tf_vi_tmae_model/vit/layernorm/beta:0`
    return key.partition("/")[2] if key.endswith(":0") else key


def _keras_weights(path):
    return (
        f"{path} is a .weights.h5 of Keras, which numbers the variables and doesn't "
        "name them. Load it into the model that wrote it (model.load_weights), then "
        f"save that by save_pretrained; {_WAY_OUT}. What save_to_preset wrote is read "
        "by from_preset"
    )


def refuse_tensorflow_checkpoint(source: str) -> None:
    """Raises where a path means a TensorFlow checkpoint: its prefix or its files."""
    prefix = re.sub(r"\.(index|data-\d{5}-of-\d{5})$", "", source)
    if os.path.isfile(prefix) or not os.path.isfile(f"{prefix}.index"):
        return
    with open(f"{prefix}.index", "rb") as file:
        file.seek(max(0, os.path.getsize(file.name) - len(_INDEX_END)))
        if file.read(len(_INDEX_END)) != _INDEX_END:
            return
    raise PortError(
        f"{source} is a TensorFlow checkpoint (.index and .data files), which is not "
        "read. Load it into the model that wrote it (model.load_weights), then save "
        f"that by save_pretrained; {_WAY_OUT}"
    )
