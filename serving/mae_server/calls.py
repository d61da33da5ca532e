"""Deadline and cancellation of a request."""

import threading
import time

from mae_server import errors

# a year, in seconds
_FOREVER = 365 * 24 * 3600


class Call:
    """A request's deadline (`None`: never) and cancellation, for threads to look at."""

    def __init__(self, seconds=None):
        # gRPC's word for no deadline is a very late one
        timed = seconds is not None and seconds < _FOREVER
        self._end = time.monotonic() + seconds if timed else None
        self._cancelled = threading.Event()

    def cancel(self):
        """Says that nobody waits for the answer any more."""
        self._cancelled.set()

    def seconds_left(self):
        """Returns seconds until the deadline, 0 after it; `None` without one."""
        return None if self._end is None else max(self._end - time.monotonic(), 0.0)

    def is_wanted(self):
        """Whether someone waits, and has time to."""
        return not self._cancelled.is_set() and self.seconds_left() != 0.0

    def check(self):
        """Raises `RequestError` if the work is not wanted any more."""
        if self._cancelled.is_set():
            raise errors.cancelled()
        if self.seconds_left() == 0.0:
            raise errors.deadline_exceeded()

    def acquire(self, semaphore, seconds=0.2):
        """Acquires a semaphore, looking at the call every few `seconds`."""
        self.check()
        while not semaphore.acquire(timeout=seconds):
            self.check()


class Calls:
    """Calls that have not ended."""

    def __init__(self):
        self._calls = set()
        self._changed = threading.Condition()

    def add(self, call):
        with self._changed:
            self._calls.add(call)

    def remove(self, call):
        with self._changed:
            self._calls.discard(call)
            self._changed.notify_all()

    def wait(self, seconds):
        """Waits until all have ended, at most so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: not self._calls, seconds)
