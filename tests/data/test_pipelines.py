"""Built-in data sets, resizing, and invalid arguments of pipelines."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_mae import MAEImageProcessor, data
from tests import pictures

pytest.importorskip("sklearn")
skimage = pytest.importorskip("skimage")


@pytest.fixture(scope="module")
def digits():
    return data.load_source("digits")


@pytest.fixture(scope="module")
def photos():
    return data.load_source("photos")


def processor_for(source, size=32):
    return MAEImageProcessor(size, source.mean, source.std)


def test_digits_are_split_and_labelled(digits):
    assert (len(digits.training), len(digits.held_out)) == (1437, 360)
    assert (len(digits.training_labels), len(digits.held_out_labels)) == (1437, 360)
    assert {i.shape for i in digits.training + digits.held_out} == {(32, 32, 1)}
    assert set(digits.held_out_labels) == set(range(10))
    training = {image.tobytes() for image in digits.training}
    assert not training & {image.tobytes() for image in digits.held_out}


def test_digits_statistics_normalize(digits):
    pixels = processor_for(digits).normalize(np.stack(digits.training))
    np.testing.assert_allclose([pixels.mean(), pixels.std()], [0, 1], atol=1e-4)


def test_photos_are_rgb_and_held_out_by_photograph(photos):
    assert len(photos.training) == 10 and len(photos.held_out) == 3
    assert {i.shape[-1] for i in photos.training + photos.held_out} == {3}
    np.testing.assert_array_equal(photos.held_out[0], skimage.data.chelsea())
    assert photos.epoch_size == 640


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits", "photos"])
def test_pipelines_repeat_under_a_seed_and_differ_between_seeds(name, request):
    source = request.getfixturevalue(name)
    batches = [
        next(iter(data.training_pipeline(source, processor_for(source), 8, seed)))
        for seed in (0, 0, 1)
    ]
    assert batches[0].shape == (8, 32, 32, len(source.mean))
    assert batches[0].dtype == tf.float32
    np.testing.assert_array_equal(batches[0], batches[1])
    assert np.abs(batches[0] - batches[2]).max() > 0


def test_an_epoch_visits_every_digit_once(digits):
    pipeline = data.training_pipeline(digits, processor_for(digits), 479, seed=0)
    epochs = [np.concatenate(list(pipeline.skip(3 * e).take(3))) for e in range(2)]
    seen = [{image.tobytes() for image in epoch} for epoch in epochs]
    assert seen[0] == seen[1]
    assert len(seen[0]) == len({image.tobytes() for image in digits.training})
    assert np.abs(epochs[0] - epochs[1]).max() > 0


def test_photo_crops_change_from_visit_to_visit(photos):
    one = photos._replace(training=photos.training[:1], repeats=4)
    batch = next(iter(data.training_pipeline(one, processor_for(one), 4, seed=0)))
    assert len({image.numpy().tobytes() for image in batch}) == 4


def test_held_out_images_are_always_the_same(photos, digits):
    processor = processor_for(photos)
    first = data.held_out_images(photos, processor, count=5)
    assert first.shape == (5, 32, 32, 3)
    again = data.held_out_images(photos, processor, count=5)
    np.testing.assert_array_equal(first, again)
    processor = processor_for(digits)
    np.testing.assert_allclose(
        data.held_out_images(digits, processor), processor(digits.held_out), atol=1e-6
    )


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(64, 96), (300, 301), (17, 500)])
def test_resizing_in_a_graph_is_pillows_to_a_grey_level(resample, size):
    photo = skimage.data.chelsea()
    codes = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    wanted = Image.fromarray(photo).resize(size[::-1], codes[resample])
    got = data.resize(photo, size, resample)
    difference = np.abs(got - np.asarray(wanted, "float32"))
    # Pillow rounds between its two passes
    assert difference.max() <= 2 and np.mean(difference > 1) < 1e-3


def test_crops_stay_inside_and_keep_grey_levels():
    photo = np.full((40, 60, 3), 77, "uint8")
    for index in range(20):
        crop = data.random_resized_crop(photo, (8, 8), [0, index])
        np.testing.assert_array_equal(crop, 77.0)


def test_unknown_names_and_sizes_are_refused(digits):
    with pytest.raises(
        ValueError, match=r"one of digits, photos, folder.* Received: 'cats'"
    ):
        data.load_source("cats")
    with pytest.raises(ValueError, match="batch_size must be"):
        data.training_pipeline(digits, processor_for(digits), 2000, seed=0)
    with pytest.raises(
        ValueError, match=r"1 channels. Received: an image processor for 3"
    ):
        data.training_pipeline(digits, MAEImageProcessor(32), 8, seed=0)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(ValueError, match=r"digits.*needs scikit-learn"):
        data.load_digits()


def test_grey_crops_keep_their_single_channel_in_graphs():
    source = data.load_digits()
    processor = MAEImageProcessor(16, source.mean, source.std)
    crops = data.Augmentation(scale=(0.5, 1.0), flip=False)
    batches = data.training_pipeline(source, processor, 8, 0, augmentation=crops)
    assert batches.element_spec.shape == (8, 16, 16, 1)
    whole = data.training_pipeline(source, processor, 8, 0)
    assert not np.array_equal(next(iter(batches)), next(iter(whole)))


def test_a_tilde_is_the_users_own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    pictures.write_folder(tmp_path / "photos", range(4))
    pictures.write_shards(tmp_path / "shards", range(4), shards=2)
    assert len(data.load_source("folder:~/photos").training) == 3
    assert len(data.load_source("tfrecord:~/shards/*.tfrecord").training) == 2


def test_whole_images_of_any_shape_are_resized_once(photos):
    shapes = [(9, 7, 3), (20, 12, 3), (9, 7, 3)]
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, shape, "uint8") for shape in shapes]
    source = photos._replace(training=images, crop=False, repeats=1)
    processor = processor_for(source, 8)
    batches = data.training_pipeline(source, processor, batch_size=3, seed=0)
    wanted = [data.resize(image, (8, 8), processor.resample) for image in images]
    wanted = {processor.normalize(image).numpy().tobytes() for image in wanted}
    for batch in batches.take(2):
        assert {image.numpy().tobytes() for image in batch} == wanted


def test_pipelines_end_without_a_thread_to_wait_for(digits):
    labelled = data.with_labels(digits)
    processor = processor_for(digits)
    for batches in (
        data.training_pipeline(digits, processor, 8, seed=0),
        data.labelled_pipeline(labelled, processor, 8, seed=0),
        data.evaluation_pipeline(labelled, processor, 8),
    ):
        # tf.data's autotuning wakes up once a minute
        assert batches.options().autotune.enabled is False


@pytest.mark.slow
def test_autograph_can_convert_what_pipelines_call(tmp_path, monkeypatch):
    """Else it would warn on standard error that it can't read a function's source."""
    # as conftest.py sets it, for every test: an error instead of the warning
    monkeypatch.setenv("AUTOGRAPH_STRICT_CONVERSION", "1")
    for name in ("train", "val"):
        pictures.write_folder(tmp_path / name, range(2))
        pictures.write_shards(tmp_path / "shards" / name, range(2), shards=1)
    folder = data.with_labels(data.load_source(f"folder:{tmp_path}"))
    shards = tmp_path / "shards"
    records = data.load_source(f"tfrecord:{shards}/train/*", f"tfrecord:{shards}/val/*")
    processor = pictures.processor_for(folder)
    data.training_pipeline(records, processor, 2, seed=0)
    data.labelled_pipeline(folder, processor, 2, seed=0)
    data.evaluation_pipeline(folder, processor, 2)
