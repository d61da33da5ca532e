"""A linear classifier on features, by the recipe of `training/linear_probe.py`."""

import contextlib

import keras
import numpy as np

from keras_mae.models.classifier import PROBED_RANGE, probe_norm
from keras_mae.optimizers.lars import LARS
from keras_mae.optimizers.schedules import warmup_cosine
from keras_mae.recipes import LINEAR_PROBING


@contextlib.contextmanager
def _on_one_device():
    """Suspends `keras.distribution`, under which devices share every batch evenly."""
    distribution = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(distribution)


class LinearHead:
    """Batch norm without scale and shift, then a linear layer, trained by LARS."""

    # whatever the model runs on
    @_on_one_device()
    def __init__(self, width, count, num_classes, seed=0):
        recipe = LINEAR_PROBING["small"]
        self.num_classes = num_classes
        self.seed = seed
        self.epochs, self.batch_size = recipe["epochs"], recipe["batch_size"]
        steps = -(-count // self.batch_size)
        schedule = warmup_cosine(
            recipe["blr"] * self.batch_size / 256,
            self.epochs * steps,
            recipe["warmup_epochs"] * steps,
        )
        kernel = keras.initializers.RandomNormal(stddev=PROBED_RANGE, seed=seed)
        self.model = keras.Sequential(
            [
                keras.Input((width,)),
                probe_norm(),
                keras.layers.Dense(num_classes, kernel_initializer=kernel),
            ]
        )
        self.model.compile(
            optimizer=LARS(schedule, weight_decay=recipe["weight_decay"]),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            # TensorFlow's XLA would compile so small a model longer than it trains
            jit_compile=keras.backend.backend() == "jax",
        )
        self.model.optimizer.build(self.model.trainable_variables)
        self._start = self.model.get_weights()

    @_on_one_device()
    def scores(self, features, labels, queries):
        """Trains on features `(N, D)`; returns logits `(M, num_classes)` of queries."""
        self.model.set_weights(self._start)
        for variable in self.model.optimizer.variables:
            variable.assign(np.zeros(variable.shape, variable.dtype))
        rng = np.random.default_rng(self.seed)
        for _ in range(self.epochs):
            order = rng.permutation(len(features))
            for first in range(0, len(order), self.batch_size):
                rows = order[first : first + self.batch_size]
                self.model.train_on_batch(features[rows], labels[rows])
        return self.model.predict_on_batch(queries)
