"""Patch embedding: linear projection, CLS token and position embeddings."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_mae.layers.dense import Dense
from keras_mae.layers.freezing import KeepsFrozenParts
from keras_mae.ops.patches import gather_tokens
from keras_mae.ops.positions import resize_positions, sincos_positions
from keras_mae.utils.typing import Grid, Tensor


@keras.saving.register_keras_serializable(package="keras_mae")
class PositionEmbedding(keras.layers.Layer):
    """Adds position embeddings, initialized to the 2-D sin-cos table.

    Args:
        hidden_dim: Int, the tokens' width; a multiple of 4.
        grid: Pair `(rows, columns)` of the patches.
        learned: Whether the table is trained; the paper fixes it in pretraining.
        **kwargs: Those of `keras.layers.Layer`.

    Call arguments:
        tokens: `(B, 1 + K, hidden_dim)` tensor, CLS first.
        ids_keep: `(B, K)` int tensor, which patches the tokens are; by default all,
            in raster order.
        grid: Pair `(rows, columns)` of the patches if it is not the layer's own: the
            table is resized to it.

    Returns:
        `(B, 1 + K, hidden_dim)` tensor.

    Example:

    ```python
    layer = PositionEmbedding(hidden_dim=8, grid=(2, 3))
    assert layer(np.zeros((1, 7, 8))).shape == (1, 7, 8)
    ```
    """

    def __init__(
        self, hidden_dim: int, grid: Sequence[int], learned: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.hidden_dim = hidden_dim
        self.grid: Grid = (grid[0], grid[1])
        self.learned = learned

    def build(self, input_shape: Any = None) -> None:
        table = sincos_positions(self.hidden_dim, self.grid)
        self.embeddings = self.add_weight(
            shape=(1, *table.shape),
            initializer=lambda shape, dtype: ops.convert_to_tensor(table[None], dtype),
            trainable=self.learned,
            name="embeddings",
        )

    def call(
        self, tokens: Tensor, ids_keep: Tensor | None = None, grid: Grid | None = None
    ) -> Tensor:
        table = ops.convert_to_tensor(self.embeddings)[0]  # (1 + L, D)
        if grid is not None and tuple(grid) != self.grid:
            resized = resize_positions(table, self.grid, grid)
            table = ops.cast(resized, tokens.dtype)  # (1 + L', D)
        if ids_keep is None:
            return tokens + table
        ids = ops.pad(ids_keep + 1, ((0, 0), (1, 0)))  # (B, 1 + K), 0 = CLS
        return tokens + ops.take(table, ids, axis=0)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "hidden_dim": self.hidden_dim,
            "grid": self.grid,
            "learned": self.learned,
        }


@keras.saving.register_keras_serializable(package="keras_mae")
class PatchEmbedding(KeepsFrozenParts, keras.layers.Layer):
    """Projects flattened patches, prepends CLS and adds position embeddings.

    Only the visible patches are projected, which gives the same tokens for a quarter of
    the work at `mask_ratio=0.75`.

    Args:
        hidden_dim: Int, the tokens' width.
        grid: Pair `(rows, columns)` of the patches.
        kernel_initializer: Initializer of the projection.
        initializer_range: Float, the deviation of the normal that draws CLS.
        train_positions: Whether the table of positions is trained.
        **kwargs: Those of `keras.layers.Layer`.

    Call arguments:
        patches: `(B, L, P)` tensor, as `patchify` makes them.
        ids_keep: `(B, K)` int tensor, the visible patches; by default all of them.
        grid: Pair `(rows, columns)` if it is not the layer's own.

    Returns:
        `(B, 1 + K, hidden_dim)` tensor, CLS first.

    Example:

    ```python
    layer = PatchEmbedding(hidden_dim=8, grid=(2, 3))
    assert layer(np.zeros((1, 6, 48)), ids_keep=np.array([[5, 0]])).shape == (1, 3, 8)
    ```
    """

    def __init__(
        self,
        hidden_dim: int,
        grid: Sequence[int],
        kernel_initializer: Any = "glorot_uniform",
        initializer_range: float = 0.02,
        train_positions: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.hidden_dim = hidden_dim
        self.grid: Grid = (grid[0], grid[1])
        self.train_positions = train_positions
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.initializer_range = initializer_range
        self.projection = Dense(
            hidden_dim,
            kernel_initializer=kernel_initializer,
            dtype=self.dtype_policy,
            trainable=self.trainable,
            name="projection",
        )
        self.positions = PositionEmbedding(
            hidden_dim,
            grid,
            learned=train_positions,
            dtype=self.dtype_policy,
            trainable=self.trainable,
            name="positions",
        )
        self.freeze_parts()

    def build(self, input_shape: Any) -> None:
        self.projection.build(input_shape)
        self.positions.build()
        self.cls_token = self.add_weight(
            shape=(1, 1, self.hidden_dim),
            initializer=keras.initializers.RandomNormal(stddev=self.initializer_range),
            name="cls_token",
        )

    def call(
        self, patches: Tensor, ids_keep: Tensor | None = None, grid: Grid | None = None
    ) -> Tensor:
        if ids_keep is not None:
            patches = gather_tokens(patches, ids_keep)  # (B, K, P)
        tokens = self.projection(patches)  # (B, K, D)
        cls_token = ops.broadcast_to(
            self.cls_token, (ops.shape(tokens)[0], 1, self.hidden_dim)
        )
        tokens = ops.concatenate([cls_token, tokens], axis=1)  # (B, 1 + K, D)
        return self.positions(tokens, ids_keep=ids_keep, grid=grid)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "hidden_dim": self.hidden_dim,
            "grid": self.grid,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "initializer_range": self.initializer_range,
            "train_positions": self.train_positions,
        }
