"""Save and restore training checkpoints, atomically, and keep the last few.

A checkpoint is a file `step-000001200.keras`, named by its optimizer iterations. It has
all that the next step depends on: weights, optimizer, seeds, and running metrics. The
position in the data is the step itself: the pipelines of `keras_mae.data` start there.
"""

import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_mae.callbacks.iterations import optimizer_iterations
from keras_mae.models.fingerprint import fingerprint
from keras_mae.optimizers.averaging import (
    averaged_weights,
    averaging_optimizer,
    keep_own_weights,
    release_own_weights,
)
from keras_mae.utils.files import atomic_write
from keras_mae.utils.typing import Logs, PathLike

# exit code of a run that was stopped and can be resumed (sysexits.h: try again)
EX_TEMPFAIL = 75
_PATTERN = "step-{:09d}.keras"


def list_checkpoints(folder):
    """Returns the checkpoints of a folder as a dict from step to path, oldest first."""
    found = {}
    for path in Path(folder).glob("step-*.keras"):
        step = path.stem.removeprefix("step-")
        if step.isdigit():
            found[int(step)] = path
    return dict(sorted(found.items()))


def save_checkpoint(model, folder, keep=3):
    """Saves a compiled model, removes all but the last `keep`; returns the path."""
    path = Path(folder, _PATTERN.format(optimizer_iterations(model)))
    with atomic_write(path) as part:
        model.save(part)
    for old in list(list_checkpoints(folder).values())[:-keep]:
        old.unlink()
    return path


def save_newest(model, folder, model_file, keep=3):
    """Saves a checkpoint, and as `model_file` the same, or the averaged weights."""
    path = save_checkpoint(model, folder, keep)
    if averaging_optimizer(model) is None:
        link_or_copy(path, model_file)
    else:
        with averaged_weights(model), atomic_write(model_file) as part:
            model.save(part)
    return path


def restore_checkpoint(model, path):
    """Loads a checkpoint into a compiled model of the same config; returns the step."""
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    try:
        model.load_weights(path)
    except (tf.errors.UnavailableError, tf.errors.AbortedError):
        raise  # another worker is gone; the file is fine
    except Exception as error:  # zip, HDF5 and Keras each raise their own
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path} can't be loaded into this model; delete it to resume from an "
            f"older one. Received: {reason}"
        ) from error
    step = optimizer_iterations(model)
    if path != path.with_name(_PATTERN.format(step)):
        raise ValueError(f"{path} must hold the step in its name. Received: {step}")
    return step


def check_disk_space(folder, size, count):
    """Raises `ValueError` if a disk lacks space for `count` files of `size` bytes."""
    needed, free = count * size, shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(
            f"{folder} needs {needed / 2**20:,.0f} MiB for {count} more checkpoints. "
            f"Received: a disk with {free / 2**20:,.0f} MiB free"
        )


def link_or_copy(path, copy):
    """Makes `copy`, on the same disk, the same file as `path`, atomically."""
    with atomic_write(copy) as part:
        part.unlink(missing_ok=True)
        try:
            os.link(path, part)
        except OSError:  # network folders may have no links
            shutil.copyfile(path, part)


class Checkpoints(keras.callbacks.Callback):
    """Saves checkpoints during `fit`, at its end, and on SIGTERM.

    Replaces `keras.callbacks.ModelCheckpoint` and `BackupAndRestore`: it saves by step
    or time, and keeps the last few. It restores nothing: to resume, load the newest one
    by `keras.models.load_model` and go on with `fit`, whose `initial_epoch` is the
    optimizer's `iterations` divided by the updates of an epoch.

    On SIGTERM it finishes the step, saves, and raises `SystemExit` with code 75; not
    where `fit` runs outside of the main thread, which alone may catch signals. A failed
    save during training is printed, and tried again at the next interval; older
    checkpoints stay. One that fails at the end of `fit` is an `OSError`.

    Where the optimizer averages weights (`use_ema`), checkpoints hold both, and the
    weights of `model_file` are the averages. `fit` then ends with the weights as
    trained, not overwritten by their averages: it may go on. Where it averages none,
    `model_file` ends with what callbacks before this one restore when training ends,
    such as `EarlyStopping`; the last checkpoint keeps the weights as trained.

    Args:
        folder: Path of an existing folder, without checkpoints of later steps than the
            model's: they would count as the newest.
        model_file: Path that always holds the newest model, say `model.keras`.
        every_steps: Int, updates between two checkpoints, or `None`.
        every_minutes: Float, minutes between two checkpoints, or `None`.
        keep: Int, how many stay.
        steps_per_epoch: Int, to resume within an epoch; the metrics of a model of this
            package then include the steps before, if `compile` was given them as
            objects, not as strings.
        write: Whether this process writes files; of several workers only one does.
        keep_every: Int, epochs between two checkpoints that are never removed,
            `epoch-0100.keras` and so on in `folder`, or `None`.

    Raises:
        ValueError: If an interval or `keep` is not positive; from `fit`, if `folder`
            has checkpoints of later steps.

    Example:

    ```python
    callback = Checkpoints("run/checkpoints", "run/model.keras", every_minutes=10)
    ```
    """

    def __init__(
        self,
        folder: PathLike,
        model_file: PathLike,
        every_steps: int | None = None,
        every_minutes: float | None = None,
        keep: int = 3,
        steps_per_epoch: int | None = None,
        write: bool = True,
        keep_every: int | None = None,
    ) -> None:
        super().__init__()
        limits = {
            "every_steps": every_steps,
            "every_minutes": every_minutes,
            "keep": keep,
            "keep_every": keep_every,
        }
        for name, value in limits.items():
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be positive. Received: {value}")
        self.folder = Path(folder)
        self.model_file = Path(model_file)
        self.every_steps = every_steps
        self.every_minutes = every_minutes
        self.keep = keep
        self.steps_per_epoch = steps_per_epoch
        self.write = write
        self.keep_every = keep_every
        self._saved_step: int | None = None
        self._tried_step: int | None = None  # after which an interval begins
        self._trained: str | None = None
        self._former_handler: Any = None
        self._terminated = False
        self._only_in_fit = False

    def catch_sigterm(self) -> None:
        """Makes SIGTERM save and stop, until `release_sigterm`; in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            return  # Python lets no other thread do so
        self._former_handler = signal.signal(signal.SIGTERM, self._on_sigterm)

    def release_sigterm(self) -> None:
        """Restores the former handler of SIGTERM."""
        if self._former_handler is not None:
            signal.signal(signal.SIGTERM, self._former_handler)
            self._former_handler = None

    def _on_sigterm(self, number, frame):
        if self._only_in_fit and not self._is_in_fit(frame):
            # an exception ended fit, of which callbacks are not told
            self.release_sigterm()
            signal.raise_signal(number)
            return
        self._terminated = True

    def _is_in_fit(self, frame):
        while frame is not None:
            if frame.f_code.co_name == "fit" and frame.f_locals.get("self") is (
                self.model
            ):
                return True
            frame = frame.f_back
        return False

    def on_train_begin(self, logs: Logs = None) -> None:
        step = optimizer_iterations(self.model)
        self._check_folder(step)
        if self._former_handler is None:
            self.catch_sigterm()
            self._only_in_fit = True
        keep_own_weights(self.model)
        self._tried_at = time.monotonic()
        if self._saved_step is None:
            self._saved_step = self._tried_step = step
        self._running_metrics = self._trained = None
        if self.steps_per_epoch and step % self.steps_per_epoch:
            # fit resets the metrics, which must include the epoch's steps before
            self._running_metrics = getattr(self.model, "running_metrics", None)

    def _check_folder(self, step):
        """Raises `ValueError` if what is saved would not be the newest checkpoint."""
        found = list_checkpoints(self.folder)
        if self.write and max(found, default=step) > step:
            raise ValueError(
                f"{self.folder} must have no checkpoint after step {step}, at which "
                "this training begins: delete them, or give another folder. Received: "
                f"{found[max(found)].name}"
            )

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        if self._running_metrics is not None:
            self.model.running_metrics = self._running_metrics
            self._running_metrics = None

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        step = optimizer_iterations(self.model)
        if not self.steps_per_epoch or step % self.steps_per_epoch:
            self._save_if_due(step)
        # else on_epoch_end follows, before which loggers write the epoch

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        step = optimizer_iterations(self.model)
        # before a signal ends the run: later there is no such file to keep
        if self.keep_every and (epoch + 1) % self.keep_every == 0:
            if step != self._saved_step:
                self.try_to_save(step)
            if self.write:
                self._keep_milestone(step, epoch + 1)
        epochs = (self.params or {}).get("epochs")
        if self.model.stop_training or epoch + 1 == epochs:
            self._save_trained(step)
        elif self.steps_per_epoch:
            self._save_if_due(step)

    def _save_trained(self, step):
        """Saves before others' `on_train_end`, which may restore other weights."""
        if step != self._saved_step:
            self.save(step)
        if self.write and averaging_optimizer(self.model) is None:
            # takes less than saving or keeping them
            self._trained = fingerprint(self.model.weights)

    def _keep_milestone(self, step, number):
        path = self.folder / f"epoch-{number:04d}.keras"
        try:
            link_or_copy(self.folder / _PATTERN.format(step), path)
        except OSError as error:  # as after a failed save, printed before
            print(f"Cannot save {path}: {error}", file=sys.stderr, flush=True)

    def _save_if_due(self, step):
        # other workers go on: the one that writes may need them to finish its step
        if self._terminated and self.write:
            if step == self._saved_step or self.try_to_save(step):
                print(f"SIGTERM: saved step {step}", file=sys.stderr, flush=True)
            raise SystemExit(EX_TEMPFAIL)
        minutes = (time.monotonic() - self._tried_at) / 60
        if (self.every_steps and step - self._tried_step >= self.every_steps) or (
            self.every_minutes and minutes >= self.every_minutes
        ):
            self.try_to_save(step)

    def try_to_save(self, step: int) -> bool:
        """Saves step `step`, or prints the error; says whether it saved."""
        try:
            self.save(step)
        except OSError as error:
            print(f"Cannot save step {step}: {error}", file=sys.stderr, flush=True)
            return False
        return True

    def save(self, step: int) -> None:
        """Saves the checkpoint of step `step`, if this process writes files."""
        try:
            if self.write:
                save_newest(self.model, self.folder, self.model_file, self.keep)
            self._saved_step = step
        finally:
            self._tried_step, self._tried_at = step, time.monotonic()

    def on_train_end(self, logs: Logs = None) -> None:
        release_own_weights(self.model)
        step = optimizer_iterations(self.model)
        if step != self._saved_step:
            self.save(step)
        elif self._trained and self._trained != fingerprint(self.model.weights):
            with atomic_write(self.model_file) as part:
                self.model.save(part)
        if self._only_in_fit:
            self.release_sigterm()
        if self._terminated and self.write:
            # a signal while it was saved: another `fit` may follow
            print(f"SIGTERM: saved step {step}", file=sys.stderr, flush=True)
            raise SystemExit(EX_TEMPFAIL)


class BestCheckpoint(keras.callbacks.Callback):
    """Saves the model (averaged weights, if any) of the highest score, kept in JSON."""

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
            with averaged_weights(self.model), atomic_write(self.path) as part:
                self.model.save(part)
            self.best = score
            with atomic_write(self.score_path) as part:
                part.write_text(json.dumps({self.monitor: score, "epoch": epoch + 1}))
        except OSError as error:
            line = f"Cannot save the best model, of epoch {epoch + 1}: {error}"
            print(line, file=sys.stderr, flush=True)
