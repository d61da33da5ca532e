"""Block-wise and grid-wise choice of the patches to remove, beside the random one.

Each gives noise to sort: the patches of the smallest values stay visible.

Blocks are laid over each other, as BEiT's, until enough patches are covered. A block's
area is uniform between 8 % of the patches (16 of 14x14) and those that are still to be
covered, its aspect ratio between 0.3 and 1 / 0.3, uniform by its logarithm, and its
place uniform. Unlike there, an image loses exactly `num_removed` patches, so that
shapes are static: the block that would cover too many shrinks towards its centre. The
number of blocks is fixed as well, where BEiT goes on until it is done: those that come
after it are ignored. Where 16 don't suffice the last one grows, in about 1 of 6 images
of 14x14 patches at 0.75, and hardly ever at 0.5.
"""

import functools
from typing import Any

import numpy as np
from keras import ops

from keras_mae.layers.noise import seeded_noise
from keras_mae.utils.typing import Grid, Tensor

MASK_SAMPLINGS = ("random", "block", "grid")
GRID_RATIO = 0.75
# a block's smallest share of the patches (16 of 14x14) and aspect ratio: BEiT's
_SMALLEST_SHARE = 16 / 196
_SMALLEST_ASPECT = 0.3
_ASPECTS = 32  # values of the aspect ratio, evenly spaced by its logarithm
_BLOCKS = 16


def check_mask_sampling(
    mask_sampling: Any, mask_ratio: float | None, grid: Grid | None
) -> None:
    """Raises unless patches of this grid can be sampled so, at this ratio."""
    if mask_sampling not in MASK_SAMPLINGS:
        raise ValueError(
            f"mask_sampling must be one of {', '.join(MASK_SAMPLINGS)}. "
            f"Received: {mask_sampling!r}"
        )
    if mask_sampling == "random":
        return
    if grid is None:
        raise ValueError(
            f"mask_sampling={mask_sampling!r} needs grid, the rows and columns of "
            "patches. Received: grid=None"
        )
    if mask_sampling == "grid" and mask_ratio != GRID_RATIO:
        raise ValueError(
            f"mask_ratio must be {GRID_RATIO} with mask_sampling='grid', which keeps "
            f"one of every four patches. Received: {mask_ratio}"
        )
    if mask_sampling == "grid" and (grid[0] % 2 or grid[1] % 2):
        raise ValueError(
            "mask_sampling='grid' needs an even number of rows and of columns of "
            f"patches. Received: grid={tuple(grid)}"
        )


def _below(draw, count):
    """Turns draws from [0, 1) into ints from 0 to `count - 1`, all equally likely."""
    value = ops.floor(draw * ops.cast(count, "float32"))
    # a product may round up to `count`
    return ops.minimum(ops.cast(value, "int32"), count - 1)


def _places(grid):
    """Returns the rows and columns of all patches, `(1, L)` int32 each."""
    rows, columns = np.indices(grid, dtype="int32").reshape(2, 1, -1)
    return ops.convert_to_tensor(rows), ops.convert_to_tensor(columns)


def grid_noise(seed: Tensor, rows: Tensor, grid: Grid) -> Tensor:
    """Draws noise `(B, L)` that keeps the same corner of each square of four."""
    length = grid[0] * grid[1]
    draws = seeded_noise(seed, rows, length + 1)  # (B, L + 1)
    row, column = _places(grid)
    kept = _below(draws[:, length:], 4) == 2 * (row % 2) + column % 2  # (B, L)
    return draws[:, :length] + ops.cast(ops.logical_not(kept), "float32")


@functools.lru_cache
def _block_sizes(grid):
    """Height and width of blocks by area and aspect ratio, `(L + 1, _ASPECTS)` each."""
    # a table, as logarithms and roots differ in their last bit between devices
    height, width = grid
    area = np.arange(height * width + 1.0)[:, None]
    narrowest, widest = area / width**2, height**2 / np.maximum(area, 1)
    # the part of the range in which a block of this area fits into the image
    low = np.minimum(np.maximum(_SMALLEST_ASPECT, narrowest), widest)
    high = np.maximum(np.minimum(1 / _SMALLEST_ASPECT, widest), narrowest)
    share = (np.arange(_ASPECTS) + 0.5) / _ASPECTS
    aspect = low * (high / low.clip(1e-9)) ** share
    heights = np.sqrt(area * aspect).round().clip(1, height)
    widths = np.sqrt(area / aspect.clip(1e-9)).round().clip(1, width)
    return heights.astype("int32"), widths.astype("int32")


def _draw_block(draws, area, grid):
    """Draws blocks of this area `(B, 1)`: those inside, and distances to the centre."""
    heights, widths = map(np.ravel, _block_sizes(grid))
    index = area * _ASPECTS + _below(draws[:, :1], _ASPECTS)  # (B, 1)
    height, width = ops.take(heights, index), ops.take(widths, index)  # (B, 1)
    top = _below(draws[:, 1:2], grid[0] - height + 1)
    left = _below(draws[:, 2:3], grid[1] - width + 1)
    row, column = _places(grid)
    # twice the distances along both axes: whole numbers
    down = ops.abs(2 * (row - top) - (height - 1))  # (B, L)
    across = ops.abs(2 * (column - left) - (width - 1))  # (B, L)
    inside = ops.logical_and(down < height, across < width)
    # of the maximum norm, in units of the block's sides
    return inside, ops.maximum(down * width, across * height)


def block_noise(seed: Tensor, rows: Tensor, grid: Grid, num_removed: int) -> Tensor:
    """Draws noise `(B, L)` that removes blocks, after BEiT (Bao et al. 2021)."""
    length = grid[0] * grid[1]
    smallest = max(1, min(round(_SMALLEST_SHARE * length), num_removed))
    draws = seeded_noise(seed, rows, length + 4 * _BLOCKS)  # (B, L + 4 * blocks)
    ties = draws[:, :length]
    draws = ops.reshape(draws[:, length:], (-1, _BLOCKS, 4))  # (B, blocks, 4)
    # larger than any distance, of patches outside of a block too
    step = 2 * length

    def add_block(number, state):
        covered, rank = state  # (B, L) int32 each, 1 = covered
        draw = ops.take(draws, number, axis=1)  # (B, 4)
        count = ops.sum(covered, axis=1, keepdims=True)  # (B, 1)
        left = ops.maximum(num_removed - ops.cast(count, "int32"), smallest)
        area = smallest + _below(draw[:, :1], left - smallest + 1)
        inside, distance = _draw_block(draw[:, 1:], area, grid)
        # whoever is still outside comes after this block
        nearest = ops.where(inside, distance, distance + step * _BLOCKS)
        rank = ops.where(covered == 1, rank, nearest + step * number)
        return ops.maximum(covered, ops.cast(inside, "int32")), rank

    none = ops.zeros_like(ties, dtype="int32")
    # ranks are the order of removal, equal ones at random
    _, rank = ops.fori_loop(0, _BLOCKS, add_block, (none, none))
    return ties - ops.cast(rank, "float32")
