"""Random masking of patches, and the seeded noise that it sorts."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_mae.utils.typing import Tensor


def check_mask_ratio(mask_ratio: Any) -> float:
    """Returns `mask_ratio` as a float, or raises unless it is in [0, 1)."""
    try:
        valid = 0.0 <= float(mask_ratio) < 1.0
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise ValueError(f"mask_ratio must be in [0, 1). Received: {mask_ratio!r}")
    return float(mask_ratio)


def _hash(x):
    """Hashes int32 values: xor-shift and multiply, twice (Wellons' lowbias32)."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B - 2**32)):
        low = (1 << (32 - shift)) - 1
        # the mask turns int32's arithmetic shift into a logical one
        high = ops.bitwise_and(ops.bitwise_right_shift(x, shift), low)
        x = ops.bitwise_xor(x, high) * ops.convert_to_tensor(factor, "int32")
    high = ops.bitwise_and(ops.bitwise_right_shift(x, 16), 0xFFFF)
    return ops.bitwise_xor(x, high)


def seeded_noise(seed: Tensor, rows: Tensor, length: int) -> Tensor:
    """Draws uniform noise that depends on seed, row and column alone.

    A seed gives the same mask on every backend and device, with XLA or without, on any
    number of replicas; the backends' own generators don't.

    Args:
        seed: Int tensor `(2,)`, such as a `keras.random.SeedGenerator`'s, or `(B, 2)`,
            a seed a row.
        rows: `(B,)` int tensor, row numbers.
        length: Int, number of columns.

    Returns:
        `(B, length)` float32 tensor in [0, 1), in steps of 2 ** -24.

    Example:

    ```python
    noise = seeded_noise([7, 0], rows=np.arange(4), length=16)
    np.testing.assert_array_equal(seeded_noise([7, 0], [2], 16)[0], noise[2])
    ```
    """
    seed = ops.cast(seed, "int32")
    columns = ops.arange(length, dtype="int32")[None]  # (1, L)
    rows = ops.cast(rows, "int32")[:, None]  # (B, 1)
    x = ops.full_like(seed[..., :1], 0x3C6EF372)
    for key in (seed[..., :1], seed[..., 1:], rows, columns):
        x = _hash(ops.bitwise_xor(x, key))
    bits = ops.bitwise_and(ops.bitwise_right_shift(x, 8), 0xFFFFFF)  # (B, L)
    # float32: bfloat16 noise ties in every row, and ties bias the mask
    return ops.cast(bits, "float32") * 2.0**-24


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


def _check_mask(mask):
    """Raises unless every row of a mask is 0/1 and keeps equally many, at least one."""
    values = _concrete_values(mask)
    if values is None:
        return
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


class PatchMaskMixin:
    """Mixin for layers whose `mask` argument means removed patches.

    Keras takes an argument of that name for a mask of time steps, and would propagate
    it to the next layers.
    """

    def compute_mask(self, inputs: Tensor, previous_mask: Tensor | None = None) -> None:
        return None


@keras.saving.register_keras_serializable(package="keras_mae")
class RandomMasking(PatchMaskMixin, keras.layers.Layer):
    """Chooses the patches to remove from each image at random (paper, section 3).

    Noise is sorted in ascending order and the first `int(L * (1 - mask_ratio))`
    patches stay visible. Noise and mask are float32 under every dtype policy.

    Args:
        seed: Int or `None`, the seed of the layer's own generator, used when a call
            has no `noise`, `mask` or `seed`.
        **kwargs: Those of `keras.layers.Layer`.

    Call arguments:
        patches: `(B, L, P)` tensor; only its shape is read.
        mask_ratio: Float in [0, 1), the share of patches to remove.
        noise: `(B, L)` tensor to sort instead of drawing one.
        mask: `(B, L)` tensor, 1 = removed, 0 = visible, instead of a drawn one. Rows
            must keep equally many; the visible patches keep their raster order.
        seed: Int; the same seed gives the same mask at every call.

    Returns:
        A dict: `ids_keep` `(B, K)` int32, the visible patches; `ids_shuffle` `(B, L)`
        int32, these and the removed ones behind them; `ids_restore` `(B, L)` int32,
        where each patch lies after shuffling; `mask` `(B, L)` float32.

    Raises:
        ValueError: If `mask_ratio` is outside [0, 1), if noise or mask has another
            shape, or if both or neither of `mask` and `mask_ratio` are given.

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
    ) -> dict[str, Tensor]:
        batch, length = ops.shape(patches)[:2]
        if mask is not None:
            if not (mask_ratio is None and noise is None and seed is None):
                raise ValueError(
                    "mask can't be combined with mask_ratio, noise or seed"
                )
            mask = ops.cast(mask, "float32")
            _check_shape("mask", mask, batch, length)
            _check_mask(mask)
            # the rows agree; a maximum, unlike a first row, exists in an empty batch
            removed = ops.max(ops.sum(mask, axis=1), initial=0)
            num_keep = length - ops.cast(removed, "int32")
            values = _concrete_values(num_keep)
            # a known count keeps the shapes static, which XLA needs
            return self._sort(mask, num_keep if values is None else int(values))
        num_keep = int(length * (1 - check_mask_ratio(mask_ratio)))
        if num_keep < 1:
            raise ValueError(
                f"mask_ratio={mask_ratio} leaves no visible patch of {length}"
            )
        if noise is None:
            noise = self.draw_noise(batch, length, seed)
        elif seed is not None:
            raise ValueError("noise can't be combined with seed")
        noise = ops.cast(noise, "float32")
        _check_shape("noise", noise, batch, length)
        return self._sort(noise, num_keep)

    def draw_noise(
        self, batch: Tensor, length: int, seed: int | None = None, first_row: Tensor = 0
    ) -> Tensor:
        """Draws the noise that `call` sorts.

        Args:
            batch: Int or int scalar tensor, the rows.
            length: Int, the patches.
            seed: Int; by default the layer's generator moves on by one.
            first_row: Int or int scalar tensor, the first row's number.

        Returns:
            `(batch, length)` float32 tensor.
        """
        key = self.seed_generator.next() if seed is None else (_check_seed(seed), 0)
        rows = ops.arange(batch, dtype="int32") + first_row
        return seeded_noise(key, rows, length)

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
