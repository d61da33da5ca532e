"""tf.data pipeline for pretraining, and held-out images."""

import numpy as np
import tensorflow as tf

from keras_mae.data.arrays import ImageArrays
from keras_mae.data.augmentation import Augmentation
from keras_mae.data.corrupt_images import CorruptImages, Guard
from keras_mae.data.damaged_records import naming_damaged_files
from keras_mae.data.parallelism import PARALLEL_CALLS
from keras_mae.data.pipeline import (
    check_channels,
    image_collection,
    load_batches,
    make_held_out_reader,
    make_loader,
    mark_infinite,
    pipeline_options,
    training_batches,
)
from keras_mae.data.source import Source
from keras_mae.preprocessing.image_processor import MAEImageProcessor

# default number of held-out images from files
_HELD_OUT_COUNT = 512


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
    center_crop: bool = True,
) -> np.ndarray:
    """Loads held-out images, always the same ones.

    Args:
        source: A `Source`.
        processor: A `MAEImageProcessor` with the wanted size.
        count: Int, how many; by default each image once, of files at most 512.
        corrupt: A `CorruptImages` that collects images that can't be read, which are
            left out; its `check` is called for each.
        center_crop: Whether images of files are cropped, as in evaluations on ImageNet:
            the middle 7/8 of the shorter side, of more than 224 pixels all of it. Else
            they are resized whole, as `MAEImageProcessor` does; for a model whose
            training takes no crops (`Augmentation.crops` is false).

    Returns:
        `(count, H, W, C)` float32 array; fewer images are repeated. Those of `photos`
        are fixed random crops instead of center crops, those of `digits` always whole.

    Raises:
        ValueError: If none can be read, more are corrupt than `corrupt` tolerates, or
            the processor has other channels, or a TFRecord file is damaged.

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
    reader = make_held_out_reader(images, processor, center_crop)
    load = make_loader(images, reader, processor, 0)
    items = images.held_out_items().enumerate()
    dataset = load_batches(items, images, load, guard, PARALLEL_CALLS, False)
    dataset = dataset.unbatch().with_options(pipeline_options())
    with naming_damaged_files(source):
        found = _first_good(dataset.as_numpy_iterator(), count, guard.corrupt)
    if not found:
        raise ValueError(
            f"None of the {len(images)} held-out images can be read: "
            f"{', '.join(guard.corrupt.names[:5])}"
        )
    return np.stack([found[index % len(found)] for index in range(count)])


def _first_good(rows, count, corrupt):
    """Collects as many images that could be read; too many corrupt ones raise."""
    found = []
    for _, (image,), good in rows:
        if good:
            found.append(image)
        else:
            corrupt.check()
        if len(found) == count:
            break
    return found
