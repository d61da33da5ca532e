"""Multi-head self-attention."""

from typing import Any

import keras
from keras import ops

from keras_mae.layers.dense import Dense
from keras_mae.layers.freezing import KeepsFrozenParts
from keras_mae.utils.devices import jax_platform
from keras_mae.utils.serialization import serialized
from keras_mae.utils.typing import Tensor


def _has_fused_attention(dtype):
    """Whether the backend's own attention is faster than its operations one by one."""
    if keras.backend.backend() != "jax":
        return keras.backend.backend() == "torch"
    # Keras 3.15's is causal on TPUs, and JAX's of float16 fails on CPUs
    fits_cpu = dtype != "float16"
    return {"gpu": True, "cpu": fits_cpu}.get(jax_platform(), False)


@keras.saving.register_keras_serializable(package="keras_mae")
class SelfAttention(KeepsFrozenParts, keras.layers.Layer):
    """Multi-head self-attention with one fused projection for query, key and value.

    `softmax(q k^T / sqrt(head_dim)) v` (Vaswani et al. 2017, eq. 1); the softmax runs
    in float32 under every dtype policy.

    Args:
        hidden_dim: Int, the tokens' width.
        num_heads: Int, which divides `hidden_dim`.
        dropout_rate: Float, dropout of the attention probabilities.
        use_bias: Whether query, key and value have a bias.
        kernel_initializer: Initializer of both projections; one of your own must be
            registered with Keras.
        **kwargs: Those of `keras.layers.Layer`.

    Call arguments:
        x: `(B, N, hidden_dim)` tensor.
        training: Whether dropout is active.
        first_query: Int; the outputs of the tokens before it are not computed.
        keep_attention: Whether to return the attention probabilities; without them JAX
            and PyTorch use their own fused attention.

    Returns:
        A tuple: the `(B, N, hidden_dim)` output and the `(B, num_heads, N, N)`
        attention probabilities, or `None`; with `first_query` N - `first_query` of
        the N outputs.

    Raises:
        ValueError: If `num_heads` does not divide `hidden_dim`.

    Example:

    ```python
    output, attention = SelfAttention(hidden_dim=8, num_heads=2)(np.ones((1, 5, 8)))
    assert attention.shape == (1, 2, 5, 5)
    ```
    """

    def __init__(
        self,
        hidden_dim: int,
        num_heads: int,
        dropout_rate: float = 0.0,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if num_heads < 1 or hidden_dim % num_heads:
            raise ValueError(
                "hidden_dim must be divisible by num_heads. "
                f"Received: hidden_dim={hidden_dim}, num_heads={num_heads}"
            )
        self.hidden_dim = hidden_dim
        self.num_heads = num_heads
        self.dropout_rate = dropout_rate
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        # a config: one instance would draw the same values twice
        initializer = serialized(
            keras.initializers, self.kernel_initializer, "kernel_initializer"
        )
        policy = {"dtype": self.dtype_policy, "trainable": self.trainable}
        dense = {"kernel_initializer": initializer, **policy}
        self.qkv = Dense(3 * hidden_dim, use_bias=use_bias, name="qkv", **dense)
        self.dropout = keras.layers.Dropout(dropout_rate, dtype=self.dtype_policy)
        self.proj = Dense(hidden_dim, name="proj", **dense)
        self.freeze_parts()

    def build(self, input_shape: Any) -> None:
        self.qkv.build(input_shape)
        self.proj.build(input_shape)

    def call(
        self,
        x: Tensor,
        training: bool | None = None,
        first_query: int = 0,
        keep_attention: bool = True,
    ) -> Any:
        head_dim = self.hidden_dim // self.num_heads
        qkv = ops.reshape(
            self.qkv(x), (-1, ops.shape(x)[1], 3, self.num_heads, head_dim)
        )  # (B, N, 3, heads, head_dim)
        drops = training and self.dropout_rate
        fused = _has_fused_attention(self.compute_dtype)
        if keep_attention or drops or not fused:
            x, attention = self._attend(qkv, first_query, training)
        else:
            query, key, value = ops.unstack(qkv, 3, axis=2)  # (B, N, heads, head_dim)
            query, attention = query[:, first_query:], None
            x = ops.dot_product_attention(query, key, value)
        x = ops.reshape(x, (-1, ops.shape(x)[1], self.hidden_dim))  # (B, Q, D)
        return self.proj(x), attention if keep_attention else None

    def _attend(self, qkv, first_query, training):
        qkv = ops.transpose(qkv, (2, 0, 3, 1, 4))
        query, key, value = ops.unstack(qkv, 3)  # (B, heads, N, head_dim) each
        query = query * query.shape[-1] ** -0.5
        if first_query:
            query = query[:, :, first_query:]  # (B, heads, Q, head_dim)
        key = ops.transpose(key, (0, 1, 3, 2))  # (B, heads, head_dim, N)
        scores = ops.matmul(query, key)  # (B, heads, Q, N)
        attention = ops.softmax(ops.cast(scores, "float32"), axis=-1)
        attention = ops.cast(attention, scores.dtype)
        attention = self.dropout(attention, training=training)
        x = ops.matmul(attention, value)
        return ops.transpose(x, (0, 2, 1, 3)), attention  # (B, Q, heads, head_dim)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "hidden_dim": self.hidden_dim,
            "num_heads": self.num_heads,
            "dropout_rate": self.dropout_rate,
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }
