"""Reads the bodies of HTTP requests, bounded one by one and all together."""

import asyncio

MOST_BYTES = 64 * 2**20
# of all requests at the same time
MOST_BYTES_TOGETHER = 4 * MOST_BYTES
# to receive a body
SECONDS = 60


class BodyError(Exception):
    """A body that is not read to its end: HTTP status and message."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


class Bodies:
    """Counts the bytes that requests hold; use it in one event loop."""

    def __init__(self, most_bytes_together=MOST_BYTES_TOGETHER, seconds=SECONDS):
        self._limit = most_bytes_together
        self._seconds = seconds
        self._held = 0

    async def read(self, request):
        """Returns a body, which counts until `release`, or raises `BodyError`."""
        announced = request.headers.get("content-length", "0")
        if not announced.isdecimal() or int(announced[:20]) > MOST_BYTES:
            raise _too_long()
        body = bytearray()
        try:
            async with asyncio.timeout(self._seconds):
                async for chunk in request.stream():
                    self._add(body, chunk)
        except BaseException as error:
            self.release(body)
            if isinstance(error, TimeoutError):
                text = f"no request body within {self._seconds} s"
                raise BodyError(408, text) from error
            raise
        return body

    def release(self, body):
        """Says that a body is not held any more."""
        self._held -= len(body)

    def _add(self, body, chunk):
        if len(body) + len(chunk) > MOST_BYTES:
            raise _too_long()
        if self._held + len(chunk) > self._limit:
            raise BodyError(503, "the bodies of other requests fill the memory")
        body += chunk
        self._held += len(chunk)


def _too_long():
    return BodyError(413, f"request body must have at most {MOST_BYTES} bytes")
