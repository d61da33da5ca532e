"""HTTP: the REST API and the page in a server that bounds connections and time."""

import asyncio
from concurrent import futures

import h11
import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from uvicorn.protocols.http.h11_impl import H11Protocol

from mae_server import browsers, errors
from mae_server.bodies import Bodies, BodyError
from mae_server.calls import Call
from mae_server.rest import RestApi, refused

# others are closed at once
MOST_CONNECTIONS = 400
MOST_HEADER_BYTES = 2**15
# to receive a request's headers, and to send waiting bytes of an answer
HEADER_SECONDS, SEND_SECONDS = 10, 60
# of an answer, to be taken within SEND_SECONDS
_LEAST_BYTES = 2**20
_FULL = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n\r\n"


class BoundedProtocol(H11Protocol):
    """A connection that is closed if its client is slow, or one too many."""

    def connection_made(self, transport):
        super().connection_made(transport)
        self._headers_timer = self._send_timer = None
        if len(self.connections) > MOST_CONNECTIONS:
            transport.write(_FULL)
            transport.close()
            return
        self._time_headers()

    def data_received(self, data):
        super().data_received(data)
        self._time_headers(bool(self.conn.trailing_data[0]))

    def connection_lost(self, exc):
        self._headers_timer = _stopped(self._headers_timer)
        self._send_timer = _stopped(self._send_timer)
        super().connection_lost(exc)

    def pause_writing(self):
        super().pause_writing()
        self._time_sending()

    def _time_sending(self, before=None):
        """Aborts a connection that takes an answer too slowly."""
        waiting = self.transport.get_write_buffer_size()
        if before is not None and waiting > before - _LEAST_BYTES:
            self.transport.abort()
        else:
            self._send_timer = self.loop.call_later(
                SEND_SECONDS, self._time_sending, waiting
            )

    def resume_writing(self):
        self._send_timer = _stopped(self._send_timer)
        super().resume_writing()

    def _time_headers(self, expected=True):
        """Times a request's headers, from their first byte or the connection's."""
        if self.conn.their_state is not h11.IDLE:
            self._headers_timer = _stopped(self._headers_timer)
        elif expected and self._headers_timer is None:
            self._headers_timer = self.loop.call_later(
                HEADER_SECONDS, self.transport.abort
            )


def _stopped(timer):
    if timer is not None:
        timer.cancel()


class Api:
    """Answers `/v1/...` requests in threads, and looks whether clients still wait."""

    def __init__(self, service, names, seconds, any_page=False):
        self._answer = RestApi(service)
        self._names = names
        self._seconds = seconds
        self._any_page = any_page
        self._bodies = Bodies()
        # each request waits in a thread
        self._pool = futures.ThreadPoolExecutor(service.max_threads)

    async def __call__(self, request):
        response = await self._respond(request)
        if self._any_page:
            response.headers.update(browsers.CORS)
        return response

    async def _respond(self, request):
        problem = browsers.refusal(
            request.method, request.headers, self._names, self._any_page
        )
        if problem is not None:
            return _closing(*problem)
        try:
            body = await self._bodies.read(request)
        except BodyError as error:
            return _closing(error.status, str(error))
        except ClientDisconnect:  # nobody reads the answer
            return _closing(499, str(errors.cancelled()))
        if request.method == "OPTIONS":
            self._bodies.release(body)
            return Response(status_code=browsers.answer_to_options(request.headers))
        path = request.scope["raw_path"].decode("latin-1")
        # of the path, as evhttp_request.cc has it
        query = request.scope["query_string"].decode("latin-1")
        path += f"?{query}" if query else ""
        call = Call(self._seconds)
        work = asyncio.get_running_loop().run_in_executor(
            self._pool, self._answer, request.method, path, body, call
        )
        # a thread holds the body, even if nobody waits for it
        work.add_done_callback(lambda _: self._bodies.release(body))
        return await self._wait(request, work, call)

    async def _wait(self, request, work, call):
        """Returns the answer; an error if the client leaves, or time is over."""
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait(
                [work, gone], timeout=self._seconds, return_when="FIRST_COMPLETED"
            )
            if work.done():
                status, text = work.result()
            elif gone.done():
                status, text = refused(errors.cancelled())
            else:
                status, text = refused(errors.deadline_exceeded())
        except asyncio.CancelledError:  # the server's grace is over
            status, text = refused(errors.stopping())
        finally:
            call.cancel()
            gone.cancel()
        return Response(text, status, media_type="application/json")


async def _disconnected(request):
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _closing(status, text):
    """Makes an error's answer; the connection ends, as the body is unread."""
    return JSONResponse({"error": text}, status, {"Connection": "close"})


def make_app(service, names, page, seconds, metrics_path=None, any_page=False):
    """Builds the ASGI application: REST API, metrics and the web page of a folder."""
    api = Api(service, names, seconds, any_page)

    async def answer(request):
        return await api(request)

    async def measure(request):
        problem = browsers.refusal(request.method, request.headers, names)
        if problem is not None:
            return _closing(*problem)
        # of charset it says nothing, as TF Serving
        headers = {"Content-Type": "text/plain"}
        return Response(service.metrics.text(), headers=headers)

    methods = ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]
    # TF Serving's patterns know no letters' case
    paths = ("/v1/{rest:path}", "/V1/{rest:path}")
    routes = [Route(path, answer, methods=methods) for path in paths]
    routes.append(Mount("/", StaticFiles(directory=page, html=True)))
    if metrics_path is not None:
        routes.insert(0, Route(metrics_path, measure))
    return Starlette(routes=routes)


class HttpServer(uvicorn.Server):
    """An HTTP server that calls `started`, and `stopping` when a signal ends it."""

    def __init__(self, app, grace_seconds, started, stopping):
        super().__init__(
            uvicorn.Config(
                app,
                http=BoundedProtocol,
                ws="none",
                log_level="error",
                h11_max_incomplete_event_size=MOST_HEADER_BYTES,
                timeout_graceful_shutdown=grace_seconds,
            )
        )
        self._started, self._stopping = started, stopping

    async def startup(self, sockets=None):
        await super().startup(sockets)
        self._started()  # from now on signals are caught

    def handle_exit(self, sig, frame):
        self._stopping()
        super().handle_exit(sig, frame)
