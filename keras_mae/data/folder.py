"""Image files in a folder, with a subfolder for each class."""

import hashlib
import os
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_mae.data.encoded_images import EncodedImages

_ENDINGS = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
_HELD_OUT_FOLDERS = ("val", "validation", "test")
# of a folder without one of these
_HELD_OUT_SHARE = 0.02


class ImageFiles(EncodedImages):
    """Image files below a folder."""

    def __init__(self, root, names, class_names=None):
        self.root = os.fspath(root)
        self.names = list(names)  # of files, relative to root
        self._class_names = class_names
        self._tensors = {}

    def __len__(self):
        return len(self.names)

    @property
    def paths(self):
        return [os.path.join(self.root, name) for name in self.names]

    def divided(self):
        """Holds out 2 % of the files, at least one: those with the smallest hashes."""
        if len(self) < 2:
            raise ValueError(
                f"{self.root} must hold at least two images, one of them held out, "
                f"unless held_out names others. Received: {len(self)}"
            )
        # by hash: the same files in whatever order the folder lists them
        names = _by_hash(self.names)
        count = max(1, round(len(names) * _HELD_OUT_SHARE))
        return (
            ImageFiles(self.root, sorted(names[count:])),
            ImageFiles(self.root, names[:count]),
        )

    def without(self, others):
        """Leaves out files that another collection has."""
        if not isinstance(others, ImageFiles):
            return self
        out = {os.path.realpath(path) for path in others.paths}
        kept = [
            name
            for name, path in zip(self.names, self.paths, strict=True)
            if os.path.realpath(path) not in out
        ]
        return ImageFiles(self.root, kept)

    def training_items(self, order):
        """Shuffles the files without end: `(position, index)`."""
        return order.indices(len(self))

    def held_out_items(self):
        """Lists the files once, by hash: the first few are of several classes."""
        names = {name: index for index, name in enumerate(self.names)}
        mixed = [names[name] for name in _by_hash(self.names)]
        return tf.data.Dataset.from_tensor_slices(tf.constant(mixed, tf.int64))

    def name(self, index):
        """Returns an image's path."""
        # the file system's own bytes, which need not be UTF-8
        name = self._look_up(
            "names", index, lambda: [os.fsencode(name) for name in self.names]
        )
        return tf.strings.join([os.fsencode(self.root), name], os.sep)

    def label(self, index):
        """Returns an image's class, from its folder."""
        return self._look_up("labels", index, lambda: self.labels)

    @property
    def labels(self):
        """`(N,)` int64 array, the classes of all images."""
        numbers = {name: number for number, name in enumerate(self._class_names)}
        return np.array([numbers[os.path.dirname(n)] for n in self.names], "int64")

    def chosen(self, indices):
        """Selects files by index, with repetitions."""
        names = [self.names[index] for index in indices]
        return ImageFiles(self.root, names, self._class_names)

    def _look_up(self, table, index, make):
        """Looks up `make()[index]`; the table is built once, outside of graphs."""
        if table not in self._tensors:
            with tf.init_scope():
                self._tensors[table] = tf.convert_to_tensor(make())
        return self._tensors[table][index]

    def encoded(self, index):
        return tf.io.read_file(self.name(index))


def load_folder(path, divide=True):
    """Finds the images in a folder, at any depth: for training, and held out or `None`.

    See `load_source`; `divide` holds some out where the folders don't say which.
    """
    root = Path(path)
    if not root.is_dir():
        raise ValueError(f"folder must be a folder of images. Received: {path}")
    training, held_out = _splits(root)
    images = _find(training)
    if held_out is not None:
        return images, _find(held_out)
    return images.divided() if divide else (images, None)


def class_names(names):
    """Returns the sorted folders of files, or `None` if a file is in none."""
    if not all(os.path.dirname(name) for name in names):
        return None
    return sorted({os.path.dirname(name) for name in names})


def list_images(root):
    """Lists the image files below a folder, sorted, without hidden ones."""
    names, seen = [], set()
    for folder, folders, files in os.walk(root, followlinks=True):
        # a symbolic link may form a loop
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        names += [
            os.path.relpath(os.path.join(folder, name), root)
            for name in files
            if name.lower().endswith(_ENDINGS) and not name.startswith(".")
        ]
    return sorted(names)


def _find(root):
    names = list_images(root)
    if not names:
        raise ValueError(
            f"{root} must hold images ({', '.join(_ENDINGS)}). Received: none"
        )
    return ImageFiles(root, names)


def _splits(root):
    """Returns the folders for training and held out (or `None`)."""
    folders = [f.name for f in root.iterdir() if f.is_dir() and f.name[0] != "."]
    held_out = [name for name in _HELD_OUT_FOLDERS if name in folders]
    # `train` among others is a split only beside a held-out folder, else a class
    if "train" in folders and held_out:
        return root / "train", root / held_out[0]
    if folders == ["train"]:
        return root / "train", None
    return root, None


def _by_hash(names):
    return sorted(names, key=lambda name: hashlib.sha256(os.fsencode(name)).digest())
