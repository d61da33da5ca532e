"""Prints versions (--version), or help that lists the installed commands.

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
    """Lists the versions of this package, Keras and its backends, one a line."""
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
    """Lists the installed commands, one a line."""
    found = importlib.metadata.entry_points(group="console_scripts")
    names = sorted({e.name for e in found if e.name.startswith("keras-mae-")})
    return "\n".join(["commands (each has --help):", *(f"  {name}" for name in names)])


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = Parser(
        prog="python -m keras_mae",
        description=keras_mae.__doc__,
        epilog=commands(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="store_true", help="print versions and exit"
    )
    if parser.parse_args(argv).version:
        print(versions())
    else:
        parser.print_help()


if __name__ == "__main__":
    main()
