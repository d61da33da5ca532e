"""Random erasing: a rectangle of noise, drawn as timm draws it, decided by the seed."""

import math

import numpy as np
import pytest
import tensorflow as tf

from keras_mae.data.random_erasing import random_erasing
from keras_mae.data.seeding import seeds_for

SHAPE = (40, 64, 3)


def erased(count, shape=SHAPE, **options):
    """What zeros become under `count` seeds."""
    image = tf.zeros(shape)
    dataset = tf.data.Dataset.range(count).map(
        lambda i: random_erasing(
            image, tf.stack([tf.constant(3, tf.int64), i]), **options
        )
    )
    assert dataset.element_spec.shape == shape
    return np.concatenate(list(dataset.batch(count).as_numpy_iterator()))


def rectangles(images):
    """Gives `(top, left, height, width)` of each, after a look at its corners."""
    found = []
    for image in images:
        rows, columns = np.nonzero(image.any(-1))
        top, left = rows.min(), columns.min()
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert np.all(image[top : top + height, left : left + width] != 0)
        assert np.count_nonzero(image) == height * width * image.shape[-1]
        found.append((top, left, height, width))
    return np.array(found)


def timms(count):
    """Draws rectangles one attempt after the other."""
    rng, found = np.random.default_rng(0), []
    height, width, _ = SHAPE
    while len(found) < count:
        area = rng.uniform(0.02, 1 / 3) * height * width
        ratio = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if h < height and w < width:
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            found.append((top, left, h, w))
    return np.array(found)


def test_rectangles_are_drawn_as_timm_draws_them():
    got, wanted = rectangles(erased(2000, probability=1.0)), timms(20000)
    for function in (np.mean, np.std):
        np.testing.assert_allclose(function(got, 0), function(wanted, 0), rtol=0.08)
    areas = got[:, 2] * got[:, 3] / (SHAPE[0] * SHAPE[1])
    assert 0.015 < areas.min() < 0.03 and 0.32 < areas.max() < 0.35
    ends = got[:, :2] + got[:, 2:]
    # all the way to each edge
    assert got[:, :2].min(0).tolist() == [0, 0] and ends.max(0).tolist() == [40, 64]


def test_noise_is_standard_normal_and_each_pixels_own():
    images = erased(200, probability=1.0)
    noise = images[images != 0]
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    assert len(np.unique(noise)) > 0.9 * noise.size


def test_a_quarter_of_the_images_is_erased():
    changed = erased(3000, shape=(16, 16, 1)).any((1, 2, 3))
    assert abs(changed.mean() - 0.25) < 0.03
    assert not erased(50, probability=0.0).any()


def test_the_rest_of_the_image_stays_and_the_seed_decides():
    image = np.random.default_rng(0).normal(size=SHAPE).astype("float32")
    results = [random_erasing(image, [1, i], 1.0).numpy() for i in (0, 0, 1)]
    np.testing.assert_array_equal(results[0], results[1])
    assert np.any(results[0] != results[2])
    kept = random_erasing(np.zeros(SHAPE, "float32"), [1, 0], 1.0).numpy() == 0
    np.testing.assert_array_equal(results[0][kept], image[kept])


def test_an_image_that_no_rectangle_fits_stays():
    assert not erased(5, shape=(1, 1, 3), probability=1.0).any()


def test_uses_of_one_seed_draw_apart():
    seeds = [seeds_for(use, [0, 1], 2) for use in ("rand_augment", "random_erasing")]
    assert len({tuple(seed) for pair in seeds for seed in pair.numpy()}) == 4


@pytest.mark.parametrize(
    "options",
    [
        {"probability": 1.5},
        {"area": (0.5, 0.2)},
        {"area": (0.5, 2)},
        {"aspect": (0, 1)},
        {"aspect": (2, 1)},
    ],
)
def test_arguments_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="Received"):
        random_erasing(np.zeros(SHAPE, "float32"), [0, 0], **options)
