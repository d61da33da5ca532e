"""Crafted containers: PyTorch's zip archives, and the headers of safetensors."""

import json
import struct
import warnings
import zipfile

import numpy as np
import pytest

from keras_mae.weights import PortError, load_weights
from tests.crafted import forge
from tests.crafted.forge import HUGE, first_state, program
from tests.crafted.refusing import refuse


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


def write_empty_tensors(path, names):
    """Writes tensors of no numbers, which take no more than their names."""
    one = entry(dtype="U8", shape=[0], data_offsets=[0, 0])
    content = json.dumps(dict.fromkeys(names, one)).encode()
    path.write_bytes(struct.pack("<Q", len(content)) + content)


def test_blocks_without_end_are_not_gone_through(tmp_path, model):
    path = tmp_path / "model.safetensors"
    write_empty_tensors(path, (f"blocks.{number}." for number in range(60_000)))
    refuse(model, path)


def test_nor_are_those_of_many_shards(tmp_path, model):
    index = {}
    for part in range(4):
        names = [f"blocks.{number}." for number in range(part, 16_000, 4)]
        write_empty_tensors(tmp_path / f"{part}.safetensors", names)
        index |= dict.fromkeys(names, f"{part}.safetensors")
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": index}))
    with pytest.raises(PortError, match=r"must hold at most 10000 tensors"):
        load_weights(model, tmp_path)
    refuse(model, tmp_path)
