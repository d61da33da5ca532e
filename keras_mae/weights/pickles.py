"""Reads PyTorch's .pth and .bin files without PyTorch, executing nothing of them.

Each pickle is read twice: `_check_opcodes` refuses instructions and sizes that no state
dict needs; `_Unpickler` then builds containers and `LazyTensor`s, and knows no function
that a file could call.
"""

import os
import pickle
import pickletools
import zipfile
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from keras_mae.utils.typing import PathLike
from keras_mae.weights.checkpoint import LazyTensor, PortError

# all that torch.save writes for tensors, containers, numbers and strings
_OPCODES = frozenset(
    ["PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT",
     "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE",
     "BINBYTES", "SHORT_BINBYTES", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
     "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS", "GLOBAL",
     "STACK_GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID", "BINPUT", "LONG_BINPUT",
     "BINGET", "LONG_BINGET", "MEMOIZE"]
)  # fmt: skip
# bytes: a pickle holds names and shapes; those of a long training run take a megabyte
_LONGEST = 2**23
# a tuple holds a shape, or what makes a tensor; each mention of a part is counted
_MOST_IN_TUPLE = 4096
# items are put into lists and dicts a thousand at a time
_MOST_ON_STACK = 2**17
# of a tensor: NumPy's limit
_MOST_AXES = 64
_DTYPES = {
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "BoolStorage": np.dtype("bool"),
    "ByteStorage": np.dtype("uint8"),
    "CharStorage": np.dtype("int8"),
    "DoubleStorage": np.dtype("float64"),
    "FloatStorage": np.dtype("float32"),
    "HalfStorage": np.dtype("float16"),
    "IntStorage": np.dtype("int32"),
    "LongStorage": np.dtype("int64"),
    "ShortStorage": np.dtype("int16"),
}
# what training scripts save beside the weights, and is not read
_IGNORED = {
    ("_codecs", "encode"),
    ("numpy", "dtype"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy.core.multiarray", "scalar"),
    ("pathlib", "PosixPath"),
    ("torch", "bfloat16"),
    ("torch", "device"),
    ("torch", "float16"),
    ("torch", "float32"),
}
# first pickle in a file of the container before PyTorch 1.6
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def read_pickle(path: PathLike) -> Any:
    """Reads what `torch.save` wrote, with a `LazyTensor` for each tensor."""
    try:
        with open(path, "rb") as file:
            if file.peek(2)[:2] == b"PK":
                return _read_zip(path)
            return _read_legacy(path, file)
    except PortError:
        raise
    # a malformed pickle may raise nearly anything
    except Exception as error:
        raise PortError(
            f"{path} is not a readable PyTorch file, or is truncated: {error!r}"
        ) from error


def _read_zip(path):
    """Reads the container since PyTorch 1.6: a pickle, and a file for each storage."""
    with zipfile.ZipFile(path) as archive, open(path, "rb") as raw:
        names = archive.namelist()
        pickles = [name for name in names if name.endswith("/data.pkl")]
        if len(pickles) != 1 or len(set(names)) != len(names):
            hint = "; keras.models.load_model reads it" * (path.suffix == ".keras")
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
        with archive.open(pickles[0]) as file:
            unpickler = _Unpickler(file, path, places)
            content = unpickler.load()
    unpickler.check_storages()
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
    places = {}
    begins = file.peek(1)[:1] == pickle.PROTO
    if not begins or _Unpickler(file, path, places).load() != _LEGACY_MAGIC:
        raise PortError(f"{path} is not a PyTorch file, or is truncated")
    for _ in range(2):  # protocol and machine
        _Unpickler(file, path, places).load()
    unpickler = _Unpickler(file, path, places)
    content = unpickler.load()
    for key in _Unpickler(file, path, places).load():
        count = int.from_bytes(file.read(8), "little")
        size = count * unpickler.storages[key].dtype.itemsize
        places[key] = (file.tell(), size)
        file.seek(size, os.SEEK_CUR)
    unpickler.check_storages()
    return content


class _Fixed(type):
    """Metaclass of classes on which a pickle can't set attributes."""

    def __setattr__(cls, name, value):
        raise AttributeError(f"{name} can't be set")


class _Storage(NamedTuple):
    """A flat array in the file, of which tensors are views."""

    dtype: np.dtype
    key: str
    count: int  # type: ignore[assignment]  # hides a tuple's own


class _Unpickler(pickle.Unpickler):
    """Builds containers and `LazyTensor`s, and refuses every other name."""

    def __init__(self, file, path, places):
        _check_opcodes(file, path)
        super().__init__(file, encoding="utf-8")
        self.path = path
        # from a storage's key to `(offset, bytes)`; may be filled after loading
        self.places = places
        self.storages = {}
        ignored = {
            "__init__": lambda self, *args: None,
            "__setstate__": lambda self, state: None,
        }
        # an OrderedDict's own attributes, such as `items`, a pickle could replace
        state_dict = {"__slots__": (), "__setstate__": ignored["__setstate__"]}
        # made for this one file: a pickle may set attributes on what it is given
        self.known = {
            ("collections", "OrderedDict"): _Fixed("Dict", (dict,), state_dict),
            ("argparse", "Namespace"): _Fixed("Namespace", (), {}),
            ("torch", "Size"): lambda sizes: self._sizes(sizes),
            ("torch._utils", "_rebuild_tensor"): lambda *args: self._tensor(*args),
            ("torch._utils", "_rebuild_tensor_v2"): lambda *args: self._tensor(*args),
            ("torch._utils", "_rebuild_parameter"): lambda data, *rest: data,
            **{name: _Fixed("Ignored", (), ignored) for name in _IGNORED},
        }

    def find_class(self, module, name):
        if module in ("torch", "torch.storage") and name in _DTYPES:
            return name
        if (module, name) not in self.known:
            raise PortError(
                f"{self.path}: only tensors in plain containers are read, nothing is "
                f"executed. The file wants {module}.{name}"
            )
        return self.known[module, name]

    def persistent_load(self, pid):
        kind, name, key, _, count, *view = pid
        strings = all(type(text) is str for text in (kind, name, key))
        if not strings or kind != "storage" or name not in _DTYPES:
            raise PortError(f"{self.path}: a storage is malformed")
        if type(count) is not int or count < 0 or any(view):
            raise PortError(f"{self.path}: unknown storage {key}")
        storage = _Storage(_DTYPES[name], key, count)
        if self.storages.setdefault(storage.key, storage) != storage:
            raise PortError(f"{self.path}: storage {key} is defined twice")
        return storage

    def _sizes(self, numbers):
        numbers = tuple(numbers)
        if len(numbers) > _MOST_AXES or not all(
            type(number) is int and number >= 0 for number in numbers
        ):
            raise PortError(f"{self.path}: a tensor is malformed")
        return numbers

    def _tensor(self, storage, offset, shape, strides, *_):
        (offset,) = self._sizes([offset])
        shape, strides = self._sizes(shape), self._sizes(strides)
        if type(storage) is not _Storage or len(shape) != len(strides):
            raise PortError(f"{self.path}: a tensor is malformed")
        dtype, key, count = storage
        extent = sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if offset + (0 if 0 in shape else extent + 1) > count:
            raise PortError(f"{self.path}: a tensor lies outside its storage {key}")

        def read():
            raw = np.memmap(self.path, dtype, "r", self.places[key][0], (count,))
            # the step along a single element may be any number, also one too large
            steps = [
                step * dtype.itemsize if length > 1 else 0
                for step, length in zip(strides, shape, strict=True)
            ]
            return np.lib.stride_tricks.as_strided(raw[offset:], shape, steps)

        return LazyTensor(shape, dtype, read, str(self.path))

    def check_storages(self):
        size = os.path.getsize(self.path)
        for dtype, key, count in self.storages.values():
            offset, stored = self.places.get(key, (0, -1))
            if stored < count * dtype.itemsize or offset + stored > size:
                raise PortError(f"{self.path}: storage {key} is missing or truncated")


def _check_opcodes(file, path):
    """Refuses instructions and sizes that no state dict needs, then rewinds."""
    start, sizes, memo = file.tell(), [], {}
    for opcode, argument, position in pickletools.genops(_BoundedFile(file)):
        name, length = opcode.name, position - start
        if name not in _OPCODES or length > _LONGEST:
            raise PortError(
                f"{path}: only tensors in plain containers are read. The file has "
                f"{name} at byte {position}"
            )
        # each index in the memo takes an instruction to write
        if name.endswith("PUT") and argument > length:
            raise PortError(f"{path}: a pickle's memo is too large")
        if name == "FRAME" and argument > _LONGEST:
            raise PortError(f"{path}: a pickle is too long")
        _follow(opcode, argument, sizes, memo)
        if len(sizes) > _MOST_ON_STACK:
            raise PortError(f"{path}: a pickle's stack is too large")
        if name.startswith("TUPLE") and sizes[-1] > _MOST_IN_TUPLE:
            raise PortError(f"{path}: a pickle's tuples are too large")
    file.seek(start)


class _BoundedFile:
    """A file that reads at most `_LONGEST` bytes at once."""

    def __init__(self, file):
        self._file = file
        self.tell = file.tell

    def read(self, size):
        if size > _LONGEST:
            raise ValueError(f"{size} bytes at once are too many")
        return self._file.read(size)

    def readline(self):
        return self._file.readline(_LONGEST)


def _follow(opcode, argument, sizes, memo):
    """Counts the parts of tuples on a pickle's stack and in its memo; 0 for a mark."""
    # hashing a tuple recurses: past the stack, or for ever where it is nested in copies
    popped, before = [], opcode.stack_before
    if pickletools.markobject in before:
        while size := sizes.pop():
            popped.append(size)
        before = before[: before.index(pickletools.markobject)]
    popped += [sizes.pop() for _ in before]
    size = 1 + sum(popped)
    if opcode.name in ("BINGET", "LONG_BINGET"):
        size = memo[argument]
    elif opcode.name == "MARK":
        size = 0
    elif opcode.stack_after in ([pickletools.pylist], [pickletools.pydict]):
        size = 1  # can't be hashed
    sizes += [size] * len(opcode.stack_after)
    if opcode.name.endswith("PUT"):
        memo[argument] = sizes[-1]
    elif opcode.name == "MEMOIZE":
        memo[len(memo)] = sizes[-1]
