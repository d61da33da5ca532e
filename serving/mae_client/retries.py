"""Retries with exponential backoff, and one deadline over all attempts."""

import itertools
import random
import time
from collections.abc import Callable
from typing import Any

from .errors import ServingError

FIRST_PAUSE = 0.2  # seconds before the first retry, doubled for each further one
LONGEST_PAUSE = 5.0


def call(
    method: Callable[..., Any], *arguments: Any, timeout: float, retries: int
) -> Any:
    """Calls `method(*arguments, deadline)`, again while the server is unavailable.

    One loop for both protocols: gRPC's retryPolicy ends at 5 attempts and 256 kB, and
    urllib3's Timeout starts anew with each attempt.
    """
    deadline = time.monotonic() + timeout
    for attempt in itertools.count():
        pause = min(FIRST_PAUSE * 2 ** min(attempt, 16), LONGEST_PAUSE)
        # jitter: clients that failed together must not retry together
        pause *= random.uniform(0.5, 1.5)
        try:
            return method(*arguments, deadline)
        except ServingError as error:
            late = time.monotonic() + pause > deadline
            if error.code != "UNAVAILABLE" or attempt == retries or late:
                raise
        time.sleep(pause)
