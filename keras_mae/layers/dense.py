"""`keras.layers.Dense` with fused bias and activation on CPUs."""

import keras
from keras import ops

from keras_mae.ops.fusion import fusible, fusion_enabled
from keras_mae.utils.typing import Tensor


class Dense(keras.layers.Dense):
    """A `Dense` layer whose bias and activation are one pass in a `fusion_scope`."""

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        if not fusion_enabled():
            return super().call(inputs, training=training)
        rows = ops.reshape(inputs, (-1, inputs.shape[-1]))  # (B * N, D)
        x = ops.matmul(rows, self.kernel)
        if self.activation in (None, keras.activations.linear):
            if self.bias is not None:
                from keras_mae.ops.fused_kernels import add_bias

                x = add_bias(x, ops.convert_to_tensor(self.bias))
        elif self.bias is not None:
            x = _activate(x, self.bias, activation=self.activation)
        else:
            x = self.activation(x)
        return ops.reshape(x, (*ops.shape(inputs)[:-1], self.units))


@fusible
def _activate(x, bias, activation):
    # float32: the bias's gradient is a sum over all rows
    y = ops.cast(x, "float32") + ops.cast(bias, "float32")
    return ops.cast(activation(y), x.dtype)
