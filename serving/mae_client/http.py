"""Sends REST requests: HTTP and HTTPS, blocking and for asyncio."""

import asyncio
import contextlib
import gzip
import socket
import threading
import time
import weakref
import zlib
from typing import Any

import httpx2

from .errors import deadline_exceeded, invalid_response, unavailable
from .options import Options
from .rest import HttpRequest, Response, RestMessages

# of an answer, inflated: as much as gRPC is told to receive
MAX_ANSWER = 512 * 2**20
# events of httpx2's extension `trace`
_CONNECTED = ("connection.connect_tcp.complete", "connection.start_tls.complete")
# bytes of a request below which compressing it doesn't pay
_SMALL = 8 * 2**10


class _Http:
    """What both transports share."""

    def __init__(self, options: Options, messages: RestMessages) -> None:
        self._messages = messages
        headers = {"accept-encoding": "gzip", "content-type": "application/json"}
        self._arguments: dict[str, Any] = {
            "headers": headers | options.all_headers(),
            "verify": options.ssl_context() if options.encrypted else False,
            "limits": httpx2.Limits(
                max_connections=None, max_keepalive_connections=options.concurrency
            ),
            # the address alone says where a request goes, not the environment
            "trust_env": False,
        }

    def _build(self, client, request, deadline):
        body, headers = request.body, {}
        if body is not None and self._messages.gzip and len(body) > _SMALL:
            # the fastest level: what is left to save is base64's fourth
            body, headers = gzip.compress(body, 1), {"content-encoding": "gzip"}
        timeout = max(deadline - time.monotonic(), 1e-3)
        return client.build_request(
            request.method, request.url, content=body, headers=headers, timeout=timeout
        )

    def _collect(self, data, piece):
        data += piece
        if len(data) > MAX_ANSWER:
            raise self._too_large()

    def _finish(self, response, data):
        if response.headers.get("content-encoding") == "gzip":
            data = self._inflate(data)
        return Response(
            response.status_code,
            response.reason_phrase,
            response.headers.get("retry-after"),
            data,
            "content-encoding" in response.request.headers,
        )

    def _inflate(self, data):
        inflater = zlib.decompressobj(wbits=31)
        try:
            inflated = inflater.decompress(data, MAX_ANSWER)
        except zlib.error as error:
            raise invalid_response(self._messages.address, str(error)) from error
        if not inflater.eof:
            if len(inflated) == MAX_ANSWER:
                raise self._too_large()
            raise invalid_response(self._messages.address, "cut short")
        return inflated

    def _too_large(self):
        return invalid_response(self._messages.address, f"over {MAX_ANSWER} bytes")

    def _error(self, error):
        if isinstance(error, (httpx2.TimeoutException, TimeoutError)):
            return deadline_exceeded(self._messages.address)
        return unavailable(self._messages.address, error or type(error).__name__)


class HttpTransport(_Http):
    """Sends requests with blocking calls; may be used by several threads."""

    def __init__(self, options: Options, messages: RestMessages) -> None:
        super().__init__(options, messages)
        self._client = httpx2.Client(**self._arguments)
        self._lock = threading.Lock()
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    def close(self) -> None:
        """Ends requests on their way, and the connections."""
        with self._lock:
            # closing a socket would not wake a thread that waits for it
            for each in self._sockets:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            self._client.close()

    def _trace(self, event, info):
        """Notes the sockets that httpx2 opens; refuses those that come too late."""
        if event not in _CONNECTED:
            return
        with self._lock:
            if self._client.is_closed:
                raise unavailable(self._messages.address, "the client was closed")
            self._sockets.add(info["return_value"].get_extra_info("socket"))

    def send(self, request: HttpRequest, deadline: float) -> Response:
        """Returns a response of any status; raises `ServingError` without one."""
        built = self._build(self._client, request, deadline)
        built.extensions["trace"] = self._trace
        data = bytearray()
        try:
            response = self._client.send(built, stream=True)
            try:
                # in pieces, so that a slow body cannot outlast the deadline; a stalled
                # one ends by the socket's timeout
                for piece in response.iter_raw():
                    self._collect(data, piece)
                    if time.monotonic() > deadline:
                        raise deadline_exceeded(self._messages.address)
            finally:
                response.close()
        except httpx2.HTTPError as error:
            raise self._error(error) from error
        return self._finish(response, data)


class AsyncHttpTransport(_Http):
    """Sends requests in an event loop; a cancelled one closes its connection."""

    def __init__(self, options: Options, messages: RestMessages) -> None:
        super().__init__(options, messages)
        self._client = httpx2.AsyncClient(**self._arguments)

    async def close(self) -> None:
        await self._client.aclose()

    async def send(self, request: HttpRequest, deadline: float) -> Response:
        """As `HttpTransport.send`."""
        built = await asyncio.to_thread(self._build, self._client, request, deadline)
        data = bytearray()
        try:
            async with asyncio.timeout(max(deadline - time.monotonic(), 0)):
                response = await self._client.send(built, stream=True)
                try:
                    async for piece in response.aiter_raw():
                        self._collect(data, piece)
                finally:
                    await response.aclose()
        except (httpx2.HTTPError, TimeoutError) as error:
            raise self._error(error) from error
        return await asyncio.to_thread(self._finish, response, data)
