"""Base class of encoder and decoder: a stack of transformer blocks, a final norm."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_mae.layers.adapted import lora
from keras_mae.layers.dense import Dense
from keras_mae.layers.freezing import KeepsFrozenParts, parts_of
from keras_mae.layers.transformer import TransformerBlock, check_float_dtype, run_blocks
from keras_mae.models.mixins import Adaptable
from keras_mae.utils.serialization import serialized
from keras_mae.utils.typing import Tensor

# as published, the attention's projections; ours is one for query, key and value
LORA_LAYERS = ("qkv",)


class TransformerStack(Adaptable, KeepsFrozenParts, keras.Model):
    """Base class of encoder and decoder: `depth` equal blocks and a final norm.

    Args:
        hidden_dim: Int, the tokens' width; a multiple of 4 and of `num_heads`.
        depth: Int, number of blocks.
        num_heads: Int, attention heads of a block.
        mlp_dim: Int, width of a block's MLP.
        activation: Name of the MLP's activation, or a function registered with Keras;
            `"gelu"` is the exact one.
        dropout_rate: Float, dropout after attention and after the MLP.
        attention_dropout_rate: Float, dropout of the attention probabilities.
        qkv_bias: Whether query, key and value have a bias.
        layer_norm_epsilon: Float; 1e-6 in the paper's code.
        kernel_initializer: Initializer of every dense layer, one of Keras's or
            registered with it; Xavier uniform in the paper (appendix A.1).
        initializer_range: Float, the deviation of the normal that draws the CLS or
            mask token.
        rematerialize: Whether training computes each block anew in the backward pass
            instead of keeping what is inside: the same numbers in less memory, for a
            third more arithmetic. It goes without dropout.
        residual_dtype: Name of the float dtype of the residual connections between
            blocks; by default the compute dtype. With `"float32"` under
            `mixed_bfloat16` the blocks' outputs are added up in float32, while
            attention and MLP compute in bfloat16. `hidden_states` are of this dtype.
        final_norm: Whether a norm follows the last block; the subclass's to store.
        **kwargs: Those of `keras.Model`.

    Raises:
        ValueError: If `depth` is negative, `rematerialize` meets dropout, or
            `activation` or `kernel_initializer` is not registered with Keras.
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
        residual_dtype: str | None = None,
        final_norm: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if depth < 0:
            raise ValueError(f"depth must not be negative. Received: {depth}")
        if rematerialize and (dropout_rate or attention_dropout_rate):
            raise ValueError(
                "rematerialize=True does not support dropout: the recomputed forward "
                "pass would draw another dropout mask. Received: "
                f"dropout_rate={dropout_rate}, "
                f"attention_dropout_rate={attention_dropout_rate}"
            )
        self.hidden_dim = hidden_dim
        self.initializer_range = initializer_range
        self.rematerialize = rematerialize
        self._block_config = {
            "num_heads": num_heads,
            "mlp_dim": mlp_dim,
            "activation": serialized(keras.activations, activation, "activation"),
            "dropout_rate": dropout_rate,
            "attention_dropout_rate": attention_dropout_rate,
            "qkv_bias": qkv_bias,
            "layer_norm_epsilon": layer_norm_epsilon,
            "kernel_initializer": serialized(
                keras.initializers, kernel_initializer, "kernel_initializer"
            ),
            "residual_dtype": check_float_dtype(residual_dtype, "residual_dtype"),
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
            self.norm = keras.layers.LayerNormalization(**norm)
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
        residual_dtype = self._block_config["residual_dtype"]
        if residual_dtype is not None:
            x = ops.cast(x, residual_dtype)  # also the first of hidden_states
        rematerialize = bool(self.rematerialize and training and not keep_attentions)
        x, hidden_states, attentions = run_blocks(
            self.blocks,
            x,
            training,
            rematerialize,
            factors,
            first_query,
            keep_attentions,
        )
        return self.norm(x), hidden_states, attentions

    def enable_lora(
        self,
        rank: int,
        lora_alpha: float | None = None,
        target_layer_names: Sequence[str] = LORA_LAYERS,
    ) -> None:
        """Freezes all weights, and trains low-rank updates of some (Hu et al. 2021).

        A target's kernel `W` becomes `W + lora_alpha / rank * A @ B`, where `A` is
        random and `B` starts at 0. Trained are `A`, `B`, and the targets' biases.

        Args:
            rank: Int, the rank of the updates.
            lora_alpha: Float, the updates' scale; by default `rank`, a scale of 1.
            target_layer_names: Names of dense layers: by default `"qkv"`, the
                projection to queries, keys and values. The others are `"proj"`, and the
                MLP's `"fc1"` and `"fc2"`.

        Raises:
            ValueError: If `rank` is no positive int, no layer has such a name, or LoRA
                is enabled.

        Example:

        ```python
        encoder = keras_mae.MAEEncoder.from_preset("mae_tiny")
        encoder.enable_lora(rank=4)
        qkv = encoder.blocks[0].attention.qkv
        assert qkv.lora_kernel_a.shape == (128, 4)
        ```
        """
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
            raise ValueError(f"rank must be a positive int. Received: {rank!r}")
        dense = {name: part for name, part in parts_of(self) if isinstance(part, Dense)}
        names = sorted({part.name for part in dense.values()})
        wrong = sorted(set(target_layer_names) - set(names))
        if wrong or not target_layer_names:
            raise ValueError(
                f"target_layer_names must be among {', '.join(names)}. "
                f"Received: {target_layer_names!r}"
            )
        targets = [
            name for name, part in dense.items() if part.name in target_layer_names
        ]
        if any(map(lora, dense.values())):
            raise ValueError(
                "LoRA is already enabled: merge_lora() first, or name all layers at "
                f"once. Received: target_layer_names={target_layer_names!r}"
            )
        for name in targets:
            dense[name].enable_lora(rank, lora_alpha=lora_alpha)
        # parents of what is trained are not frozen
        self._frozen = tuple(
            name
            for name, _ in parts_of(self)
            if not any(f"{target}.".startswith(f"{name}.") for target in targets)
        )
        self.freeze_parts()

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
