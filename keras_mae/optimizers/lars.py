"""LARS, the optimizer of the linear probe."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_mae.utils.typing import Tensor


@keras.saving.register_keras_serializable(package="keras_mae")
class LARS(keras.optimizers.Optimizer):
    """LARS: momentum SGD that scales each matrix's gradient by the matrix's norm.

    With weights `w`, gradient `g` and momentum buffer `m`, an update is

    ```
    d = g + weight_decay * w
    d = d * trust_coefficient * |w| / |d|
    m = momentum * m + d
    w = w - learning_rate * m
    ```

    where a norm of zero, of `w` or of `d`, leaves `d` as it is. Vectors (biases and
    norms) take `d = g`: neither decay nor trust ratio. This is LARS (You, Gitman and
    Ginsburg 2017, algorithm 1) in the variant of facebook's MoCo v3 and MAE: the
    gradient is decayed before its norm is taken, and the learning rate stays outside
    the buffer, unlike in Keras's SGD. The arithmetic is float32 under every dtype.

    Args:
        learning_rate: Float or schedule.
        momentum: Float in [0, 1).
        trust_coefficient: Float, positive: how far a step goes, as a share of the
            weights' norm, at a learning rate of 1.
        weight_decay: Float, at least 0; a part of the gradient here, not decoupled.
        **kwargs: Those of `keras.optimizers.Optimizer`.

    Raises:
        ValueError: If momentum, trust coefficient or weight decay is out of range.

    Example:

    ```python
    encoder = keras_mae.MAEEncoder.from_preset("mae_tiny")
    encoder.trainable = False
    probe = keras_mae.MAEClassifier(encoder, 10, pooling="cls", batch_norm=True)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    schedule = keras_mae.warmup_cosine(0.1 * 16384 / 256, 90, 10)
    probe.compile(optimizer=LARS(schedule), loss=loss)
    ```
    """

    def __init__(
        self,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule = 0.1,
        momentum: float = 0.9,
        trust_coefficient: float = 0.001,
        weight_decay: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, weight_decay=weight_decay, **kwargs)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1). Received: {momentum}")
        if trust_coefficient <= 0:
            raise ValueError(
                f"trust_coefficient must be positive. Received: {trust_coefficient}"
            )
        if weight_decay is None or weight_decay < 0:
            raise ValueError(
                f"weight_decay must be at least 0. Received: {weight_decay}"
            )
        self.momentum = momentum
        self.trust_coefficient = trust_coefficient

    def build(self, variables: Sequence[keras.Variable]) -> None:
        if self.built:
            return
        super().build(variables)
        self._momentums = self.add_optimizer_variables(variables, "momentum")

    def update_step(
        self, gradient: Tensor, variable: keras.Variable, learning_rate: Tensor
    ) -> None:
        buffer = self._momentums[self._get_variable_index(variable)]
        # no `+=`, which under PyTorch would change the caller's gradient
        direction = ops.cast(gradient, "float32")
        if len(variable.shape) > 1:
            weights = ops.cast(variable, "float32")
            if self._use_weight_decay(variable):
                direction = direction + self.weight_decay * weights
            direction = direction * self._trust_ratio(weights, direction)
        step = self.momentum * ops.cast(buffer, "float32") + direction
        self.assign(buffer, ops.cast(step, buffer.dtype))
        update = ops.cast(learning_rate, "float32") * step
        self.assign_sub(variable, ops.cast(update, variable.dtype))

    def _trust_ratio(self, weights, direction):
        # ops.norm takes no tensors of three axes, such as CLS
        weights_norm, norm = (
            ops.sqrt(ops.sum(ops.square(x))) for x in (weights, direction)
        )
        known = ops.logical_and(weights_norm > 0, norm > 0)
        ratio = self.trust_coefficient * weights_norm / ops.where(known, norm, 1.0)
        return ops.where(known, ratio, 1.0)

    def _apply_weight_decay(self, variables):
        """Does nothing: `update_step` decays."""

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "momentum": self.momentum,
            "trust_coefficient": self.trust_coefficient,
        }
