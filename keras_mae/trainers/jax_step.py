"""Train, test and predict steps on JAX: pure functions of the variables' values.

Under `keras.distribution` a step sees the batch of all devices: there are no replicas.
"""

import contextlib
from itertools import chain

import jax
import keras

from keras_mae.trainers.base_step import (
    BaseStep,
    add_part,
    global_norm,
    mean_gradients,
    part_size,
)


class _VariableScope(keras.StatelessScope):
    """A stateless scope with initial values for lists of variables."""

    def __init__(self, variables, values):
        pairs = zip(chain(*variables), chain(*values), strict=True)
        super().__init__(state_mapping=list(pairs), collect_losses=True)

    def values(self, variables):
        return [self.get_current_value(variable) for variable in variables]


def _distribute(tensor, axis):
    """Divides a tensor along its batch axis among the model replicas, if there are."""
    distribution = keras.distribution.distribution()
    if distribution is None:
        return tensor
    axes = [None] * len(tensor.shape)
    axes[axis] = distribution.batch_dim_name
    layout = keras.distribution.TensorLayout(axes, distribution.device_mesh)
    return keras.distribution.distribute_tensor(tensor, layout)


class BackendStep(BaseStep):
    """Mixin for a `keras.Model`: the steps that `TrainStep` describes."""

    def fit(self, *args, **kwargs):
        with self._keeps_weights():
            return super().fit(*args, **kwargs)

    def evaluate(self, *args, **kwargs):
        with self._keeps_weights():
            return super().evaluate(*args, **kwargs)

    def predict(self, *args, **kwargs):
        with self._keeps_weights():
            return super().predict(*args, **kwargs)

    @contextlib.contextmanager
    def _keeps_weights(self):
        """Lets a model that failed between two steps keep what it had by then."""
        try:
            yield
        except BaseException as error:
            self.jax_state_sync()
            if keras.distribution.distribution() is not None and "divi" in str(error):
                error.add_note(
                    "Under keras.distribution the size of every batch must be "
                    "divisible by the number of model replicas, the last one's too: "
                    "use batch(..., drop_remainder=True)."
                )
            raise

    def _purge_model_variables(self, **kinds):
        """Leaves variables their values, which a failure before a step would lose."""
        # they take no memory: a step that JAX compiles is donated their arrays

    def distribute_rows(self, batch):
        # what chooses patches by whole noise, XLA computes whole on every device
        return _distribute(batch, axis=0)

    def train_step(self, state, data):
        trainable, others, optimizer, metrics = state
        with _VariableScope([self.non_trainable_variables], [others]) as scope:
            inputs = self.training_inputs(data)
        others = scope.values(self.non_trainable_variables)
        loss, outputs, gradients, others = self._accumulate(
            inputs, trainable, others, optimizer
        )
        with _VariableScope([self.optimizer.variables], [optimizer]):
            norm = global_norm(gradients, self.trainable_variables)
            norm = norm / self.loss_scale()
        gradients = self.clip_gradients(gradients, self.trainable_variables, norm)
        trainable, optimizer = self.optimizer.stateless_apply(
            optimizer, gradients, trainable
        )
        with _VariableScope([self.metrics_variables], [metrics]) as scope:
            results = self.track(loss, outputs, data)
        metrics = scope.values(self.metrics_variables)
        state = trainable, others, optimizer, metrics
        return {**results, "gradient_norm": norm}, state

    def test_step(self, state, data):
        kinds = (
            self.trainable_variables,
            self.non_trainable_variables,
            self.metrics_variables,
        )
        with _VariableScope(kinds, state) as scope:
            results = self.evaluation(data)
        return results, tuple(scope.values(variables) for variables in kinds)

    def predict_step(self, state, data):
        kinds = self.trainable_variables, self.non_trainable_variables
        with _VariableScope(kinds, state) as scope:
            outputs = self.prediction(data)
        return outputs, scope.values(self.non_trainable_variables)

    def _loss_and_gradients(self, inputs, trainable, others, optimizer):
        """Returns loss, outputs, gradients, and the other variables' new values."""
        kinds = (
            self.trainable_variables,
            self.non_trainable_variables,
            self.optimizer.variables,
        )

        def compute(trainable):
            with _VariableScope(kinds, (trainable, others, optimizer)) as scope:
                loss, outputs = self.training_loss(**inputs)
                scaled = self.optimizer.scale_loss(loss)
            return scaled, (loss, outputs, scope.values(self.non_trainable_variables))

        differentiate = jax.value_and_grad(compute, has_aux=True)
        (_, (loss, outputs, others)), gradients = differentiate(trainable)
        return loss, outputs, gradients, others

    def _accumulate(self, inputs, trainable, others, optimizer):
        """Averages loss and gradients over the parts of a batch."""
        steps = self.accumulation_steps
        if steps == 1:
            return self._loss_and_gradients(inputs, trainable, others, optimizer)
        rows = part_size(inputs["images"].shape[0], steps)

        def split(tensor):
            parts = tensor.reshape(steps, rows, *tensor.shape[1:])
            # a share of each part, else one device would have a part alone
            return _distribute(parts, axis=1)  # (steps, rows, ...)

        def add_gradients(sums, part):
            loss, gradients, others = sums
            more_loss, outputs, more, others = self._loss_and_gradients(
                part, trainable, others, optimizer
            )
            gradients = list(map(add_part, gradients, more, self.trainable_variables))
            return (loss + more_loss, gradients, others), outputs

        zeros = [jax.numpy.zeros(value.shape, "float32") for value in trainable]
        (loss, gradients, others), outputs = jax.lax.scan(
            add_gradients, (0.0, zeros, others), jax.tree.map(split, inputs)
        )
        gradients = mean_gradients(gradients, steps, self.trainable_variables)
        if outputs is not None:
            outputs = outputs.reshape(rows * steps, *outputs.shape[2:])
        return loss / steps, outputs, gradients, others
