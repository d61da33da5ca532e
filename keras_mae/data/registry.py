"""Data sets by name: `load_source("digits")`, `folder:PATH`, `tfrecord:GLOB`, ..."""

import os

from keras_mae.data.builtin import SOURCES
from keras_mae.data.folder import load_folder
from keras_mae.data.hf import load_hf
from keras_mae.data.source import Source
from keras_mae.data.storage import real_path
from keras_mae.data.tfds import load_tfds
from keras_mae.data.tfrecord import load_tfrecord
from keras_mae.data.webdataset import load_webdataset
from keras_mae.preprocessing.image_processor import IMAGENET_MEAN, IMAGENET_STD
from keras_mae.utils.typing import PathLike

_PREFIXES = (
    *("folder:PATH", "tfrecord:GLOB", "tfds:NAME"),
    *("hf:NAME", "hf:PATH", "webdataset:GLOB"),
)
_KINDS = {prefix.partition(":")[0] for prefix in _PREFIXES}
# of grey images: the averages of ImageNet's, as other libraries take them
_GREY_MEAN, _GREY_STD = (0.449,), (0.226,)


def load_source(
    dataset: str,
    held_out: str | None = None,
    data_dir: PathLike | None = None,
    num_channels: int | None = None,
) -> Source:
    """Loads a data set by name.

    - `digits`, `photos`: built in.
    - `folder:PATH`: the files in it, or in its folder `train` or `training`; those in a
      folder `val`, `validation`, `valid`, `test` or `testing` (the first of these)
      beside it are held out, else 2 % of the files. Capitals don't matter.
    - `tfrecord:GLOB`: the files that match; the last one is held out.
    - `tfds:NAME`: the split `train`; held out is one of these names, else the last 2 %
      of `train`.
    - `hf:NAME` of the Hugging Face hub, or `hf:PATH`, a folder or files that `datasets`
      reads: the split `train`; held out is one of these names, else 2 % of `train`.
      `hf:NAME?image=COLUMN&label=COLUMN&config=NAME` says what types don't.
    - `webdataset:GLOB`: the images of the tar files that match, `{000..099}` included;
      2 % are held out.

    Args:
        dataset: Str, the name.
        held_out: Str, the name of a data set for held-out images: its own held-out
            part if it has one, else all of its images. Those that `dataset` reads from
            the same files, or for `hf` from the same data set's rows, are left out of
            training; copies of them are not.
        data_dir: Path of TensorFlow Datasets' prepared data sets, and of what
            `datasets` keeps; by default their own.
        num_channels: Int, 1 to read image files as grayscale, 3 as RGB; by default 3.
            Those built in have their own.

    Returns:
        A `Source`.

    Raises:
        ValueError: If the name is unknown, no images are found, they don't have so many
            channels, a package is missing, or `hf` names have files in common whose
            images can't be left out of training.

    Example:

    ```python
    source = load_source("digits")
    assert source.epoch_size == 1437
    ```
    """
    if held_out == dataset:
        held_out = None
    source = _load(dataset, data_dir, num_channels, divide=held_out is None)
    if held_out is None:
        return source
    other = _load(held_out, data_dir, num_channels, divide=False)
    images = other.training if other.held_out is None else other.held_out
    training = source.training
    if not isinstance(training, list):
        training = training.without(images)
        if len(training) == len(source.training):
            _check_apart(dataset, training, held_out, images)
    if not len(training):
        raise ValueError(
            f"held_out must leave images for training. Received: {held_out}, which "
            f"contains all of {dataset}"
        )
    return source._replace(training=training, held_out=images, held_out_labels=None)


def _check_apart(dataset, training, held_out, images):
    """Raises if nothing was left out of training that is in files of both."""
    files, others = (
        {real_path(path) for path in getattr(part, "data_files", ())}
        for part in (training, images)
    )
    if files & others:
        raise ValueError(
            "held_out must name other files than dataset, whose images could not be "
            f"left out of training. Received: {dataset} and {held_out}, both with "
            f"{min(files & others)}"
        )


def _load(name, data_dir, num_channels, divide):
    if name in SOURCES:
        source = SOURCES[name]()
        _check_num_channels(name, num_channels, (len(source.mean),))
        return source
    kind, colon, rest = name.partition(":")
    if not (colon and rest and kind in _KINDS):
        raise ValueError(
            f"dataset must be one of {', '.join([*SOURCES, *_PREFIXES])}. "
            f"Received: {name!r}"
        )
    _check_num_channels(name, num_channels, (1, 3))
    if kind == "folder":
        training, held_out = load_folder(os.path.expanduser(rest), divide)
    elif kind == "tfrecord":
        training, held_out = load_tfrecord(os.path.expanduser(rest), divide)
    elif kind == "webdataset":
        training, held_out = load_webdataset(os.path.expanduser(rest), divide)
    elif kind == "hf":
        training, held_out = load_hf(rest, data_dir, divide)
    else:
        training, held_out = load_tfds(rest, data_dir, divide)
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    if num_channels == 1:
        mean, std = _GREY_MEAN, _GREY_STD
    return Source(training, held_out, mean, std, crop=True)


def _check_num_channels(name, num_channels, possible):
    if num_channels is not None and num_channels not in possible:
        raise ValueError(
            f"num_channels must be {' or '.join(map(str, possible))} for {name}. "
            f"Received: {num_channels}"
        )
