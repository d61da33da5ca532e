"""Imports triton, PyTorch's compiler, before TensorFlow, where both are installed.

TensorFlow 2.20 and 2.21 load their LLVM for the whole process; triton 3.7, imported
after it, crashes Python (tensorflow issue 124205). Where TensorFlow is imported
already, triton is left to who imports it.
"""

import contextlib
import sys

if "tensorflow" not in sys.modules:
    # absent, or unusable: that is told where it is used
    with contextlib.suppress(Exception):
        import triton  # noqa: F401
