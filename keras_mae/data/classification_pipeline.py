"""tf.data pipelines of labelled images, for fine-tuning and evaluation."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_mae.data.augmentation import PRETRAINING, Augmentation
from keras_mae.data.corrupt_images import CorruptImages, Guard
from keras_mae.data.mixup_cutmix import mix, smoothed_one_hot
from keras_mae.data.parallelism import PREFETCHED_BATCHES
from keras_mae.data.pipeline import (
    check_channels,
    image_collection,
    load_batches,
    make_held_out_reader,
    make_loader,
    mark_infinite,
    training_batches,
    worker_order,
)
from keras_mae.data.source import Source
from keras_mae.preprocessing.image_processor import MAEImageProcessor


class Mixing(NamedTuple):
    """MixUp and CutMix of a batch, and label smoothing; by default none.

    Args:
        smoothing: Float, the weight that label smoothing spreads over all classes;
            timm's `label_smoothing`.
        mixup: Float, the alpha of MixUp, as of `keras_mae.data.mix`; 0 for none.
        cutmix: Float, the alpha of CutMix; 0 for none.
        switch: Float, the probability of CutMix where both are on; timm's
            `mixup_switch_prob`.
        probability: Float, the probability of mixing a batch; timm's `mixup_prob`.

    Example:

    ```python
    source = keras_mae.data.with_labels(keras_mae.data.load_digits())
    processor = keras_mae.MAEImageProcessor(32, source.mean, source.std)
    mixing = Mixing(smoothing=0.1, mixup=0.8, cutmix=1.0)
    batches = labelled_pipeline(source, processor, batch_size=8, seed=0, mixing=mixing)
    _, labels = next(iter(batches))
    np.testing.assert_allclose(tf.reduce_sum(labels, axis=1), np.ones(8), rtol=1e-5)
    ```
    """

    smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    switch: float = 0.5
    probability: float = 1.0

    @property
    def pairs(self) -> bool:
        """Whether images are mixed in pairs, so that batches must be even."""
        return bool(self.probability and (self.mixup or self.cutmix))


def labelled_pipeline(
    source: Source,
    processor: MAEImageProcessor,
    batch_size: int,
    seed: int,
    augmentation: Augmentation = PRETRAINING,
    mixing: Mixing = Mixing(),  # noqa: B008, it can't be changed
    first_step: int = 0,
    input_context: tf.distribute.InputContext | None = None,
    corrupt: CorruptImages | None = None,
) -> tf.data.Dataset:
    """Yields augmented training images with labels, as `training_pipeline` does.

    Args:
        source: A `Source` from `with_labels`.
        processor: A `MAEImageProcessor` with the wanted size.
        batch_size: Int, images a batch over all replicas of all workers.
        seed: Int.
        augmentation: An `Augmentation`.
        mixing: A `Mixing`.
        first_step: Int, how many batches to skip.
        input_context: A `tf.distribute.InputContext`; by default one replica.
        corrupt: A `CorruptImages`; a label out of range counts as corrupt.

    Returns:
        A `tf.data.Dataset` of `(b, H, W, C)` images and `(b, K)` float32 labels.

    Raises:
        ValueError: As `training_pipeline`, and if images are mixed and a replica's
            batch is odd.

    Example:

    ```python
    source = keras_mae.data.with_labels(keras_mae.data.load_digits())
    processor = keras_mae.MAEImageProcessor(32, source.mean, source.std)
    batches = labelled_pipeline(source, processor, batch_size=8, seed=0)
    images, labels = next(iter(batches))
    assert images.shape == (8, 32, 32, 1) and labels.shape == (8, 10)
    ```
    """
    _, per_replica = worker_order(batch_size, seed, first_step, input_context)
    if mixing.pairs and per_replica % 2:
        raise ValueError(
            "Images are mixed in pairs: a replica's batch must be even. "
            f"Received: {per_replica}"
        )
    num_classes = source.num_classes

    def finish(position, batch):
        images, labels = batch
        labels = smoothed_one_hot(labels, num_classes, mixing.smoothing)
        if not mixing.pairs:
            return images, labels
        step, row = position // batch_size, position % batch_size
        batch_seed = tf.stack([tf.constant(seed, tf.int64), step])
        return mix(images, labels, batch_seed, *mixing[1:], first_row=row)

    batches = training_batches(
        source,
        processor,
        batch_size,
        seed,
        first_step,
        input_context,
        corrupt,
        augmentation,
        labelled=True,
    )
    return mark_infinite(batches.map(finish, num_parallel_calls=PREFETCHED_BATCHES))


def evaluation_steps(
    source: Source, batch_size: int, training: bool = False, multiple_of: int = 1
) -> int:
    """Counts the batches of `evaluation_pipeline`.

    Args:
        source: A `Source`.
        batch_size: Int, images a batch over all replicas of all workers.
        training: Whether to count the training images instead of the held-out ones.
        multiple_of: Int, such as `steps_per_execution`: Keras runs whole executions.

    Returns:
        Int.

    Example:

    ```python
    assert evaluation_steps(keras_mae.data.load_digits(), 128) == 3
    ```
    """
    count = len(source.training if training else source.held_out)
    return -(-count // (batch_size * multiple_of)) * multiple_of


def evaluation_pipeline(
    source: Source,
    processor: MAEImageProcessor,
    batch_size: int,
    training: bool = False,
    multiple_of: int = 1,
    input_context: tf.distribute.InputContext | None = None,
    corrupt: CorruptImages | None = None,
    center_crop: bool = True,
) -> tf.data.Dataset:
    """Yields each held-out image once per pass, without end, in full batches.

    To `fit` and `evaluate` say how many batches a pass has: give `evaluation_steps` as
    `validation_steps` or `steps`.

    The last batches are padded with images of weight 0. The other weights make up for
    them, so that a mean over `evaluation_steps` batches is the mean over the images. A
    corrupt image has weight 0 as well, for which nothing makes up: divide by the sum of
    the weights, as Keras's `weighted_metrics` do, and for `MAEClassifier` a loss of
    `reduction="mean_with_sample_weight"`.

    Args:
        source: A `Source` from `with_labels`.
        processor: A `MAEImageProcessor` with the wanted size.
        batch_size: Int, images a batch over all replicas of all workers.
        training: Whether to yield the training images instead, without augmentation.
        multiple_of: Int, the number of batches is made a multiple of it.
        input_context: A `tf.distribute.InputContext`; by default one replica.
        corrupt: A `CorruptImages` that collects images that can't be read.
        center_crop: Whether images of files are cropped to their middle, as of
            `held_out_images`, or whole, for a model whose training takes no crops.

    Returns:
        A `tf.data.Dataset` of `(b, H, W, C)` images, `(b, K)` float32 labels and `(b,)`
        weights.

    Raises:
        ValueError: If the source has no classes, or images and processor don't have the
            same number of channels.

    Example:

    ```python
    source = keras_mae.data.with_labels(keras_mae.data.load_digits())
    processor = keras_mae.MAEImageProcessor(32, source.mean, source.std)
    batches = evaluation_pipeline(source, processor, batch_size=200)
    _, _, weights = zip(*batches.take(2))
    sums = [float(tf.reduce_sum(weight)) for weight in weights]
    np.testing.assert_allclose(sums, [200 * 400 / 360, 160 * 400 / 360], rtol=1e-5)
    ```
    """
    num_classes = source.num_classes
    order, per_replica = worker_order(batch_size, 0, 0, input_context)
    images = image_collection(source, training)
    check_channels(images, processor)
    count = len(images)
    padded = batch_size * evaluation_steps(source, batch_size, training, multiple_of)
    guard = Guard(corrupt)
    reader = make_held_out_reader(images, processor, center_crop)
    load = make_loader(images, reader, processor, 0, labelled=True)

    def is_mine(position, item):
        return position % batch_size // order.share == order.worker

    def weighted(positions, loaded, good):
        image, label = loaded
        weight = tf.where(good, padded / count, 0.0)
        batch = image, tf.one_hot(label, num_classes), weight
        return tf.nest.map_structure(lambda part: _fill(part, per_replica), batch)

    items = images.held_out_items().take(count).enumerate().filter(is_mine)
    batches = load_batches(items, images, load, guard, per_replica, False)
    batches = batches.map(weighted, num_parallel_calls=PREFETCHED_BATCHES)
    mine = np.arange(count) % batch_size // order.share == order.worker
    missing = padded // order.workers // per_replica - -(-mine.sum() // per_replica)
    zeros = tf.nest.map_structure(
        lambda spec: tf.zeros(spec.shape, spec.dtype), batches.element_spec
    )
    filling = tf.data.Dataset.from_tensors(zeros).repeat(int(missing))
    dataset = batches.concatenate(filling)
    return mark_infinite(dataset.repeat())


def _fill(part, count):
    """Fills the last batch up with zeros, to `count` rows."""
    missing = count - tf.shape(part)[0]
    filled = tf.cond(
        missing > 0,
        lambda: tf.pad(part, [[0, missing]] + [[0, 0]] * (len(part.shape) - 1)),
        lambda: part,
    )
    return tf.ensure_shape(filled, (count, *part.shape[1:]))
