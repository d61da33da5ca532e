"""Images of Hugging Face's `datasets`: of the hub, saved to disk, Parquet, folders."""

import glob
import os
import re
from functools import cached_property
from urllib.parse import parse_qsl

from keras_mae.data.image_table import ImageTable, Table

_HELD_OUT_SPLITS = ("validation", "val", "test")
_OPTIONS = ("config", "image", "label")
# files that `save_to_disk` writes
_SAVED = ("dataset_dict.json", "state.json")
# types of a column of classes that is no ClassLabel
_CLASSES = re.compile("u?int(8|16|32)|int64|(large_)?string")
_COLUMNS_SHOWN = 20


class ArrowTable(Table):
    """The images of a `datasets.Dataset`."""

    def __init__(self, dataset, place, image, label):
        from datasets import Image

        self.place = place
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
                f"Received: {list_columns(self._dataset.features)}"
            )
        column = self._dataset.select_columns([self._label]).with_format("arrow")
        values = column[:][self._label].to_pylist()
        if None in values:
            raise ValueError(
                f"{self.place} must have a label for each image. Received: none in "
                f"row {values.index(None)}"
            )
        return values

    @property
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
        """What changes with the table's files, and with images that are files."""
        yield repr(self._dataset.features)
        for path in [*self._files, *filter(None, self._paths)]:
            found = os.stat(path) if os.path.exists(path) else None
            yield path, found and (found.st_size, found.st_mtime_ns)


def load_hf(name, data_dir=None, divide=True):
    """Finds a data set's images: for training, and held out or `None`.

    See `load_source`; `name` may end in `?image=COLUMN&label=COLUMN&config=NAME`.
    """
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
        splits = _load(datasets, name, options.get("config"), data_dir)
    # whatever a file, the hub or the network is in for
    except Exception as error:
        cause = error.__cause__ or error
        first, _, _ = str(cause).partition("\n")
        raise ValueError(
            f"hf:{name} could not be loaded: {type(cause).__name__}: {first[:300]}"
        ) from error
    if isinstance(splits, datasets.Dataset):
        splits = {"train": splits}
    held_out = _held_out_split(splits, name)
    images = _images(splits, "train", name, options)
    if held_out is not None:
        return images, _images(splits, held_out, name, options)
    return images.divided() if divide else (images, None)


def _parse(name):
    """Splits `NAME?image=COLUMN&label=COLUMN` into the name and the options."""
    name, mark, query = name.partition("?")
    pairs = parse_qsl(query, keep_blank_values=True)
    wrong = [key for key, value in pairs if key not in _OPTIONS or not value]
    if wrong or (mark and not pairs):
        options = ", ".join(f"{key}=..." for key in _OPTIONS)
        raise ValueError(
            f"hf:NAME? must be followed by {options}, joined by &. Received: {query!r}"
        )
    return name, dict(pairs)


def _load(datasets, name, config, data_dir):
    """Loads what a path holds, or what the hub calls so."""
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        if any(os.path.exists(os.path.join(path, file)) for file in _SAVED):
            return datasets.load_from_disk(path)
        return datasets.load_dataset(path, config, cache_dir=data_dir)
    if os.path.isfile(path) or glob.glob(path):
        return datasets.load_dataset("parquet", data_files=path, cache_dir=data_dir)
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise FileNotFoundError("it is no name of the hub, and no such file exists")
    return datasets.load_dataset(name, config, cache_dir=data_dir)


def _held_out_split(splits, name):
    """Returns the name of the held-out split, or `None`."""
    if not len(splits.get("train", ())):
        raise ValueError(
            f"hf:{name} must have a split 'train' with images. "
            f"Received: {', '.join(sorted(splits)) or 'none'}"
        )
    return next((key for key in _HELD_OUT_SPLITS if len(splits.get(key, ()))), None)


def _images(splits, split, name, options):
    features = splits[split].features
    place = f"hf:{name}, split {split}"
    image = _image_column(features, options.get("image"), place)
    label = _label_column(features, options.get("label"), place)
    return ImageTable(ArrowTable(splits[split], place, image, label))


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
        f"{list_columns(features)}"
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
            f"text. Received: label={wanted} for {list_columns(features)}"
        )
    if wanted is not None or suits("label"):
        return wanted or "label"
    columns = [key for key, kind in features.items() if isinstance(kind, ClassLabel)]
    return columns[0] if len(columns) == 1 else None


def list_columns(features):
    """Lists columns and their types, for errors."""
    shown = []
    for key, kind in features.items():
        name = type(kind).__name__
        shown.append(f"{key} ({kind.dtype if name == 'Value' else name})")
    more = f" and {len(shown) - _COLUMNS_SHOWN} more" * (len(shown) > _COLUMNS_SHOWN)
    return ", ".join(shown[:_COLUMNS_SHOWN]) + more
