"""Callback that evaluates frozen features while training, by k-NN or a linear probe."""

import time
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from keras_mae.callbacks.iterations import check_interval
from keras_mae.callbacks.linear_head import LinearHead
from keras_mae.models.classifier import POOLINGS
from keras_mae.models.features import PooledFeatures, extract_features
from keras_mae.ops.neighbors import (
    KNN_NEIGHBORS,
    KNN_TEMPERATURE,
    knn_scores,
    top_accuracies,
)
from keras_mae.optimizers.averaging import averaged_weights
from keras_mae.utils.typing import Logs

METHODS = ("knn", "linear")


class FeatureProbe(keras.callbacks.Callback):
    """Evaluates the encoder's frozen features while training, on labelled images.

    After the first epoch, every few epochs and the last one, it computes the features
    of labelled images, classifies the held-out ones, and adds to the logs of `fit`
    `probe_knn_accuracy`, `probe_knn_top5_accuracy` (or `probe_linear_...`) and
    `probe_seconds`, the time that it took. The numbers of `"knn"` are those of
    `training/linear_probe.py --method=knn`. Training is not changed, nor are weights:
    the labels are only looked at.

    Features are pooled as a fresh `MAEClassifier` pools them. Where the optimizer
    averages weights (`use_ema`), the averages are probed.

    Args:
        training: Tuple of arrays `(images, labels)`, images `(N, H, W, C)`, prepared as
            for training, and labels `(N,)` ids or `(N, K)` one-hot; or a finite dataset
            of batches `(images, labels)` or `(images, labels, weights)`, where images
            of weight 0 are left out.
        held_out: The same, the images to classify.
        every: Int, epochs between two evaluations.
        method: `"knn"`: the `k` nearest features vote. `"linear"`: a linear classifier,
            trained anew each time by the recipe `small` of `training/linear_probe.py`.
        pooling: `"mean"` of the patch tokens, or `"cls"`.
        batch_size: Int, images at a time, of arrays.
        k: Int, neighbors of `"knn"`.
        temperature: Float, of the votes of `"knn"`.
        epochs: Int, the last epoch, where several calls of `fit` make up a training; by
            default that of `fit`.

    Raises:
        ValueError: If `every`, `method` or `pooling` is none of these.

    Example:

    ```python
    images, labels = np.random.rand(16, 32, 32, 3).astype("float32"), np.arange(16) % 2
    probe = FeatureProbe((images[:12], labels[:12]), (images[12:], labels[12:]), k=3)
    model = keras_mae.MAEPretrainer.from_preset("mae_tiny", patch_size=8)
    model.compile(optimizer=keras_mae.pretraining_optimizer(1e-3))
    history = model.fit(images, callbacks=[probe], verbose=0).history
    assert 0 <= history["probe_knn_accuracy"][0] <= 1
    ```
    """

    def __init__(
        self,
        training: tuple | Iterable,
        held_out: tuple | Iterable,
        every: int = 1,
        method: str = "knn",
        pooling: str = "mean",
        batch_size: int = 256,
        k: int = KNN_NEIGHBORS,
        temperature: float = KNN_TEMPERATURE,
        epochs: int | None = None,
    ) -> None:
        super().__init__()
        if method not in METHODS:
            raise ValueError(f"method must be knn or linear. Received: {method!r}")
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be mean or cls. Received: {pooling!r}")
        self.training = training
        self.held_out = held_out
        self.every = check_interval(every)
        self.method = method
        self.pooling = pooling
        self.batch_size = batch_size
        self.k = k
        self.temperature = temperature
        self.epochs = epochs
        self._features: Any = None
        self._head: Any = None

    @property
    def log_names(self) -> tuple[str, ...]:
        """Tuple of str, what it adds to the logs of some epochs."""
        prefix = f"probe_{self.method}"
        return f"{prefix}_accuracy", f"{prefix}_top5_accuracy", "probe_seconds"

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        count, last = epoch + 1, self.epochs or self.params["epochs"]
        if count % self.every and count not in (1, last):
            return
        start = time.perf_counter()
        accuracies = self.evaluate()
        values = (*accuracies, time.perf_counter() - start)
        if logs is not None:
            logs.update(zip(self.log_names, values, strict=True))

    def evaluate(self) -> tuple[float, float]:
        """Returns top-1 and top-5 accuracy of the model as it is now."""
        if self._features is None:
            encoder = getattr(self.model, "encoder", self.model)
            # made once: a new one would be traced again
            self._features = PooledFeatures(encoder, self.pooling)
        with averaged_weights(self.model):
            features, labels = self._extract(self.training)
            queries, wanted = self._extract(self.held_out)
        num_classes = int(max(labels.max(), wanted.max())) + 1
        if self.method == "knn":
            scores = knn_scores(
                features, labels, queries, num_classes, self.k, self.temperature
            )
        else:
            scores = self._linear_scores(features, labels, queries, num_classes)
        return top_accuracies(scores, wanted)

    def _linear_scores(self, features, labels, queries, num_classes):
        if self._head is None:
            count, width = features.shape
            self._head = LinearHead(width, count, num_classes)
        return self._head.scores(features, labels, queries)

    def _extract(self, images):
        if isinstance(images, tuple):
            images = _batches(*images, self.batch_size)
        return extract_features(self._features.predict_on_batch, images)


def _batches(images, labels, size):
    if len(images) != len(labels):
        raise ValueError(
            "Each image must have a label. "
            f"Received: {len(images)} images, {len(labels)} labels"
        )
    for first in range(0, len(images), size):
        rows = slice(first, first + size)
        yield np.asarray(images[rows]), np.asarray(labels[rows])
