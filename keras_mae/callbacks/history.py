"""The CSV file of a run, with columns that only some epochs fill."""

import bisect
import csv
from pathlib import Path

import keras

from keras_mae.utils.files import atomic_write


def read_history(path):
    """Returns the header and the rows of a history, which need not exist."""
    rows = []
    if path.exists():
        with open(path, newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    header, *rows = rows or [["epoch"]]
    # a full disk may have cut a row off
    return header, [row + [""] * (len(header) - len(row)) for row in rows]


def write_history(path, header, rows):
    """Writes a history anew, atomically."""
    with atomic_write(path) as part, open(part, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def _add_columns(path, names):
    """Adds the columns that a history lacks, empty in its rows; returns its header."""
    header, rows = read_history(path)
    missing = sorted(set(names) - set(header))
    for name in missing:
        # columns come in the order of their names
        place = bisect.bisect(header[1:], name) + 1
        for row, value in [(header, name), *((row, "") for row in rows)]:
            row.insert(place, value)
    if missing:
        write_history(path, header, rows)
    return header


class RunHistory(keras.callbacks.CSVLogger):
    """Appends a row an epoch to a CSV file; columns that it does not log are empty."""

    def __init__(self, path, sometimes=()):
        super().__init__(path, append=True)
        self.path = Path(path)
        # columns that are there from the beginning
        self.sometimes = tuple(sometimes)

    def on_epoch_end(self, epoch, logs=None):
        logs = logs or {}
        if self.keys is None or not set(logs) <= set(self.keys):
            self._open({*self.sometimes, *logs})
        super().on_epoch_end(epoch, {**dict.fromkeys(self.keys, ""), **logs})

    def _open(self, names):
        """Opens the file behind a header that has these names."""
        self.keys = None  # a full disk may end this: the next epoch tries again
        self.csv_file.close()
        header = _add_columns(self.path, names)
        self.on_train_begin()
        self.keys = header[1:]
