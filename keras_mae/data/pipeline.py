"""Shared parts of the tf.data pipelines: order, loading, batches and options."""

import os

import tensorflow as tf

from keras_mae.data.arrays import ImageArrays
from keras_mae.data.corrupt_images import Guard
from keras_mae.data.shuffling import Order

# fixed, as autotuning is off: see `pipeline_options`
PARALLEL_CALLS = (
    len(os.sched_getaffinity(0))
    if hasattr(os, "sched_getaffinity")
    else os.cpu_count() or 1
)
PREFETCHED_BATCHES = 2


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
    """Yields `(first image's position, images or (images, labels))` without end."""
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
    """Returns a function to `(position, image, [label if labelled], is_good)`."""
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
    """Prefetches, and marks as infinite: else `tf.distribute` loses batch sizes."""
    dataset = dataset.apply(
        tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
    )
    return dataset.prefetch(PREFETCHED_BATCHES).with_options(pipeline_options())


def pipeline_options() -> tf.data.Options:
    """Returns the `tf.data.Options` of all pipelines here, for pipelines of your own.

    Deterministic order, no autotuning and no automatic sharding: `training_pipeline`
    shards by the replica's number, which `tf.distribute` must not do again.

    Returns:
        A `tf.data.Options`.

    Example:

    ```python
    batches = tf.data.Dataset.range(8).batch(4).with_options(pipeline_options())
    assert batches.options().deterministic
    ```
    """
    options = tf.data.Options()
    options.deterministic = True
    # the end of an iterator may wait up to a minute for autotuning's thread
    options.autotune.enabled = False
    # `Order` shards
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.OFF
    )
    return options
