"""The MAE decoder: from the visible patches' latent to the pixels of every patch."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_mae.layers.dense import Dense
from keras_mae.layers.patch_embedding import PositionEmbedding
from keras_mae.models.mixins import allow_new_layers
from keras_mae.models.stack import TransformerStack
from keras_mae.ops.patches import gather_tokens
from keras_mae.utils.typing import Grid, Tensor


@keras.saving.register_keras_serializable(package="keras_mae")
class MAEDecoder(TransformerStack):
    """Lightweight transformer that fills in mask tokens and predicts pixels.

    Paper, section 3 ("MAE decoder"): project the latent, put a shared learned mask
    token wherever a patch was removed, add positions, run blocks, project to pixels.

    Args:
        grid: Pair `(rows, columns)` of the patches.
        patch_dim: Int, the values of a flattened patch.
        latent_dim: Int, the encoder's width.
        hidden_dim: Int, the decoder's width; a multiple of 4 and of `num_heads`.
        depth: Int, number of blocks.
        num_heads: Int.
        mlp_dim: Int, the blocks' MLP width.
        **kwargs: Those of `TransformerStack` (activation, dropouts, epsilon,
            initializers) and of `keras.Model`.

    Call arguments:
        latent: `(B, 1 + K, latent_dim)` tensor, CLS first.
        ids_restore: `(B, L)` int tensor, where each patch lies after shuffling; by
            default none was removed or shuffled.
        grid: Pair `(rows, columns)` if it is not the decoder's own; positions are
            resized in two dimensions.
        ids_shuffle: `(B, L)` int tensor, the visible patches and the removed ones
            behind them, instead of `ids_restore`: only the removed ones are predicted.
        training: Whether dropout is active.

    Returns:
        `(B, L, patch_dim)` tensor, the predicted patches in raster order; by
        `ids_shuffle` `(B, L - K, patch_dim)`, the removed ones in its order.

    Example:

    ```python
    decoder = MAEDecoder((2, 2), patch_dim=48, latent_dim=8, hidden_dim=16, depth=1,
                         num_heads=2, mlp_dim=32)
    ids_restore = np.array([[2, 0, 1, 3]])
    assert decoder(np.zeros((1, 2, 8)), ids_restore).shape == (1, 4, 48)
    ```
    """

    def __init__(
        self,
        grid: Sequence[int],
        patch_dim: int,
        latent_dim: int,
        hidden_dim: int = 512,
        depth: int = 8,
        num_heads: int = 16,
        mlp_dim: int = 2048,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            hidden_dim, depth, num_heads, mlp_dim, final_norm=True, **kwargs
        )
        self.grid: Grid = (grid[0], grid[1])
        self.patch_dim = patch_dim
        self.latent_dim = latent_dim
        dense = {
            # a config, not the instance, whose draws would repeat
            "kernel_initializer": self._block_config["kernel_initializer"],
            "dtype": self.dtype_policy,
        }
        self.embed = Dense(hidden_dim, name="embed", **dense)
        self.positions = PositionEmbedding(
            hidden_dim, grid, dtype=self.dtype_policy, name="positions"
        )
        self.pred = Dense(patch_dim, name="pred", **dense)
        self.build((None, None, latent_dim))
        self.freeze_parts()
        allow_new_layers(self)

    def build(self, input_shape: Any) -> None:
        if self.built:
            return
        self.embed.build((None, None, self.latent_dim))
        self.mask_token = self.add_weight(
            shape=(1, 1, self.hidden_dim),
            initializer=keras.initializers.RandomNormal(stddev=self.initializer_range),
            name="mask_token",
        )
        self.positions.build()
        self.build_stack()
        self.pred.build((None, None, self.hidden_dim))
        self.finish_build()

    def call(
        self,
        latent: Tensor,
        ids_restore: Tensor | None = None,
        grid: Grid | None = None,
        ids_shuffle: Tensor | None = None,
        training: bool | None = None,
    ) -> Tensor:
        x = self.embed(latent)  # (B, 1 + K, D)
        first = 1
        if ids_shuffle is not None:
            # attention knows no order: tokens stay where they are, positions follow
            first = ops.shape(x)[1]
            x = self._fill_up(x, ids_shuffle)
        elif ids_restore is not None:
            x = self._fill_up(x, ids_restore)
            patches = gather_tokens(x[:, 1:], ids_restore)  # (B, L, D), raster order
            x = ops.concatenate([x[:, :1], patches], axis=1)  # (B, 1 + L, D)
        x = self.positions(x, ids_keep=ids_shuffle, grid=grid)
        x, _, _ = self.run_stack(x, training=training, first_query=first)
        return self.pred(x)  # (B, L, P), or (B, L - K, P)

    def _fill_up(self, x, ids):
        """Appends a mask token for each removed patch: `(B, 1 + L, D)`."""
        batch, tokens = ops.shape(x)[:2]
        mask_tokens = ops.broadcast_to(
            ops.cast(self.mask_token, x.dtype),
            (batch, 1 + ops.shape(ids)[1] - tokens, self.hidden_dim),
        )
        return ops.concatenate([x, mask_tokens], axis=1)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "grid": self.grid,
            "patch_dim": self.patch_dim,
            "latent_dim": self.latent_dim,
        }
