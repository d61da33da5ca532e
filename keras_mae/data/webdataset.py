"""Images in the tar shards of WebDataset, read by their place in the file.

The library `webdataset` reads shards as streams: their order then depends on buffers,
and a run resumes by reading again. Here the tar headers are read once, so that any
image is a seek away.
"""

import itertools
import json
import os
import re
import tarfile
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_mae.data.image_table import ImageTable, Table
from keras_mae.data.storage import open_unbuffered, real_path

# of a sample's images, in order of preference, and of its labels
_IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp", "bmp")
_LABEL_ENDINGS = ("cls", "json")
_LABEL_KEYS = ("label", "cls", "class")
_MOST_SHARDS = 100_000
_MOST_LABEL_BYTES = 2**16
_BLOCK = 512  # of a tar file
_THREADS = 8


class _Member(NamedTuple):
    """A file in a tar shard."""

    shard: int
    name: str
    offset: int
    size: int


class ShardTable(Table):
    """The images of tar shards, in the shards' order."""

    def __init__(self, pattern, paths):
        self.place = f"webdataset:{pattern}"
        self.paths = paths
        with ThreadPoolExecutor(_THREADS) as pool:
            parts = list(pool.map(_index_shard, range(len(paths)), paths))
        samples = list(itertools.chain.from_iterable(parts))
        if not samples:
            raise ValueError(
                f"{self.place} must have images ({', '.join(_IMAGE_ENDINGS)}). "
                f"Received: none, in {len(paths)} shards"
            )
        images, self._labels = zip(*samples, strict=True)
        self._members = [image.name for image in images]
        self._places = np.array(
            [(image.shard, image.offset, image.size) for image in images], "int64"
        )

    def __len__(self):
        return len(self._members)

    def read(self, number):
        shard, offset, size = self._places[number].tolist()
        with open_unbuffered(self.paths[shard]) as file:
            file.seek(offset)
            return file.read(size)

    def identity(self, number):
        shard, offset, _ = self._places[number].tolist()
        return self._real_paths[shard], offset

    @cached_property
    def _real_paths(self):
        return [real_path(path) for path in self.paths]

    @property
    def names(self):
        return self._joined(self.paths)

    @property
    def keys(self):
        return self._joined([os.path.basename(path) for path in self.paths])

    def _joined(self, shards):
        return [
            os.fsencode(f"{shards[shard]}:{name}")
            for shard, name in zip(self._places[:, 0], self._members, strict=True)
        ]

    @cached_property
    def label_values(self):
        """All labels: integers, or text where one is no number."""
        for name, shard, label in zip(
            self._members, self._places[:, 0], self._labels, strict=True
        ):
            if label is None:
                raise ValueError(
                    f"{self.paths[shard]} must have a label "
                    f"({' or '.join(_LABEL_ENDINGS)}) beside each image. "
                    f"Received: {name!r}, without one"
                )
        values = []
        for shard, labels in itertools.groupby(self._labels, lambda m: m.shard):
            with open_unbuffered(self.paths[shard]) as file:
                values += [_read_label(file, self.paths[shard], m) for m in labels]
        if all(isinstance(value, int) for value in values):
            return values
        return [str(value) for value in values]

    @property
    def stats(self):
        for path in self.paths:
            found = tf.io.gfile.stat(path)
            yield path, found.length, found.mtime_nsec


def load_webdataset(pattern, divide=True):
    """Finds the images of tar shards: for training, and held out or `None`."""
    images = ImageTable(ShardTable(pattern, _find_shards(pattern)))
    return images.divided() if divide else (images, None)


def _find_shards(pattern):
    """Lists the files of a pattern with braces and wildcards; each must exist."""
    parts = list(itertools.islice(_expand_braces(pattern), _MOST_SHARDS + 1))
    if len(parts) > _MOST_SHARDS:
        raise ValueError(
            f"webdataset must name at most {_MOST_SHARDS} shards. Received: {pattern}"
        )
    paths, missing = [], []
    for part in parts:
        if re.search(r"[*?\[]", part):
            found = [
                path
                for path in sorted(tf.io.gfile.glob(part))
                if not os.path.basename(path).startswith(".")
            ]
        else:
            found = [part] if tf.io.gfile.exists(part) else []
        paths += found
        missing += [] if found else [part]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(
            "webdataset must name tar files that exist. "
            f"Received: {pattern}; no file is {missing[0]}{more}"
        )
    folder = next((path for path in paths if tf.io.gfile.isdir(path)), None)
    if folder is not None:
        raise ValueError(
            f"webdataset must name tar files, such as {os.path.join(folder, '*.tar')}. "
            f"Received: {pattern}; {folder} is a folder"
        )
    return list(dict.fromkeys(paths))


def _expand_braces(pattern):
    """Yields `a1`, `a2` for `a{1..2}`, and `ab`, `ac` for `a{b,c}`, as a shell does."""
    found = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if found is None:
        yield pattern
        return
    first, last, words = found.groups()
    if words is None:
        if int(first) > int(last):
            raise ValueError(
                "webdataset must name shards by ascending numbers, as in {0..9}. "
                f"Received: {found[0]} in {pattern}"
            )
        width = max(map(len, (first, last))) if first[0] == "0" else 0
        words = (f"{n:0{width}}" for n in range(int(first), int(last) + 1))
    else:
        words = words.split(",")
    for word in words:
        yield from _expand_braces(
            pattern[: found.start()] + word + pattern[found.end() :]
        )


def _index_shard(shard, path):
    """Lists a shard's samples, `(image, label or None)`, from its headers."""
    samples = {}
    for member in _members(shard, path):
        folder, name = os.path.split(member.name)
        key, dot, ending = name.partition(".")
        if not key or not dot:
            continue  # hidden, or no part of a sample
        parts = samples.setdefault(os.path.join(folder, key), {})
        if ending.lower() in parts:
            raise ValueError(
                f"{path} must have one member of each name. "
                f"Received: {member.name!r}, a second time"
            )
        parts[ending.lower()] = member
    return [_sample(path, key, parts) for key, parts in samples.items()]


def _members(shard, path):
    """Yields a tar file's regular files; raises if it is damaged or truncated."""
    try:
        with (
            open_unbuffered(path) as file,
            tarfile.open(fileobj=file, mode="r:") as tar,
        ):
            end = -1
            while (found := tar.next()) is not None:
                tar.members.clear()  # else it keeps them all
                if found.size < 0 or found.offset <= end:
                    raise ValueError(f"a header at byte {found.offset} is wrong")
                end = found.offset
                if found.isreg() and not found.issparse():
                    yield _Member(shard, found.name, found.offset_data, found.size)
            # tarfile takes any other header, and the end of the file, for the end
            file.seek(tar.offset)
            if file.read(_BLOCK) != bytes(_BLOCK):
                raise ValueError(f"it is truncated or damaged at byte {tar.offset}")
    # what tarfile raises for crafted headers is of many kinds
    except Exception as error:
        raise ValueError(
            f"{path} must be a whole, uncompressed tar file. Received: {error}"
        ) from error


def _sample(path, key, parts):
    image = next((parts[e] for e in _IMAGE_ENDINGS if e in parts), None)
    if image is None:
        raise ValueError(
            f"{path} must have an image ({', '.join(_IMAGE_ENDINGS)}) in each sample. "
            f"Received: {key!r} with {', '.join(sorted(parts)[:5])}"
        )
    return image, next((parts[e] for e in _LABEL_ENDINGS if e in parts), None)


def _read_label(file, path, member):
    """Reads an integer or a name, from text or JSON."""
    file.seek(member.offset)
    content = file.read(min(member.size, _MOST_LABEL_BYTES + 1))
    label = None
    if len(content) <= _MOST_LABEL_BYTES:
        try:
            label = _parse_label(member.name, content.decode())
        except (ValueError, RecursionError):  # not UTF-8, or no JSON
            label = None
    if label is None:
        raise ValueError(
            f"{path}:{member.name} must hold a class, a number or a name, in JSON "
            f"also under {', '.join(_LABEL_KEYS)}. Received: {content[:60]!r}"
        )
    return label


def _parse_label(name, text):
    """Returns an integer or text; `None` if it is neither."""
    if name.lower().endswith(".json"):
        value = json.loads(text)
        if isinstance(value, dict):
            value = next((value[key] for key in _LABEL_KEYS if key in value), None)
        if isinstance(value, int) and not isinstance(value, bool):
            return value if abs(value) < 2**31 else None
        text = value if isinstance(value, str) else ""
    text = text.strip()
    return int(text) if re.fullmatch(r"-?\d{1,9}", text, re.ASCII) else text or None
