"""Command-line flags from a dataclass, and one-line errors for scripts."""

import argparse
import dataclasses
import sys
import typing


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        # one line: argparse would print the whole usage before it
        self.exit(2, f"{self.prog}: error: {message}\n")


def flag(text, default=dataclasses.MISSING, choices=None, positional=False):
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


def parse_flags(config_class, description, argv=None):
    """Reads a dataclass from the command line: a flag for each field.

    Fields are `int`, `float`, `str` or `bool`, or one of these `| None`; a field
    without a default is a required flag. `flag` gives a field its help text.

    Args:
        config_class: The dataclass.
        description: What `--help` says first.
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
    parser = _Parser(
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
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
            options["type"] = kinds[0]
            options["choices"] = field.metadata.get("choices")
        parser.add_argument(name, **options)
    return config_class(**vars(parser.parse_args(argv)))


def run_script(main, config_class, description, argv=None):
    """Parses flags, runs a script's `main`, and turns its errors into an exit code.

    Args:
        main: Function of one argument, the config.
        config_class: The dataclass of flags.
        description: What `--help` says first.
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
