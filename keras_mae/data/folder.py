"""Image files in a folder, with a subfolder for each class."""

import logging
import os
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_mae.data.encoded_images import IndexedImages
from keras_mae.data.source import HELD_OUT_NAMES, TRAINING_NAMES
from keras_mae.utils.text import first_names

_ENDINGS = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
# of images that are left out
_OTHER_ENDINGS = (".avif", ".gif", ".heic", ".heif", ".jxl", ".tif", ".tiff")

_logger = logging.getLogger("keras_mae")


class ImageFiles(IndexedImages):
    """Image files below a folder."""

    def __init__(self, root, names, class_names=None):
        super().__init__()
        self.root = self.place = os.fspath(root)
        self._encoded_root = os.fsencode(self.root)
        self.names = list(names)  # of files, relative to root
        self._class_names = class_names

    def __len__(self):
        return len(self.names)

    @property
    def paths(self):
        return [os.path.join(self.root, name) for name in self.names]

    data_files = paths

    @property
    def keys(self):
        # the file system's own bytes, which need not be UTF-8
        return [os.fsencode(name) for name in self.names]

    shown_names = keys

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

    def name(self, index):
        """Returns an image's path, or those of several."""
        return tf.strings.join([self._encoded_root, super().name(index)], os.sep)

    @property
    def labels(self):
        """`(N,)` int64 array, the classes of all images, from their folders."""
        numbers = {name: number for number, name in enumerate(self._class_names)}
        return np.array([numbers[class_of(name)] for name in self.names], "int64")

    def chosen(self, indices):
        """Selects files by index, with repetitions."""
        names = [self.names[index] for index in indices]
        return ImageFiles(self.root, names, self._class_names)

    def encoded(self, index):
        return tf.io.read_file(self.name(index))


def load_folder(path, divide=True):
    """Finds the images below a folder: for training, and held out or `None`."""
    root = Path(path)
    if not root.is_dir():
        raise ValueError(f"folder must be a folder of images. Received: {path}")
    training, held_out = split_folders(root)
    images = _find(training)
    if held_out is not None:
        return images, _find(held_out)
    return images.divided() if divide else (images, None)


def class_of(name):
    """Returns the class of a file, the first folder of its relative path, or `""`."""
    folder, _, rest = name.partition(os.sep)
    return folder if rest else ""


def class_names(root, names):
    """Returns the sorted classes of files, or `None` if a file is in no folder."""
    classes = sorted({class_of(name) for name in names})
    if "" in classes:
        return None
    splits = (*TRAINING_NAMES, *HELD_OUT_NAMES)
    parts = {class_of(name) for name in names if name.count(os.sep) > 1}
    parts = [part for part in parts if part.lower() in splits]
    if parts and Path(root).name.lower() not in splits:
        raise ValueError(
            f"{root} must hold class folders, or `train` and one of "
            f"{', '.join(HELD_OUT_NAMES)} with class folders in each. "
            f"Received: {first_names(classes)}, and folders in {min(parts)}"
        )
    return classes


def list_images(root):
    """Lists the image files below a folder, sorted, without hidden ones."""
    names, others, seen = [], 0, set()
    for folder, folders, files in os.walk(root, followlinks=True):
        # a symbolic link may form a loop
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        files = [name for name in files if not name.startswith(".")]
        names += [
            os.path.relpath(os.path.join(folder, name), root)
            for name in files
            if name.lower().endswith(_ENDINGS)
        ]
        others += sum(name.lower().endswith(_OTHER_ENDINGS) for name in files)
    if others:
        _logger.warning(
            "Left out %d image(s) of other formats in %s: only %s are read",
            *(others, root, ", ".join(_ENDINGS)),
        )
    return sorted(names)


def _find(root):
    names = list_images(root)
    if not names:
        raise ValueError(
            f"{root} must hold images ({', '.join(_ENDINGS)}). Received: none"
        )
    return ImageFiles(root, names)


def split_folders(root):
    """Returns the folders for training and held out (or `None`)."""
    folders = [f for f in root.iterdir() if f.is_dir() and f.name[0] != "."]
    training, held_out = (
        [f for name in names for f in folders if f.name.lower() == name]
        for names in (TRAINING_NAMES, HELD_OUT_NAMES)
    )
    # `train` among others is a split only beside a held-out folder, else a class
    if training and (held_out or len(folders) == 1):
        return training[0], held_out[0] if held_out else None
    return root, None
