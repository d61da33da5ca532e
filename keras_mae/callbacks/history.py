"""The CSV file of a run, with columns that only some epochs fill."""

import csv
from pathlib import Path

import keras


class RunHistory(keras.callbacks.CSVLogger):
    """Appends a row an epoch; a column that an epoch does not log is empty there.

    `sometimes` names columns that not every epoch logs. A file that is there keeps its
    columns.
    """

    def __init__(self, path, sometimes=()):
        super().__init__(path, append=True)
        self.path = Path(path)
        self.sometimes = tuple(sometimes)
        self._columns = ()

    def on_train_begin(self, logs=None):
        header = []
        if self.path.exists():
            with open(self.path, newline="") as file:
                header = next(csv.reader(file), [])
        self._columns = (*self.sometimes, *header[1:])
        super().on_train_begin(logs)

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(
            epoch, {**dict.fromkeys(self._columns, ""), **(logs or {})}
        )
