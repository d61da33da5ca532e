"""Pipelines: batches for training without end, and held-out images."""

import os

import numpy as np
import tensorflow as tf

from keras_mae.data.arrays import ImageArrays
from keras_mae.data.augmentation import Augmentation
from keras_mae.data.corrupt_images import CorruptImages, Guard
from keras_mae.data.shuffling import Order
from keras_mae.data.source import Source
from keras_mae.preprocessing.image_processor import MAEImageProcessor

# held-out images that are read where nobody says how many
HELD_OUT_COUNT = 512
# fixed, as autotuning is off: see `options`
PARALLEL_CALLS = (
    len(os.sched_getaffinity(0))
    if hasattr(os, "sched_getaffinity")
    else os.cpu_count() or 1
)
PREFETCHED_BATCHES = 2


def training_pipeline(
    source: Source,
    processor: MAEImageProcessor,
    batch_size: int,
    seed: int,
    first_step: int = 0,
    input_context: tf.distribute.InputContext | None = None,
    corrupt: CorruptImages | None = None,
    augmentation: Augmentation | None = None,
) -> tf.data.Dataset:
    """Feeds a source's training images without end: shuffled, cropped, normalized.

    The seed and the number of the step decide what a batch holds, nothing else does:
    neither where the stream began, nor how many workers share it, nor which images are
    corrupt. In the place of a corrupt image stands a good one of the same batch.
    Batches are always full, so that shapes stay static.

    Args:
        source: A `Source`.
        processor: A `MAEImageProcessor` with the wanted size.
        batch_size: Int, images a batch over all replicas of all workers.
        seed: Int.
        first_step: Int, how many batches of the stream to leave out.
        input_context: A `tf.distribute.InputContext`, as
            `Strategy.distribute_datasets_from_function` gives it: the pipeline then
            yields this worker's share, a batch for each replica in turn. By default
            there is one replica.
        corrupt: A `CorruptImages` that hears of images that can't be read; its
            `check` is the caller's to call. By default the pipeline itself stops, with
            a TensorFlow error, at the 101st of them.
        augmentation: An `Augmentation`; by default the source's.

    Returns:
        A `tf.data.Dataset` of `(b, H, W, C)` float32 batches, `b` images a replica.

    Raises:
        ValueError: If an epoch holds less than one batch, a batch can't be divided
            among replicas, or the processor is for other images.

    Example:

    ```python
    source = keras_mae.data.load_digits()
    processor = keras_mae.MAEImageProcessor(32, source.mean, source.std)
    batch = next(iter(training_pipeline(source, processor, batch_size=8, seed=0)))
    assert batch.shape == (8, 32, 32, 1)
    ```
    """
    if augmentation is None:
        augmentation = source.augmentation
    batches = training_batches(
        source,
        processor,
        batch_size,
        seed,
        first_step,
        input_context,
        corrupt,
        augmentation,
    )
    return endless(batches.map(lambda step, images: images))


def held_out_images(
    source: Source,
    processor: MAEImageProcessor,
    count: int | None = None,
    corrupt: CorruptImages | None = None,
) -> np.ndarray:
    """Prepares held-out images, always the same ones.

    Args:
        source: A `Source`.
        processor: A `MAEImageProcessor` with the wanted size.
        count: Int, how many; by default each image once, of files and records at most
            512.
        corrupt: A `CorruptImages` that hears of images that can't be read, which are
            left out; its `check` is called for each.

    Returns:
        `(count, H, W, C)` float32 array; where there are fewer images they are visited
        in turn. Photographs come with fixed crops, other images squashed, those of
        files and records as the middle of the image resized.

    Raises:
        ValueError: If none can be read, more are corrupt than `corrupt` tolerates, or
            the processor is for other images.

    Example:

    ```python
    source = keras_mae.data.load_digits()
    processor = keras_mae.MAEImageProcessor(32, source.mean, source.std)
    assert held_out_images(source, processor, count=4).shape == (4, 32, 32, 1)
    ```
    """
    images = collection(source, training=False)
    check_channels(images, processor)
    if count is None:
        most = len(images) if isinstance(images, ImageArrays) else HELD_OUT_COUNT
        count = min(len(images), most)
    if count < 1:
        raise ValueError(f"count must be at least 1. Received: {count}")
    guard = Guard(CorruptImages() if corrupt is None else corrupt)
    load = loader(images, held_out_reader(images, processor), processor, 0, guard)
    dataset = images.held_out_items().enumerate()
    dataset = dataset.map(load, num_parallel_calls=PARALLEL_CALLS)
    dataset = dataset.with_options(options())
    found = []
    for _, image, good in dataset.as_numpy_iterator():
        if good:
            found.append(image)
        else:
            guard.corrupt.check()
        if len(found) == count:
            break
    if not found:
        raise ValueError(
            f"None of the {len(images)} held-out images can be read: "
            f"{', '.join(guard.corrupt.names[:5])}"
        )
    return np.stack([found[index % len(found)] for index in range(count)])


def training_batches(
    source,
    processor,
    batch_size,
    seed,
    first_step,
    input_context,
    corrupt,
    augmentation,
    labelled=False,
):
    """Reads batches without end: `(step, images)`, or `(step, (images, labels))`."""
    if not 0 < batch_size <= source.epoch_size:
        raise ValueError(
            f"batch_size must be in [1, {source.epoch_size}], the images of an epoch. "
            f"Received: {batch_size}"
        )
    if first_step < 0:
        raise ValueError(f"first_step must not be negative. Received: {first_step}")
    augmentation.check()
    order, per_replica = divide(batch_size, seed, first_step, input_context)
    images = collection(source, training=True)
    check_channels(images, processor)
    guard = Guard(corrupt)

    def read(item, image_seed):
        image = images.training_image(item, processor, image_seed, augmentation)
        image = processor.normalize(augmentation.change(image, image_seed))
        return augmentation.finish(image, image_seed)

    load = loader(images, read, processor, seed, guard, labelled)

    def clean(position, *batch):
        *batch, good = batch
        batch = tuple(batch) if labelled else batch[0]
        return position[0] // batch_size, guard.replace_corrupt(batch, good)

    dataset = images.training_items(order)
    dataset = dataset.map(load, num_parallel_calls=PARALLEL_CALLS)
    dataset = dataset.batch(per_replica, drop_remainder=True)
    return dataset.map(clean, num_parallel_calls=PREFETCHED_BATCHES)


def held_out_reader(images, processor):
    """Makes the function from item and seed to a held-out image, normalized."""
    return lambda item, seed: processor.normalize(
        images.held_out_image(item, processor, seed)
    )


def divide(batch_size, seed, first_step, context):
    """Gives this worker's order, and the images a replica."""
    if context is None:
        return Order(seed, batch_size, first_step), batch_size
    replicas, workers = context.num_replicas_in_sync, context.num_input_pipelines
    if batch_size % replicas:
        raise ValueError(
            f"batch_size must be divisible by the {replicas} replicas. "
            f"Received: {batch_size}"
        )
    if replicas % workers:
        raise ValueError(
            f"Each of the {workers} workers must have as many replicas. "
            f"Received: {replicas} replicas"
        )
    order = Order(seed, batch_size, first_step, context.input_pipeline_id, workers)
    return order, context.get_per_replica_batch_size(batch_size)


def collection(source, training):
    """Wraps the arrays of a source; other images are collections already."""
    images = source.training if training else source.held_out
    if not isinstance(images, list):
        return images
    labels = source.training_labels if training else source.held_out_labels
    return ImageArrays(images, source.crop, source.repeats, labels)


def check_channels(images, processor):
    if processor.num_channels != images.channels:
        raise ValueError(
            f"The data set has {images.channels} channels. Received: a processor for "
            f"{processor.num_channels}"
        )


def loader(images, read, processor, seed, guard, labelled=False):
    """Makes the function from position and item to what a batch is made of."""
    shape = (*processor.image_size, processor.num_channels)

    def load(position, item):
        image_seed = tf.stack([tf.constant(seed, tf.int64), position])
        label = (lambda: images.label(item)) if labelled else None
        if isinstance(images, ImageArrays):
            # decoded already
            labels = () if label is None else (label(),)
            return position, read(item, image_seed), *labels, True
        name = images.name(item)
        return position, *guard.read(lambda: read(item, image_seed), name, shape, label)

    return load


def endless(dataset):
    """Finishes a pipeline of batches: prefetched, and known to have no end.

    Where an end is possible, `tf.distribute` gives up the batches' static size.
    """
    dataset = dataset.apply(
        tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
    )
    return dataset.prefetch(PREFETCHED_BATCHES).with_options(options())


def options():
    """Options of a pipeline: deterministic, and dealt out to workers by itself."""
    options = tf.data.Options()
    options.deterministic = True
    # an iterator's end may wait up to a minute for autotuning's thread to wake up
    options.autotune.enabled = False
    # workers' shares are cut here, by Order
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.OFF
    )
    return options
