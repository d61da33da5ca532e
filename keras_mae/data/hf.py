"""Images of Hugging Face's `datasets`: of the hub, saved to disk, Parquet, folders."""

import glob
import os
import re
from functools import cached_property
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from keras_mae.data.hf_stream import ImageStream, count_images
from keras_mae.data.image_table import ImageTable, Table
from keras_mae.data.source import HELD_OUT_NAMES

_OPTIONS = ("config", "image", "label", "streaming")
# files that `save_to_disk` writes
_SAVED = ("dataset_dict.json", "state.json")
# types of a column of classes that is no ClassLabel
_CLASSES = re.compile("u?int(8|16|32)|int64|(large_)?string")
_COLUMNS_SHOWN = 20


class ArrowTable(Table):
    """The images of a `datasets.Dataset`."""

    def __init__(self, dataset, place, image, label, data_files=()):
        from datasets import Image

        self.place = place
        self.data_files = data_files
        self._label = label
        self._dataset = dataset
        # bytes as they are: our pipeline decodes, and knows which image is corrupt
        images = dataset.select_columns([image]).cast_column(image, Image(decode=False))
        self._image = image
        self._images = images.with_format("arrow")
        feature = dataset.features.get(label)
        self._names = getattr(feature, "names", None)

    def __len__(self):
        return len(self._dataset)

    def read(self, number):
        image = self._images[number][self._image][0].as_py()
        if image["bytes"] is not None:
            return image["bytes"]
        with open(image["path"], "rb") as file:
            return file.read()

    def identity(self, number):
        return self._files[0] if self._files else id(self), number

    @property
    def names(self):
        return [
            os.fsencode(path or f"row {row} of {self.place}")
            for row, path in enumerate(self._paths)
        ]

    @property
    def keys(self):
        return [b"%d" % row for row in range(len(self))]

    @property
    def class_names(self):
        return self._names or super().class_names

    @cached_property
    def label_values(self):
        """All labels: integers or text."""
        if self._label is None:
            raise ValueError(
                f"{self.place} must have a label: a ClassLabel, a column named "
                "'label', or ?label=COLUMN. "
                f"Received: {_list_columns(self._dataset.features)}"
            )
        column = self._dataset.select_columns([self._label]).with_format("arrow")
        values = column[:][self._label].to_pylist()
        if None in values:
            raise ValueError(
                f"{self.place} must have a label for each image. Received: none in "
                f"row {values.index(None)}"
            )
        return values

    @cached_property
    def _files(self):
        return [file["filename"] for file in self._dataset.cache_files]

    @cached_property
    def _paths(self):
        """Of images that are files of their own the path, else `None`."""
        import pyarrow.compute as compute

        paths = []
        for chunk in self._images[:][self._image].chunks:
            content, path = (compute.struct_field(chunk, n) for n in ("bytes", "path"))
            own = compute.if_else(compute.is_null(content), path, None)
            paths += own.to_pylist()
        return paths

    @property
    def stats(self):
        """What changes with the files, the columns, and with images that are files."""
        yield repr(self._dataset.features), self._image, self._label
        for path in [*self._files, *filter(None, self._paths)]:
            found = os.stat(path) if os.path.exists(path) else None
            yield path, found and (found.st_size, found.st_mtime_ns)


def load_hf(name, data_dir=None, divide=True):
    """Finds a data set's images: for training, and held out or `None`."""
    try:
        # slow to import, and of use to this source alone
        import datasets
    except ImportError as error:
        raise ValueError(
            "hf needs Hugging Face's datasets: pip install 'keras-mae[hf]'. "
            f"Received: {error}"
        ) from error
    name, options = _parse(name)
    try:
        splits = _load(datasets, name, options, data_dir)
    # whatever a file, the hub or the network is in for
    except Exception as error:
        cause = error.__cause__ or error
        first, _, _ = str(cause).partition("\n")
        raise ValueError(
            f"hf:{name} could not be loaded: {type(cause).__name__}: {first[:300]}"
        ) from error
    names = _names(splits, name)
    images = [_images(splits[split], split, name, options) for split in names]
    if len(images) == 2 or not divide:
        return images[0], images[1] if len(images) == 2 else None
    if isinstance(images[0], ImageStream):
        raise ValueError(
            f"hf:{name} must have a split {' or '.join(HELD_OUT_NAMES)} to be "
            "streamed, unless held_out names other images. "
            f"Received: {', '.join(sorted(splits))}"
        )
    return images[0].divided()


def _parse(name):
    """Splits `NAME?image=COLUMN&label=COLUMN` into the name and the options."""
    name, mark, query = name.partition("?")
    pairs = parse_qsl(query, keep_blank_values=True)
    wrong = [key for key, value in pairs if key not in _OPTIONS or not value]
    options = dict(pairs)
    if wrong or (mark and not pairs) or options.get("streaming", "true") != "true":
        known = ", ".join(f"{key}=..." for key in _OPTIONS[:3])
        raise ValueError(
            f"hf:NAME? must be followed by {known} or streaming=true, joined by &. "
            f"Received: {query!r}"
        )
    return name, options


class Split(NamedTuple):
    """A split: a `datasets.Dataset`, or a stream with a number and a version."""

    dataset: Any
    size: int
    data_files: Any = ()  # paths or addresses of what the hub or a folder holds
    version: Any = None


def _load(datasets, name, options, data_dir):
    """Loads what a path holds, or what the hub calls so: a dict of `Split`."""
    path = os.path.expanduser(name)
    if any(os.path.exists(os.path.join(path, file)) for file in _SAVED):
        # mapped into memory, so that there is nothing to stream
        splits = datasets.load_from_disk(path)
        if isinstance(splits, datasets.Dataset):
            splits = {"train": splits}
        return {key: Split(split, len(split)) for key, split in splits.items()}
    builder = _builder(datasets, name, path, options.get("config"), data_dir)
    files = builder.config.data_files or {}
    if "streaming" in options:
        version = builder.hash, builder.config_id
        return {
            key: Split(split, count_images(builder, key), files.get(key, ()), version)
            for key, split in builder.as_streaming_dataset().items()
            if key in ("train", *HELD_OUT_NAMES)
        }
    builder.download_and_prepare()
    return {
        key: Split(split, len(split), files.get(key, ()))
        for key, split in builder.as_dataset().items()
    }


def _builder(datasets, name, path, config, data_dir):
    if os.path.isdir(path):
        return datasets.load_dataset_builder(path, config, cache_dir=data_dir)
    if os.path.isfile(path) or glob.glob(path):
        return datasets.load_dataset_builder(
            "parquet", data_files=path, cache_dir=data_dir
        )
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise FileNotFoundError("it is no name of the hub, and no such file exists")
    return datasets.load_dataset_builder(name, config, cache_dir=data_dir)


def _names(splits, name):
    """Lists the split for training, and the held-out one if there is one."""
    sizes = {key: split.size for key, split in splits.items()}
    if not sizes.get("train"):
        raise ValueError(
            f"hf:{name} must have a split 'train' with images. "
            f"Received: {', '.join(sorted(sizes)) or 'none'}"
        )
    return ["train", *[key for key in HELD_OUT_NAMES if sizes.get(key)][:1]]


def _images(split, key, name, options):
    dataset = split.dataset
    place = f"hf:{name}, split {key}"
    image = _image_column(dataset.features, options.get("image"), place)
    label = _label_column(dataset.features, options.get("label"), place)
    if split.version is None:
        return ImageTable(ArrowTable(dataset, place, image, label, split.data_files))
    from datasets import Image

    if "string" in str(getattr(dataset.features.get(label), "dtype", "")):
        label = None  # which numbers they are, is known when all are read
    return ImageStream(
        dataset.select_columns([image, *([label] if label else [])]).cast_column(
            image, Image(decode=False)
        ),
        *(place, (image, label), split.size, split.version),
        getattr(dataset.features.get(label), "names", None),
        split.data_files,
    )


def _image_column(features, wanted, place):
    """Finds the column of images: the one asked for, `image`, or the only one."""
    from datasets import Image

    if wanted is not None:
        kind = features.get(wanted)
        text = getattr(kind, "dtype", None) == "string"  # paths
        if text or isinstance(kind, Image) or _is_encoded(kind):
            return wanted
    else:
        columns = [key for key, kind in features.items() if isinstance(kind, Image)]
        columns = columns or [
            key for key, kind in features.items() if _is_encoded(kind)
        ]
        if "image" in columns or len(columns) == 1:
            return "image" if "image" in columns else columns[0]
    raise ValueError(
        f"{place} must have a single column of images, one named 'image', or "
        f"?image=COLUMN. Received: {f'image={wanted} for ' if wanted else ''}"
        f"{_list_columns(features)}"
    )


def _is_encoded(kind):
    """Whether a column holds encoded images without saying so, as plain Parquet."""
    if isinstance(kind, dict):
        return set(kind) == {"bytes", "path"}
    return getattr(kind, "dtype", None) in ("binary", "large_binary")


def _label_column(features, wanted, place):
    """Finds the column of classes: the one asked for, `label`, the only one, `None`."""
    from datasets import ClassLabel

    def suits(key):
        kind = features.get(key)
        dtype = str(getattr(kind, "dtype", ""))
        return isinstance(kind, ClassLabel) or _CLASSES.fullmatch(dtype)

    if wanted is not None and not suits(wanted):
        raise ValueError(
            f"{place}: label must be a column of classes: ClassLabel, integers or "
            f"text. Received: label={wanted} for {_list_columns(features)}"
        )
    if wanted is not None or suits("label"):
        return wanted or "label"
    columns = [key for key, kind in features.items() if isinstance(kind, ClassLabel)]
    return columns[0] if len(columns) == 1 else None


def _list_columns(features):
    """Lists columns and their types, for errors."""
    shown = []
    for key, kind in features.items():
        name = type(kind).__name__
        shown.append(f"{key} ({kind.dtype if name == 'Value' else name})")
    more = f" and {len(shown) - _COLUMNS_SHOWN} more" * (len(shown) > _COLUMNS_SHOWN)
    return ", ".join(shown[:_COLUMNS_SHOWN]) + more
