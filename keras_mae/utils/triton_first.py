"""Imports triton, PyTorch's compiler, before TensorFlow, where both are installed.

TensorFlow 2.20 and 2.21 load their LLVM for the whole process; triton 3.7, imported
after it, crashes Python (tensorflow issue 124205). Where TensorFlow is imported
already, triton is left to who imports it.
"""

import contextlib
import importlib.util
import sys

if "tensorflow" not in sys.modules and importlib.util.find_spec("triton"):
    with contextlib.suppress(ImportError):
        import triton  # noqa: F401
