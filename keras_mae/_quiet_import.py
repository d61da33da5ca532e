"""Imports Keras without TensorFlow's start-up chatter, where that was asked for.

While it is being loaded, TensorFlow 2.21 ignores `TF_CPP_MIN_LOG_LEVEL` and writes
straight to file descriptor 2 (tensorflow issue 100442). Where the variable asks for
silence, this module keeps it; what was written is shown if the import fails. The
package's own commands, `python -m keras_mae...`, always ask for it.
"""

import os
import shutil
import sys
import tempfile


def _import_quietly():
    try:
        saved = os.dup(2)
    except OSError:
        return  # standard error is closed: there is nothing to quieten
    with tempfile.TemporaryFile() as chatter:
        os.dup2(chatter.fileno(), 2)
        try:
            import keras  # noqa: F401
        except BaseException:
            chatter.seek(0)
            with os.fdopen(os.dup(saved), "wb") as stderr:
                shutil.copyfileobj(chatter, stderr)
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)


if sys.argv[:1] == ["-m"]:
    # Python is looking for a command in this package, whose own wish comes too late
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "0") > "0" and "keras" not in sys.modules:
    _import_quietly()
