"""Pipelines of labelled images: what a batch holds, and one exact evaluation pass."""

import numpy as np
import pytest
import tensorflow as tf

import keras_mae
from keras_mae import data

pytest.importorskip("sklearn")

MIXING = data.Mixing(smoothing=0.1, mixup=0.8, cutmix=1.0)


@pytest.fixture(scope="module")
def digits():
    return data.with_labels(data.load_digits())


@pytest.fixture(scope="module")
def processor(digits):
    return keras_mae.MAEImageProcessor(16, digits.mean, digits.std)


def context(replicas, worker=0, workers=1):
    return tf.distribute.InputContext(workers, worker, replicas)


def read(batches, count):
    return [[part.numpy() for part in batch] for batch in batches.take(count)]


def test_training_batches_are_mixed_and_repeat(digits, processor):
    first = read(data.labelled_pipeline(digits, processor, 8, 0, mixing=MIXING), 3)
    again = read(data.labelled_pipeline(digits, processor, 8, 0, mixing=MIXING), 3)
    for (images, labels), (same_images, same_labels) in zip(first, again, strict=True):
        assert images.shape == (8, 16, 16, 1) and labels.shape == (8, 10)
        np.testing.assert_allclose(labels.sum(axis=-1), 1, rtol=1e-5)
        np.testing.assert_array_equal(images, same_images)
        np.testing.assert_array_equal(labels, same_labels)


@pytest.mark.parametrize("start", [0, 2])
def test_replicas_and_a_later_start_see_the_same(digits, processor, start):
    options = {"mixing": MIXING, "augmentation": data.Augmentation(erase=0.5)}
    whole = read(data.labelled_pipeline(digits, processor, 8, 3, **options), 4)
    parts = data.labelled_pipeline(
        digits, processor, 8, 3, first_step=start, input_context=context(2), **options
    )
    parts = read(parts, 2 * (4 - start))
    for index, (images, labels) in enumerate(whole[start:]):
        halves = parts[2 * index], parts[2 * index + 1]
        for number, wanted in enumerate((images, labels)):
            got = np.concatenate([half[number] for half in halves])
            np.testing.assert_array_equal(got, wanted)


def test_an_odd_share_of_a_mixed_batch_is_refused(digits, processor):
    with pytest.raises(ValueError, match=r"must be even. Received: 3"):
        data.labelled_pipeline(
            digits, processor, 6, 0, mixing=MIXING, input_context=context(2)
        )
    data.labelled_pipeline(digits, processor, 6, 0, input_context=context(2))


@pytest.mark.parametrize(
    "workers, replicas, multiple_of", [(1, 1, 1), (1, 2, 3), (2, 4, 1)]
)
def test_an_evaluation_visits_each_image_once(
    digits, processor, workers, replicas, multiple_of
):
    size = 128
    steps = data.evaluation_steps(digits, size, multiple_of=multiple_of)
    assert steps % multiple_of == 0 and steps * size >= 360
    seen, weights, labels = [], [], []
    for worker in range(workers):
        batches = data.evaluation_pipeline(
            digits,
            processor,
            size,
            multiple_of=multiple_of,
            input_context=context(replicas, worker, workers),
        )
        # two passes: the second is the first again
        passes = read(batches, 2 * steps * replicas // workers)
        half = len(passes) // 2
        np.testing.assert_array_equal(passes[0][0], passes[half][0])
        for images, one_hot, weight in passes[:half]:
            assert len(images) == size // replicas
            seen += [image.tobytes() for image in images[weight > 0]]
            labels += list(one_hot[weight > 0].argmax(axis=-1))
            weights += list(weight)
    assert len(seen) == 360
    np.testing.assert_allclose(np.mean(weights), 1, rtol=1e-6)
    wanted = processor.normalize(
        data.resize(np.stack(digits.held_out), (16, 16), "bilinear").numpy()
    )
    assert set(seen) == {image.tobytes() for image in wanted}
    np.testing.assert_array_equal(
        np.bincount(labels), np.bincount(digits.held_out_labels)
    )


def test_shapes_are_static_for_tpus(digits, processor):
    for batches in (
        data.labelled_pipeline(digits, processor, 8, 0, mixing=MIXING),
        data.evaluation_pipeline(digits, processor, 8),
    ):
        assert batches.element_spec[0].shape == (8, 16, 16, 1)
        assert batches.cardinality() == tf.data.INFINITE_CARDINALITY
