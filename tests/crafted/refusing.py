"""Asserts that a bad checkpoint raises an error that names it, and does nothing else.

Beside the error, what is watched is that no command is run, that memory does not grow,
that time is bounded, and that the model which was to be filled stays as it was.
"""

import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import keras_mae
from keras_mae.weights import load_weights

MEMORY = 128 * 2**20
# seconds of CPU for a refusal: five, or three times that on a slow machine
SECONDS = 15
# what an interpreter reports when it starts something, or unpickles by itself
EVENTS = {"os.system", "os.exec", "os.posix_spawn", "subprocess.Popen"}
EVENTS |= {"pickle.find_class", "socket.connect"}

_watched = []


def _watch(event, arguments):
    if _watched and event in EVENTS:
        _watched[0].append((event, arguments))


# it can't be taken out again: it sleeps when no test listens
sys.addaudithook(_watch)


def peak():
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def refuse(model, path):
    """Holds a source against all that is promised of a bad one."""
    before = [weight.numpy() for weight in model.weights]
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")  # the peak begins anew
        start = peak()
    begin = time.process_time()
    events = []
    _watched[:] = [events]
    try:
        for read in (
            keras_mae.MAEPretrainer.from_pretrained,
            lambda source: load_weights(model, source),
        ):
            with pytest.raises(ValueError) as error:
                read(path)
            # which file or folder, and shortly what is wrong with it
            assert os.path.basename(str(path)) in str(error.value)
            assert len(str(error.value)) < 20_000
    finally:
        _watched.clear()
    assert events == []
    assert time.process_time() - begin < 2 * SECONDS
    if reset.exists():
        assert peak() - start < MEMORY
    for weight, old in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), old)
