"""Block-wise and grid-wise masks: counts, shapes, seeds, what is refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mae.layers import RandomMasking

pytestmark = pytest.mark.backends

GRIDS = [(14, 14), (4, 10)]


def masks(mask_sampling, mask_ratio, grid, batch=6, seed=3, **options):
    """Returns masks `(batch, rows, columns)`."""
    patches = np.zeros((batch, grid[0] * grid[1], 1), "float32")
    options = {"mask_sampling": mask_sampling, "grid": grid, "seed": seed, **options}
    chosen = RandomMasking()(patches, mask_ratio=mask_ratio, **options)
    mask = keras.ops.convert_to_numpy(chosen["mask"])
    return mask.reshape(batch, *grid)


@pytest.mark.parametrize("grid", [*GRIDS, (1, 16), (16, 1), (3, 7), (1, 2)])
@pytest.mark.parametrize("ratio", [0.5, 0.75, 0.1, 0.0])
def test_blocks_remove_the_exact_number_of_patches(grid, ratio):
    length = grid[0] * grid[1]
    kept = int(length * (1 - ratio))
    if kept:
        mask = masks("block", ratio, grid)
        np.testing.assert_array_equal(mask.sum(axis=(1, 2)), length - kept)


def neighbours_that_differ(mask):
    return np.mean(mask[:, 1:] != mask[:, :-1]) + np.mean(
        mask[:, :, 1:] != mask[:, :, :-1]
    )


@pytest.mark.parametrize("ratio", [0.5, 0.75])
@pytest.mark.parametrize("grid", GRIDS)
def test_blocks_have_short_borders_and_differ_between_images(grid, ratio):
    blocks = masks("block", ratio, grid, batch=64)
    scattered = masks("random", ratio, grid, batch=64)
    assert neighbours_that_differ(blocks) < 0.5 * neighbours_that_differ(scattered)
    assert len(np.unique(blocks.reshape(64, -1), axis=0)) > 60
    # every patch is removed from some image
    assert blocks.any(axis=0).all()


def test_a_first_block_is_a_rectangle_of_an_allowed_aspect_ratio():
    from keras_mae.layers.mask_sampling import _block_sizes

    for grid in (*GRIDS, (1, 16)):
        heights, widths = _block_sizes(grid)
        assert heights.min() >= 1 and heights.max() <= grid[0]
        assert widths.min() >= 1 and widths.max() <= grid[1]
    heights, widths = _block_sizes((14, 14))
    np.testing.assert_allclose((heights * widths)[40], 40, rtol=0.15)
    aspects = heights[40] / widths[40]
    assert aspects.min() < 0.45 and aspects.max() > 2.2  # rounded from 0.3 and 1 / 0.3
    np.testing.assert_allclose(aspects, 1 / aspects[::-1])


@pytest.mark.parametrize("grid", GRIDS)
def test_a_grid_keeps_one_corner_of_every_square(grid):
    mask = masks("grid", 0.75, grid, batch=40)
    squares = mask.reshape(40, grid[0] // 2, 2, grid[1] // 2, 2)
    np.testing.assert_array_equal(squares.sum(axis=(2, 4)), 3)
    np.testing.assert_array_equal(squares, squares[:, :1, :, :1] + 0 * squares)
    # all four corners are drawn
    assert len(np.unique(mask.reshape(40, -1), axis=0)) == 4


@pytest.mark.parametrize("mask_sampling, ratio", [("block", 0.5), ("grid", 0.75)])
def test_a_row_and_a_seed_decide_a_mask(mask_sampling, ratio):
    grid = (6, 8)
    whole = masks(mask_sampling, ratio, grid, batch=30)
    np.testing.assert_array_equal(masks(mask_sampling, ratio, grid, batch=2), whole[:2])
    assert (masks(mask_sampling, ratio, grid, batch=30, seed=4) != whole).any()
    masking = RandomMasking()
    options = {"mask_sampling": mask_sampling, "mask_ratio": ratio, "grid": grid}
    noise = masking.draw_noise(2, 48, seed=3, first_row=4, **options)
    chosen = masking(np.zeros((2, 48, 1)), mask_ratio=ratio, noise=noise)
    np.testing.assert_array_equal(chosen["mask"], whole[4:6].reshape(2, -1))


def test_masks_are_pinned():
    # on every backend: pictures and validation losses of older runs depend on them
    (block,) = masks("block", 0.5, (6, 8), batch=1)
    rows = ["".join("#" if one else "." for one in row) for row in block]
    wanted = [".#####..", ".###....", ".#####.#", ".###..##", ".###..##", "........"]
    assert rows == wanted
    corners = masks("grid", 0.75, (2, 2), batch=8).reshape(8, 4).argmin(axis=1)
    assert corners.tolist() == [3, 0, 0, 3, 1, 0, 0, 2]


@pytest.mark.tensorflow
@pytest.mark.parametrize("jit_compile", [False, True])
def test_masks_are_the_same_compiled_and_shapes_static(jit_compile):
    grid, shapes, masking = (6, 8), [], RandomMasking()

    @tf.function(jit_compile=jit_compile)
    def draw(patches):
        chosen = masking(
            patches, mask_ratio=0.5, seed=3, mask_sampling="block", grid=grid
        )
        shapes.append(chosen["ids_keep"].shape[1])
        return chosen["mask"]

    mask = draw(tf.zeros((6, 48, 1))).numpy().reshape(6, *grid)
    np.testing.assert_array_equal(mask, masks("block", 0.5, grid))
    assert shapes == [24]


def test_given_noise_wins_over_the_sampling():
    noise = np.random.default_rng(0).random((6, 48), dtype="float32")
    got = masks("block", 0.5, (6, 8), noise=noise, seed=None)
    np.testing.assert_array_equal(
        got, masks("random", 0.5, (6, 8), noise=noise, seed=None)
    )


@pytest.mark.parametrize(
    "sampling, ratio, grid, message",
    [
        ("stripes", 0.5, (6, 8), "must be one of random, block, grid. Rec.*'stripes'"),
        ("grid", 0.5, (6, 8), "mask_ratio must be 0.75 with mask_sampling='grid'"),
        ("grid", 0.75, (3, 16), r"even number of rows.*grid=\(3, 16\)"),
        ("block", 0.5, None, "mask_sampling='block' needs grid"),
        ("block", 1.5, (6, 8), r"mask_ratio must be in \[0, 1\)"),
    ],
)
def test_what_cannot_be_sampled_is_refused(sampling, ratio, grid, message):
    with pytest.raises(ValueError, match=message):
        RandomMasking()(
            np.zeros((2, 48, 1)), mask_ratio=ratio, mask_sampling=sampling, grid=grid
        )
