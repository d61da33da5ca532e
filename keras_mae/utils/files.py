"""Atomic file writes."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from keras_mae.utils.typing import PathLike

# of files that are being written
PART_PREFIX = ".part-"


@contextlib.contextmanager
def atomic_write(path: PathLike) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which replaces it when written."""
    path = Path(path)
    part = path.with_name(f"{PART_PREFIX}{path.name}")
    try:
        yield part
        with open(part, "rb+") as file:  # Windows syncs only files open for writing
            os.fsync(file.fileno())
        os.replace(part, path)
        _sync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


def make_folder(path: PathLike) -> None:
    """Makes a folder and those above it, where they are missing."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"{path} must be a folder. Received: {error}") from error


def _sync_folder(folder):
    """Writes a folder's names to the disk, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network file systems have no such call
    finally:
        os.close(descriptor)
