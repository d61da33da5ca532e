"""Callbacks that a user names by `--callback=module:factory`."""

import importlib
import operator
import os
import sys

import keras


def load_callbacks(names, config):
    """Makes the callbacks of `module:factory,module:factory`; each takes the flags."""
    return [] if names is None else [_make(n.strip(), config) for n in names.split(",")]


def _make(name, config):
    module, _, factory = name.partition(":")
    if not module or not factory:
        raise ValueError(
            "callback must be module:factory, several with commas between. "
            f"Received: {name!r}"
        )
    if os.getcwd() not in sys.path:
        # last, so that a folder here shadows no library
        sys.path.append(os.getcwd())
    try:
        made = operator.attrgetter(factory)(importlib.import_module(module))(config)
    except Exception as error:  # the user's code may raise anything
        raise ValueError(
            f"callback {name} can't be made: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(made, keras.callbacks.Callback):
        raise ValueError(
            f"callback {name} must return a keras.callbacks.Callback. "
            f"Received: {type(made).__name__}"
        )
    return made
