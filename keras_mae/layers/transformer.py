"""The pre-norm Vision Transformer block, and how to run a stack of them."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_mae.layers.attention import SelfAttention
from keras_mae.layers.dense import Dense
from keras_mae.layers.freezing import KeepsFrozenParts
from keras_mae.layers.mlp import MLP
from keras_mae.ops.fusion import fusion_enabled
from keras_mae.ops.rematerialization import rematerialized
from keras_mae.ops.tracing import LayerTraceCache
from keras_mae.utils.serialization import serialized
from keras_mae.utils.typing import Tensor


@keras.saving.register_keras_serializable(package="keras_mae")
class TransformerBlock(KeepsFrozenParts, keras.layers.Layer):
    """Pre-norm transformer block (Dosovitskiy et al. 2021, eq. 2-3).

    Args:
        hidden_dim: Int, the tokens' width.
        num_heads: Int, which divides `hidden_dim`.
        mlp_dim: Int, the MLP's width.
        activation: Name or function of the MLP's activation.
        dropout_rate: Float, dropout after attention and after the MLP.
        attention_dropout_rate: Float, dropout of the attention probabilities.
        qkv_bias: Whether query, key and value have a bias.
        layer_norm_epsilon: Float; 1e-6 in the paper's code.
        kernel_initializer: Initializer of every dense layer; one of your own must be
            registered with Keras.
        residual_dtype: Name of the float dtype of the residual connections, in which
            the block takes, adds and returns `x`; by default the compute dtype.
        **kwargs: Those of `keras.layers.Layer`.

    Call arguments:
        x: `(B, N, hidden_dim)` tensor.
        training: Whether dropout is active.
        factors: `(B, 2)` tensor by which attention and MLP are multiplied, as
            `StochasticDepth` draws them; by default 1.
        first_query: Int; the outputs of the tokens before it are not computed.
        keep_attention: Whether to return the attention probabilities.

    Returns:
        A tuple: the `(B, N, hidden_dim)` output and the `(B, num_heads, N, N)`
        attention probabilities, or `None`; with `first_query` N - `first_query` of
        the N outputs.

    Raises:
        ValueError: If `num_heads` does not divide `hidden_dim`.

    Example:

    ```python
    block = TransformerBlock(hidden_dim=8, num_heads=2, mlp_dim=32)
    x, attention = block(np.ones((1, 5, 8)))
    ```
    """

    def __init__(
        self,
        hidden_dim: int,
        num_heads: int,
        mlp_dim: int,
        activation: Any = "gelu",
        dropout_rate: float = 0.0,
        attention_dropout_rate: float = 0.0,
        qkv_bias: bool = True,
        layer_norm_epsilon: float = 1e-6,
        kernel_initializer: Any = "glorot_uniform",
        residual_dtype: str | None = None,
        **kwargs: Any,
    ) -> None:
        # autocast would round what comes in
        super().__init__(autocast=residual_dtype is None, **kwargs)
        self.residual_dtype = check_float_dtype(residual_dtype, "residual_dtype")
        self.hidden_dim = hidden_dim
        self.num_heads = num_heads
        self.mlp_dim = mlp_dim
        self.activation = keras.activations.get(activation)
        self.dropout_rate = dropout_rate
        self.attention_dropout_rate = attention_dropout_rate
        self.qkv_bias = qkv_bias
        self.layer_norm_epsilon = layer_norm_epsilon
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        policy = {"dtype": self.dtype_policy, "trainable": self.trainable}
        initializer = serialized(
            keras.initializers, self.kernel_initializer, "kernel_initializer"
        )
        norm = {"epsilon": layer_norm_epsilon, **policy}
        self.norm1 = keras.layers.LayerNormalization(name="norm1", **norm)
        self.attention = SelfAttention(
            hidden_dim,
            num_heads,
            dropout_rate=attention_dropout_rate,
            use_bias=qkv_bias,
            kernel_initializer=initializer,
            name="attention",
            **policy,
        )
        self.norm2 = keras.layers.LayerNormalization(name="norm2", **norm)
        self.mlp = MLP(
            hidden_dim,
            mlp_dim,
            activation=activation,
            kernel_initializer=initializer,
            name="mlp",
            **policy,
        )
        self.dropout1 = keras.layers.Dropout(dropout_rate, **policy)
        self.dropout2 = keras.layers.Dropout(dropout_rate, **policy)
        self.freeze_parts()

    def build(self, input_shape: Any) -> None:
        for layer in (self.norm1, self.attention, self.norm2, self.mlp):
            layer.build(input_shape)

    def call(
        self,
        x: Tensor,
        training: bool | None = None,
        factors: Tensor | None = None,
        first_query: int = 0,
        keep_attention: bool = True,
    ) -> Any:
        if self.residual_dtype is not None:
            x = ops.cast(x, self.residual_dtype)
        if not keep_attention and fusion_enabled() and self._can_fuse(training):
            return self._fused(x, factors, first_query), None
        y, attention = self.attention(
            self.norm1(x),
            training=training,
            first_query=first_query,
            keep_attention=keep_attention,
        )
        y = self.dropout1(y, training=training)
        if first_query:
            x = x[:, first_query:]  # (B, Q, D)
        x = _add(x, y, None if factors is None else factors[:, :1])
        y = self.dropout2(self.mlp(self.norm2(x)), training=training)
        return _add(x, y, None if factors is None else factors[:, 1:]), attention

    def _can_fuse(self, training):
        """Whether the block computes no more than `fused_block`."""
        if self.compute_dtype == "float64":  # the fused norms are float32
            return False
        if training and (self.dropout_rate or self.attention_dropout_rate):
            return False
        norm = keras.layers.LayerNormalization
        parts = [(self.norm1, norm), (self.norm2, norm)]
        parts += [(self.attention, SelfAttention), (self.mlp, MLP)]
        return all(_is_plain(*part) for part in parts) and all(
            _is_plain(layer, Dense) for layer in self._dense().values()
        )

    def _dense(self):
        attention, mlp = self.attention, self.mlp
        layers = {"qkv": attention.qkv, "proj": attention.proj}
        return {**layers, "fc1": mlp.fc1, "fc2": mlp.fc2}

    def _fused(self, x, factors, first_query):
        from keras_mae.ops.fused_block import BlockOptions, fused_block

        weights = {}
        for number, norm in enumerate((self.norm1, self.norm2), 1):
            for variable, value in (("gamma", norm.gamma), ("beta", norm.beta)):
                weights[f"{variable}{number}"] = ops.cast(value, "float32")
        for name, layer in self._dense().items():
            weights[name] = ops.cast(layer.kernel, self.compute_dtype)
            if layer.bias is not None:
                weights[f"{name}_bias"] = ops.cast(layer.bias, self.compute_dtype)
        options = BlockOptions(
            num_heads=self.num_heads,
            epsilon=self.layer_norm_epsilon,
            activation=self.mlp.fc1.activation,
            dtype=self.compute_dtype,
            first_query=first_query,
        )
        return fused_block(x, weights, options, factors)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "hidden_dim": self.hidden_dim,
            "num_heads": self.num_heads,
            "mlp_dim": self.mlp_dim,
            "activation": keras.activations.serialize(self.activation),
            "dropout_rate": self.dropout_rate,
            "attention_dropout_rate": self.attention_dropout_rate,
            "qkv_bias": self.qkv_bias,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "residual_dtype": self.residual_dtype,
        }


def _is_plain(layer, kind):
    """Whether a layer computes what its class does, in floats."""
    return (
        type(layer) is kind
        and "call" not in vars(layer)
        and not getattr(layer, "quantization_mode", None)
    )


def _add(x, y, factors):
    """Adds a branch, by `(B, 1)` factors, in the dtype of the residual connection."""
    y = ops.cast(y, x.dtype)
    return x + (y if factors is None else y * ops.cast(factors[:, :, None], x.dtype))


def check_float_dtype(dtype: str | None, name: str) -> str | None:
    """Returns the dtype, or raises unless it is `None` or of floats."""
    if dtype is not None and dtype not in ("float16", "bfloat16", "float32", "float64"):
        raise ValueError(
            f"{name} must be the name of a float dtype, as 'float32'. "
            f"Received: {dtype!r}"
        )
    return dtype


def run_blocks(
    blocks: Sequence[TransformerBlock],
    x: Tensor,
    training: bool | None = None,
    rematerialize: bool = False,
    factors: Tensor | None = None,
    first_query: int = 0,
    keep_attentions: bool = False,
) -> Any:
    """Runs blocks in turn; returns the output, `hidden_states` and `attentions`."""
    hidden_states, attentions = [x], []
    call = LayerTraceCache(TransformerBlock)
    for index, block in enumerate(blocks):
        options: dict[str, Any] = {
            "training": training,
            "keep_attention": keep_attentions,
        }
        if factors is not None:
            options["factors"] = factors[:, index]  # (B, 2), of StochasticDepth
        if first_query and index == len(blocks) - 1:
            options["first_query"] = first_query
        # less memory, a third more arithmetic
        if rematerialize:
            x, attention = _rematerialize(block, options)(x), None
        else:
            x, attention = call(block, x, **options)
        hidden_states.append(x)
        attentions.append(attention)
    if first_query and not blocks:
        x = x[:, first_query:]  # (B, Q, D)
    return x, hidden_states, attentions


def _rematerialize(block, options):
    """Wraps a block, without attentions, to keep only its input for the gradient."""
    return rematerialized(lambda x: block(x, **options)[0])
