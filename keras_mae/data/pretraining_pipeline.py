"""tf.data pipeline for pretraining, and held-out images."""

import os

import numpy as np
import tensorflow as tf

from keras_mae.data.arrays import ImageArrays
from keras_mae.data.augmentation import Augmentation
from keras_mae.data.corrupt_images import CorruptImages, Guard
from keras_mae.data.shuffling import Order
from keras_mae.data.source import Source
from keras_mae.preprocessing.image_processor import MAEImageProcessor

# default number of held-out images from files
_HELD_OUT_COUNT = 512
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
    """Yields training images without end: shuffled, cropped, normalized.

    Only the seed and the step's number decide what a batch contains: not the first
    step, the number of workers, or corrupt images, which are replaced by good ones of
    the same batch. Batches are always full, so that shapes are static.

    Args:
        source: A `Source`.
        processor: A `MAEImageProcessor` with the wanted size.
        batch_size: Int, images a batch over all replicas of all workers.
        seed: Int.
        first_step: Int, how many batches to skip.
        input_context: A `tf.distribute.InputContext` from
            `Strategy.distribute_datasets_from_function`: the pipeline then yields this
            worker's share, a batch for each replica in turn. By default there is one
            replica.
        corrupt: A `CorruptImages` that collects images that can't be read; the caller
            calls its `check`. By default the pipeline itself stops, with a TensorFlow
            error, at the 101st of them.
        augmentation: An `Augmentation`; by default the source's.

    Returns:
        A `tf.data.Dataset` of `(b, H, W, C)` float32 batches, `b` images per replica.

    Raises:
        ValueError: If an epoch has less than one batch, a batch can't be divided among
            replicas, or the processor has other channels.

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
    return mark_infinite(batches.map(lambda position, images: images))


def held_out_images(
    source: Source,
    processor: MAEImageProcessor,
    count: int | None = None,
    corrupt: CorruptImages | None = None,
) -> np.ndarray:
    """Loads held-out images, always the same ones.

    Args:
        source: A `Source`.
        processor: A `MAEImageProcessor` with the wanted size.
        count: Int, how many; by default each image once, of files at most 512.
        corrupt: A `CorruptImages` that collects images that can't be read, which are
            left out; its `check` is called for each.

    Returns:
        `(count, H, W, C)` float32 array; fewer images are repeated. Those of files are
        center crops, those of `photos` fixed random crops, those of `digits` whole.

    Raises:
        ValueError: If none can be read, more are corrupt than `corrupt` tolerates, or
            the processor has other channels.

    Example:

    ```python
    source = keras_mae.data.load_digits()
    processor = keras_mae.MAEImageProcessor(32, source.mean, source.std)
    assert held_out_images(source, processor, count=4).shape == (4, 32, 32, 1)
    ```
    """
    images = image_collection(source, training=False)
    check_channels(images, processor)
    if count is None:
        most = len(images) if isinstance(images, ImageArrays) else _HELD_OUT_COUNT
        count = min(len(images), most)
    if count < 1:
        raise ValueError(f"count must be at least 1. Received: {count}")
    guard = Guard(CorruptImages() if corrupt is None else corrupt)
    load = make_loader(
        images, make_held_out_reader(images, processor), processor, 0, guard
    )
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
    """Yields `(position, images)` or `(position, (images, labels))` without end.

    The position in the stream is that of the first image.
    """
    if not 0 < batch_size <= source.epoch_size:
        raise ValueError(
            f"batch_size must be in [1, {source.epoch_size}], the images of an epoch. "
            f"Received: {batch_size}"
        )
    if first_step < 0:
        raise ValueError(f"first_step must not be negative. Received: {first_step}")
    augmentation.check()
    order, per_replica = worker_order(batch_size, seed, first_step, input_context)
    images = image_collection(source, training=True)
    check_channels(images, processor)
    guard = Guard(corrupt)

    def read(item, image_seed):
        image = images.training_image(item, processor, image_seed, augmentation)
        image = processor.normalize(augmentation.rand_augment(image, image_seed))
        return augmentation.random_erasing(image, image_seed)

    load = make_loader(images, read, processor, seed, guard, labelled)

    def clean(position, *batch):
        *batch, good = batch
        batch = tuple(batch) if labelled else batch[0]
        return position[0], guard.replace_corrupt(batch, good)

    dataset = images.training_items(order)
    dataset = dataset.map(load, num_parallel_calls=PARALLEL_CALLS)
    dataset = dataset.batch(per_replica, drop_remainder=True)
    return dataset.map(clean, num_parallel_calls=PREFETCHED_BATCHES)


def make_held_out_reader(images, processor):
    """Returns a function from item and seed to a held-out image, normalized."""
    return lambda item, seed: processor.normalize(
        images.held_out_image(item, processor, seed)
    )


def worker_order(batch_size, seed, first_step, context):
    """Returns this worker's `Order`, and the batch size per replica."""
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
            f"All {workers} workers must have the same number of replicas. "
            f"Received: {replicas} replicas"
        )
    order = Order(seed, batch_size, first_step, context.input_pipeline_id, workers)
    return order, context.get_per_replica_batch_size(batch_size)


def image_collection(source, training):
    """Returns a source's collection; a list of arrays becomes one."""
    images = source.training if training else source.held_out
    if not isinstance(images, list):
        return images
    labels = source.training_labels if training else source.held_out_labels
    return ImageArrays(images, source.crop, source.repeats, labels)


def check_channels(images, processor):
    if processor.num_channels != images.channels:
        raise ValueError(
            f"The data set has {images.channels} channels. "
            f"Received: an image processor for {processor.num_channels}"
        )


def make_loader(images, read, processor, seed, guard, labelled=False):
    """Returns a function from position and item to `(position, image, is_good)`.

    With `labelled` it returns the label after the image.
    """
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


def mark_infinite(dataset):
    """Prefetches batches, and marks them as infinite.

    Of a finite data set `tf.distribute` makes batches of unknown size.
    """
    dataset = dataset.apply(
        tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
    )
    return dataset.prefetch(PREFETCHED_BATCHES).with_options(options())


def options():
    """Options of a pipeline: deterministic, no autotuning, no automatic sharding."""
    options = tf.data.Options()
    options.deterministic = True
    # the end of an iterator may wait up to a minute for autotuning's thread
    options.autotune.enabled = False
    # `Order` shards
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.OFF
    )
    return options
