"""Class labels of a data set: find and check them, or keep only a few per class."""

import os

import numpy as np

from keras_mae.data.folder import ImageFiles, class_names, class_of
from keras_mae.data.hf_stream import ImageStream
from keras_mae.data.image_table import ImageTable
from keras_mae.data.source import Source
from keras_mae.utils.text import first_names


def with_labels(source: Source, num_classes: int | None = None) -> Source:
    """Finds and checks a data set's labels.

    Of files the folders at the top are the classes, sorted, at whatever depth a file
    lies in them; records have the numbers in them, of which a first file is checked
    here; tar shards and Hugging Face's tables numbers or names, which are all checked;
    built-in images have their own.

    Args:
        source: A `Source`.
        num_classes: Int, the number of classes, needed where the data does not say;
            else it must agree.

    Returns:
        The `Source`, with `class_names`; bytes that are not UTF-8 become `?`.

    Raises:
        ValueError: If images have no labels, training and held-out classes differ, only
            one of the two is arrays, there are fewer than two classes, a class has no
            image, or a label is out of range.

    Example:

    ```python
    source = with_labels(keras_mae.data.load_digits())
    assert source.class_names == tuple("0123456789")
    ```
    """
    parts = source.training, source.held_out
    if len({isinstance(part, list) for part in parts}) == 2:
        first, second = (
            "arrays" if isinstance(part, list) else type(part).__name__
            for part in parts
        )
        raise ValueError(
            "Labelled images for training and held out must both be arrays, or both be "
            f"files or tables of the same classes. Received: {first} and {second}"
        )
    if isinstance(source.training, list):
        if source.training_labels is None or source.held_out_labels is None:
            raise ValueError("The data set has no labels: classes need a folder each")
        labels = source.training_labels
        names = [str(number) for number in range(num_classes or max(labels) + 1)]
        for labels in (source.training_labels, source.held_out_labels):
            _check_range("the data set", labels, names)
        _check_several(names, "The data set")
        return source._replace(class_names=tuple(names))
    if all(isinstance(part, ImageFiles) for part in parts):
        names = _folder_classes(*parts)
        _check_count(names, num_classes, source.training.root)
        training, held_out = (
            ImageFiles(part.root, part.names, names) for part in parts
        )
    else:
        parts = _numbers_as_names(parts)
        names = _known_names(parts, num_classes)
        training, held_out = (_labelled(part, names) for part in parts)
    # a folder's name need not be UTF-8, as plots and files of names must be
    shown = tuple(name.encode(errors="replace").decode() for name in names)
    _check_several(shown, getattr(source.training, "root", "The data set"))
    return source._replace(training=training, held_out=held_out, class_names=shown)


def few_labels(
    source: Source, labels_per_class: int | None, seed: int, repeat: bool = True
) -> Source:
    """Keeps only some training images of each class.

    By default an epoch stays as long as it was: each image is repeated.

    Args:
        source: A `Source` from `with_labels`.
        labels_per_class: Int, or `None` for all.
        seed: Int, of the random choice.
        repeat: Whether images are repeated; else each is there once.

    Returns:
        A `Source`.

    Raises:
        ValueError: If a class has fewer images, or the images are TFRecords or a
            stream, whose labels are not known in advance.

    Example:

    ```python
    source = few_labels(with_labels(keras_mae.data.load_digits()), 5, seed=0)
    assert len({image.tobytes() for image in source.training}) == 50
    ```
    """
    if labels_per_class is None:
        return source
    if isinstance(source.training, list):
        labels = source.training_labels
    elif isinstance(source.training, (ImageFiles, ImageTable)):
        labels = source.training.labels
    else:
        raise ValueError(
            "labels_per_class needs arrays or files, not TFRecords or streams"
        )
    counts = np.bincount(labels, minlength=source.num_classes)
    names = source.class_names or ()
    if not 1 <= labels_per_class <= counts.min():
        raise ValueError(
            f"labels_per_class must be in [1, {counts.min()}], the images of the class "
            f"{names[counts.argmin()]}. Received: {labels_per_class}"
        )
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen = [order[labels[order] == n][:labels_per_class] for n in range(len(counts))]
    turns = np.concatenate(chosen)
    if repeat:
        turns = np.resize(turns, len(labels))
    if isinstance(source.training, list):
        images = [source.training[index] for index in turns]
        return source._replace(training=images, training_labels=labels[turns])
    return source._replace(training=source.training.chosen(turns))


def _folder_classes(training, held_out):
    """Lists the classes of files; raises if their folders don't agree."""
    if training.root == held_out.root:
        # `divided`: a small class may be on one side only
        return _classes_of(training.root, training.names + held_out.names)
    names, others = (
        _classes_of(part.root, part.names) for part in (training, held_out)
    )
    if names != others:
        lists = set(names) - set(others), set(others) - set(names)
        first, second = (", ".join(sorted(only)) or "none" for only in lists)
        raise ValueError(
            f"{training.root} and {held_out.root} must have the same class folders. "
            f"Only in the first: {first}; only in the second: {second}"
        )
    return names


def _classes_of(root, names):
    """Lists the class folders below a root; raises if one is empty."""
    held = {class_of(name) for name in names}
    with os.scandir(root) as entries:
        folders = {e.name for e in entries if e.is_dir() and not e.name.startswith(".")}
    if folders - held:
        raise ValueError(
            f"Every class folder of {root} must hold images. Received: "
            f"{', '.join(sorted(folders - held))}, without any"
        )
    classes = class_names(root, names)
    if classes is None:
        stray = next(name for name in names if not class_of(name))
        raise ValueError(
            f"{root} must have a folder for each class. Received: {stray}, in no folder"
        )
    return classes


def _numbers_as_names(parts):
    """Takes a table's numbers as names where the other table's labels are text."""
    tables = [part for part in parts if isinstance(part, ImageTable)]
    if not any(table.has_text_labels for table in tables):
        return parts
    return [
        part.by_name() if part in tables and part.class_names is None else part
        for part in parts
    ]


def _known_names(parts, num_classes):
    """Finds the classes that data names, in or beside it, or their number."""
    lists = [getattr(part, "class_names", None) for part in parts]
    lists = [list(names) for names in lists if names]
    if not lists:
        if num_classes is None:
            raise ValueError(
                "num_classes must be given: the images' classes are numbers without "
                "names, and TFRecords have no file of class names beside them"
            )
        return [str(number) for number in range(num_classes)]
    if lists[0] != lists[-1]:
        raise ValueError(
            "Training and held-out classes must be the same. "
            f"Received: {first_names(lists[0])} and {first_names(lists[-1])}"
        )
    _check_count(lists[0], num_classes, "the data set")
    return lists[0]


def _labelled(images, names):
    """Gives a collection its classes, after its (first) labels were checked."""
    if isinstance(images, ImageFiles):
        classes = _classes_of(images.root, images.names)
        if classes != list(names):
            raise ValueError(
                f"{images.root} must have the class folders {first_names(names)}. "
                f"Received: {first_names(classes)}"
            )
        return ImageFiles(images.root, images.names, names)
    if isinstance(images, ImageTable):
        _check_range(images.place, images.labels, names)
        return images.with_classes(names)
    if isinstance(images, ImageStream):
        return images.with_classes(names)
    if images.label_key is None:
        raise ValueError("The TFRecords have no feature image/class/label or label")
    path, labels = images.first_labels()
    _check_range(path, labels, names)
    return images.with_classes(names)


def _check_range(place, labels, names):
    wrong = np.flatnonzero((labels < 0) | (labels >= len(names)))
    if wrong.size:
        raise ValueError(
            f"Labels of {place} must be in [0, {len(names)}), the number of classes. "
            f"Received: {labels[wrong[0]]}, of image {wrong[0]}"
        )


def _check_several(names, place):
    if len(names) < 2:
        raise ValueError(
            f"{place} must have two or more classes: of image files, each a folder at "
            f"the top. Received: {', '.join(names) or 'none'}"
        )


def _check_count(names, num_classes, place):
    if num_classes not in (None, len(names)):
        raise ValueError(
            f"num_classes must be {len(names)}, the classes of {place}. "
            f"Received: {num_classes}"
        )
