"""Callback that logs throughput: images a second, data wait, MFU, time left."""

import time
from collections.abc import Callable

import keras

from keras_mae.callbacks.iterations import optimizer_iterations
from keras_mae.utils.typing import Logs


class Throughput(keras.callbacks.Callback):
    """Adds throughput and learning rate to the logs of `fit`.

    Put it before callbacks that write the logs. It adds `images_per_second`;
    `data_wait`, the share of time spent waiting for the next batch (not with several
    steps per execution, nor on PyTorch, whose steps are given it); `mfu`, model FLOPs
    utilization: the share of `peak_flops` that the model uses; `learning_rate`; and
    `hours_left` of the whole training. The first step of `fit`, which traces and
    compiles, only counts where an epoch has no other.

    `epoch_seconds` includes everything since the last epoch's end, or the begin of
    `fit`: first step, validation and other callbacks.

    Args:
        batch_size: Int, images an update, over all replicas.
        total_steps: Int, updates of the whole training.
        flops_per_image: Float, of a training step, or a function that returns it,
            where it changes.
        peak_flops: Float, FLOP/s of all devices.

    Example:

    ```python
    callback = Throughput(64, total_steps=1000, flops_per_image=6e10, peak_flops=1e12)
    ```
    """

    def __init__(
        self,
        batch_size: int,
        total_steps: int,
        flops_per_image: float | Callable[[], float],
        peak_flops: float,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.total_steps = total_steps
        self.flops_per_image = flops_per_image
        self.peak_flops = peak_flops

    def on_train_begin(self, logs: Logs = None) -> None:
        self._first = True
        self._reported = time.perf_counter()
        self._reset()
        takes_iterator = keras.backend.backend() != "torch"
        self._timed = takes_iterator and self.model.steps_per_execution == 1

    def on_train_end(self, logs: Logs = None) -> None:
        if self._is_wrapped():
            self.model.train_function = self._train_function

    def _is_wrapped(self):
        return self.model.train_function == self._fetch_and_train

    def _fetch_and_train(self, *arguments):
        """Runs a train function on one batch, and times the wait for it."""
        *state, iterator = arguments  # JAX's takes the variables' values as well
        start = time.perf_counter()
        batch = next(iterator)
        self._waited += time.perf_counter() - start
        return self._train_function(*state, iter([batch]))

    def _reset(self):
        """Starts the measurement of an epoch."""
        self._waited = self._seconds = 0.0
        self._steps = 0

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        self._reset()
        # an interrupted fit leaves the wrapper; a new mask ratio makes a new function
        if self._timed and not self._is_wrapped():
            self._train_function = self.model.train_function
            self.model.train_function = self._fetch_and_train
            self._first = True  # its first step traces and compiles
        self._step = optimizer_iterations(self.model)
        self._last = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        step, now = optimizer_iterations(self.model), time.perf_counter()
        if self._first:
            self._first_steps, self._first_seconds = step - self._step, now - self._last
            self._first, self._waited = False, 0.0
        else:
            self._steps += step - self._step
            self._seconds += now - self._last
        self._step, self._last = step, now
        self._report({} if logs is None else logs)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        logs = {} if logs is None else logs
        self._report(logs)
        now = time.perf_counter()
        logs["epoch_seconds"], self._reported = now - self._reported, now

    def _report(self, logs):
        logs["learning_rate"] = float(self.model.optimizer.learning_rate)
        steps, seconds = self._steps, self._seconds
        if not steps:
            steps, seconds = self._first_steps, self._first_seconds
        rate = self.batch_size * steps / seconds
        logs["images_per_second"] = rate
        flops = self.flops_per_image
        flops = flops() if callable(flops) else flops
        logs["mfu"] = rate * flops / self.peak_flops
        if self._timed:
            logs["data_wait"] = self._waited / seconds
        if rate:  # none where dynamic loss scaling has skipped every update
            left = self.total_steps - self._step
            logs["hours_left"] = left * self.batch_size / rate / 3600
