"""Write a folder of images as TFRecord shards, mixed, for training/pretrain.py.

Run: python training/write_tfrecords.py --folder=photos --output=shards --shards=8

Writes `NAME-00000-of-00008.tfrecord` and so on: for each image a `tf.train.Example`
with `image/encoded` (the file's own bytes), `image/filename`, and `image/class/label`
where the images lie in folders; the classes are then listed in `classes-NAME.txt`.
Images that can't be read are named and left out.
"""

import keras_mae  # noqa: F401, first: it imports TensorFlow quietly

# isort: split
import contextlib
import dataclasses
import itertools
import os
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_mae.data import CorruptImages
from keras_mae.data.corrupt_images import Guard
from keras_mae.data.decoding import decode
from keras_mae.data.folder import class_names, list_images
from keras_mae.data.pretraining_pipeline import PARALLEL_CALLS, options
from keras_mae.data.tfrecord import class_file
from keras_mae.utils.files import atomic_write
from keras_mae.utils.flags import flag, run_script


@dataclasses.dataclass
class WriteConfig:
    """The flags of this script."""

    folder: str = flag("folder of images, flat or with a folder for each class")
    output: str = flag("folder for the shards")
    name: str = flag("what the shards' names begin with", "train")
    shards: int = flag("how many files; several for each worker that will read", 8)
    seed: int = flag("of the order", 0)
    corrupt_limit: int = flag("how many images may be unreadable", 100)


def main(config):
    """Writes all shards aside, then puts them in place."""
    names = check(config)
    np.random.default_rng(config.seed).shuffle(names)
    classes = class_names(names)
    labels = {name: label for label, name in enumerate(classes or ())}
    corrupt = CorruptImages(config.corrupt_limit)
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        writers = [open_shard(stack, output, config, n) for n in range(config.shards)]
        turns = itertools.cycle(writers)
        written = 0
        for name, encoded in readable(config.folder, names, corrupt):
            corrupt.check()
            label = labels.get(os.path.dirname(name))
            next(turns).write(make_example(name, encoded, label))
            written += 1
        corrupt.check()
        if written < config.shards:
            raise ValueError(
                f"shards must be at most the {written} images that can be read. "
                f"Received: {config.shards}"
            )
        if classes:
            with atomic_write(class_file(output / "shard", config.name)) as part:
                text = "".join(f"{name}\n" for name in classes)
                # a folder's name need not be UTF-8
                part.write_bytes(text.encode(errors="replace"))
    print(f"{written} images in {config.shards} shards, {corrupt.count} left out")
    print(f"Read them by --dataset='tfrecord:{output / config.name}-*.tfrecord'")


def check(config):
    """Refuses wrong flags; returns the images' names."""
    if config.shards < 1:
        raise ValueError(f"shards must be at least 1. Received: {config.shards}")
    if not config.name or config.name != Path(config.name).name:
        raise ValueError(f"name must be part of a file name. Received: {config.name!r}")
    older = sorted(Path(config.output).glob(f"{config.name}-*-of-*.tfrecord"))
    if older:
        # another number of shards would leave some of them among the new ones
        raise ValueError(f"{config.output} holds shards already, such as {older[0]}")
    if not Path(config.folder).is_dir():
        raise ValueError(f"folder must be a folder. Received: {config.folder}")
    names = list_images(config.folder)
    if not names:
        raise ValueError(f"folder must hold images. Received: {config.folder}")
    return names


def open_shard(stack, output, config, number):
    """Opens a file aside, which takes its place when the stack is left in peace."""
    name = f"{config.name}-{number:05}-of-{config.shards:05}.tfrecord"
    part = stack.enter_context(atomic_write(output / name))
    return stack.enter_context(tf.io.TFRecordWriter(str(part)))


def readable(folder, names, corrupt):
    """Yields names and bytes of the files that hold an image."""
    guard = Guard(corrupt)

    def read(name):
        path = tf.strings.join([str(folder), name], os.sep)
        # the grey level is of no use: to have one, the image must be decoded
        _, good = guard.read(
            lambda: tf.reduce_mean(tf.cast(decode(tf.io.read_file(path)), tf.float32)),
            path,
            (),
        )
        encoded = tf.cond(good, lambda: tf.io.read_file(path), lambda: tf.constant(b""))
        return name, encoded, good

    files = tf.data.Dataset.from_tensor_slices(names)
    files = files.map(read, PARALLEL_CALLS).prefetch(1).with_options(options())
    for name, encoded, good in files.as_numpy_iterator():
        if good:
            yield os.fsdecode(name), encoded


def make_example(name, encoded, label):
    """Serializes an image with what is known of it."""
    feature = {
        "image/encoded": bytes_feature(encoded),
        "image/filename": bytes_feature(os.fsencode(name)),
    }
    if label is not None:
        numbers = tf.train.Int64List(value=[label])
        feature["image/class/label"] = tf.train.Feature(int64_list=numbers)
    features = tf.train.Features(feature=feature)
    return tf.train.Example(features=features).SerializeToString()


def bytes_feature(content):
    """Wraps bytes."""
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[content]))


if __name__ == "__main__":
    run_script(main, WriteConfig, __doc__)
