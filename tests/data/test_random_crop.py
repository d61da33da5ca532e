"""Random resized crops have the distributions of torchvision and the linear probe."""

import math

import numpy as np
import pytest
import tensorflow as tf

from keras_mae.data.augmentation import random_resized_crop
from keras_mae.data.random_crop import random_window

COUNT = 20_000
SHAPES = [(375, 500), (500, 375), (300, 300)]


@tf.function
def draw(height, width, low, clip_sides):
    def window(number):
        seed = tf.stack([7, number])
        begin, size = random_window((height, width, 3), seed, (low, 1.0), clip_sides)
        return tf.concat([begin[:2], size[:2]], axis=0)

    return tf.map_fn(window, tf.range(COUNT), fn_output_signature=tf.int32)


def reference(height, width, low, clip_sides):
    """Draws as torchvision; with `clip_sides` once, cut to the image."""
    rng = np.random.default_rng(0)
    windows = np.zeros((COUNT, 4), int)
    for row in windows:
        for _ in range(1 if clip_sides else 10):
            area = height * width * rng.uniform(low, 1)
            ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
            h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if clip_sides:
                h, w = min(h, height), min(w, width)
            if h <= height and w <= width:
                top = rng.integers(0, height - h + 1)
                row[:] = top, rng.integers(0, width - w + 1), h, w
                break
        else:
            h = min(height, round(width / (3 / 4)))
            w = min(width, round(height * (4 / 3)))
            row[:] = (height - h) // 2, (width - w) // 2, h, w
    return windows


@pytest.mark.parametrize(
    "clip_sides", [False, pytest.param(True, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("low", [0.2, 0.08])
@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_windows_have_the_published_distribution(height, width, low, clip_sides):
    ours = draw(height, width, low, clip_sides).numpy()
    theirs = reference(height, width, low, clip_sides)
    assert (ours[:, :2] >= 0).all() and (ours[:, 2:] > 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= (height, width)).all()

    def measures(windows):
        top, left, h, w = windows.T / 1.0
        share, ratio = h * w / (height * width), np.log(w / h)
        yield from (share, ratio, top / height, left / width)

    # six deviations of a difference of means over 20,000 draws; quantiles are wider
    for mine, other in zip(measures(ours), measures(theirs), strict=True):
        error = 6 * other.std() * math.sqrt(2 / COUNT)
        assert abs(mine.mean() - other.mean()) < error
        assert abs(mine.std() - other.std()) < error
        quantiles = [0.1, 0.25, 0.5, 0.75, 0.9]
        np.testing.assert_allclose(
            np.quantile(mine, quantiles), np.quantile(other, quantiles), atol=0.02
        )


def test_known_values_of_a_photograph():
    share = [
        draw(375, 500, low, clip).numpy()[:, 2:].prod(axis=1) / (375 * 500)
        for low, clip in ((0.2, False), (0.08, False), (0.08, True))
    ]
    means, small = zip(
        *[(one.mean(), (one < 0.3).mean()) for one in share], strict=True
    )
    np.testing.assert_allclose(means, [0.494, 0.434, 0.52], atol=0.01)
    np.testing.assert_allclose(small, [0.18, 0.32, 0.24], atol=0.02)


def test_a_strip_falls_back_to_its_middle():
    begin, size = random_window((60, 400, 3), [0, 1], (0.9, 1.0))
    np.testing.assert_array_equal(size, [60, 80, -1])
    np.testing.assert_array_equal(begin, [0, 160, 0])


def test_the_seed_alone_decides():
    windows = [random_window((90, 70, 3), [3, number]) for number in (4, 4, 5)]
    first, again, other = (np.concatenate(window) for window in windows)
    assert (first == again).all() and (first != other).any()
    begin, size = random_window((1, 1, 1), [0, 0])
    np.testing.assert_array_equal([*begin, *size], [0, 0, 0, 1, 1, -1])


def test_a_flip_does_not_depend_on_the_crop():
    # a channel that brightens downwards, one to the right
    axes = np.meshgrid(np.arange(96), np.arange(120), indexing="ij")
    image = tf.constant(np.stack(axes, axis=-1), tf.float32)

    @tf.function
    def crops(count):
        return tf.map_fn(
            lambda number: random_resized_crop(image, (8, 8), tf.stack([7, number])),
            tf.range(count),
            fn_output_signature=tf.float32,
        )

    down, right = tf.unstack(crops(1000), axis=-1)  # (1000, 8, 8) each
    flipped = right[:, 0, 0] > right[:, 0, -1]
    top, bottom = down[:, 0, 0], down[:, -1, 0]
    left = tf.minimum(right[:, 0, 0], right[:, 0, -1])
    assert abs(np.mean(flipped) - 0.5) < 0.08
    for place in (top, left, bottom - top):
        # five deviations of a correlation of 1,000 draws
        assert abs(np.corrcoef(flipped, place)[0, 1]) < 5 / math.sqrt(1000)
