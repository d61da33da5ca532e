"""Multi-head self-attention."""

from typing import Any

import keras
from keras import ops

from keras_mae.layers.dense import Dense
from keras_mae.layers.freezing import KeepsFrozenParts
from keras_mae.utils.typing import Tensor


def _split_heads(qkv, num_heads):
    """Turns `(B, N, 3 * D)` into scaled queries, keys, and values."""
    length, head_dim = ops.shape(qkv)[1], qkv.shape[-1] // (3 * num_heads)
    qkv = ops.reshape(qkv, (-1, length, 3, num_heads, head_dim))
    query, key, value = ops.unstack(
        ops.transpose(qkv, (2, 0, 3, 1, 4)), 3
    )  # (B, heads, N, head_dim) each
    return query * head_dim**-0.5, key, value


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
        kernel_initializer: Initializer of both projections.
        **kwargs: Those of `keras.layers.Layer`.

    Call arguments:
        x: `(B, N, hidden_dim)` tensor.
        training: Whether dropout is active.
        first_query: Int; the outputs of the tokens before it are not computed.

    Returns:
        A tuple: the `(B, N, hidden_dim)` output and the `(B, num_heads, N, N)`
        attention probabilities; with `first_query` N - `first_query` of the N
        outputs.

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
        initializer = keras.initializers.serialize(self.kernel_initializer)
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
        self, x: Tensor, training: bool | None = None, first_query: int = 0
    ) -> Any:
        query, key, value = _split_heads(self.qkv(x), num_heads=self.num_heads)
        if first_query:
            query = query[:, :, first_query:]  # (B, heads, Q, head_dim)
        x, attention = self._attend(query, key, value, training)
        x = ops.transpose(x, (0, 2, 1, 3))  # (B, Q, heads, head_dim)
        x = ops.reshape(x, (-1, ops.shape(x)[1], self.hidden_dim))  # (B, Q, D)
        return self.proj(x), attention

    def _attend(self, query, key, value, training):
        key = ops.transpose(key, (0, 1, 3, 2))  # (B, heads, head_dim, N)
        scores = ops.matmul(query, key)  # (B, heads, Q, N)
        attention = ops.softmax(ops.cast(scores, "float32"), axis=-1)
        attention = ops.cast(attention, scores.dtype)
        attention = self.dropout(attention, training=training)
        return ops.matmul(attention, value), attention

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "hidden_dim": self.hidden_dim,
            "num_heads": self.num_heads,
            "dropout_rate": self.dropout_rate,
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }
