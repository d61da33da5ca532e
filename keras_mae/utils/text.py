"""Text of a file or a request, where an error repeats it."""

_LONGEST = 200  # characters


def shorten(text: str) -> str:
    """Cuts a text, such as a key of a file, to the length of a line or two."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
