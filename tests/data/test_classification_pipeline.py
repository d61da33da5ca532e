"""Pipelines of labelled images: what a batch holds, and one exact evaluation pass."""

import numpy as np
import pytest
import tensorflow as tf

import keras_mae
from keras_mae import data
from tests import pictures

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


@pytest.mark.slow
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


def test_files_without_classes_are_refused(tmp_path):
    pictures.write_folder(tmp_path, range(4))
    source = data.load_source(f"folder:{tmp_path}")
    for pipeline in (data.evaluation_pipeline, data.labelled_pipeline):
        with pytest.raises(ValueError, match=r"call with_labels\(source\) first"):
            pipeline(source, pictures.processor_for(source), 2, 0)


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


@pytest.fixture
def bordered(tmp_path):
    """Pictures whose border tells the class."""
    for split, numbers in (("train", range(4)), ("val", range(4, 8))):
        pictures.write_bordered(tmp_path / split, numbers)
    return data.with_labels(data.load_source(f"folder:{tmp_path}"))


@pytest.mark.parametrize("training", [False, True])
def test_whole_images_are_those_that_the_processor_makes(bordered, training):
    processor = pictures.processor_for(bordered, 16)
    batches = data.evaluation_pipeline(
        bordered, processor, 4, training, center_crop=False
    )
    ((images, labels, _),) = read(batches, 1)
    files = bordered.training if training else bordered.held_out
    order = list(files.held_out_items().as_numpy_iterator())
    wanted = np.asarray(processor([files.paths[index] for index in order]))
    difference = processor.denormalize(images) - processor.denormalize(wanted)
    assert np.abs(difference).max() <= 2
    light = processor.denormalize(images)[:, 0].mean(axis=(1, 2)) > 128
    np.testing.assert_array_equal(light, labels.argmax(axis=-1) == 1)
    whole = data.Augmentation((1.0, 1.0), flip=False)
    if training:  # training sees the same
        batches = data.labelled_pipeline(bordered, processor, 4, 0, whole)
        seen = {image.tobytes() for image in read(batches, 1)[0][0]}
        assert seen == {image.tobytes() for image in images}


@pytest.mark.slow
def test_center_crops_leave_the_border_out(bordered):
    processor = pictures.processor_for(bordered, 16)
    ((images, _, _),) = read(data.evaluation_pipeline(bordered, processor, 4), 1)
    cropped = data.held_out_images(bordered, processor)
    whole = data.held_out_images(bordered, processor, center_crop=False)
    np.testing.assert_array_equal(images, cropped)
    for batch, told in ((cropped, False), (whole, True)):
        edges = processor.denormalize(batch)[:, 0].mean(axis=(1, 2))
        assert (np.abs(edges - 127.5).min() > 60) == told


def test_arrays_are_whole_where_no_crops_are_wanted():
    images = [np.random.default_rng(0).integers(0, 256, (40, 30, 3), "uint8")] * 4
    source = data.Source(images, images, (0.5,) * 3, (0.25,) * 3, crop=True)
    processor = pictures.processor_for(source)
    whole = data.held_out_images(source, processor, center_crop=False)
    crops = data.held_out_images(source, processor)
    assert len({image.tobytes() for image in whole}) == 1
    assert len({image.tobytes() for image in crops}) == 4
    wanted = processor.normalize(data.resize(images[0], (16, 16), "bicubic"))
    np.testing.assert_array_equal(whole[0], wanted)
