"""Runs the project's scripts as a user does, in a process of their own."""

import contextlib
import dataclasses
import importlib.util
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from keras_mae.utils.flags import run_script

ROOT = Path(__file__).resolve().parents[1]


def command(script, *arguments):
    return [sys.executable, str(ROOT / script), *map(str, arguments)]


def environment():
    # what a user has: the scripts quieten TensorFlow by themselves
    return {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}


def run(script, *arguments):
    """Runs a script to its end; returns its `subprocess.CompletedProcess`."""
    return subprocess.run(
        command(script, *arguments), capture_output=True, text=True, env=environment()
    )


def load(script):
    """Imports a script as a module, to call its functions."""
    path = ROOT / script
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up by name
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def config_class(script):
    """Finds a script's dataclass of flags."""
    module = load(script)
    (found,) = (
        item
        for item in vars(module).values()
        if dataclasses.is_dataclass(item) and item.__module__ == module.__name__
    )
    return found


def refusal(script, *flags):
    """Runs a script's `main` here, on bad input; returns the one line it ends in."""
    main, flags = load(script).main, list(map(str, flags))
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), pytest.raises(SystemExit) as stopped:
        run_script(main, config_class(script), "", flags)
    assert stopped.value.code == 2
    lines = errors.getvalue().splitlines()
    assert len(lines) == 1, lines
    return lines[0]
