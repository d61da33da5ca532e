"""Settings of glibc's malloc under which TensorFlow's large tensors are reused."""

import ctypes
import os

# set to 0 to leave malloc as it is
ENVIRONMENT_VARIABLE = "KERAS_MAE_KEEP_MEMORY"

# of glibc's malloc.h; the threshold is the largest int, about 2 GiB
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_LARGEST_INT = 2**31 - 1
# what this would override, where the user has set it
_SETTINGS = ("mmap_max", "mmap_threshold", "trim_threshold", "top_pad")


class _SymbolInfo(ctypes.Structure):
    """`Dl_info`, what `dladdr` says of an address."""

    _fields_ = (
        ("file_name", ctypes.c_char_p),
        ("file_base", ctypes.c_void_p),
        ("symbol_name", ctypes.c_char_p),
        ("symbol_address", ctypes.c_void_p),
    )


def keep_freed_memory() -> bool:
    """Makes glibc's malloc keep memory that was freed, for the tensors to come.

    By default glibc gives a block of more than 32 MB, and what lies free at the end of
    its heap, back to the kernel, which clears every page anew for the next tensor of
    that size: a training step on a CPU frees and takes gigabytes. This sets
    `M_MMAP_MAX` to 0 and `M_TRIM_THRESHOLD` to its largest value for the whole process
    (`man 3 mallopt`). tcmalloc, preloaded, does the same by itself.

    Nothing is touched where the environment variable `KERAS_MAE_KEEP_MEMORY` is 0,
    where glibc's own variables already set its malloc up, where another allocator is
    preloaded, and where the C library is not glibc.

    Returns:
        Whether malloc was set up.

    Example:

    ```python
    assert keep_freed_memory() in (True, False)
    ```
    """
    if os.environ.get(ENVIRONMENT_VARIABLE, "1") == "0" or _is_set_up_by_user():
        return False
    try:
        if not os.confstr("CS_GNU_LIBC_VERSION"):
            return False
        program = ctypes.CDLL(None)
        if not _is_glibcs(program, program.malloc):
            return False
        # both return 1 where they succeed
        return bool(
            program.mallopt(_M_MMAP_MAX, 0)
            and program.mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT)
        )
    # another system or C library: no such name, no such function, no library of None
    except (AttributeError, OSError, TypeError, ValueError):
        return False


def _is_set_up_by_user():
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    return any(
        f"MALLOC_{name.upper()}_" in os.environ or f"glibc.malloc.{name}=" in tunables
        for name in _SETTINGS
    )


def _is_glibcs(program, function):
    """Says whether a function lies in glibc, and not in a library loaded before it."""
    info = _SymbolInfo()
    address = ctypes.cast(function, ctypes.c_void_p)
    if not program.dladdr(address, ctypes.byref(info)) or not info.file_name:
        return False
    return os.path.basename(os.fsdecode(info.file_name)).startswith(("libc.", "libc-"))


def return_freed_memory() -> None:
    """Gives memory that was freed back to the kernel, where the C library can.

    Example:

    ```python
    return_freed_memory()
    ```
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return  # not glibc
