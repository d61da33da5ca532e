"""Import TensorFlow without its start-up messages, if `TF_CPP_MIN_LOG_LEVEL` is set.

TensorFlow 2.21 ignores the variable while it is being imported and writes to file
descriptor 2 (tensorflow issue 100442). What it wrote is shown if the import fails. The
project's own commands and scripts set the variable.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[2]
_SCRIPTS = (_CHECKOUT / "training", _CHECKOUT / "serving")


def _import_quietly():
    try:
        saved = os.dup(2)
    except OSError:
        return  # standard error is closed: there is nothing to silence
    with tempfile.TemporaryFile() as captured:
        os.dup2(captured.fileno(), 2)
        try:
            import keras

            if keras.backend.backend() != "tensorflow" and _is_own_script():
                import tensorflow  # noqa: F401, as their data pipelines do later
        except BaseException:
            captured.seek(0)
            with os.fdopen(os.dup(saved), "wb") as stderr:
                shutil.copyfileobj(captured, stderr)
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _is_own_command():
    """Whether this process is a command or script of this project."""
    if not sys.argv or not sys.argv[0]:
        return False
    if sys.argv[0] == "-m":  # Python is looking for the module that it shall run
        return any(word.startswith("keras_mae") for word in sys.orig_argv)
    return _is_own_script()


def _is_own_script():
    path = Path(sys.argv[0])
    return path.name.startswith("keras-mae") or path.resolve().parent in _SCRIPTS


if _is_own_command():
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "0") > "0" and "keras" not in sys.modules:
    _import_quietly()
