"""Convert an image folder to shuffled TFRecord shards, for --dataset=tfrecord:GLOB.

Run: python training/write_tfrecords.py --folder=photos --output=shards --shards=8

Writes `NAME-00000-of-00008.tfrecord` and so on, with a `tf.train.Example` per image:
`image/encoded` (the file's bytes), `image/filename`, and `image/class/label` if all
images are in class folders; `classes-NAME.txt` then lists the classes. Unreadable
images are reported and left out. Images stay as large as they are: training decodes no
more than a crop, but shuffles up to 1 GiB of them. Of a folder with `train` and `val`
each is written by a command of its own, with `--name=train` and `--name=val`.
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

from keras_mae.data import CorruptImages, pipeline_options
from keras_mae.data.corrupt_images import Guard
from keras_mae.data.decoding import decode
from keras_mae.data.folder import class_names, class_of, list_images, split_folders
from keras_mae.data.parallelism import PARALLEL_CALLS
from keras_mae.data.tfrecord import class_file, image_example
from keras_mae.utils.files import atomic_write
from keras_mae.utils.flags import check_at_least, flag, run_script
from keras_mae.utils.labels_file import encode_names


@dataclasses.dataclass
class WriteConfig:
    """Flags of this script."""

    folder: str = flag("image folder, flat or with a folder per class")
    output: str = flag("output folder of the shards")
    name: str = flag("prefix of the shards' file names", "train")
    shards: int = flag("number of shards; take several per worker that reads them", 8)
    seed: int = flag("random seed of the shuffling", 0)
    corrupt_limit: int = flag("unreadable images to skip before stopping", 100)


def main(config):
    """Writes all shards to temporary files, then renames them."""
    names = check(config)
    classes = class_names(config.folder, names)
    np.random.default_rng(config.seed).shuffle(names)
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
            label = labels.get(class_of(name))
            next(turns).write(image_example(encoded, name, label))
            written += 1
        corrupt.check()
        if written < config.shards:
            raise ValueError(
                f"shards must be at most the {written} images that can be read. "
                f"Received: {config.shards}"
            )
        if classes:
            with atomic_write(class_file(output / "shard", config.name)) as part:
                part.write_bytes(encode_names(classes))
    print(f"{written} images in {config.shards} shards, {corrupt.count} left out")
    print(describe_classes(names, classes))
    print(f"Read them with --dataset='tfrecord:{output / config.name}-*.tfrecord'")


def check(config):
    """Checks the flags; returns the images' names."""
    check_at_least(config, 1, "shards")
    check_at_least(config, 0, "corrupt_limit")
    if not config.name or config.name != Path(config.name).name:
        raise ValueError(f"name must be a file name prefix. Received: {config.name!r}")
    older = sorted(Path(config.output).glob(f"{config.name}-*-of-*.tfrecord"))
    if older:
        # old shards would be read together with the new ones
        raise ValueError(f"{config.output} holds shards already, such as {older[0]}")
    if not Path(config.folder).is_dir():
        raise ValueError(f"folder must be a folder. Received: {config.folder}")
    check_one_split(Path(config.folder))
    names = list_images(config.folder)
    if not names:
        raise ValueError(f"folder must contain images. Received: {config.folder}")
    return names


def check_one_split(folder):
    """Raises for a folder of `train` and `val`, which belong in files of their own."""
    training, held_out = split_folders(folder)
    if training == folder:
        return
    parts = [path for path in (training, held_out) if path is not None]
    commands = [f"--folder={path} --name={path.name}" for path in parts]
    raise ValueError(
        f"folder must hold either training or held-out images: give "
        f"{', then '.join(commands)}. Received: {folder}, which has "
        f"{' and '.join(path.name for path in parts)}"
    )


def describe_classes(names, classes):
    """Says how many classes were written, or why none."""
    if classes:
        return f"{len(classes)} classes"
    stray = min(name for name in names if not class_of(name))
    return f"Without classes: {stray!r} is in no class folder"


def open_shard(stack, output, config, number):
    """Opens a temporary file, renamed when the stack is left without an error."""
    name = f"{config.name}-{number:05}-of-{config.shards:05}.tfrecord"
    part = stack.enter_context(atomic_write(output / name))
    return stack.enter_context(tf.io.TFRecordWriter(str(part)))


def readable(folder, names, corrupt):
    """Yields names and bytes of the files that can be decoded."""
    guard = Guard(corrupt)
    # not within `path`: AutoGraph would warn that it can't read the source of it
    root = os.fsencode(folder)

    def path(name):
        return tf.strings.join([root, name], os.sep)

    def read(name):
        encoded = tf.io.read_file(path(name))
        # the mean is not used: it forces the image to be decoded
        return encoded, tf.reduce_mean(tf.cast(decode(encoded), tf.float32))

    def read_batch(names):
        (encoded, _), good = guard.read(read, names, path)
        return names, encoded, good

    # as bytes: a file's name need not be UTF-8
    files = tf.data.Dataset.from_tensor_slices([*map(os.fsencode, names)])
    files = files.batch(PARALLEL_CALLS)
    files = files.map(read_batch).unbatch().prefetch(1)
    files = files.with_options(pipeline_options())
    for name, encoded, good in files.as_numpy_iterator():
        if good:
            yield os.fsdecode(name), encoded


if __name__ == "__main__":
    run_script(main, WriteConfig, __doc__)
