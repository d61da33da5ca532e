"""Patches: order, inverse, statistics, and what is refused."""

import numpy as np
import pytest

from keras_mae import normalize_patches, patchify, unpatchify
from keras_mae.ops.patches import as_pair, grid_shape, patch_statistics

pytestmark = pytest.mark.backends

SHAPES = [
    ((2, 32, 32, 3), 8),
    ((1, 12, 20, 1), 4),
    ((3, 21, 6, 5), 3),
    ((2, 12, 20, 3), (6, 4)),
    ((0, 8, 8, 3), 4),
]


@pytest.mark.parametrize("shape, patch_size", SHAPES)
def test_unpatchify_is_the_inverse(shape, patch_size):
    images = np.random.default_rng(0).standard_normal(shape).astype("float32")
    patches = patchify(images, patch_size)
    restored = unpatchify(patches, patch_size, shape[1:3])
    np.testing.assert_array_equal(restored, images)


def test_patches_are_in_raster_order_with_channels_fastest():
    images = np.arange(2 * 4 * 3).reshape(1, 2, 4, 3)
    patches = np.asarray(patchify(images, 2))
    np.testing.assert_array_equal(
        patches,
        [
            [
                [0, 1, 2, 3, 4, 5, 12, 13, 14, 15, 16, 17],
                [6, 7, 8, 9, 10, 11, 18, 19, 20, 21, 22, 23],
            ]
        ],
    )


def test_variance_is_unbiased_with_epsilon_under_the_root():
    patches = np.array([[[1.0, 2.0, 3.0, 6.0]]])
    mean, deviation = patch_statistics(patches)
    assert float(mean[0, 0, 0]) == 3.0
    wanted = np.sqrt(np.var([1.0, 2.0, 3.0, 6.0], ddof=1) + 1e-6)
    np.testing.assert_allclose(deviation[0, 0, 0], wanted, rtol=1e-6)


def test_normalized_patches_have_mean_zero_and_deviation_one():
    patches = np.random.default_rng(0).uniform(3, 9, (2, 5, 48)).astype("float32")
    normalized = np.asarray(normalize_patches(patches))
    np.testing.assert_allclose(normalized.mean(axis=-1), 0, atol=1e-5)
    np.testing.assert_allclose(normalized.std(axis=-1, ddof=1), 1, atol=1e-4)


def test_flat_patches_normalize_to_zero_not_nan():
    np.testing.assert_array_equal(normalize_patches(np.ones((1, 2, 12))), 0)


@pytest.mark.parametrize("value", [0, -1, 2.5, "16", (4,), (4, 0), (4, 4, 4), None])
def test_sizes_are_checked(value):
    with pytest.raises(ValueError, match=r"patch_size must be .* Received"):
        as_pair(value, "patch_size")


def test_indivisible_sizes_are_refused():
    with pytest.raises(ValueError, match=r"divisible.*Received: image_size=\(30, 32\)"):
        grid_shape((30, 32), 8)
    with pytest.raises(ValueError, match="divisible"):
        patchify(np.zeros((1, 30, 32, 3)), 8)


def test_wrong_ranks_and_counts_are_refused():
    with pytest.raises(ValueError, match=r"\(batch, height, width, channels\)"):
        patchify(np.zeros((32, 32, 3)), 8)
    with pytest.raises(ValueError, match=r"patches must be \(batch, 16"):
        unpatchify(np.zeros((1, 15, 192)), 8, 32)
    with pytest.raises(ValueError, match="at least two values"):
        patch_statistics(np.zeros((1, 4, 1)))
