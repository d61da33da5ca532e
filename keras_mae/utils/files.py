"""Files that are whole at every instant, and the folders that files lie in."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from keras_mae.utils.typing import PathLike

# what files are called while they are written
PART = ".part-"


@contextlib.contextmanager
def replacing(path: PathLike) -> Iterator[Path]:
    """Gives a path to write to, which takes the place of `path` in one step.

    Args:
        path: Path of the file; an older one stays until the new one is on the disk.

    Yields:
        A `Path` beside it, with the same ending.

    Example:

    ```python
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        with replacing(f"{folder}/notes.txt") as part:
            part.write_text("whole")
        assert Path(folder, "notes.txt").read_text() == "whole"
    ```
    """
    path = Path(path)
    part = path.with_name(f"{PART}{path.name}")
    try:
        yield part
        with open(part, "rb+") as file:  # Windows syncs what may be written alone
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def folder_of(source: PathLike) -> Path | None:
    """Finds the folder that a source lies in, if it lies on this machine.

    Args:
        source: A run, a `.keras` file, a hub id, or a folder or file of PyTorch's.

    Returns:
        A `Path`, or `None`.

    Example:

    ```python
    Path("best.keras").touch()
    assert folder_of("best.keras") == Path(".")
    assert folder_of("facebook/vit-mae-base") is None
    ```
    """
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        return path
    return path.parent if path.is_file() else None
