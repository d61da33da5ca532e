"""Save random seeds and running metrics with the weights, to resume bit-equal."""

import keras
import numpy as np
from keras import ops


class ResumableState:
    """Mixin for a `keras.Model` that saves its seeds and running metrics."""

    _resumed_metrics = None

    def _metric_variables(self):
        return [part for metric in self.metrics for part in metric.variables]

    @property
    def running_metrics(self):
        """Flat float array: the sums behind this epoch's metrics, of this worker.

        After loading a file they are the file's, until `fit` resets its metrics.
        """
        if self._resumed_metrics is not None:
            return self._resumed_metrics
        values = []
        for value in [variable.value for variable in self._metric_variables()]:
            parts = map(ops.convert_to_numpy, self.local_values(value))
            values.append(sum(parts))
        return np.concatenate([np.ravel(value) for value in values])

    @running_metrics.setter
    def running_metrics(self, values):
        # one worker's, divided among all
        first, workers = 0, self.count_workers()
        self._build_compiled_metrics()
        for variable in self._metric_variables():
            last = first + int(np.prod(variable.shape))
            if last <= len(values):  # else the file had fewer metrics
                value = np.reshape(values[first:last], variable.shape)
                variable.assign(value * workers)
            first = last

    def _build_compiled_metrics(self):
        """Lets `metrics` list those of `compile`, which TensorFlow makes late."""
        compiled = self._compile_metrics
        if compiled is None or compiled.built:
            return
        given = [compiled._user_metrics, compiled._user_weighted_metrics]
        # those given as strings wait for labels, whose shape chooses among them
        if not any(isinstance(one, str) for one in keras.tree.flatten(given)):
            any_shape = keras.KerasTensor((None, None))
            compiled.build(any_shape, any_shape)

    def reset_metrics(self):
        super().reset_metrics()
        self._resumed_metrics = None

    def _seeds(self):
        """Lists the seed generators' states, which Keras doesn't save."""
        return [
            variable
            for variable in self.non_trainable_variables
            if variable.path.endswith("seed_generator_state")
        ]

    def _own_variables(self):
        """Lists the weights of the model itself, outside of its layers."""
        return self._trainable_variables + self._non_trainable_variables

    def save_own_variables(self, store):
        for index, variable in enumerate(self._own_variables()):
            store[f"own_{index}"] = ops.convert_to_numpy(variable)
        for index, seed in enumerate(self._seeds()):
            store[f"seed_{index}"] = ops.convert_to_numpy(seed)
        if self.compiled:
            store["running_metrics"] = self.running_metrics

    def load_own_variables(self, store):
        for index, variable in enumerate(self._own_variables()):
            if f"own_{index}" not in store.keys():  # noqa: SIM118, an HDF5 group's
                raise ValueError(f"The file has no weight {variable.path}")
            variable.assign(store[f"own_{index}"])
        for index, seed in enumerate(self._seeds()):
            if f"seed_{index}" in store.keys():  # noqa: SIM118
                seed.assign(store[f"seed_{index}"])
        if "running_metrics" in store.keys():  # noqa: SIM118
            self._resumed_metrics = np.array(store["running_metrics"])
