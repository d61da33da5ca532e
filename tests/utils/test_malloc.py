"""glibc malloc settings: where they are set, and where malloc is left alone."""

import os
import runpy
import shutil
import subprocess
import sys

import pytest

from tests.scripts import ROOT

MODULE = ROOT / "keras_mae/utils/malloc.py"
# without the package, whose import takes seconds
ASK = f"import runpy; print(runpy.run_path({str(MODULE)!r})['tune_malloc']())"
# blocks above 32 MiB, which malloc gives back to the kernel however it adapts
FAULTS = """
import ctypes, resource
def used():
    for _ in range(8):
        block = program.malloc(2**26)
        ctypes.memset(block, 1, 2**26)
        program.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
program = ctypes.CDLL(None)
program.malloc.restype = ctypes.c_void_p
program.malloc.argtypes = [ctypes.c_size_t]
program.free.argtypes = [ctypes.c_void_p]
used()
begin = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(used() - begin)
"""
try:
    GLIBC = bool(os.confstr("CS_GNU_LIBC_VERSION"))
except (ValueError, OSError):
    GLIBC = False
needs_glibc = pytest.mark.skipif(not GLIBC, reason="the C library is not glibc")


def ask(code=ASK, **variables):
    ours = ("MALLOC", "LD_PRELOAD", "GLIBC_TUNABLES", "KERAS_MAE")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    finished = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    return finished.stdout.splitlines()


@needs_glibc
def test_freed_blocks_are_used_again_without_the_kernel():
    (plain,) = ask(FAULTS)
    first, kept = ask(f"{ASK}\n{FAULTS}")
    assert first == "True"
    # the size of a page is the kernel's affair
    assert int(plain) > 10 * max(1, int(kept))


@needs_glibc
@pytest.mark.parametrize(
    "name, value",
    [
        ("KERAS_MAE_KEEP_MEMORY", "0"),
        ("MALLOC_TRIM_THRESHOLD_", "1000000"),
        ("GLIBC_TUNABLES", "glibc.malloc.mmap_max=10"),
    ],
)
def test_user_settings_are_left_alone(name, value):
    assert ask(**{name: value}) == ["False"]


@needs_glibc
def test_other_settings_of_malloc_do_not_matter():
    assert ask(GLIBC_TUNABLES="glibc.malloc.hugetlb=1") == ["True"]


@needs_glibc
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_a_preloaded_allocator_is_left_alone(tmp_path):
    source, library = tmp_path / "other.c", tmp_path / "libother.so"
    source.write_text(
        "#include <stddef.h>\n"
        "void *__libc_malloc(size_t);\n"
        "void *malloc(size_t size) { return __libc_malloc(size); }\n"
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    assert ask(LD_PRELOAD=str(library)) == ["False"]


@pytest.mark.parametrize("error", [ValueError, OSError, None])
def test_another_c_library_is_left_alone(monkeypatch, error):
    def confstr(name):
        if error:
            raise error(name)

    monkeypatch.setattr(os, "confstr", confstr)
    assert runpy.run_path(str(MODULE))["tune_malloc"]() is False


def test_trim_malloc_runs_with_any_c_library(monkeypatch):
    give_back = runpy.run_path(str(MODULE))["trim_malloc"]
    give_back()
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    give_back()
