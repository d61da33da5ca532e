"""The MLP of a transformer block."""

from typing import Any

import keras

from keras_mae.layers.dense import Dense
from keras_mae.layers.freezing import KeepsFrozenParts
from keras_mae.ops.activations import fast_activation
from keras_mae.utils.serialization import serialized
from keras_mae.utils.typing import Tensor


@keras.saving.register_keras_serializable(package="keras_mae")
class MLP(KeepsFrozenParts, keras.layers.Layer):
    """Two dense layers with an activation between them.

    Args:
        hidden_dim: Int, the tokens' width.
        mlp_dim: Int, the width between the layers.
        activation: Name or function; `"gelu"` is the exact one, by erf.
        kernel_initializer: Initializer of both layers; one of your own must be
            registered with Keras.
        **kwargs: Those of `keras.layers.Layer`.

    Call arguments:
        x: `(B, N, hidden_dim)` tensor.

    Returns:
        `(B, N, hidden_dim)` tensor.

    Example:

    ```python
    assert MLP(hidden_dim=8, mlp_dim=32)(np.ones((1, 5, 8))).shape == (1, 5, 8)
    ```
    """

    def __init__(
        self,
        hidden_dim: int,
        mlp_dim: int,
        activation: Any = "gelu",
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.hidden_dim = hidden_dim
        self.mlp_dim = mlp_dim
        self.activation = keras.activations.get(activation)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        # a config: one instance would draw the same values twice
        initializer = serialized(
            keras.initializers, self.kernel_initializer, "kernel_initializer"
        )
        policy = {"dtype": self.dtype_policy, "trainable": self.trainable}
        dense = {"kernel_initializer": initializer, **policy}
        activation = fast_activation(self.activation)
        self.fc1 = Dense(mlp_dim, activation=activation, name="fc1", **dense)
        self.fc2 = Dense(hidden_dim, name="fc2", **dense)
        self.freeze_parts()

    def build(self, input_shape: Any) -> None:
        self.fc1.build(input_shape)
        self.fc2.build((*input_shape[:-1], self.mlp_dim))

    def call(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "hidden_dim": self.hidden_dim,
            "mlp_dim": self.mlp_dim,
            "activation": keras.activations.serialize(self.activation),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }
