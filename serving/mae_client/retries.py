"""Retries with exponential backoff, and one deadline over all attempts."""

import logging
import random
import time

from .errors import ServingError

FIRST_PAUSE = 0.2  # seconds before the first retry, doubled for each further one
LONGEST_PAUSE = 5.0
# of a longer wait, some three seconds, the log says why
_TOLD_AFTER = 4
# of an error that no further attempt mends, by Python or gRPC
_UNTRUSTED = ("CERTIFICATE_VERIFY_FAILED", "is not in peer certificate")

_logger = logging.getLogger("mae_client")


class Attempts:
    """The attempts of one request: its deadline, and when to try again."""

    def __init__(self, timeout: float, retries: int | None) -> None:
        # of all attempts: gRPC's retryPolicy ends at 5, HTTP timeouts start anew
        self.deadline = time.monotonic() + timeout
        self._retries = retries
        self._failed = 0

    def pause_after(self, error: ServingError) -> float:
        """Returns seconds until the next attempt; raises the error if it is the end."""
        pause = min(FIRST_PAUSE * 2 ** min(self._failed, 16), LONGEST_PAUSE)
        # jitter: clients that failed together must not retry together
        pause *= random.uniform(0.5, 1.5)
        if error.retry_after is not None:
            pause = max(pause, error.retry_after)
        passing = error.code == "UNAVAILABLE" or error.retry_after is not None
        passing &= not any(text in str(error) for text in _UNTRUSTED)
        late = time.monotonic() + pause > self.deadline
        if not passing or self._failed == self._retries or late:
            raise error
        self._failed += 1
        if self._failed == _TOLD_AFTER:
            left = self.deadline - time.monotonic()
            _logger.warning("%s; trying again for up to %.0f s", error, left)
        return pause
