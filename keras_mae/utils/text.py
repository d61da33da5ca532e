"""Text of a file or a request, where an error repeats it."""

from collections.abc import Sequence

_LONGEST = 200  # characters


def shorten(text: str) -> str:
    """Cuts a text, such as a key of a file, to the length of a line or two."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def first_names(names: Sequence[str]) -> str:
    """Lists names, or the first five of more."""
    return ", ".join(names[:5]) + f" and {len(names) - 5} more" * (len(names) > 5)
