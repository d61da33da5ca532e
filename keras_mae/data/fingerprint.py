"""What a data set holds, in short: to notice that images came, went or changed."""

import hashlib
import os

import tensorflow as tf

from keras_mae.data.folder import ImageFiles
from keras_mae.data.source import Source
from keras_mae.data.tfrecord import ImageRecords


def describe_contents(source: Source) -> str:
    """Tells a data set's images and classes from others, without reading its files.

    Args:
        source: A `Source` from `with_labels`.

    Returns:
        Str, a hash: of the classes' names, and of the images in their order, arrays by
        their pixels and labels, files by their paths, sizes and times of change.

    Example:

    ```python
    source = keras_mae.data.with_labels(keras_mae.data.load_digits())
    fewer = keras_mae.data.few_labels(source, 5, seed=0)
    assert describe_contents(source) != describe_contents(fewer)
    ```
    """
    digest = hashlib.sha256(repr(source.class_names).encode())
    for images, labels in (
        (source.training, source.training_labels),
        (source.held_out, source.held_out_labels),
    ):
        digest.update(repr(None if labels is None else list(labels)).encode())
        for row in _rows(images):
            digest.update(repr(row).encode())
    return digest.hexdigest()


def _rows(images):
    """Yields what tells each image, or each file of several, from others."""
    if isinstance(images, ImageFiles):
        yield from ((path, *_local_stat(path)) for path in images.paths)
    elif isinstance(images, ImageRecords):
        yield from ((*shard, *_stat(shard.path)) for shard in images.shards)
    else:
        for image in images:
            yield image.shape, hashlib.sha256(image.tobytes()).digest()


def _local_stat(path):
    try:
        found = os.stat(path)
    except OSError:
        return ()  # gone since it was listed: it counts as corrupt where it is read
    return found.st_size, found.st_mtime_ns


def _stat(path):
    """Asks for a file's size and time of change, wherever it lies."""
    found = tf.io.gfile.stat(path)
    return found.length, found.mtime_nsec
