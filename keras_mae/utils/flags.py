"""Command-line flags from a dataclass, and one-line errors for scripts."""

import argparse
import dataclasses
import json
import os
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import tensorflow as tf

from keras_mae.utils.malloc import tune_malloc

_Config = TypeVar("_Config", bound=Any)


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose errors are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def flag(
    text: str,
    default: Any = dataclasses.MISSING,
    choices: Sequence[str] | None = None,
    positional: bool = False,
    instead_of: str | None = None,
    fills: Mapping[str, Mapping[str, Any]] | None = None,
) -> Any:
    """Returns a `dataclasses.field` that is a flag with this help text."""
    metadata: dict[str, Any] = {"help": text, "choices": choices}
    # `instead_of`: not beside this one on a command line, but in a file of flags
    # `fills`: the values that each value of this flag gives to others; beside a file of
    # flags, those that the file's value gave don't count
    metadata |= {"positional": positional, "instead_of": instead_of, "fills": fills}
    return dataclasses.field(default=default, metadata=metadata)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults other than `None`."""

    def _get_help_string(self, action):
        if action.default is None:
            return action.help
        return super()._get_help_string(action)


def _summary(docstring):
    """The first line of a script's docstring, without how to run it."""
    return docstring.partition("\n")[0].partition(" Run: ")[0]


def _make_parser(config_class, description):
    """Returns a parser with a flag for each field of a dataclass."""
    parser = Parser(description=_summary(description), formatter_class=_HelpFormatter)
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
            options["type"] = _expand_user if kinds[0] is str else kinds[0]
            options["choices"] = field.metadata.get("choices")
        parser.add_argument(name, **options)
    return parser


def parse_flags(
    config_class: type[_Config], description: str, argv: Sequence[str] | None = None
) -> _Config:
    """Parses the command line into a dataclass: a flag for each field."""
    # `--config=FILE` reads flags from a JSON object; those of the command line win
    parser = _make_parser(config_class, description)
    argv = [
        _with_underscores(word) for word in (sys.argv[1:] if argv is None else argv)
    ]
    nothing = dict.fromkeys(field.name for field in dataclasses.fields(config_class))
    given = vars(parser.parse_args(argv, argparse.Namespace(**nothing)))
    replaced = set()
    for field in dataclasses.fields(config_class):
        other = field.metadata.get("instead_of")
        if other is None:
            continue
        one = {name for name in (field.name, other) if given[name] is not None}
        if len(one) == 2:
            parser.error(f"Give one of --{other} and --{field.name}. Received: both")
        if one:
            replaced |= {field.name, other} - one
    if given.get("config"):
        saved = _read_flags(given["config"], parser)
        replaced |= _filled(config_class, saved, given)
        saved = {name: saved[name] for name in saved if name not in replaced}
        argv = [*_to_words(saved), *argv]
    return config_class(**vars(parser.parse_args(argv)))


def _expand_user(value):
    """Expands `~/`, which a shell leaves alone in `--flag=~/x`."""
    return os.path.expanduser(value) if value.startswith("~/") else value


def _with_underscores(word):
    """Reads `--dry-run=...` as `--dry_run=...`."""
    name, equals, value = word.partition("=")
    if not name.startswith("--"):
        return word
    no = "--no-" if name.startswith("--no-") else "--"
    return no + name.removeprefix(no).replace("-", "_") + equals + value


def _read_flags(path, parser):
    """Reads the JSON object of a file, or ends in an error."""
    try:
        return dict(json.loads(Path(path).read_text()).items())
    except (OSError, ValueError, AttributeError) as error:
        parser.error(f"config must be a JSON object of flags. {path}: {error}")


def _filled(config_class, saved, given):
    """Names the flags of a file whose values come from one that is now given."""
    names = set()
    for field in dataclasses.fields(config_class):
        fills = field.metadata.get("fills")
        if fills is not None and given[field.name] is not None:
            values = fills.get(str(saved.get(field.name)), {})
            names |= {name for name in values if saved.get(name) == values[name]}
    return names


def _to_words(flags):
    """Turns flags into words of a command line, for the parser to check."""
    return [
        f"--{'' if value is not False else 'no-'}{name}"
        + ("" if isinstance(value, bool) else f"={value}")
        for name, value in flags.items()
        if value is not None
    ]


def check_at_least(config: Any, least: int, *names: str) -> None:
    """Raises `ValueError` if a numeric flag that is given is below `least`."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}. Received: {value}")


def parse_ints(name: str, text: str) -> list[int]:
    """Returns the ints of a flag, separated by commas or spaces; each at least 1."""
    try:
        numbers = [int(word) for word in text.replace(",", " ").split()]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise ValueError(
            f"{name} must be ints of at least 1, such as 1,8. Received: {text!r}"
        )
    return numbers


def run_script(
    main: Callable[[_Config], object],
    config_class: type[_Config],
    description: str,
    argv: Sequence[str] | None = None,
) -> None:
    """Parses flags and runs a script's `main`; its errors become exit codes."""
    config = parse_flags(config_class, description, argv)
    tune_malloc()
    try:
        main(config)
    except (ValueError, OSError) as error:
        _fail(error, 2)
    except tf.errors.DataLossError as error:
        # of an operation, whose name says nothing to who runs the script
        reason = re.search(r"\w+ record at \d+", str(error))
        _fail(f"A file is damaged: {reason[0] if reason else error}", 2)
    except FloatingPointError as error:
        _fail(error, 3)


def _fail(error, code):
    line = " ".join(str(error).split())
    print(f"{sys.argv[0]}: error: {line}", file=sys.stderr)
    sys.exit(code)
