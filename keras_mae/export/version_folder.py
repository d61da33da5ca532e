"""The folder of an exported version: written aside, and renamed when it is right."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

# versions are int64 in TF Serving's protocol; its server ignores other folders
MOST_VERSION = 2**63 - 1


@contextlib.contextmanager
def new_version(path):
    """Yields a folder to write; without an error it is renamed to `path` at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # a name that is not a number: a server would load the half-written folder
    aside = Path(tempfile.mkdtemp(prefix=f"part-{path.name}-", dir=path.parent))
    try:
        aside.chmod(0o755)  # mkdtemp's 0700 locks out a server's user
        yield aside
        _move_into_place(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def check_version(path, overwrite):
    """Raises if a version exists, or its number is one that no server can read."""
    if path.exists() and not overwrite:
        raise ValueError(f"{path} already exists: overwrite=True replaces it")
    if path.name.isdecimal() and int(path.name) > MOST_VERSION:
        raise ValueError(
            f"The version must be at most {MOST_VERSION}. Received: {path.name}"
        )


def _move_into_place(aside, path):
    """Renames a folder to `path`, and moves out of its way what was there."""
    if not path.exists():
        os.rename(aside, path)
        return
    old = aside.with_name(f"old-{aside.name}")
    os.rename(path, old)
    try:
        os.rename(aside, path)
    except OSError:
        os.rename(old, path)
        raise
    shutil.rmtree(old)
