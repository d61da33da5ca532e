"""Results that a script adds to, in a JSON file of one set of settings."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from keras_mae.utils.files import atomic_write


def read_results(path: Path, settings: dict[str, Any]) -> list[list[Any]]:
    """Returns the rows of a file, or none; raises for those of other settings."""
    if not path.exists():
        return []
    content = json.loads(path.read_text())
    if content["settings"] != settings:
        raise ValueError(
            f"{path} has results of other settings: {content['settings']}. "
            f"Received: {settings}; choose another --output"
        )
    return content["values"]


def write_results(path: Path, settings: dict[str, Any], rows: list[list[Any]]) -> None:
    with atomic_write(path) as part:
        part.write_text(json.dumps({"settings": settings, "values": rows}) + "\n")


def format_percent(values: Any) -> str:
    """Formats mean and standard deviation of fractions, in percent."""
    percent = 100 * np.array(values)
    return f"{percent.mean():.1f} ± {percent.std():.1f}"
