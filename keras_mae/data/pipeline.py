"""Shared parts of the tf.data pipelines: order, loading, batches and options."""

import tensorflow as tf

from keras_mae.data.arrays import ImageArrays
from keras_mae.data.corrupt_images import Guard
from keras_mae.data.parallelism import PARALLEL_CALLS, PREFETCHED_BATCHES
from keras_mae.data.shuffling import Order


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

    def clean(positions, loaded, good):
        batch = loaded if labelled else loaded[0]
        return positions[0], guard.replace_corrupt(batch, good)

    load = make_loader(images, read, processor, seed, labelled)
    items = images.training_items(order)
    batches = load_batches(items, images, load, guard, per_replica)
    return batches.map(clean, num_parallel_calls=PREFETCHED_BATCHES)


def make_held_out_reader(images, processor, center_crop):
    """Returns a function from item and seed to a held-out image, normalized."""
    return lambda item, seed: processor.normalize(
        images.held_out_image(item, processor, seed, center_crop)
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
    if processor.num_channels not in images.readable_channels:
        wanted = " or ".join(map(str, images.readable_channels))
        raise ValueError(
            f"The data set has {wanted} channels. "
            f"Received: an image processor for {processor.num_channels}"
        )


def make_loader(images, read, processor, seed, labelled=False):
    """Returns a function from position and item to `(image, [label if labelled])`."""
    shape = (*processor.image_size, processor.num_channels)

    def load(position, item):
        image_seed = tf.stack([tf.constant(seed, tf.int64), position])
        image = tf.ensure_shape(read(item, image_seed), shape)
        return (image, images.label(item)) if labelled else (image,)

    return load


def load_batches(items, images, load, guard, size, drop_remainder=True):
    """Maps `(position, item)` to batches of `(position, what is loaded, is good)`."""
    if isinstance(images, ImageArrays):
        # decoded already: nothing can be corrupt
        loaded = items.map(
            lambda position, item: (position, load(position, item), True),
            num_parallel_calls=PARALLEL_CALLS,
        )
        return loaded.batch(size, drop_remainder)

    def load_batch(*batch):
        loaded, good = guard.read(
            lambda row: load(*row), batch, lambda rows: images.name(rows[1])
        )
        return batch[0], loaded, good

    batches = items.batch(size, drop_remainder)
    return batches.map(load_batch, num_parallel_calls=PREFETCHED_BATCHES)


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
