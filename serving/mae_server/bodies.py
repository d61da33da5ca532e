"""Reads HTTP request bodies, with limits of size, of time and of memory for all.

Those with `Content-Encoding: gzip` are unpacked, and bounded unpacked.
"""

import asyncio
import zlib

MOST_BYTES = 64 * 2**20
# of all requests at the same time
MOST_BYTES_TOGETHER = 4 * MOST_BYTES
# to receive a body
SECONDS = 60
# unpacked at once, while other requests wait
_PIECE = 2**18


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
                await self._receive(request, body)
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

    async def _receive(self, request, body):
        encoding = request.headers.get("content-encoding", "")
        unpack = _Gzip() if "gzip" in encoding else lambda chunk: [chunk]
        received = 0
        async for chunk in request.stream():
            received += len(chunk)
            if received > MOST_BYTES:
                raise _too_long()
            for piece in unpack(chunk):
                self._add(body, piece)
                await asyncio.sleep(0)
        if isinstance(unpack, _Gzip) and not unpack.sound:
            # as TF Serving takes it (evhttp_request.cc, ReadRequestGzipBytes)
            self.release(body)
            body.clear()

    def _add(self, body, chunk):
        if len(body) + len(chunk) > MOST_BYTES:
            raise _too_long()
        if self._held + len(chunk) > self._limit:
            raise BodyError(503, "memory limit for request bodies reached; retry later")
        body += chunk
        self._held += len(chunk)


class _Gzip:
    """Unpacks chunks of a gzip file; `sound` once a whole one has been seen."""

    def __init__(self):
        self._unpacker = zlib.decompressobj(wbits=31)
        self._broken = False

    @property
    def sound(self):
        return self._unpacker.eof and not self._broken

    def __call__(self, chunk):
        """Yields pieces of bounded size; none of a broken file, or behind its end."""
        self._broken |= bool(chunk) and self._unpacker.eof
        full = True
        while (chunk or full) and not self._unpacker.eof and not self._broken:
            try:
                piece = self._unpacker.decompress(chunk, _PIECE)
            except zlib.error:
                self._broken = True
                return
            chunk = self._unpacker.unconsumed_tail
            full = len(piece) == _PIECE  # there may be more of it inside
            yield piece
        self._broken |= bool(self._unpacker.unused_data)


def _too_long():
    return BodyError(413, f"request body must have at most {MOST_BYTES} bytes")
