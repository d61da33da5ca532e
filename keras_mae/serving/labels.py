"""The names of a classifier's classes: a text file of one a line."""

from pathlib import Path

from keras_mae.files import folder_of, replacing
from keras_mae.loading import is_run
from keras_mae.weights.reader import open_checkpoint

LABELS_NAME = "labels.txt"


def write_labels(folder, names):
    """Writes the names of classes into a folder, as `labels.txt`.

    Args:
        folder: Path of the folder.
        names: Sequence of str; an end of line in one becomes a space, and what UTF-8
            can't say, as in a folder's name, a question mark.

    Returns:
        The file's `Path`.

    Example:

    ```python
    path = write_labels(".", ["cat", "dog"])
    assert read_labels(path) == ("cat", "dog")
    ```
    """
    path = Path(folder, LABELS_NAME)
    lines = [name.replace("\r", " ").replace("\n", " ") for name in names]
    with replacing(path) as part:
        # no translation to another system's line ends: TensorFlow reads it as well
        text = "".join(f"{line}\n" for line in lines)
        part.write_bytes(text.encode(errors="replace"))
    return path


def read_labels(path, num_classes=None):
    """Reads the names of classes.

    Args:
        path: Path of a text file of one name a line.
        num_classes: Int, how many there must be, or `None`.

    Returns:
        A tuple of str.

    Raises:
        ValueError: If the file is no text, or has another number of lines.
        OSError: If there is no such file.

    Example:

    ```python
    Path("animals.txt").write_text("cat\\ndog\\n")
    assert read_labels("animals.txt", num_classes=2) == ("cat", "dog")
    ```
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be text in UTF-8. Received: {error}") from error
    # splitlines() would also split at what only looks like an end of line
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    if num_classes not in (None, len(lines)):
        raise ValueError(
            f"{path} must have a line for each of the {num_classes} classes. "
            f"Received: {len(lines)} lines"
        )
    return tuple(lines)


def find_labels(source, num_classes):
    """Finds the names of classes that lie beside a model, or that it brings along.

    Args:
        source: What the model was loaded from, as for `keras_mae.loading.load_model`.
        num_classes: Int.

    Returns:
        A tuple of str: of `labels.txt` in the folder, or of a Hugging Face
        configuration; `None` where neither is there.

    Raises:
        ValueError: If `labels.txt` has another number of lines.

    Example:

    ```python
    write_labels(".", ["cat", "dog"])
    assert find_labels(".", num_classes=2) == ("cat", "dog")
    ```
    """
    folder = folder_of(source)
    if folder is not None and (folder / LABELS_NAME).is_file():
        return read_labels(folder / LABELS_NAME, num_classes)
    if is_run(source):
        return None
    names = (open_checkpoint(source).config or {}).get("id2label")
    numbers = [str(number) for number in range(num_classes)]
    # one of other classes is the library's default, which says nothing of these
    if not isinstance(names, dict) or set(names) != set(numbers):
        return None
    found = tuple(str(names[number]) for number in numbers)
    # what the library writes where nobody named the classes
    placeholders = tuple(f"LABEL_{number}" for number in numbers)
    return None if found == placeholders else found
