"""Read and write `labels.txt`: a classifier's class names, one a line."""

from collections.abc import Sequence
from pathlib import Path

from keras_mae.utils.files import atomic_write
from keras_mae.utils.typing import PathLike

LABELS_FILE = "labels.txt"


def write_labels(folder: PathLike, names: Sequence[str]) -> Path:
    """Writes class names into a folder, as `labels.txt`.

    Args:
        folder: Path of the folder.
        names: Sequence of str; an end of line in one becomes a space, and what UTF-8
            can't encode, as in a folder's name, a question mark.

    Returns:
        The file's `Path`.

    Example:

    ```python
    path = write_labels(".", ["cat", "dog"])
    assert read_labels(path) == ("cat", "dog")
    ```
    """
    path = Path(folder, LABELS_FILE)
    with atomic_write(path) as part:
        part.write_bytes(encode_names(names))
    return path


def encode_names(names: Sequence[str]) -> bytes:
    """Encodes class names, one a line, with the same line ends on every system."""
    lines = [name.replace("\r", " ").replace("\n", " ") for name in names]
    return "".join(f"{line}\n" for line in lines).encode(errors="replace")


def decode_names(content: bytes, path: PathLike) -> tuple[str, ...]:
    """Decodes class names, one a line; an error names the file."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be text in UTF-8. Received: {error}") from error
    # splitlines() would also split at what only looks like an end of line
    return tuple(text.replace("\r\n", "\n").removesuffix("\n").split("\n"))


def read_labels(path: PathLike, num_classes: int | None = None) -> tuple[str, ...]:
    """Reads class names from a text file.

    Args:
        path: Path of a text file of one name a line.
        num_classes: Int, how many there must be, or `None`.

    Returns:
        A tuple of str.

    Raises:
        ValueError: If the file is not text, or has another number of lines.
        OSError: If there is no such file.

    Example:

    ```python
    Path("animals.txt").write_text("cat\\ndog\\n")
    assert read_labels("animals.txt", num_classes=2) == ("cat", "dog")
    ```
    """
    lines = decode_names(Path(path).read_bytes(), path)
    if num_classes not in (None, len(lines)):
        raise ValueError(
            f"{path} must have a line for each of the {num_classes} classes. "
            f"Received: {len(lines)} lines"
        )
    return lines
