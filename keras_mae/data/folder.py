"""Images in a folder, one file each."""

import hashlib
import os
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_mae.data.encoded_images import EncodedImages

ENDINGS = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
HELD_OUT_FOLDERS = ("val", "validation", "test")
# of a folder that names no held-out images
HELD_OUT_SHARE = 0.02


class ImageFiles(EncodedImages):
    """Image files below a folder."""

    def __init__(self, root, names, class_names=None):
        self._root = os.fspath(root)
        self._names = list(names)
        self._class_names = class_names
        self._tensors = {}

    def __len__(self):
        return len(self._names)

    @property
    def root(self):
        """Str, the folder's path."""
        return self._root

    @property
    def names(self):
        """List of str, the files' paths relative to the folder."""
        return list(self._names)

    @property
    def paths(self):
        """List of str, the files' paths."""
        return [os.path.join(self._root, name) for name in self._names]

    def divided(self):
        """Holds out 2 % of the files, at least one: those with the least hashes."""
        if len(self) < 2:
            raise ValueError(
                f"{self._root} must hold at least two images, one of them held out, "
                f"or held_out name others. Received: {len(self)}"
            )
        # a hash: the same files whatever the order in which the folder lists them
        names = _by_hash(self._names)
        count = max(1, round(len(names) * HELD_OUT_SHARE))
        return (
            ImageFiles(self._root, sorted(names[count:])),
            ImageFiles(self._root, names[:count]),
        )

    def without(self, others):
        """Leaves out files that another collection names."""
        if not isinstance(others, ImageFiles):
            return self
        out = {os.path.realpath(path) for path in others.paths}
        kept = [
            name
            for name, path in zip(self._names, self.paths, strict=True)
            if os.path.realpath(path) not in out
        ]
        return ImageFiles(self._root, kept)

    def training_items(self, order):
        """Orders the files: endless `(position, index)`."""
        return order.indices(len(self))

    def held_out_items(self):
        """Lists the files once, mixed, so that the first few are of several classes."""
        names = {name: index for index, name in enumerate(self._names)}
        mixed = [names[name] for name in _by_hash(self._names)]
        return tf.data.Dataset.from_tensor_slices(tf.constant(mixed, tf.int64))

    def name(self, index):
        """Names an image: its path."""
        # the file system's own bytes, which need not be UTF-8
        name = self._look_up(
            "names", index, lambda: [os.fsencode(name) for name in self._names]
        )
        return tf.strings.join([os.fsencode(self._root), name], os.sep)

    def label(self, index):
        """Looks the image's class up, by its folder."""

        return self._look_up("labels", index, lambda: self.labels)

    @property
    def labels(self):
        """`(N,)` int64 array, the classes of all images."""
        numbers = {name: number for number, name in enumerate(self._class_names)}
        return np.array([numbers[os.path.dirname(n)] for n in self._names], "int64")

    def chosen(self, indices):
        """Takes some of the files, as often as they are asked for."""
        names = [self._names[index] for index in indices]
        return ImageFiles(self._root, names, self._class_names)

    def _look_up(self, table, index, make):
        """Looks something up of all images, kept outside of graphs."""
        if table not in self._tensors:
            with tf.init_scope():
                self._tensors[table] = tf.convert_to_tensor(make())
        return self._tensors[table][index]

    def encoded(self, index):
        """Reads a file's bytes."""
        return tf.io.read_file(self.name(index))


def load_folder(path, divide=True):
    """Finds the images in a folder: flat, or in folders of any depth, as classes are."""
    root = Path(path)
    if not root.is_dir():
        raise ValueError(f"folder must be a folder of images. Received: {path}")
    training, held_out = _splits(root)
    images = _find(training)
    if held_out is not None:
        return images, _find(held_out)
    return images.divided() if divide else (images, None)


def class_names(names):
    """Reads the classes of files from the folders that they lie in."""
    if not all(os.path.dirname(name) for name in names):
        return None
    return sorted({os.path.dirname(name) for name in names})


def list_images(root):
    """Lists the image files below a folder, without hidden ones."""
    names, seen = [], set()
    for folder, folders, files in os.walk(root, followlinks=True):
        # a link may lead back to where it lies
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        names += [
            os.path.relpath(os.path.join(folder, name), root)
            for name in files
            if name.lower().endswith(ENDINGS) and not name.startswith(".")
        ]
    return sorted(names)


def _find(root):
    names = list_images(root)
    if not names:
        raise ValueError(
            f"{root} must hold images ({', '.join(ENDINGS)}). Received: none"
        )
    return ImageFiles(root, names)


def _splits(root):
    """Tells a folder of splits from a folder of classes, one of which is `train`."""
    folders = [f.name for f in root.iterdir() if f.is_dir() and f.name[0] != "."]
    held_out = [name for name in HELD_OUT_FOLDERS if name in folders]
    if "train" in folders and held_out:
        return root / "train", root / held_out[0]
    if folders == ["train"]:
        return root / "train", None
    return root, None


def _by_hash(names):
    return sorted(names, key=lambda name: hashlib.sha256(os.fsencode(name)).digest())
