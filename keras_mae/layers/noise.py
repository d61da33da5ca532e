"""Stateless random noise by seed, row and column, the same on every backend."""

from keras import ops

from keras_mae.utils.typing import Tensor


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
