"""How fast a run trains: images a second, waiting for data, MFU, time left."""

import time

import keras

from keras_mae.callbacks.updates import count_updates


class Throughput(keras.callbacks.Callback):
    """Adds a run's speed and learning rate to the logs of `fit`.

    Put it before callbacks that write logs down; the progress bar shows them as well:
    `images_per_second`; `data_wait`, the share of time spent waiting for the next
    batch; `mfu`, the share of `peak_flops` that the model's arithmetic takes;
    `learning_rate`; `hours_left` of the whole training. The first step of `fit`, which
    traces and compiles, is only counted where an epoch has no other.

    `epoch_seconds` leaves nothing out: it is the time since the last epoch's report, or
    since `fit` began, with first step, validation and whatever other callbacks did.

    With several steps per execution the device fetches its batches by itself, and
    `data_wait` is not known.

    Args:
        batch_size: Int, images an update, over all replicas.
        total_steps: Int, updates of the whole training.
        flops_per_image: Float, of a training step.
        peak_flops: Float, FLOP/s of all devices.

    Example:

    ```python
    callback = Throughput(64, total_steps=1000, flops_per_image=6e10, peak_flops=1e12)
    ```
    """

    def __init__(self, batch_size, total_steps, flops_per_image, peak_flops):
        super().__init__()
        self.batch_size = batch_size
        self.total_steps = total_steps
        self.flops_per_image = flops_per_image
        self.peak_flops = peak_flops

    def on_train_begin(self, logs=None):
        self._first = True
        self._reported = time.perf_counter()
        self._forget()
        self._timed = self.model.steps_per_execution == 1
        # an interrupted fit left the wrap in place
        wrapped = self.model.train_function == self._fetch_and_train
        if self._timed and not wrapped:
            self._train_function = self.model.train_function
            self.model.train_function = self._fetch_and_train

    def on_train_end(self, logs=None):
        if self._timed:
            self.model.train_function = self._train_function

    def _fetch_and_train(self, iterator):
        """Runs a step of Keras's on a batch that it waits for itself."""
        start = time.perf_counter()
        batch = next(iterator)
        self._waited += time.perf_counter() - start
        return self._train_function(iter([batch]))

    def _forget(self):
        """Begins a new measurement, of an epoch."""
        self._waited = self._seconds = 0.0
        self._steps = 0

    def on_epoch_begin(self, epoch, logs=None):
        self._forget()
        self._step = count_updates(self.model)
        self._last = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        step, now = count_updates(self.model), time.perf_counter()
        if self._first:
            self._first_steps, self._first_seconds = step - self._step, now - self._last
            self._first, self._waited = False, 0.0
        else:
            self._steps += step - self._step
            self._seconds += now - self._last
        self._step, self._last = step, now
        self._report(logs)

    def on_epoch_end(self, epoch, logs=None):
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
        logs["mfu"] = rate * self.flops_per_image / self.peak_flops
        if self._timed:
            logs["data_wait"] = self._waited / seconds
        left = self.total_steps - self._step
        logs["hours_left"] = left * self.batch_size / rate / 3600
