"""Images in TFRecord files of `tf.train.Example` messages."""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_mae.data.damaged_records import naming_damaged_files
from keras_mae.data.encoded_images import EncodedImages
from keras_mae.data.shuffling import buffer_size, shuffled_records, shuffled_turns
from keras_mae.data.storage import real_path
from keras_mae.data.tfrecord_reader import (
    NeededRecords,
    list_records,
    read_records,
    record_offsets,
)
from keras_mae.utils.labels_file import decode_names

# features of an image and of its class, in order of preference
_IMAGE_KEYS = ("image/encoded", "image")
_LABEL_KEYS = ("image/class/label", "label")
# files whose records are counted at a time
_THREADS = 8


class Shard(NamedTuple):
    """A part of a TFRecord file: `take` records after the first `skip`."""

    path: str
    skip: int
    take: int


class ImageRecords(EncodedImages):
    """Encoded images in TFRecord files."""

    def __init__(self, shards, key, label_key=None, class_names=None):
        self.shards = list(shards)
        self._key = key
        self._count = sum(shard.take for shard in self.shards)
        self.label_key = label_key
        self.class_names = class_names

    def __len__(self):
        return self._count

    def without(self, others):
        """Leaves out files that another collection has."""
        if not isinstance(others, ImageRecords):
            return self
        out = {real_path(shard.path) for shard in others.shards}
        kept = [shard for shard in self.shards if real_path(shard.path) not in out]
        return ImageRecords(kept, self._key, self.label_key, self.class_names)

    def training_items(self, order):
        """Shuffles the records without end: `(position, (shard, record, bytes))`."""
        if len(self.shards) < order.workers:
            raise ValueError(
                "There must be a TFRecord file for each of the "
                f"{order.workers} workers. Received: {len(self.shards)} files"
            )
        # an epoch ends before the next begins
        epoch, rows = self._first_epoch(order)
        records = self._epochs(epoch + bool(rows), order, read_records)
        if rows:
            records = self._rest_of_epoch(epoch, rows, order).concatenate(records)
        return tf.data.Dataset.zip(order.positions(), records)

    def held_out_items(self):
        """Lists the records once, in the files' order."""
        return self._chosen_shards(range(len(self.shards))).flat_map(read_records)

    def name(self, item):
        """Returns an image's name, its file and its number in it, or several."""
        shard, record, _ = item
        paths = tf.gather([shard.path for shard in self.shards], shard)
        return tf.strings.join([paths, tf.strings.as_string(record)], ":")

    def encoded(self, item):
        """Reads the encoded image in a record."""
        features = {self._key: tf.io.FixedLenFeature((), tf.string)}
        return tf.io.parse_single_example(item[2], features)[self._key]

    def with_classes(self, class_names):
        """Gives the classes 0, 1, ... their names."""
        return ImageRecords(self.shards, self._key, self.label_key, class_names)

    def label(self, item):
        """Reads the class in a record; an unknown one is an error."""
        features = {self.label_key: tf.io.FixedLenFeature((), tf.int64)}
        label = tf.io.parse_single_example(item[2], features)[self.label_key]
        known = tf.logical_and(label >= 0, label < len(self.class_names))
        with tf.control_dependencies([tf.debugging.Assert(known, [label])]):
            return tf.identity(label)

    def first_labels(self):
        """Reads all classes of the first file that has records: its path, an array."""
        shard = next(shard for shard in self.shards if shard.take)
        features = {self.label_key: tf.io.FixedLenFeature((), tf.int64)}
        records = tf.data.TFRecordDataset(shard.path).skip(shard.skip).take(shard.take)
        labels = records.batch(1024).map(
            lambda batch: tf.io.parse_example(batch, features)[self.label_key]
        )
        try:
            with naming_damaged_files(paths=[shard.path]):
                return shard.path, np.concatenate(list(labels.as_numpy_iterator()))
        except tf.errors.InvalidArgumentError as error:
            raise ValueError(
                f"{shard.path} must have an integer {self.label_key} in each record. "
                "Received: a record without one, or no tf.train.Example"
            ) from error

    def _turns(self, epoch, order):
        """Shuffles the shards' numbers, and takes this worker's."""
        turns = shuffled_turns(len(self.shards), epoch, order.seed)
        return turns[order.worker :: order.workers]

    def _first_epoch(self, order):
        """Returns the epoch of the first step, and how many of its records to skip."""
        rows = order.first_step * order.share
        if order.workers == 1:
            return divmod(rows, len(self))
        epoch = 0
        while rows >= (size := self._epoch_size(epoch, order)):
            epoch, rows = epoch + 1, rows - size
        return epoch, rows

    def _epoch_size(self, epoch, order):
        """Counts this worker's records of an epoch."""
        turns = self._turns(tf.constant(epoch, tf.int64), order).numpy()
        return sum(self.shards[turn].take for turn in turns)

    def _epochs(self, epoch, order, read):
        """Shuffles this worker's records without end, from an epoch on."""
        epochs = tf.data.Dataset.counter(epoch)
        return epochs.flat_map(lambda epoch: self._epoch(epoch, order, read))

    def _rest_of_epoch(self, epoch, rows, order):
        """Shuffles an epoch as `_epoch`, and reads only what comes after `rows`."""
        left = self._epoch_size(epoch, order) - rows

        def shuffled(read):
            return self._epochs(epoch, order, read).skip(rows).take(left)

        with tf.init_scope():
            rest = shuffled(list_records).batch(2**16).as_numpy_iterator()
            rest = np.concatenate([np.stack(batch, axis=1) for batch in rest])
        return shuffled(NeededRecords(self.shards, rest).read)

    def _epoch(self, epoch, order, read):
        shards = self._chosen_shards(self._turns(epoch, order))
        count = -(-len(self.shards) // order.workers)
        return shuffled_records(shards, read, count, epoch, order.seed, self._buffer)

    @cached_property
    def _buffer(self):
        """How many records are shuffled at once: by the files alone, for resuming."""
        paths = dict.fromkeys(shard.path for shard in self.shards)
        with ThreadPoolExecutor(_THREADS) as pool:
            sizes = pool.map(lambda path: tf.io.gfile.stat(path).length, paths)
            return buffer_size(len(self), sum(sizes))

    def _chosen_shards(self, turns):
        turns = tf.cast(turns, tf.int64)
        paths, skips, takes = zip(*self.shards, strict=True)
        return tf.data.Dataset.from_tensor_slices(
            (
                turns,
                tf.gather(tf.constant(paths), turns),
                tf.gather(tf.constant(skips, tf.int64), turns),
                tf.gather(tf.constant(takes, tf.int64), turns),
            )
        )


def load_tfrecord(pattern, divide=True):
    """Finds images in files that match a glob; with `divide` the last is held out."""
    paths = sorted(
        path
        for path in tf.io.gfile.glob(pattern)
        if not os.path.basename(path).startswith(".") and not tf.io.gfile.isdir(path)
    )
    if not paths:
        raise ValueError(f"tfrecord must match files. Received: {pattern}")
    if divide and len(paths) < 2:
        raise ValueError(
            "tfrecord must match several files, the last of them held out, unless "
            f"held_out names others. Received: {pattern}, which matches only {paths[0]}"
        )
    with ThreadPoolExecutor(_THREADS) as pool:
        counts = list(pool.map(_count_records, paths))
    shards = [Shard(path, 0, count) for path, count in zip(paths, counts, strict=True)]
    parts = [shards[:-1], shards[-1:]] if divide else [shards]
    for part in parts:
        if not sum(shard.take for shard in part):
            raise ValueError(
                f"tfrecord must match files with records. Received: {part[0].path}, "
                "which has none"
            )
    keys = _find_keys(next(shard.path for shard in shards if shard.take))
    training, *held_out = [
        ImageRecords(part, *keys, _class_names(part[0].path)) for part in parts
    ]
    return training, held_out[0] if held_out else None


def _count_records(path):
    return sum(1 for _ in record_offsets(path))


def _find_keys(path):
    """Finds the features of images and of classes (or `None`) in a first record."""
    with naming_damaged_files(paths=[path]):
        record = next(tf.data.TFRecordDataset(path).take(1).as_numpy_iterator())
    try:
        features = tf.train.Example.FromString(record).features.feature
    except Exception as error:  # protobuf's own, which isn't public
        raise ValueError(
            f"{path} must hold tf.train.Example messages. Received: something else"
        ) from error

    def first(keys, kind):
        # `in` first: a protobuf map makes an entry of what is looked up
        found = (key for key in keys if key in features)
        return next((key for key in found if getattr(features[key], kind).value), None)

    image_key = first(_IMAGE_KEYS, "bytes_list")
    if image_key is None:
        raise ValueError(
            f"{path} must hold images under {' or '.join(_IMAGE_KEYS)}. "
            f"Received: {', '.join(sorted(features)) or 'no features'}"
        )
    return image_key, first(_LABEL_KEYS, "int64_list")


def class_file(shard, name=None):
    """Returns the path of class names: `classes-train.txt` beside `train-*` shards."""
    shard = Path(shard)
    name = name or re.sub(r"-\d+-of-\d+$", "", shard.stem)
    return shard.with_name(f"classes-{name}.txt")


def _class_names(shard):
    path = os.fspath(class_file(shard))
    if not tf.io.gfile.exists(path):
        return None
    with tf.io.gfile.GFile(path, "rb") as file:
        content = file.read()
    return list(decode_names(content, path)) if content else None


def image_example(encoded, filename=None, label=None):
    """Serializes an encoded image as a `tf.train.Example`, as `load_tfrecord` reads."""
    feature = {"image/encoded": _bytes_feature(encoded)}
    if filename is not None:
        feature["image/filename"] = _bytes_feature(os.fsencode(filename))
    if label is not None:
        numbers = tf.train.Int64List(value=[label])
        feature["image/class/label"] = tf.train.Feature(int64_list=numbers)
    features = tf.train.Features(feature=feature)
    return tf.train.Example(features=features).SerializeToString()


def _bytes_feature(content):
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[content]))
