"""2-D sin-cos position embeddings, and bicubic resizing to another patch grid."""

import numpy as np
from keras import ops

from keras_mae.utils.typing import Grid, Tensor


def sincos_positions(hidden_dim: int, grid: Grid) -> np.ndarray:
    """Builds fixed 2-D sin-cos position embeddings, with a zero row for CLS.

    The first half of the width encodes a patch's column, the second its row; each
    half is `[sin | cos]` of the coordinate times `10000 ** (-i / (hidden_dim / 4))`.
    The paper (appendix A.1) names the sine-cosine version; the order of the halves is
    that of the published weights.

    Args:
        hidden_dim: Int, the tokens' width; a multiple of 4.
        grid: Pair `(rows, columns)`, in patches.

    Returns:
        `(1 + rows * columns, hidden_dim)` float32 array.

    Raises:
        ValueError: If `hidden_dim` is not a multiple of 4.

    Example:

    ```python
    table = sincos_positions(768, grid=(14, 14))
    assert table.shape == (197, 768) and not table[0].any()
    ```
    """
    if hidden_dim % 4:
        raise ValueError(
            f"hidden_dim must be a multiple of 4. Received: hidden_dim={hidden_dim}"
        )
    rows, columns = np.indices(grid, dtype="float64").reshape(2, -1)  # (L,) each
    quarter = hidden_dim // 4
    frequencies = 10000.0 ** (-np.arange(quarter, dtype="float64") / quarter)
    halves = [np.outer(axis, frequencies) for axis in (columns, rows)]
    table = np.concatenate(
        [wave(half) for half in halves for wave in (np.sin, np.cos)], axis=1
    )  # (L, D)
    return np.pad(table, ((1, 0), (0, 0))).astype("float32")  # (1 + L, D)


def _cubic(distance, a):
    """Keys' cubic convolution kernel (Keys 1981, eq. 15) with the free parameter a."""
    x = np.abs(distance)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def bicubic_matrix(old: int, new: int, antialias: bool = False) -> np.ndarray:
    """Returns the `(new, old)` float64 matrix that resizes one axis bicubically."""
    scale = old / new
    # pixel centres lie at half-integers
    centers = (np.arange(new) + 0.5) * scale - 0.5
    if antialias:
        stretch = max(scale, 1.0)
        distance = (np.arange(old)[None, :] - centers[:, None]) / stretch
        matrix = _cubic(distance, a=-0.5)  # (new, old)
        return matrix / matrix.sum(axis=1, keepdims=True)
    # as PyTorch: the edge is repeated
    matrix = np.zeros((new, old))
    for tap in range(-1, 3):
        source = np.floor(centers).astype(int) + tap
        weight = _cubic(source - centers, a=-0.75)
        np.add.at(matrix, (np.arange(new), source.clip(0, old - 1)), weight)
    return matrix


def resize_positions(
    table: Tensor, old_grid: Grid, new_grid: Grid, antialias: bool = False
) -> Tensor:
    """Resizes position embeddings to another patch grid by bicubic interpolation.

    Args:
        table: `(1 + rows * columns, hidden_dim)` tensor, CLS first.
        old_grid: Pair `(rows, columns)` of the table.
        new_grid: Pair `(rows, columns)` wanted.
        antialias: `False` for PyTorch's plain bicubic, which the published weights
            are used with; `True` for the antialiased one.

    Returns:
        `(1 + new_rows * new_columns, hidden_dim)` float32 tensor; the CLS row is kept.

    Raises:
        ValueError: If the table does not hold `old_grid`'s positions.

    Example:

    ```python
    table = sincos_positions(64, grid=(4, 4))
    assert resize_positions(table, (4, 4), (6, 3)).shape == (19, 64)
    ```
    """
    rows, columns = old_grid
    if len(table.shape) != 2 or table.shape[0] != 1 + rows * columns:
        raise ValueError(
            f"table must be (1 + {rows} * {columns}, hidden_dim). "
            f"Received: table.shape={tuple(table.shape)}"
        )
    table = ops.cast(table, "float32")
    if tuple(old_grid) == tuple(new_grid):
        return table
    down = bicubic_matrix(rows, new_grid[0], antialias).astype("float32")
    across = bicubic_matrix(columns, new_grid[1], antialias).astype("float32")
    patches = ops.reshape(table[1:], (rows, columns, -1))  # (h, w, D)
    patches = ops.einsum("ih,hwd->iwd", down, patches)  # (h', w, D)
    patches = ops.einsum("jw,iwd->ijd", across, patches)  # (h', w', D)
    patches = ops.reshape(patches, (-1, table.shape[-1]))  # (L', D)
    return ops.concatenate([table[:1], patches])  # (1 + L', D)
