"""Command-line flags from a dataclass, and one-line errors for scripts."""

import argparse
import dataclasses
import json
import os
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from keras_mae.utils.process_memory import keep_freed_memory

_Config = TypeVar("_Config", bound=Any)


class Parser(argparse.ArgumentParser):
    """A parser that says in one line what is wrong, without the whole usage before it.

    Args:
        **kwargs: Those of `argparse.ArgumentParser`.

    Example:

    ```python
    assert Parser(prog="train").prog == "train"
    ```
    """

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def flag(
    text: str,
    default: Any = dataclasses.MISSING,
    choices: Sequence[str] | None = None,
    positional: bool = False,
) -> Any:
    """Describes a flag: a field of a script's dataclass.

    Args:
        text: What `--help` says of it.
        default: Its value where it is not given; without one it must be given.
        choices: The values it may have.
        positional: Whether it is given by its place, without its name.

    Returns:
        A `dataclasses.field`.

    Example:

    ```python
    @dataclasses.dataclass
    class Config:
        epochs: int = flag("how long", default=1)
    ```
    """
    metadata = {"help": text, "choices": choices, "positional": positional}
    return dataclasses.field(default=default, metadata=metadata)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Names defaults, where there is one."""

    def _get_help_string(self, action):
        if action.default is None:
            return action.help
        return super()._get_help_string(action)


def summary(docstring: str) -> str:
    """Takes what a script does out of its docstring.

    Args:
        docstring: Str.

    Returns:
        The first line, less how to run the script: usage shows that.

    Example:

    ```python
    assert summary("Trains. Run: python train.py") == "Trains."
    ```
    """
    return docstring.partition("\n")[0].partition(" Run: ")[0]


def parse_flags(
    config_class: type[_Config], description: str, argv: Sequence[str] | None = None
) -> _Config:
    """Reads a dataclass from the command line: a flag for each field.

    Fields are `int`, `float`, `str` or `bool`, or one of these `| None`; a field
    without a default is a required flag. `flag` gives a field its help text. Where a
    field is called `config`, `--config=FILE` reads flags from a JSON object first;
    those of the command line win. A `~/` at the beginning is the user's own folder.

    Args:
        config_class: The dataclass.
        description: The script's docstring; `--help` begins with its first line.
        argv: List of arguments; by default those of the process.

    Returns:
        An instance of `config_class`. A wrong flag ends the process with one line on
        standard error and exit code 2.

    Example:

    ```python
    @dataclasses.dataclass
    class Config:
        epochs: int = flag("how long", default=1)

    assert parse_flags(Config, "Trains.", ["--epochs=3"]).epochs == 3
    ```
    """
    parser = Parser(description=summary(description), formatter_class=_HelpFormatter)
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        kinds = typing.get_args(hints[field.name]) or (hints[field.name],)
        options = {"help": field.metadata.get("help", " ")}
        name = f"--{field.name}"
        if field.metadata.get("positional"):
            name = field.name
        elif field.default is dataclasses.MISSING:
            options["required"] = True
        else:
            options["default"] = field.default
        if kinds[0] is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["type"] = _text if kinds[0] is str else kinds[0]
            options["choices"] = field.metadata.get("choices")
        parser.add_argument(name, **options)
    argv = [_spelled(word) for word in (sys.argv[1:] if argv is None else argv)]
    if "config" in hints:
        path = parser.parse_args(argv).config
        argv = [*(_flags_of_file(path, parser) if path else ()), *argv]
    return config_class(**vars(parser.parse_args(argv)))


def _text(value):
    """Expands `~/`, as a shell does it only where a word begins with it."""
    return os.path.expanduser(value) if value.startswith("~/") else value


def _spelled(word):
    """Takes `--dry-run=...` for `--dry_run=...`, as both spellings are common."""
    name, equals, value = word.partition("=")
    if not name.startswith("--"):
        return word
    no = "--no-" if name.startswith("--no-") else "--"
    return no + name.removeprefix(no).replace("-", "_") + equals + value


def _flags_of_file(path, parser):
    """Turns the JSON object of a file into flags, which the parser then checks."""
    try:
        values = json.loads(Path(path).read_text())
        return [
            f"--{'' if value is not False else 'no-'}{name}"
            + ("" if isinstance(value, bool) else f"={value}")
            for name, value in values.items()
            if value is not None
        ]
    except (OSError, ValueError, AttributeError) as error:
        parser.error(f"config must be a JSON object of flags. {path}: {error}")


def check_at_least_one(config: Any, *names: str) -> None:
    """Raises `ValueError` if a numeric flag is below 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(
                f"{name} must be at least 1. Received: {getattr(config, name)}"
            )


def run_script(
    main: Callable[[_Config], object],
    config_class: type[_Config],
    description: str,
    argv: Sequence[str] | None = None,
) -> None:
    """Parses flags, runs a script's `main`, and turns its errors into an exit code.

    Args:
        main: Function of one argument, the config.
        config_class: The dataclass of flags.
        description: The script's docstring; `--help` begins with its first line.
        argv: List of arguments; by default those of the process.

    Raises:
        SystemExit: With code 2 and one line on standard error for a `ValueError` (what
            was wanted and what came) or an `OSError`, with code 3 for a
            `FloatingPointError` (the loss is no number).

    Example:

    ```python
    @dataclasses.dataclass
    class Config:
        epochs: int = flag("how long", default=1)

    run_script(print, Config, "Prints its flags.", ["--epochs=2"])
    ```
    """
    config = parse_flags(config_class, description, argv)
    keep_freed_memory()
    try:
        main(config)
    except (ValueError, OSError) as error:
        _fail(error, 2)
    except FloatingPointError as error:
        _fail(error, 3)


def _fail(error, code):
    line = " ".join(str(error).split())
    print(f"{sys.argv[0]}: error: {line}", file=sys.stderr)
    sys.exit(code)
