"""Plot what a run logged, by epoch.

Run: python training/plot_history.py --run=runs/pretrain --out=history.png

Draws columns of the run's history.csv: by default the losses and accuracies.
"""

import keras_mae  # noqa: F401, first: it imports TensorFlow quietly

# isort: split
import csv
import dataclasses
import math
from pathlib import Path

from keras_mae.utils.flags import flag, run_script
from keras_mae.visualization.plots import ACCURACIES, plot_history


@dataclasses.dataclass
class PlotConfig:
    """Flags of this script."""

    run: str = flag("folder of a run: pretraining, fine-tuning or probing")
    columns: str | None = flag(
        "columns of history.csv, separated by commas; default: losses and accuracies",
        None,
    )
    out: str = flag("picture to write", "history.png")


def read_history(run):
    """Returns the epochs, from 1, and the columns of a run's history.csv as floats."""
    path = Path(run, "history.csv")
    if not path.is_file():
        raise ValueError(f"--run must be a folder with a history.csv. Received: {run}")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise ValueError(f"{path} has no epoch yet")
    columns = {
        name: [number(row[name]) for row in rows] for name in rows[0] if name != "epoch"
    }
    return [int(row["epoch"]) + 1 for row in rows], columns


def number(text):
    """Reads a number; NaN where there is none, as `CSVLogger`'s NA."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return math.nan


def choose(columns, asked):
    """Returns the columns to draw."""
    if asked is None:
        drawn = ("loss", *ACCURACIES)
        return {k: v for k, v in columns.items() if k.endswith(drawn)}
    missing = [name for name in asked.split(",") if name not in columns]
    if missing:
        raise ValueError(
            f"columns must be among {', '.join(columns)}. Received: {asked}"
        )
    return {name: columns[name] for name in asked.split(",")}


def main(config):
    """Writes the picture."""
    epochs, columns = read_history(config.run)
    picture = plot_history(epochs, choose(columns, config.columns))
    Path(config.out).parent.mkdir(parents=True, exist_ok=True)
    picture.save(config.out)
    print(f"Picture saved to {config.out}")


if __name__ == "__main__":
    run_script(main, PlotConfig, __doc__)
