"""`keras.layers.LayerNormalization`, fused on CPUs."""

import keras
from keras import ops

from keras_mae.ops.fusion import fusion_enabled
from keras_mae.utils.typing import Tensor


class LayerNormalization(keras.layers.LayerNormalization):
    """A `keras.layers.LayerNormalization` in one pass in a `fusion_scope`."""

    def call(self, inputs: Tensor) -> Tensor:
        if not fusion_enabled():
            return super().call(inputs)
        from keras_mae.ops.fused_kernels import layer_norm

        gamma, beta = map(ops.convert_to_tensor, (self.gamma, self.beta))
        return layer_norm(inputs, gamma, beta, epsilon=self.epsilon)
