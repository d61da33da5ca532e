"""Runs the project's scripts as a user does, in a process of their own."""

import ast
import dataclasses
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

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


def unread_flags(script):
    """Lists the flags that neither a script nor what it shares ever reads."""
    texts = [(ROOT / script).read_text()]
    texts += [
        (ROOT / "keras_mae" / name).read_text()
        for name in ("training.py", "classification.py", "recipes.py")
        if f"keras_mae.{name[:-3]} import" in texts[0]
    ]
    read = {
        node.attr
        for text in texts
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute)
        and getattr(node.value, "id", getattr(node.value, "attr", None))
        in ("config", "self")
    }
    flags = {field.name for field in dataclasses.fields(config_class(script))}
    # --config is read before there are flags
    return flags - read - {"config"}
