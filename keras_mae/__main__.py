"""Says which versions are at work, and which commands there are.

Run: python -m keras_mae [--version]
"""

import argparse
import importlib.metadata
import platform
from collections.abc import Sequence

import keras

import keras_mae
from keras_mae.utils.flags import Parser

_LIBRARIES = ("tensorflow", "jax", "torch", "numpy")


def versions() -> str:
    """Lists the versions of this package, and of what it computes with.

    Returns:
        Lines, a name and its version each; the backend's is marked.

    Example:

    ```python
    assert versions().startswith(f"keras_mae {keras_mae.__version__}")
    ```
    """
    lines = [f"keras_mae {keras_mae.__version__}", f"keras {keras.__version__}"]
    for name in _LIBRARIES:
        try:
            # from the metadata: an import takes seconds
            line = f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            line = f"{name} is not installed"
        mark = " (the backend)" if name == keras.backend.backend() else ""
        lines.append(line + mark)
    return "\n".join([*lines, f"python {platform.python_version()}"])


def commands() -> str:
    """Lists the installed commands.

    Returns:
        Lines, a command each.
    """
    found = importlib.metadata.entry_points(group="console_scripts")
    names = sorted({e.name for e in found if e.name.startswith("keras-mae-")})
    return "\n".join(["commands, each with --help:", *(f"  {name}" for name in names)])


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the versions, or how to go on.

    Args:
        argv: List of arguments; by default those of the process.

    Raises:
        SystemExit: With code 0 after the versions or the help, with code 2 and one
            line on standard error for anything else that is asked for.

    Example:

    ```python
    main([])
    ```
    """
    parser = Parser(
        prog="python -m keras_mae",
        description=keras_mae.__doc__,
        epilog=commands(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="store_true", help="print the versions, and stop"
    )
    if parser.parse_args(argv).version:
        print(versions())
    else:
        parser.print_help()


if __name__ == "__main__":
    main()
