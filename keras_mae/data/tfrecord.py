"""Images in TFRecord files of `tf.train.Example` messages."""

import os
import re
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_mae.data.encoded_images import EncodedImages

# files read at a time, and records (not decoded) among which the next one is drawn
CYCLE = 16
SHUFFLE_BUFFER = 2048


class Shard(NamedTuple):
    """A part of a TFRecord file: `take` records after the first `skip`."""

    path: str
    skip: int
    take: int


class ImageRecords(EncodedImages):
    """Encoded images in TFRecord files.

    Args:
        shards: List of `Shard`.
        key: Str, the feature that holds the encoded image.
        label_key: Str, the feature that holds the class, or `None`.
        class_names: List of str, the classes 0, 1, ..., as far as they are known.

    Example:

    ```python
    shards = [Shard("a.tfrecord", 0, 5), Shard("b.tfrecord", 0, 4)]
    assert len(ImageRecords(shards, "image")) == 9
    ```
    """

    def __init__(self, shards, key, label_key=None, class_names=None):
        self._shards = list(shards)
        self._key = key
        self._count = sum(shard.take for shard in self._shards)
        self.label_key = label_key
        self.class_names = class_names

    def __len__(self):
        return self._count

    @property
    def shards(self):
        """List of `Shard`."""
        return list(self._shards)

    def without(self, others):
        """Leaves out files that another collection names.

        Args:
            others: A collection of any kind.

        Returns:
            An `ImageRecords`.

        Example:

        ```python
        first, last = Shard("a.tfrecord", 0, 5), Shard("b.tfrecord", 0, 4)
        images = ImageRecords([first, last], "image")
        assert len(images.without(ImageRecords([last], "image"))) == 5
        ```
        """
        if not isinstance(others, ImageRecords):
            return self
        out = {_real(shard.path) for shard in others._shards}
        kept = [shard for shard in self._shards if _real(shard.path) not in out]
        return ImageRecords(kept, self._key, self.label_key, self.class_names)

    def training_items(self, order):
        """Orders the records: endless `(position, (shard, record, bytes))`.

        Every epoch mixes the shards, deals them out to the workers, reads several at a
        time and draws from a buffer; an epoch ends before the next begins.

        Args:
            order: An `Order`.

        Returns:
            A `tf.data.Dataset`.

        Raises:
            ValueError: If there are fewer shards than workers.
        """
        if len(self._shards) < order.workers:
            raise ValueError(
                f"There must be a shard for each of the {order.workers} workers. "
                f"Received: {len(self._shards)} shards"
            )
        epoch, rows = self._begin(order)
        epochs = tf.data.Dataset.counter(epoch)
        records = epochs.flat_map(lambda epoch: self._epoch(epoch, order)).skip(rows)
        return tf.data.Dataset.zip(order.positions(), records)

    def held_out_items(self):
        """Lists the records once, as they lie in the files."""
        return self._chosen_shards(range(len(self._shards))).flat_map(_read)

    def name(self, item):
        """Names an image: its file, and its number there, counted from 0."""
        shard, record, _ = item
        paths = tf.constant([shard.path for shard in self._shards])
        return tf.strings.join([paths[shard], tf.strings.as_string(record)], ":")

    def encoded(self, item):
        """Reads the encoded image in a record."""
        features = {self._key: tf.io.FixedLenFeature((), tf.string)}
        return tf.io.parse_single_example(item[2], features)[self._key]

    def with_classes(self, class_names):
        """Gives the classes 0, 1, ... their names.

        Args:
            class_names: List of str.

        Returns:
            An `ImageRecords`.
        """
        return ImageRecords(self._shards, self._key, self.label_key, class_names)

    def label(self, item):
        """Reads the class in a record; one outside of the known ones is an error."""
        features = {self.label_key: tf.io.FixedLenFeature((), tf.int64)}
        label = tf.io.parse_single_example(item[2], features)[self.label_key]
        known = tf.logical_and(label >= 0, label < len(self.class_names))
        with tf.control_dependencies([tf.debugging.Assert(known, [label])]):
            return tf.identity(label)

    def first_labels(self):
        """Reads the classes in the first file that has records.

        Returns:
            A tuple: the file's path, and an int array.
        """
        shard = next(shard for shard in self._shards if shard.take)
        features = {self.label_key: tf.io.FixedLenFeature((), tf.int64)}
        records = tf.data.TFRecordDataset(shard.path).skip(shard.skip).take(shard.take)
        labels = records.batch(1024).map(
            lambda batch: tf.io.parse_example(batch, features)[self.label_key]
        )
        return shard.path, np.concatenate(list(labels.as_numpy_iterator()))

    def _turns(self, epoch, order):
        """Mixes the shards' numbers, and picks this worker's."""
        seed = tf.stack([tf.constant(order.seed, tf.int64), epoch])
        turns = tf.range(len(self._shards), dtype=tf.int64)
        turns = tf.random.experimental.stateless_shuffle(turns, seed)
        return turns[order.worker :: order.workers]

    def _begin(self, order):
        """Finds the epoch of the first row, and the rows of it to leave out."""
        rows = order.first_step * order.share
        if order.workers == 1:
            return divmod(rows, len(self))
        epoch = 0
        while True:
            turns = self._turns(tf.constant(epoch, tf.int64), order).numpy()
            size = sum(self._shards[turn].take for turn in turns)
            if rows < size:
                return epoch, rows
            epoch, rows = epoch + 1, rows - size

    def _epoch(self, epoch, order):
        # in this function's graph only: the shuffle must not see the global seed
        tf.compat.v1.set_random_seed(1)
        shards = self._chosen_shards(self._turns(epoch, order))
        records = shards.interleave(
            _read,
            cycle_length=min(CYCLE, -(-len(self._shards) // order.workers)),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        seed = tf.stack([tf.constant(order.seed, tf.int64), epoch])
        seed = tf.random.stateless_uniform(
            (), seed, maxval=tf.int64.max, dtype=tf.int64
        )
        return records.shuffle(SHUFFLE_BUFFER, seed, reshuffle_each_iteration=False)

    def _chosen_shards(self, turns):
        turns = tf.cast(turns, tf.int64)
        paths, skips, takes = zip(*self._shards, strict=True)
        return tf.data.Dataset.from_tensor_slices(
            (
                turns,
                tf.gather(tf.constant(paths), turns),
                tf.gather(tf.constant(skips, tf.int64), turns),
                tf.gather(tf.constant(takes, tf.int64), turns),
            )
        )


def _read(shard, path, skip, take):
    """Reads a shard: `(shard, record, bytes)`."""
    records = tf.data.TFRecordDataset(path).enumerate().skip(skip).take(take)
    return records.map(lambda record, content: (shard, record, content))


def _real(path):
    return os.path.realpath(path) if os.path.exists(path) else path


IMAGE_KEYS = ("image/encoded", "image")
LABEL_KEYS = ("image/class/label", "label")
# before a record: its length (8 bytes) and a checksum (4); after it another (4)
_LENGTH = struct.Struct("<Q")
_FRAME = 16
_THREADS = 8


def load_tfrecord(pattern, divide=True):
    """Finds images in TFRecord files, under the key `image/encoded` or `image`.

    Args:
        pattern: Str, a glob of the files.
        divide: Whether to hold out the last file.

    Returns:
        A tuple of `ImageRecords`: for training, and held out or `None`.

    Raises:
        ValueError: If no file matches, a file is cut off or empty of images, or there
            is only one and it is to be divided.

    Example:

    ```python
    png = tf.io.encode_png(np.zeros((8, 8, 3), "uint8")).numpy()
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[png]))
    example = tf.train.Example(
        features=tf.train.Features(feature={"image/encoded": feature})
    )
    for path in ("a.tfrecord", "b.tfrecord"):
        with tf.io.TFRecordWriter(path) as writer:
            writer.write(example.SerializeToString())
    training, held_out = load_tfrecord("*.tfrecord")
    assert len(training) == len(held_out) == 1
    ```
    """
    paths = sorted(
        path
        for path in tf.io.gfile.glob(pattern)
        if not os.path.basename(path).startswith(".") and not tf.io.gfile.isdir(path)
    )
    if not paths:
        raise ValueError(f"tfrecord must match files. Received: {pattern}")
    if divide and len(paths) < 2:
        raise ValueError(
            "tfrecord must match several files, the last of them held out, or held_out "
            f"name others. Received: {pattern}, which matches {paths[0]} alone"
        )
    with ThreadPoolExecutor(_THREADS) as pool:
        counts = list(pool.map(count_records, paths))
    shards = [Shard(path, 0, count) for path, count in zip(paths, counts, strict=True)]
    parts = [shards[:-1], shards[-1:]] if divide else [shards]
    for part in parts:
        if not sum(shard.take for shard in part):
            raise ValueError(
                f"tfrecord must match files with records. Received: {part[0].path}, "
                "which has none"
            )
    first = next(shard.path for shard in shards if shard.take)
    keys = _image_key(first), _label_key(first)
    training, *held_out = [
        ImageRecords(part, *keys, _class_names(part[0].path)) for part in parts
    ]
    return training, held_out[0] if held_out else None


def count_records(path):
    """Counts a TFRecord file's records by hopping from length to length.

    Args:
        path: Path of an uncompressed file.

    Returns:
        Int.

    Raises:
        ValueError: If the file ends within a record, or is no TFRecord file.

    Example:

    ```python
    with tf.io.TFRecordWriter("a.tfrecord") as writer:
        writer.write(b"one")
        writer.write(b"two")
    assert count_records("a.tfrecord") == 2
    ```
    """
    count = offset = 0
    size = tf.io.gfile.stat(path).length
    # unbuffered: a buffer would read all that is hopped over
    local = os.path.exists(path)
    with open(path, "rb", 0) if local else tf.io.gfile.GFile(path, "rb") as file:
        while offset < size:
            file.seek(offset)
            head = file.read(_LENGTH.size)
            length = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else size
            offset += _FRAME + length
            count += 1
    if offset > size:
        raise ValueError(
            f"{path} must be a whole, uncompressed TFRecord file. It breaks off in "
            f"record {count - 1}"
        )
    return count


def class_file(shard, name=None):
    """Says where the names of classes lie: a line each, beside their shards.

    Args:
        shard: Path of a shard, such as `shards/train-00000-of-00008.tfrecord`.
        name: Str, what the shards' names begin with; by default read off the shard's.

    Returns:
        A `Path`.

    Example:

    ```python
    path = class_file("shards/train-00000-of-00008.tfrecord")
    assert path == Path("shards/classes-train.txt")
    ```
    """
    shard = Path(shard)
    name = name or re.sub(r"-\d+-of-\d+$", "", shard.stem)
    return shard.with_name(f"classes-{name}.txt")


def _class_names(shard):
    path = os.fspath(class_file(shard))
    if not tf.io.gfile.exists(path):
        return None
    with tf.io.gfile.GFile(path) as file:
        return file.read().splitlines()


def _label_key(path):
    features = _first_features(path)
    for key in LABEL_KEYS:
        if features[key].int64_list.value if key in features else None:
            return key
    return None


def _first_features(path):
    record = next(tf.data.TFRecordDataset(path).take(1).as_numpy_iterator())
    try:
        return tf.train.Example.FromString(record).features.feature
    except Exception as error:  # protobuf's own, which it doesn't make public
        raise ValueError(
            f"{path} must hold tf.train.Example messages. Received: something else"
        ) from error


def _image_key(path):
    features = _first_features(path)
    for key in IMAGE_KEYS:
        if features[key].bytes_list.value if key in features else None:
            return key
    raise ValueError(
        f"{path} must hold images under {' or '.join(IMAGE_KEYS)}. "
        f"Received: {', '.join(sorted(features)) or 'no features'}"
    )


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
