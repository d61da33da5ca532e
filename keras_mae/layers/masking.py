"""Masking of patches: random, block-wise or grid-wise, or by a given mask."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_mae.layers.mask_sampling import (
    block_noise,
    check_mask_sampling,
    grid_noise,
)
from keras_mae.layers.noise import seeded_noise
from keras_mae.utils.typing import Grid, Tensor


def check_mask_ratio(mask_ratio: Any) -> float:
    """Returns `mask_ratio` as a float, or raises unless it is in [0, 1)."""
    try:
        valid = 0.0 <= float(mask_ratio) < 1.0
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise ValueError(f"mask_ratio must be in [0, 1). Received: {mask_ratio!r}")
    return float(mask_ratio)


def num_visible(length: int, mask_ratio: Any) -> int:
    """Returns how many of `length` patches stay visible: rounded down, as published."""
    return int(length * (1 - check_mask_ratio(mask_ratio)))


def _check_seed(seed):
    if isinstance(seed, (int, np.integer)) and not -(2**31) <= seed < 2**31:
        raise ValueError(f"seed must fit into 32 bits. Received: {seed}")
    if isinstance(seed, (float, bool, str)):
        raise ValueError(f"seed must be an int. Received: {seed!r}")
    return seed


def _concrete_values(tensor):
    """Returns the tensor as a NumPy array; `None` while a graph is being traced."""
    try:
        return ops.convert_to_numpy(tensor)
    except Exception:  # each backend has its own error for a symbolic tensor
        return None


def _check_shape(name, tensor, batch, length):
    """Raises unless a tensor is `(batch, length)`, as far as the shapes are known."""
    shape = tuple(tensor.shape)
    known = isinstance(batch, int) and shape and shape[0] is not None
    if len(shape) != 2 or shape[1] != length or (known and shape[0] != batch):
        raise ValueError(
            f"{name} must be (batch, {length}), a row for each image. "
            f"Received: {name}.shape={shape} for a batch of {batch}"
        )


def _check_mask(values):
    """Raises unless every row of a mask is 0/1 and keeps equally many, at least one."""
    if not np.isin(values, (0, 1)).all():
        raise ValueError(
            "mask must hold only 0 (visible) and 1 (removed). "
            f"Received: {np.unique(values)[:5].tolist()}"
        )
    kept = np.unique((values == 0).sum(axis=1))
    if 0 in kept:
        raise ValueError("Every row of mask must keep at least one patch")
    if len(kept) > 1:
        raise ValueError(
            "Every row of mask must keep equally many patches. "
            f"Received rows that keep {kept.tolist()}"
        )


def _count_kept(mask, length):
    """Returns how many patches a mask keeps, an int if its values are known."""
    values = _concrete_values(mask)
    # the rows agree; a maximum, unlike a first row, exists in an empty batch
    if values is not None:
        _check_mask(values)
        # a known count keeps the shapes static, which XLA needs
        return length - int(values.sum(axis=1).max(initial=0))
    if keras.backend.backend() == "jax":
        raise ValueError(
            "JAX compiles for one number of visible patches, which a mask within a "
            "compiled function does not tell: there pass noise=mask with mask_ratio, "
            f"which keeps the smallest values. Received: mask={mask}"
        )
    removed = ops.max(ops.sum(mask, axis=1), initial=0)
    return length - ops.cast(removed, "int32")


class PatchMaskMixin:
    """Mixin for layers whose `mask` argument means removed patches."""

    # Keras takes it for a mask of time steps, and would propagate it
    def compute_mask(self, inputs: Tensor, previous_mask: Tensor | None = None) -> None:
        return None


@keras.saving.register_keras_serializable(package="keras_mae")
class RandomMasking(PatchMaskMixin, keras.layers.Layer):
    """Chooses the patches to remove from each image at random (paper, section 3).

    Noise is sorted in ascending order and the first `int(L * (1 - mask_ratio))`
    patches stay visible. Noise and mask are float32 under every dtype policy.

    Beside `"random"` there are the other two of the paper's mask sampling strategies
    (figure 6, table 1f), which only draw other noise. A seed gives the same masks on
    every backend, device and number of replicas, and shapes are static.

    - `"block"` removes large blocks, after BEiT (Bao et al. 2021): blocks of random
      area (from 8 % of the patches to what is still to be covered), aspect ratio (0.3
      to 1 / 0.3) and place are laid over each other. Unlike BEiT's, every image loses
      exactly as many patches as by `"random"`: a block that would cover too many
      shrinks towards its centre; if 16 blocks don't suffice, the last one grows.
    - `"grid"` keeps one patch of every 2 x 2, at `mask_ratio=0.75` alone: the same
      corner of all squares of an image, drawn for each image. Rows and columns must be
      even in number.

    Args:
        seed: Int or `None`, the seed of the layer's own generator, used when a call
            has no `noise`, `mask` or `seed`.
        **kwargs: Those of `keras.layers.Layer`.

    Call arguments:
        patches: `(B, L, P)` tensor; only its shape is read.
        mask_ratio: Float in [0, 1), the share of patches to remove.
        noise: `(B, L)` tensor to sort instead of drawing one, whatever `mask_sampling`.
        mask: `(B, L)` tensor, 1 = removed, 0 = visible, instead of a drawn one. Rows
            must keep equally many; the visible patches keep their raster order. Within
            a function that JAX compiles give it as `noise` beside `mask_ratio`.
        seed: Int; the same seed gives the same mask at every call.
        mask_sampling: `"random"`, `"block"` or `"grid"`, how noise is drawn.
        grid: Pair `(rows, columns)` of patches, which `"block"` and `"grid"` need.

    Returns:
        A dict: `ids_keep` `(B, K)` int32, the visible patches; `ids_shuffle` `(B, L)`
        int32, these and the removed ones behind them; `ids_restore` `(B, L)` int32,
        where each patch lies after shuffling; `mask` `(B, L)` float32.

    Raises:
        ValueError: If `mask_ratio` is outside [0, 1) or not what `mask_sampling` needs,
            if noise or mask has another shape, if both or neither of `mask` and
            `mask_ratio` are given, or if JAX traces `mask`.

    Example:

    ```python
    masking = RandomMasking(seed=0)
    chosen = masking(np.zeros((2, 16, 48)), mask_ratio=0.75)
    assert chosen["ids_keep"].shape == (2, 4)
    ```
    """

    def __init__(self, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.built = True

    def call(
        self,
        patches: Tensor,
        mask_ratio: float | None = None,
        noise: Tensor | None = None,
        mask: Tensor | None = None,
        seed: int | None = None,
        mask_sampling: str = "random",
        grid: Grid | None = None,
    ) -> dict[str, Tensor]:
        batch, length = ops.shape(patches)[:2]
        if mask is not None:
            if not (mask_ratio is None and noise is None and seed is None):
                raise ValueError(
                    "mask can't be combined with mask_ratio, noise or seed"
                )
            mask = ops.cast(mask, "float32")
            _check_shape("mask", mask, batch, length)
            return self._sort(mask, _count_kept(mask, length))
        num_keep = num_visible(length, mask_ratio)
        if num_keep < 1:
            raise ValueError(
                f"mask_ratio={mask_ratio} leaves no visible patch of {length}"
            )
        if noise is None:
            noise = self.draw_noise(
                batch,
                length,
                seed,
                mask_sampling=mask_sampling,
                mask_ratio=mask_ratio,
                grid=grid,
            )
        elif seed is not None:
            raise ValueError("noise can't be combined with seed")
        noise = ops.cast(noise, "float32")
        _check_shape("noise", noise, batch, length)
        return self._sort(noise, num_keep)

    def draw_noise(
        self,
        batch: Tensor,
        length: int,
        seed: int | None = None,
        first_row: Tensor = 0,
        mask_sampling: str = "random",
        mask_ratio: float | None = None,
        grid: Grid | None = None,
    ) -> Tensor:
        """Draws the noise that `call` sorts.

        Args:
            batch: Int or int scalar tensor, the rows.
            length: Int, the patches.
            seed: Int; by default the layer's generator moves on by one.
            first_row: Int or int scalar tensor, the first row's number.
            mask_sampling: `"random"`, `"block"` or `"grid"`.
            mask_ratio: Float, as for a call; `"random"` needs none.
            grid: Pair `(rows, columns)` of patches; `"random"` needs none.

        Returns:
            `(batch, length)` float32 tensor.
        """
        check_mask_sampling(mask_sampling, mask_ratio, grid)
        key = self.seed_generator.next() if seed is None else (_check_seed(seed), 0)
        rows = ops.arange(batch, dtype="int32") + first_row
        if mask_sampling == "random" or grid is None:
            return seeded_noise(key, rows, length)
        grid = grid[0], grid[1]
        if mask_sampling == "grid":
            return grid_noise(key, rows, grid)
        num_removed = length - num_visible(length, mask_ratio)
        return block_noise(key, rows, grid, num_removed)

    def _sort(self, noise, num_keep):
        """Keeps the patches of the `num_keep` smallest values of noise."""
        ids_shuffle = ops.cast(ops.argsort(noise, axis=1), "int32")  # (B, L)
        ids_restore = ops.cast(ops.argsort(ids_shuffle, axis=1), "int32")  # (B, L)
        return {
            "ids_keep": ids_shuffle[:, :num_keep],  # (B, K)
            "ids_shuffle": ids_shuffle,
            "ids_restore": ids_restore,
            # (B, L) float32, 1 = removed, 0 = visible
            "mask": ops.cast(ids_restore >= num_keep, "float32"),
        }

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "seed": self.seed}
