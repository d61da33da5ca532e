"""Which class an image is of: where labels come from, and whether they agree."""

import os

import numpy as np

from keras_mae.data.folder import ImageFiles, class_names
from keras_mae.data.source import Source
from keras_mae.data.tfrecord import ImageRecords


def with_labels(source: Source, num_classes: int | None = None) -> Source:
    """Makes sure of a data set's labels, before anything is trained on them.

    Those of files are the folders that they lie in, sorted; those of records the
    numbers in them, of which a first file is read here; built-in images bring theirs.

    Args:
        source: A `Source`.
        num_classes: Int, how many classes there are, where the data can't tell; else
            it must agree.

    Returns:
        The `Source`, with `class_names`; what UTF-8 can't say is a question mark.

    Raises:
        ValueError: If images have no labels, the classes for training and those held
            out differ, a class has no image, or a label is out of range.

    Example:

    ```python
    source = with_labels(keras_mae.data.load_digits())
    assert source.class_names == tuple("0123456789")
    ```
    """
    parts = source.training, source.held_out
    if isinstance(source.training, list):
        if source.training_labels is None or source.held_out_labels is None:
            raise ValueError("The data set has no labels. Classes need a folder each")
        labels = source.training_labels
        names = [str(number) for number in range(num_classes or max(labels) + 1)]
        for labels in (source.training_labels, source.held_out_labels):
            _check_range("the data set", labels, names)
        return source._replace(class_names=tuple(names))
    if all(isinstance(part, ImageFiles) for part in parts):
        names = _folder_classes(*parts)
        _check_count(names, num_classes, source.training.root)
        training, held_out = (
            ImageFiles(part.root, part.names, names) for part in parts
        )
    else:
        names = _known_names(parts, num_classes)
        training, held_out = (_labelled(part, names) for part in parts)
    # a folder's name need not be UTF-8, as plots and files of names must be
    shown = tuple(name.encode(errors="replace").decode() for name in names)
    return source._replace(training=training, held_out=held_out, class_names=shown)


def few_labels(source: Source, labels_per_class: int | None, seed: int) -> Source:
    """Leaves only some images of each class for training.

    An epoch stays as long as it was: it visits each of them more often.

    Args:
        source: A `Source` from `with_labels`.
        labels_per_class: Int, or `None` for all.
        seed: Int, which decides the choice.

    Returns:
        A `Source`.

    Raises:
        ValueError: If a class has fewer images, or the images are records, whose labels
            are not known in advance.

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
    elif isinstance(source.training, ImageFiles):
        labels = source.training.labels
    else:
        raise ValueError("labels_per_class chooses among arrays or files, not records")
    counts = np.bincount(labels, minlength=source.num_classes)
    names = source.class_names or ()
    if not 1 <= labels_per_class <= counts.min():
        raise ValueError(
            f"labels_per_class must be in [1, {counts.min()}], the images of the class "
            f"{names[counts.argmin()]}. Received: {labels_per_class}"
        )
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen = [order[labels[order] == n][:labels_per_class] for n in range(len(counts))]
    turns = np.resize(np.concatenate(chosen), len(labels))
    if isinstance(source.training, list):
        images = [source.training[index] for index in turns]
        return source._replace(training=images, training_labels=labels[turns])
    return source._replace(training=source.training.chosen(turns))


def _folder_classes(training, held_out):
    """Lists the classes of files, or says what is wrong with their folders."""
    if training.root == held_out.root:
        # divided: all images of a small class may be on one side
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
    """Lists the class folders below a root, none of which may be empty."""
    held = {name.split(os.sep)[0] for name in names}
    with os.scandir(root) as entries:
        folders = {e.name for e in entries if e.is_dir() and not e.name.startswith(".")}
    if folders - held:
        raise ValueError(
            f"Every class folder of {root} must hold images. Received: "
            f"{', '.join(sorted(folders - held))}, without any"
        )
    classes = class_names(names)
    if classes is None:
        stray = next(name for name in names if not os.path.dirname(name))
        raise ValueError(
            f"{root} must have a folder for each class. Received: {stray}, in none"
        )
    return classes


def _known_names(parts, num_classes):
    """Finds the classes of records, by what lies beside them or by their number."""
    told = [part.class_names for part in parts if isinstance(part, ImageRecords)]
    told = [list(names) for names in told if names]
    if not told:
        if num_classes is None:
            raise ValueError(
                "num_classes must be given: the records have numbers for classes, and "
                "no file of their names lies beside them"
            )
        return [str(number) for number in range(num_classes)]
    if told[0] != told[-1]:
        raise ValueError(
            "The classes for training and those held out must be the same. "
            f"Received: {_shortened(told[0])} and {_shortened(told[-1])}"
        )
    _check_count(told[0], num_classes, "the data set")
    return told[0]


def _labelled(images, names):
    """Gives a collection its classes, once its first labels have proved right."""
    if isinstance(images, ImageFiles):
        classes = _classes_of(images.root, images.names)
        if classes != list(names):
            raise ValueError(
                f"{images.root} must have the class folders {_shortened(names)}. "
                f"Received: {_shortened(classes)}"
            )
        return ImageFiles(images.root, images.names, names)
    if images.label_key is None:
        raise ValueError("The records have no labels: image/class/label or label")
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


def _check_count(names, num_classes, place):
    if num_classes not in (None, len(names)):
        raise ValueError(
            f"num_classes must be {len(names)}, the classes of {place}. "
            f"Received: {num_classes}"
        )


def _shortened(names):
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" * (len(names) > 5))
