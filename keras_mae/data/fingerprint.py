"""Fingerprint of a data set: a hash that changes with its images and labels."""

import hashlib
import os

import tensorflow as tf

from keras_mae.data.folder import ImageFiles
from keras_mae.data.hf_stream import ImageStream
from keras_mae.data.image_table import ImageTable
from keras_mae.data.source import Source
from keras_mae.data.tfrecord import ImageRecords


def dataset_fingerprint(source: Source) -> str:
    """Hashes a data set's images and classes, without reading its files.

    Args:
        source: A `Source` from `with_labels`.

    Returns:
        Str, a hash of the class names and of the images in their order: of arrays by
        pixels and labels, of files by path, size and modification time.

    Example:

    ```python
    source = keras_mae.data.with_labels(keras_mae.data.load_digits())
    fewer = keras_mae.data.few_labels(source, 5, seed=0)
    assert dataset_fingerprint(source) != dataset_fingerprint(fewer)
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
    """Yields what identifies each image, or each file of several."""
    if isinstance(images, ImageFiles):
        yield from ((path, *_local_stat(path)) for path in images.paths)
    elif isinstance(images, ImageRecords):
        yield from ((*shard, *_stat(shard.path)) for shard in images.shards)
    elif isinstance(images, (ImageStream, ImageTable)):
        yield from images.fingerprint_rows()
    else:
        for image in images:
            yield image.shape, hashlib.sha256(image.tobytes()).digest()


def _local_stat(path):
    try:
        found = os.stat(path)
    except OSError:
        return ()  # deleted since it was listed: it will count as corrupt
    return found.st_size, found.st_mtime_ns


def _stat(path):
    """Returns a local or remote file's size and modification time."""
    found = tf.io.gfile.stat(path)
    return found.length, found.mtime_nsec
