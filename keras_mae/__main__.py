"""Says which versions are at work, and which commands there are.

Run: python -m keras_mae [--version]
"""

import argparse
import ast
import importlib.metadata
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path

import keras

import keras_mae
from keras_mae.flags import Parser, summary

_LIBRARIES = ("tensorflow", "jax", "torch", "numpy")
_CHECKOUT = Path(__file__).resolve().parents[1]


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
    """Lists the commands: the package's own, and in a checkout the scripts.

    Returns:
        Lines, a command and what it does each.

    Example:

    ```python
    assert "python -m keras_mae.weights" in commands()
    ```
    """
    package = Path(__file__).parent
    found = [("-m keras_mae.weights", package / "weights" / "__main__.py")]
    if (_CHECKOUT / "setup.cfg").is_file():
        found += [(str(path.relative_to(_CHECKOUT)), path) for path in _scripts()]
        note = "Each says what it takes: --help."
    else:
        note = (
            "The scripts that pretrain, fine-tune, export and serve are in the source "
            "distribution, under training/ and serving/."
        )
    width = max(len(name) for name, _ in found)
    lines = [f"  python {name:{width}}  {_summary(path)}" for name, path in found]
    return "\n".join(["commands:", *lines, "", note])


def _scripts() -> Iterator[Path]:
    """Yields the scripts of a checkout: files that do something when they are run."""
    for folder in ("training", "serving"):
        for path in sorted((_CHECKOUT / folder).glob("*.py")):
            if "__main__" in path.read_text(encoding="utf-8"):
                yield path


def _summary(path: Path) -> str:
    """Reads the first sentence of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return summary(text).rstrip(".")


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
