"""Plot what a run logged, by epoch.

Run: python training/plot_history.py --run=runs/pretrain --out=history.png

Draws columns of the run's history.csv: by default the losses and accuracies.
"""

import keras_mae  # noqa: F401, first: it imports TensorFlow quietly

# isort: split
import dataclasses
import math
from pathlib import Path

from keras_mae.callbacks.history import read_history
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


def read_columns(run):
    """Returns the epochs, from 1, and the columns of a run's history.csv as floats."""
    path = Path(run, "history.csv")
    if not path.is_file():
        raise ValueError(f"--run must be a folder with a history.csv. Received: {run}")
    (_, *names), rows = read_history(path)
    if not rows:
        raise ValueError(f"{path} has no epoch yet")
    epochs, *columns = zip(*rows, strict=False)
    values = {
        name: [number(text) for text in texts]
        for name, texts in zip(names, columns, strict=False)
    }
    return [int(epoch) + 1 for epoch in epochs], values


def number(text):
    """Reads a number; NaN where there is none, as `CSVLogger`'s NA."""
    try:
        return float(text)
    except ValueError:
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
    epochs, columns = read_columns(config.run)
    picture = plot_history(epochs, choose(columns, config.columns))
    Path(config.out).parent.mkdir(parents=True, exist_ok=True)
    picture.save(config.out)
    print(f"Picture saved to {config.out}")


if __name__ == "__main__":
    run_script(main, PlotConfig, __doc__)
