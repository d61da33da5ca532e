"""Waiting in tests for what they can't be told of."""

import time

# seconds after which what a test waits for is taken for lost
PATIENCE = 300


def until(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
