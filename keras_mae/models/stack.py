"""Base class of encoder and decoder: a stack of transformer blocks, a final norm."""

from typing import Any

import keras

from keras_mae.layers.freezing import KeepsFrozenParts
from keras_mae.layers.normalization import LayerNormalization
from keras_mae.layers.transformer import TransformerBlock, run_blocks
from keras_mae.utils.typing import Tensor


class TransformerStack(KeepsFrozenParts, keras.Model):
    """Base class of encoder and decoder: `depth` equal blocks and a final norm.

    Args:
        hidden_dim: Int, the tokens' width; a multiple of 4 and of `num_heads`.
        depth: Int, number of blocks.
        num_heads: Int, attention heads of a block.
        mlp_dim: Int, width of a block's MLP.
        activation: Name or function of the MLP's activation; `"gelu"` is the exact
            one.
        dropout_rate: Float, dropout after attention and after the MLP.
        attention_dropout_rate: Float, dropout of the attention probabilities.
        qkv_bias: Whether query, key and value have a bias.
        layer_norm_epsilon: Float; 1e-6 in the paper's code.
        kernel_initializer: Initializer of every dense layer; Xavier uniform in the
            paper (appendix A.1).
        initializer_range: Float, the deviation of the normal that draws the CLS or
            mask token.
        rematerialize: Whether training computes each block anew in the backward pass
            instead of keeping what is inside: the same numbers in less memory, for a
            third more arithmetic. It goes without dropout.
        final_norm: Whether a norm follows the last block; the subclass's to store.
        **kwargs: Those of `keras.Model`.

    Raises:
        ValueError: If `depth` is negative, or `rematerialize` meets dropout.
    """

    def __init__(
        self,
        hidden_dim: int,
        depth: int,
        num_heads: int,
        mlp_dim: int,
        activation: Any = "gelu",
        dropout_rate: float = 0.0,
        attention_dropout_rate: float = 0.0,
        qkv_bias: bool = True,
        layer_norm_epsilon: float = 1e-6,
        kernel_initializer: Any = "glorot_uniform",
        initializer_range: float = 0.02,
        rematerialize: bool = False,
        final_norm: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if depth < 0:
            raise ValueError(f"depth must not be negative. Received: {depth}")
        if rematerialize and (dropout_rate or attention_dropout_rate):
            raise ValueError(
                "rematerialize goes without dropout, which would differ the second "
                f"time. Received: dropout_rate={dropout_rate}, "
                f"attention_dropout_rate={attention_dropout_rate}"
            )
        self.hidden_dim = hidden_dim
        self.initializer_range = initializer_range
        self.rematerialize = rematerialize
        self._block_config = {
            "num_heads": num_heads,
            "mlp_dim": mlp_dim,
            "activation": keras.activations.serialize(
                keras.activations.get(activation)
            ),
            "dropout_rate": dropout_rate,
            "attention_dropout_rate": attention_dropout_rate,
            "qkv_bias": qkv_bias,
            "layer_norm_epsilon": layer_norm_epsilon,
            "kernel_initializer": keras.initializers.serialize(
                keras.initializers.get(kernel_initializer)
            ),
        }
        self.blocks = [
            TransformerBlock(
                hidden_dim,
                dtype=self.dtype_policy,
                name=f"block_{index}",
                **self._block_config,
            )
            for index in range(depth)
        ]
        self.final_norm = final_norm
        norm: dict[str, Any] = {"dtype": self.dtype_policy, "name": "norm"}
        if final_norm:
            norm["epsilon"] = layer_norm_epsilon
            self.norm = LayerNormalization(**norm)
        else:
            self.norm = keras.layers.Identity(**norm)

    def build_stack(self) -> None:
        """Creates the weights of the blocks and of the norm."""
        layers: list[keras.Layer] = [*self.blocks, self.norm]
        for layer in layers:
            layer.build((None, None, self.hidden_dim))

    def run_stack(
        self,
        x: Tensor,
        training: bool | None = None,
        keep_attentions: bool = False,
        factors: Tensor | None = None,
        first_query: int = 0,
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Returns the normalized output, `hidden_states` and `attentions`."""
        rematerialize = bool(self.rematerialize and training and not keep_attentions)
        x, hidden_states, attentions = run_blocks(
            self.blocks, x, training, rematerialize, factors, first_query
        )
        return self.norm(x), hidden_states, attentions

    def finish_build(self) -> None:
        """Marks the model as built, and as frozen if it was made so."""
        self.built = True
        if not self.trainable:
            # Keras froze the model before these layers were there
            for layer in self._flatten_layers(include_self=False):
                layer.trainable = False

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "hidden_dim": self.hidden_dim,
            "depth": len(self.blocks),
            **self._block_config,
            "initializer_range": self.initializer_range,
            "rematerialize": self.rematerialize,
        }
