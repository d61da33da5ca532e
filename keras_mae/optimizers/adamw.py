"""AdamW for pretraining: weight decay for matrices alone, PyTorch's epsilon."""

import contextvars
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_mae.ops.tracing import in_cpu_graph, traced_once
from keras_mae.optimizers.averaging import AveragesWeights, ema_options
from keras_mae.utils.typing import Tensor

# values that all variables of one update share
_SHARED: contextvars.ContextVar[dict[str, Any] | None] = contextvars.ContextVar(
    "shared", default=None
)


class _BiasCorrections(NamedTuple):
    """Correct the moments' bias towards 0 (Kingma and Ba 2015, section 3)."""

    betas: list[Tensor]
    powers: list[Tensor]  # the betas to the power of the number of the update
    mean: Tensor
    deviation: Tensor
    epsilon: Tensor  # to add before the deviation is corrected


@traced_once
def _adamw_update(
    weight, momentum, velocity, gradient, rate, mean, deviation, betas, epsilon, decay
):
    """Returns the updated weight and moments, each in its own dtype."""
    moments = momentum, velocity
    gradient = ops.cast(gradient, "float32")
    means = []
    for moment, beta, value in zip(
        moments, betas, (gradient, ops.square(gradient)), strict=True
    ):
        old = ops.cast(moment, "float32")
        means.append(old + (value - old) * (1 - beta))
    update = means[0] / mean / (ops.sqrt(means[1]) / deviation + epsilon)
    if decay:
        update += decay * ops.cast(weight, "float32")
    new = [ops.cast(m, old.dtype) for m, old in zip(means, moments, strict=True)]
    return weight - ops.cast(rate * update, weight.dtype), *new


def _in_update_of_replicas():
    """Whether TensorFlow runs this for each of several replicas, outside of XLA."""
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    strategy = tf.distribute.get_strategy()
    on_tpu = isinstance(strategy, tf.distribute.TPUStrategy)
    return strategy.num_replicas_in_sync > 1 and not on_tpu


@keras.saving.register_keras_serializable(package="keras_mae")
class MatrixDecayAdamW(AveragesWeights, keras.optimizers.AdamW):
    """AdamW without weight decay for vectors: biases and norms.

    Unlike `exclude_from_weight_decay`, this survives saving the model.
    Epsilon is added as PyTorch adds it, after the correction of the second moment's
    bias (Loshchilov and Hutter 2019, algorithm 2); Keras's own AdamW adds it before,
    which makes the first updates smaller. The arithmetic is float32 under every dtype.

    With `use_ema`, averages of the weights are float32 as well, under any strategy.

    Args:
        *args: Those of `keras.optimizers.AdamW`.
        ema_warmup: Whether the average of `use_ema` forgets faster in the beginning: by
            `1 - (1 + iterations) ** (-2 / 3)`, until that exceeds `ema_momentum`.
        **kwargs: Those of `keras.optimizers.AdamW`, without `amsgrad`.

    Raises:
        ValueError: If `amsgrad` is asked for.

    Example:

    ```python
    optimizer = MatrixDecayAdamW(learning_rate=1e-3, weight_decay=0.05)
    ```
    """

    def __init__(self, *args: Any, ema_warmup: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.amsgrad:
            raise ValueError("MatrixDecayAdamW has no amsgrad. Received: amsgrad=True")
        self.ema_warmup = ema_warmup

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        token = _SHARED.set({})
        try:
            super().apply(grads, trainable_variables)
        finally:
            _SHARED.reset(token)

    def _corrections(self):
        """Returns the bias corrections, computed once an update where possible."""
        shared = _SHARED.get()
        if shared is None:  # several replicas update in a thread of their own
            shared = {}
        if not shared:
            step = ops.cast(self.iterations + 1, "float32")
            betas = [ops.cast(beta, "float32") for beta in (self.beta_1, self.beta_2)]
            powers = [beta**step for beta in betas]
            mean, deviation = 1 - powers[0], ops.sqrt(1 - powers[1])
            shared["corrections"] = _BiasCorrections(
                betas, powers, mean, deviation, self.epsilon * deviation
            )
        return shared["corrections"]

    def update_step(
        self, gradient: Tensor, variable: keras.Variable, learning_rate: Tensor
    ) -> None:
        index = self._get_variable_index(variable)
        variables = [variable, self._momentums[index], self._velocities[index]]
        decay = self.weight_decay if self._use_weight_decay(variable) else 0.0
        rate = ops.cast(learning_rate, "float32")
        corrections = self._corrections()
        float32 = all(one.dtype == "float32" for one in variables)
        if float32 and (in_cpu_graph() or _in_update_of_replicas()):
            from keras_mae.optimizers.adamw_in_place import adamw_in_place

            adamw_in_place(
                *(variables, gradient, rate, corrections.betas, corrections.powers),
                epsilon=corrections.epsilon,
                decay=decay,
            )
            return
        weight, momentum, velocity = map(ops.convert_to_tensor, variables)
        updated = _adamw_update(
            weight,
            momentum,
            velocity,
            ops.convert_to_tensor(gradient),
            rate,
            corrections.mean,
            corrections.deviation,
            betas=(self.beta_1, self.beta_2),
            epsilon=self.epsilon,
            decay=decay,
        )
        for old, value in zip(variables, updated, strict=True):
            self.assign(old, value)

    def _apply_weight_decay(self, variables):
        """Does nothing: `update_step` decays, which rounds a bfloat16 weight once."""

    def _use_weight_decay(self, variable):
        return len(variable.shape) > 1 and super()._use_weight_decay(variable)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "ema_warmup": self.ema_warmup}


def pretraining_optimizer(
    learning_rate: float | keras.optimizers.schedules.LearningRateSchedule,
    weight_decay: float = 0.05,
    ema: float | None = None,
) -> MatrixDecayAdamW:
    """Builds the published AdamW for pretraining (paper, table 8).

    Betas are (0.9, 0.95) and epsilon is 1e-8. Biases and norms are not decayed; the CLS
    and mask tokens are.

    Args:
        learning_rate: Float or schedule.
        weight_decay: Float.
        ema: Float in [0, 1), the decay of an exponential moving average of the weights,
            which is lower in the beginning (`ema_warmup`); by default none is kept.

    Returns:
        A `MatrixDecayAdamW`.

    Raises:
        ValueError: If `ema` is out of range.

    Example:

    ```python
    model = keras_mae.MAEPretrainer.from_preset("mae_tiny")
    model.compile(optimizer=pretraining_optimizer(1e-3))
    ```
    """
    return MatrixDecayAdamW(
        learning_rate,
        weight_decay=weight_decay,
        beta_1=0.9,
        beta_2=0.95,
        epsilon=1e-8,
        **ema_options(ema),
    )
