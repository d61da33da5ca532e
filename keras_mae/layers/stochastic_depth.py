"""Stochastic depth (drop path): randomly skip residual branches for each image."""

from typing import Any

import keras
from keras import ops

from keras_mae.layers.noise import seeded_noise
from keras_mae.utils.typing import Tensor

# else an equal seed would draw the noise of the mask
_KEY = (0, 0x2545F491)


@keras.saving.register_keras_serializable(package="keras_mae")
class StochasticDepth(keras.layers.Layer):
    """Draws stochastic depth factors of residual branches (Huang et al. 2016).

    A branch is dropped for an image with a probability that rises linearly from 0 at
    the first block to `rate` at the last; kept branches are scaled by the inverse of
    the probability to stay. All factors are drawn at once, outside of the blocks:
    rematerialized blocks see the same ones twice, and an image's factors depend on seed
    and row alone, whatever the number of replicas.

    Args:
        rate: Float in [0, 1), the last block's.
        depth: Int, the blocks.
        seed: Int or `None`, the seed of the layer's generator.
        **kwargs: Those of `keras.layers.Layer`.

    Call arguments:
        x: `(B, ...)` tensor; only its shape is read.
        first_row: Int or int scalar tensor, the first row's number in a larger batch.

    Returns:
        `(B, depth, 2)` float32 tensor: factors of attention and MLP.

    Raises:
        ValueError: If `rate` is outside [0, 1).

    Example:

    ```python
    layer = StochasticDepth(rate=0.5, depth=3, seed=0)
    factors = keras.ops.convert_to_numpy(layer(np.zeros((8, 5, 4))))
    assert factors.shape == (8, 3, 2) and set(factors[:, 0].ravel()) == {1.0}
    assert set(factors[:, 2].ravel()) == {0.0, 2.0}
    ```
    """

    def __init__(
        self, rate: float, depth: int, seed: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"drop_path_rate must be in [0, 1). Received: {rate}")
        self.rate = rate
        self.depth = depth
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.built = True

    def call(self, x: Tensor, first_row: Tensor = 0) -> Tensor:
        rows = ops.arange(ops.shape(x)[0], dtype="int32") + first_row
        key = ops.cast(self.seed_generator.next(), "int32")
        key = ops.bitwise_xor(key, ops.convert_to_tensor(_KEY, "int32"))
        noise = seeded_noise(key, rows, 2 * self.depth)
        noise = ops.reshape(noise, (-1, self.depth, 2))  # (B, depth, 2)
        rates = ops.linspace(0.0, self.rate, self.depth)[:, None]  # (depth, 1)
        rates = ops.cast(rates, "float32")
        # noise is in [0, 1): with a rate of 0 all is kept
        return ops.cast(noise >= rates, "float32") / (1 - rates)

    def compute_output_shape(self, input_shape: Any) -> tuple:
        return (input_shape[0], self.depth, 2)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "rate": self.rate,
            "depth": self.depth,
            "seed": self.seed,
        }
