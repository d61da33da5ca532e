"""The output folder of a training run: its files, and checks before resuming."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

from keras_mae.callbacks.checkpoints import list_checkpoints
from keras_mae.callbacks.history import read_history, write_history
from keras_mae.preprocessing.pretrained_processor import CHECKPOINTS_NAME
from keras_mae.utils.files import PART_PREFIX, atomic_write
from keras_mae.utils.labels_file import LABELS_FILE, read_labels


def saved_flags(config, not_saved):
    """Returns the flags that describe a run, not how it was started, as a dict."""
    flags = dataclasses.asdict(config)
    return {name: flags[name] for name in flags if name not in not_saved}


def flag_of_run(model, name):
    """Returns a flag of the run that a folder or `.keras` file is of, or `None`."""
    try:
        return json.loads(_run_of(model).config.read_text()).get(name)
    except (OSError, ValueError, AttributeError):
        return None  # no run's


def class_names_of_run(model):
    """Returns the classes of the run that a path is of, as `flag_of_run`, or `None`."""
    labels = _run_of(model).labels
    # other models may have other names for the same classes
    is_run = flag_of_run(model, "dataset") is not None
    return read_labels(labels) if is_run and labels.is_file() else None


def _run_of(model):
    path = Path(os.path.abspath(os.path.expanduser(model)))
    folder = path.parent if path.suffix == ".keras" else path
    return RunFolder(folder.parent if folder.name == CHECKPOINTS_NAME else folder)


class RunFolder:
    """Paths of a run's files, and checks of what an earlier run left there."""

    def __init__(self, path):
        self.path = Path(path)
        self.model = self.path / "model.keras"  # the newest
        # a classifier's best epoch; its score is in best.json
        self.best = self.path / "best.keras"
        self.checkpoints = self.path / CHECKPOINTS_NAME
        self.config = self.path / "config.json"  # the flags
        self.data = self.path / "data.json"  # the number of images
        self.labels = self.path / LABELS_FILE  # a classifier's class names
        self.history = self.path / "history.csv"
        self.logs = self.path / "logs"
        self.pictures = self.logs / "pictures"

    def check_free(self, resume=False, overwrite=False):
        """Raises `ValueError` if a new run can't begin here, with these flags."""
        if not self._has_weights():
            others = [self.history]
            if flag_of_run(self.path, "dataset") is None:
                others.append(self.config)  # another library's
            for path in others:
                if path.exists():  # maybe somebody else's
                    raise ValueError(
                        f"{path} lies in a folder without a run: move it away, or give "
                        "another --output"
                    )
        elif resume:
            raise ValueError(
                f"{self.path} holds a model, but no checkpoint to resume from: give "
                "--overwrite instead, or another --output"
            )
        elif not overwrite:
            raise ValueError(
                f"{self.path} holds a run already: give --resume, --overwrite or "
                "another --output"
            )

    def _has_weights(self):
        models = self.model.exists() or self.best.exists()
        return models or bool(list_checkpoints(self.checkpoints))

    def newest_checkpoint(self):
        """Returns the `Path` of the newest checkpoint, or `None`."""
        return next(reversed(list_checkpoints(self.checkpoints).values()), None)

    def model_is_newest(self):
        """Whether `model.keras` was written with the newest checkpoint, or after it."""
        newest = self.newest_checkpoint()
        if newest is None or not self.model.exists():
            return False
        return self.model.stat().st_mtime_ns >= newest.stat().st_mtime_ns

    def check_config(self, config, may_differ, data):
        """Raises unless the run was started with the same flags, on the same data."""
        try:
            saved = json.loads(self.config.read_text())
            seen = json.loads(self.data.read_text())
        except (OSError, ValueError) as error:
            raise ValueError(f"The run cannot be resumed: {error}") from error
        if seen != data:
            raise ValueError(
                f"Cannot resume {self.path}: it was trained on other data, {seen}. "
                f"Received: {data}"
            )
        asked = dataclasses.asdict(config)
        differing = [
            f"--{name}={asked[name]} ({value} in the run)"
            for name, value in sorted(saved.items())
            if name in asked and name not in may_differ and asked[name] != value
        ]
        if differing:
            raise ValueError(
                f"Cannot resume {self.path} with other flags. "
                f"Received: {', '.join(differing)}. To go on from its weights, with a "
                f"new schedule: --model={self.path} --output=OTHER"
            )

    def clear(self):
        """Deletes an older run, weights first: new flags must not meet old weights."""
        if self._has_weights():
            for path in (self.model, self.best, self.best.with_suffix(".json")):
                path.unlink(missing_ok=True)
            # without weights these may be somebody else's files: kept
            shutil.rmtree(self.checkpoints, ignore_errors=True)
            shutil.rmtree(self.logs, ignore_errors=True)
            self.history.unlink(missing_ok=True)

    def rewind_history(self, epoch):
        """Drops the rows of `history.csv` from `epoch` on: they are trained again."""
        header, rows = read_history(self.history)
        rows = [row for row in rows if int(row[0]) < epoch]
        if rows:
            write_history(self.history, header, rows)
        else:
            self.history.unlink(missing_ok=True)

    def prepare(self, flags, data):
        """Creates the folders, deletes partial files of a kill, and saves the flags."""
        for folder in (self.checkpoints, self.pictures):
            folder.mkdir(parents=True, exist_ok=True)
        for folder in (self.path, self.checkpoints):
            for part in folder.glob(f"{PART_PREFIX}*"):
                part.unlink()
        with atomic_write(self.data) as part:
            part.write_text(json.dumps(data) + "\n")
        with atomic_write(self.config) as part:
            part.write_text(json.dumps(flags, indent=2) + "\n")
