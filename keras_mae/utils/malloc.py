"""glibc malloc settings (`mallopt`) that keep freed memory for the next tensors.

By default glibc returns blocks of more than 32 MB, and free memory at the end of its
heap, to the kernel, which clears every page again for the next tensor of that size: a
training step on a CPU frees and takes gigabytes. tcmalloc, preloaded, keeps them too.
"""

import ctypes
import os

# of glibc's malloc.h; the threshold is the largest int, about 2 GiB
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_LARGEST_INT = 2**31 - 1
# what this would override, where the user has set it
_SETTINGS = ("mmap_max", "mmap_threshold", "trim_threshold", "top_pad")


class _DlInfo(ctypes.Structure):
    """`Dl_info`, which `dladdr` fills in."""

    _fields_ = (
        ("dli_fname", ctypes.c_char_p),
        ("dli_fbase", ctypes.c_void_p),
        ("dli_sname", ctypes.c_char_p),
        ("dli_saddr", ctypes.c_void_p),
    )


def tune_malloc() -> bool:
    """Stops glibc's malloc from returning memory to the kernel; says whether it did."""
    if os.environ.get("KERAS_MAE_KEEP_MEMORY", "1") == "0" or _is_set_by_user():
        return False
    try:
        if not os.confstr("CS_GNU_LIBC_VERSION"):
            return False
        program = ctypes.CDLL(None)
        if not _is_from_glibc(program, program.malloc):
            return False
        # both return 1 where they succeed
        return bool(
            program.mallopt(_M_MMAP_MAX, 0)
            and program.mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT)
        )
    # another system or C library: no such name, no such function, no library of None
    except (AttributeError, OSError, TypeError, ValueError):
        return False


def _is_set_by_user():
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    return any(
        f"MALLOC_{name.upper()}_" in os.environ or f"glibc.malloc.{name}=" in tunables
        for name in _SETTINGS
    )


def _is_from_glibc(program, function):
    """Whether a function is glibc's, and not of a library loaded before it."""
    info = _DlInfo()
    address = ctypes.cast(function, ctypes.c_void_p)
    if not program.dladdr(address, ctypes.byref(info)) or not info.dli_fname:
        return False
    return os.path.basename(os.fsdecode(info.dli_fname)).startswith(("libc.", "libc-"))


def trim_malloc() -> None:
    """Returns freed memory to the kernel (`malloc_trim`), where the C library can."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return  # not glibc
