"""TFRecord files by a glob: which there are, and what lies in them."""

import os
import re
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tensorflow as tf

from keras_mae.data.records import ImageRecords, Shard

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
