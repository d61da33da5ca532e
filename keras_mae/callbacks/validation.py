"""Callback that evaluates after each epoch, on one iterator for all epochs."""

from collections.abc import Iterable, Iterator

import keras
import numpy as np

from keras_mae.optimizers.averaging import averaged_weights
from keras_mae.utils.typing import Logs


class Validation(keras.callbacks.Callback):
    """Evaluates the model after each epoch, on one iterator for all epochs.

    `fit(validation_data=...)` makes an iterator an epoch, whose end may wait many
    seconds for a thread of tf.data, most often under a distribution strategy. Put this
    before callbacks that read `val_` values. Where the optimizer averages weights
    (`use_ema`), the averages are evaluated.

    Args:
        batches: Infinite dataset, distributed or not, that repeats after `steps`.
        steps: Int, number of batches of an evaluation.

    Example:

    ```python
    import tensorflow as tf

    images = np.zeros((8, 32, 32, 3), "float32")
    batches = tf.data.Dataset.from_tensor_slices(images).batch(4).repeat()
    callback = Validation(batches, steps=2)
    ```
    """

    def __init__(self, batches: Iterable, steps: int) -> None:
        super().__init__()
        self.batches = batches
        self.steps = steps
        self._iterator: Iterator | None = None

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        # which a checkpoint of a run that stops within an epoch has
        training = getattr(self.model, "running_metrics", None)
        with averaged_weights(self.model):
            results = self._evaluate(self.model)
        if training is not None:
            self.model.running_metrics = training
        if logs is not None:
            logs.update({f"val_{k}": float(np.mean(v)) for k, v in results.items()})

    def _evaluate(self, model):
        if keras.backend.backend() != "tensorflow":  # whose iterators are the slow ones
            return model.evaluate(
                self.batches, steps=self.steps, return_dict=True, verbose=0
            )
        model.make_test_function()
        model.reset_metrics()
        if self._iterator is None:
            self._iterator = iter(self.batches)
        for _ in range(0, self.steps, model.steps_per_execution):
            results = model.test_function(self._iterator)
        # over all replicas, as `evaluate` returns them
        metrics = model.get_metrics_result()
        return metrics if set(metrics) == set(results) else results
