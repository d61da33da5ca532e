"""Reads PyTorch's .pth and .bin files without PyTorch, executing nothing of them."""

import mmap
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from keras_mae.utils.typing import PathLike
from keras_mae.weights.checkpoint import LazyTensor, PortError
from keras_mae.weights.pickles import MOST_BYTES, Stub, Unpickler

# of a tensor; weights have four at most, and errors print the shapes of many
_MOST_AXES = 16
# steps that a tensor counts for: many may share their arguments
_TENSOR_STEPS = 64
_LONGEST_KEY = 256
_DTYPES = {
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.BoolStorage": np.dtype("bool"),
    "torch.ByteStorage": np.dtype("uint8"),
    "torch.CharStorage": np.dtype("int8"),
    "torch.DoubleStorage": np.dtype("float64"),
    "torch.FloatStorage": np.dtype("float32"),
    "torch.HalfStorage": np.dtype("float16"),
    "torch.IntStorage": np.dtype("int32"),
    "torch.LongStorage": np.dtype("int64"),
    "torch.ShortStorage": np.dtype("int16"),
}
# kinds that no weights have -> bytes of an element, by which the old container goes on
_OTHER_SIZES = {
    "torch.ComplexDoubleStorage": 16,
    "torch.ComplexFloatStorage": 8,
    "torch.QInt32Storage": 4,
    "torch.QInt8Storage": 1,
    "torch.QUInt8Storage": 1,
    "torch.UntypedStorage": 1,
}
# first pickle in a file of the container before PyTorch 1.6
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def read_pytorch_file(path: PathLike) -> Any:
    """Reads what `torch.save` wrote as `LazyTensor`s, containers and `Stub`s."""
    try:
        with open(path, "rb") as file:
            if file.peek(2)[:2] == b"PK":
                return _read_zip(Path(path))
            return _read_legacy(path, file)
    except PortError:
        raise
    # a malformed pickle may raise nearly anything
    except Exception as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise PortError(
            f"{path} is not a readable PyTorch file, or is truncated: "
            f"{kind}{error!s:.200}"
        ) from error.with_traceback(None)  # whose frames hold all that was read


def _read_zip(path):
    """Reads the container since PyTorch 1.6: a pickle, and a file for each storage."""
    with zipfile.ZipFile(path) as archive, open(path, "rb") as raw:
        names = archive.namelist()
        pickles = [name for name in names if name.endswith("/data.pkl")]
        scripted = any(name.endswith("/constants.pkl") for name in names)
        if len(pickles) != 1 or len(set(names)) != len(names) or scripted:
            hint = "; keras.models.load_model reads it" * (path.suffix == ".keras")
            if scripted:
                hint = ": it is TorchScript; save the model's state_dict() instead"
            raise PortError(f"{path} is a zip file, but not one of PyTorch's{hint}")
        folder = pickles[0].removesuffix("data.pkl")
        for info in archive.infolist():
            # a compressed file may be a million times as long as it looks
            if info.compress_type != zipfile.ZIP_STORED:
                raise PortError(f"{path}: {info.filename} must not be compressed")
        if f"{folder}byteorder" in names:
            with archive.open(f"{folder}byteorder") as file:
                order = file.read(9).decode()
            if order != "little":
                raise PortError(f"{path}: byte order must be little. Received: {order}")
        places = _find_storages(archive, raw, f"{folder}data/")
        if archive.getinfo(pickles[0]).file_size > MOST_BYTES:
            raise PortError(f"{path}: its pickle is longer than {MOST_BYTES} bytes")
        reader = _Reader(path, archive.read(pickles[0]), places)
    content = reader.load()
    reader.check_storages()
    return content


def _find_storages(archive, raw, folder):
    places = {}
    for info in archive.infolist():
        if not info.filename.startswith(folder):
            continue
        # the header before the data, whose lengths the directory doesn't repeat
        raw.seek(info.header_offset + 26)
        lengths = [int.from_bytes(raw.read(2), "little") for _ in range(2)]
        offset = info.header_offset + 30 + sum(lengths)
        places[info.filename.removeprefix(folder)] = (offset, info.file_size)
    return places


def _read_legacy(path, file):
    """Reads the container before PyTorch 1.6: pickles in a row, then the storages."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        reader = _Reader(path, data, {})
        if data[:1] != pickle.PROTO or reader.load() != _LEGACY_MAGIC:
            raise PortError(f"{path} is not a PyTorch file, or is truncated")
        for _ in range(2):  # protocol and machine
            reader.load()
        content = reader.load()
        for key in reader.load():
            count = reader.count()
            size = count * reader.storages[key].dtype.itemsize
            reader.places[key] = (reader.position, size)
            reader.position += size
    reader.check_storages()
    return content


class _Storage(NamedTuple):
    """A flat array in the file, of which tensors are views."""

    dtype: np.dtype
    key: str
    count: int  # type: ignore[assignment]  # hides a tuple's own


class _Reader(Unpickler):
    """Builds a `LazyTensor` where a pickle builds a tensor."""

    def __init__(self, path, data, places):
        super().__init__(
            data,
            {
                "torch.Size": self._sizes,
                "torch._utils._rebuild_tensor": self._tensor,
                "torch._utils._rebuild_tensor_v2": self._tensor,
                "torch._utils._rebuild_parameter": lambda data, *_: data,
                "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
            },
            self._storage,
        )
        self.path = path
        # from a storage's key to `(offset, bytes)`; may be filled after loading
        self.places = places
        self.storages = {}

    def count(self):
        """Reads the number of a storage's elements."""
        return int.from_bytes(self.take(8), "little")

    def _storage(self, identity):
        kind, stub, key, _, count, *view = identity
        if kind != "storage" or not isinstance(stub, Stub) or any(view):
            raise ValueError("a storage is malformed")
        if type(key) is not str or len(key) > _LONGEST_KEY:
            raise ValueError("a storage's key is malformed")
        name = stub.name.replace("torch.storage.", "torch.")
        if name not in _DTYPES and name not in _OTHER_SIZES:
            return stub
        dtype = _DTYPES.get(name) or np.dtype(f"V{_OTHER_SIZES[name]}")
        storage = _Storage(dtype, key, *self._sizes([count]))
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"storage {key} is defined twice")
        return storage if name in _DTYPES else stub

    def _sizes(self, numbers):
        if len(numbers) > _MOST_AXES or not all(
            type(number) is int and 0 <= number < 2**63 for number in numbers
        ):
            raise ValueError("a tensor is malformed")
        return tuple(numbers)

    def _tensor(self, storage, offset, shape, strides, *_):
        self.spend(_TENSOR_STEPS)
        if isinstance(storage, Stub):
            return storage  # numbers of a kind that no weights have
        (offset,) = self._sizes([offset])
        shape, strides = self._sizes(shape), self._sizes(strides)
        if type(storage) is not _Storage or len(shape) != len(strides):
            raise ValueError("a tensor is malformed")
        dtype, key, count = storage
        extent = sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if offset + (0 if 0 in shape else extent + 1) > count:
            raise ValueError(f"a tensor lies outside its storage {key}")

        path, places = self.path, self.places

        def read():
            raw = np.memmap(path, dtype, "r", places[key][0], (count,))
            # the step along a single element may be any number, also one too large
            steps = [
                step * dtype.itemsize if length > 1 else 0
                for step, length in zip(strides, shape, strict=True)
            ]
            return np.lib.stride_tricks.as_strided(raw[offset:], shape, steps)

        return LazyTensor(shape, dtype, read, str(path))

    def check_storages(self):
        size = os.path.getsize(self.path)
        for dtype, key, count in self.storages.values():
            offset, stored = self.places.get(key, (0, -1))
            if stored < count * dtype.itemsize or offset + stored > size:
                raise PortError(f"{self.path}: storage {key} is missing or truncated")
