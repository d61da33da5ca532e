"""The folder of a run: whether it may be written, and what it was made with."""

import bisect
import csv
import dataclasses
import json
import shutil
from pathlib import Path

from keras_mae.callbacks.checkpoints import list_checkpoints
from keras_mae.utils.files import PART_PREFIX, atomic_write


class RunFolder:
    """The files that a training leaves, by name.

    `model.keras`, the newest checkpoint; `best.keras`, a classifier's best epoch, with
    its score in `best.json`; `checkpoints/`; `config.json`, the flags; `data.json`,
    how much data there was; `history.csv`; `logs/` with TensorBoard's events and
    `logs/pictures/`.

    Args:
        path: Path of the folder.

    Example:

    ```python
    assert RunFolder("runs/photos").model == Path("runs/photos/model.keras")
    ```
    """

    def __init__(self, path):
        self.path = Path(path)
        self.model = self.path / "model.keras"
        self.best = self.path / "best.keras"
        self.checkpoints = self.path / "checkpoints"
        self.config = self.path / "config.json"
        self.data = self.path / "data.json"
        self.history = self.path / "history.csv"
        self.logs = self.path / "logs"
        self.pictures = self.logs / "pictures"

    def check_free(self):
        """Raises `ValueError` if there is a run already."""
        if self._is_taken():
            raise ValueError(
                f"{self.path} holds a run already: give --resume, --overwrite or "
                "another --output"
            )

    def _is_taken(self):
        """Whether a run left weights here, be it its best epoch alone."""
        models = self.model.exists() or self.best.exists()
        return models or bool(list_checkpoints(self.checkpoints))

    def newest_checkpoint(self):
        """Returns the `Path` of the newest checkpoint, or `None`."""
        return next(reversed(list_checkpoints(self.checkpoints).values()), None)

    def check_config(self, config, may_differ, data):
        """Raises unless the run here was made with the same flags, on the same data.

        Args:
            config: A dataclass of flags.
            may_differ: Names of those that another value does no harm to.
            data: Dict of what is known of the data.

        Raises:
            ValueError: With each flag that differs.
        """
        try:
            saved = json.loads(self.config.read_text())
            seen = json.loads(self.data.read_text())
        except (OSError, ValueError) as error:
            raise ValueError(f"The run can't be resumed: {error}") from error
        if seen != data:
            raise ValueError(
                f"{self.path} is a run on other data, which can't be resumed: {seen}. "
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
                f"{self.path} is a run of another configuration, which can't be "
                f"resumed. Received: {', '.join(differing)}"
            )

    def clear(self):
        """Removes an older run: its weights first, so that no new settings meet it."""
        if self._is_taken():
            for path in (self.model, self.best, self.best.with_suffix(".json")):
                path.unlink(missing_ok=True)
            # else these are somebody else's files
            shutil.rmtree(self.checkpoints, ignore_errors=True)
            shutil.rmtree(self.logs, ignore_errors=True)
            self.history.unlink(missing_ok=True)

    def rewind_history(self, epoch):
        """Drops the rows of epochs that will be trained again, from `epoch` on."""
        if not self.history.exists():
            return
        with open(self.history, newline="") as file:
            header, *rows = [*csv.reader(file)] or [[]]
        rows = [row for row in rows if row and int(row[0]) < epoch]
        if rows and "epoch_seconds" not in header:
            # a run begun by 0.1: columns come in the order of their names
            place = bisect.bisect(header[1:], "epoch_seconds") + 1
            for row, value in [(header, "epoch_seconds"), *((row, "") for row in rows)]:
                row.insert(place, value)
        with atomic_write(self.history) as part, open(part, "w", newline="") as file:
            csv.writer(file).writerows([header, *rows] if rows else [])

    def prepare(self, config, leave_out, data):
        """Makes the folders, sweeps what a kill left, and writes the flags down.

        Args:
            config: A dataclass of flags.
            leave_out: Names of those that say how to begin, not what to train.
            data: Dict of what is known of the data.
        """
        for folder in (self.checkpoints, self.pictures):
            folder.mkdir(parents=True, exist_ok=True)
        for folder in (self.path, self.checkpoints):
            for part in folder.glob(f"{PART_PREFIX}*"):
                part.unlink()
        with atomic_write(self.data) as part:
            part.write_text(json.dumps(data) + "\n")
        flags = dataclasses.asdict(config)
        flags = {name: flags[name] for name in flags if name not in leave_out}
        with atomic_write(self.config) as part:
            part.write_text(json.dumps(flags, indent=2) + "\n")
