"""Checkpoints of a run: whole at every instant, the last few kept, found again.

A checkpoint is a `.keras` file `step-000001200.keras`, named by the updates it holds.
It has all that the next step depends on: weights, optimizer, step, the state of the
random seeds and the running means of loss and metrics. The position in the data is the
step itself, from which the pipelines of `keras_mae.data` start.
"""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_mae.callbacks.updates import count_updates
from keras_mae.utils.files import replacing

# the exit code of a run that was told to stop, and can go on (sysexits: "try again")
EXIT_TRY_AGAIN = 75
_PATTERN = "step-{:09d}.keras"


def list_checkpoints(folder):
    """Lists the checkpoints of a folder.

    Args:
        folder: Path.

    Returns:
        A dict from step to `Path`, the oldest first.

    Example:

    ```python
    assert list_checkpoints("no-such-folder") == {}
    ```
    """
    found = {}
    for path in Path(folder).glob("step-*.keras"):
        step = path.stem.removeprefix("step-")
        if step.isdigit():
            found[int(step)] = path
    return dict(sorted(found.items()))


def save_checkpoint(model, folder, keep=3):
    """Saves a compiled model under its step, and removes the oldest checkpoints.

    Args:
        model: A compiled Keras model.
        folder: Path of an existing folder.
        keep: Int, how many checkpoints stay.

    Returns:
        The `Path` of the checkpoint.

    Raises:
        OSError: If it can't be written; older ones are untouched.

    Example:

    ```python
    import tempfile

    model = keras_mae.MAEPretrainer.from_preset("mae_tiny")
    model.compile(optimizer=keras_mae.pretraining_optimizer(1e-3))
    with tempfile.TemporaryDirectory() as folder:
        path = save_checkpoint(model, folder)
        assert restore_checkpoint(model, path) == 0
    ```
    """
    path = Path(folder, _PATTERN.format(count_updates(model)))
    with replacing(path) as part:
        model.save(part)
    for old in list(list_checkpoints(folder).values())[:-keep]:
        old.unlink()
    return path


def restore_checkpoint(model, path):
    """Fills a compiled model of the same configuration from a checkpoint.

    Args:
        model: A compiled Keras model.
        path: Path of a checkpoint.

    Returns:
        Int, the step at which training goes on.

    Raises:
        ValueError: If the file is damaged or of another model.

    Example: see `save_checkpoint`.
    """
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    try:
        model.load_weights(path)
    except (tf.errors.UnavailableError, tf.errors.AbortedError):
        raise  # another worker is gone, and the file as it was
    except Exception as error:  # zip, HDF5 and Keras each raise their own
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path} can't be read into this model; delete it to go on from an older "
            f"one. Received: {reason}"
        ) from error
    step = count_updates(model)
    if path != path.with_name(_PATTERN.format(step)):
        raise ValueError(f"{path} should hold the step of its name. Received: {step}")
    return step


def check_space(folder, size, count):
    """Checks that a disk holds the checkpoints to come.

    Args:
        folder: Path of an existing folder.
        size: Int, bytes of a checkpoint.
        count: Int, how many more there will be, the one being written included.

    Raises:
        ValueError: If there is too little space.

    Example:

    ```python
    check_space(".", size=1000, count=4)
    ```
    """
    needed, free = count * size, shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(
            f"{folder} needs {needed / 2**20:,.0f} MiB for {count} checkpoints more. "
            f"Received: a disk with {free / 2**20:,.0f} MiB left"
        )


def place_copy(path, copy):
    """Makes `copy` the same file as `path`, in one step.

    Args:
        path: Path of a file.
        copy: Path to replace, on the same disk.

    Example:

    ```python
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "a").write_text("whole")
        place_copy(Path(folder, "a"), Path(folder, "b"))
        assert Path(folder, "b").read_text() == "whole"
    ```
    """
    with replacing(copy) as part:
        part.unlink(missing_ok=True)
        try:
            os.link(path, part)
        except OSError:  # network folders may have no links
            shutil.copyfile(path, part)


class Checkpoints(keras.callbacks.Callback):
    """Saves checkpoints while `fit` runs, at its end, and when told to stop.

    A run that receives SIGTERM finishes its step, saves, and raises `SystemExit` with
    code 75. A save that fails half-way through a training is reported, and tried again
    at the next interval; older checkpoints stay.

    Args:
        folder: Path of an existing folder.
        model_file: Path that always holds the newest checkpoint, say `model.keras`.
        every_steps: Int, updates between two checkpoints, or `None`.
        every_minutes: Float, minutes between two checkpoints, or `None`.
        keep: Int, how many stay.
        steps_per_epoch: Int, by which an epoch is known that goes on in the middle; its
            means then count the steps before.
        write: Whether this process writes; one of several workers does.

    Raises:
        ValueError: If an interval or `keep` is not positive.

    Example:

    ```python
    callback = Checkpoints("run/checkpoints", "run/model.keras", every_minutes=10)
    ```
    """

    def __init__(
        self,
        folder,
        model_file,
        every_steps=None,
        every_minutes=None,
        keep=3,
        steps_per_epoch=None,
        write=True,
    ):
        super().__init__()
        limits = {"every_steps": every_steps, "every_minutes": every_minutes}
        for name, value in {**limits, "keep": keep}.items():
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be positive. Received: {value}")
        self.folder = Path(folder)
        self.model_file = Path(model_file)
        self.every_steps = every_steps
        self.every_minutes = every_minutes
        self.keep = keep
        self.steps_per_epoch = steps_per_epoch
        self.write = write
        self._saved_step = None
        self._older_handler = None
        self._terminated = False

    def listen(self):
        """Takes SIGTERM for a wish to save and stop, from now to `stop_listening`."""
        self._older_handler = signal.signal(signal.SIGTERM, self._note_signal)

    def stop_listening(self):
        """Gives SIGTERM back to whoever had it."""
        if self._older_handler is not None:
            signal.signal(signal.SIGTERM, self._older_handler)
            self._older_handler = None

    def _note_signal(self, number, frame):
        self._terminated = True

    def on_train_begin(self, logs=None):
        if self._older_handler is None:
            self.listen()
        self._saved_at = time.monotonic()
        step = count_updates(self.model)
        if self._saved_step is None:
            self._saved_step = step
        self._running_metrics = None
        if self.steps_per_epoch and step % self.steps_per_epoch:
            # fit resets the running means, which an epoch begun before needs
            self._running_metrics = self.model.running_metrics

    def on_epoch_begin(self, epoch, logs=None):
        if self._running_metrics is not None:
            self.model.running_metrics = self._running_metrics
            self._running_metrics = None

    def on_train_batch_end(self, batch, logs=None):
        step = count_updates(self.model)
        if not self.steps_per_epoch or step % self.steps_per_epoch:
            self._save_if_due(step)
        # else the end of the epoch follows: its row must be written before

    def on_epoch_end(self, epoch, logs=None):
        if self.steps_per_epoch:
            self._save_if_due(count_updates(self.model))

    def _save_if_due(self, step):
        # other workers go on, for the one that writes may need them to end its step
        if self._terminated and self.write:
            if self.try_to_save(step):
                print(f"Told to stop: saved step {step}", file=sys.stderr, flush=True)
            raise SystemExit(EXIT_TRY_AGAIN)
        minutes = (time.monotonic() - self._saved_at) / 60
        if (self.every_steps and step - self._saved_step >= self.every_steps) or (
            self.every_minutes and minutes >= self.every_minutes
        ):
            self.try_to_save(step)

    def try_to_save(self, step):
        """Saves, or says why not.

        Args:
            step: Int, the updates so far.

        Returns:
            Bool, whether it is saved.
        """
        try:
            self.save(step)
        except OSError as error:
            print(f"Step {step} is not saved: {error}", file=sys.stderr, flush=True)
            self._saved_step, self._saved_at = step, time.monotonic()
            return False
        return True

    def save(self, step):
        """Saves the model as the checkpoint of this step, if this process writes."""
        if self.write:
            path = save_checkpoint(self.model, self.folder, self.keep)
            place_copy(path, self.model_file)
        self._saved_step, self._saved_at = step, time.monotonic()

    def on_train_end(self, logs=None):
        self.stop_listening()
        step = count_updates(self.model)
        if step != self._saved_step:
            self.save(step)


class KeepBest(keras.callbacks.Callback):
    """Keeps the model of the epoch with the highest score so far.

    The score lies beside it in a small file, from which a resumed run reads it.

    Args:
        path: Path of the model, say `best.keras`.
        monitor: Name of the score in the logs, the higher the better.

    Example:

    ```python
    callback = KeepBest("run/best.keras", monitor="val_top1")
    ```
    """

    def __init__(self, path, monitor):
        super().__init__()
        self.path = Path(path)
        self.score_path = self.path.with_suffix(".json")
        self.monitor = monitor
        self.best = None

    def on_train_begin(self, logs=None):
        if self.best is None and self.path.exists() and self.score_path.exists():
            self.best = json.loads(self.score_path.read_text())[self.monitor]

    def on_epoch_end(self, epoch, logs=None):
        score = float(np.mean(logs[self.monitor]))
        if self.best is not None and score <= self.best:
            return
        try:
            with replacing(self.path) as part:
                self.model.save(part)
            with replacing(self.score_path) as part:
                part.write_text(json.dumps({self.monitor: score, "epoch": epoch + 1}))
        except OSError as error:
            line = f"Epoch {epoch + 1} is not kept: {error}"
            print(line, file=sys.stderr, flush=True)
        self.best = score
