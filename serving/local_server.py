"""Serve SavedModels on a laptop by TF Serving's REST and gRPC protocols.

Run: python serving/local_server.py --model_name=mae --model_base_path=models/mae

gRPC listens on --port and REST on --rest_api_port, whose root is a web page to try the
model. Model folders are polled: a new version is available before the old one is
unloaded. The server binds to loopback by default.

For production use TF Serving, which takes the same flags and folders: this server has
no batching and no metrics.
"""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # a port in use is our one-line error
import keras_mae  # noqa: F401, first: it imports TensorFlow quietly

# isort: split
import asyncio
import dataclasses
import signal
import socket
from concurrent import futures
from pathlib import Path

import uvicorn
from google.protobuf import text_format
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from tensorflow_serving.config import model_server_config_pb2

from keras_mae.utils.flags import check_at_least_one, flag, run_script
from mae_server.errors import RequestError
from mae_server.rest import RestApi
from mae_server.rpc import make_grpc_server
from mae_server.service import Service, read_config
from mae_server.versions import ModelConfig, Models

MAX_BODY_BYTES = 64 * 2**20
MAX_MESSAGE_BYTES = 512 * 2**20
# to receive a request's body, and to finish requests at shutdown
BODY_SECONDS, GRACE_SECONDS = 60, 30


@dataclasses.dataclass
class ServerConfig:
    """Flags of this script, with TF Serving's names where it has them."""

    model_base_path: str | None = flag("folder of numbered model versions", None)
    model_name: str = flag("model name in requests", "mae")
    model_config_file: str | None = flag(
        "ModelServerConfig text file, instead of --model_base_path and --model_name",
        None,
    )
    model_config_file_poll_wait_seconds: int = flag(
        "seconds between reads of --model_config_file; 0: read it once", 0
    )
    file_system_poll_wait_seconds: float = flag(
        "seconds between polls of the model folders; 0: no polling", 1.0
    )
    port: int = flag("gRPC port; 0: any free port", 8500)
    rest_api_port: int = flag("REST port; 0: any free port", 8501)
    host: str = flag("address to bind to; 0.0.0.0: all interfaces", "127.0.0.1")
    threads: int = flag("requests processed at the same time", 4)
    max_enqueued: int = flag("waiting requests before others are refused", 100)
    max_batch_size: int = flag("largest number of images per request", 1024)


class ConfigFile:
    """A `ModelServerConfig` text file, read again when it has changed."""

    def __init__(self, path):
        self._path = Path(path)
        self._text = None

    def read(self):
        """Returns the list of `ModelConfig`, or raises `ValueError`."""
        try:
            self._text = self._path.read_text()
            message = model_server_config_pb2.ModelServerConfig()
            return read_config(text_format.Parse(self._text, message))
        except (OSError, ValueError, text_format.ParseError, RequestError) as error:
            raise ValueError(
                f"--model_config_file must be a ModelServerConfig: {error}"
            ) from error

    def reload(self, models):
        """Reconfigures the models if the file has changed; on errors keeps them."""
        try:
            if self._path.read_text() != self._text:
                models.configure(self.read())
        except (OSError, ValueError, RequestError) as error:
            print(f"Cannot reload {self._path}: {error}", flush=True)


def start_models(config):
    """Loads the models, and starts polling."""
    if (config.model_base_path is None) == (config.model_config_file is None):
        raise ValueError("Give either --model_base_path or --model_config_file")
    if config.model_config_file is None:
        models = Models([ModelConfig(config.model_name, config.model_base_path)])
    else:
        file = ConfigFile(config.model_config_file)
        models = Models(file.read())
        if config.model_config_file_poll_wait_seconds:
            models.keep_polling(
                config.model_config_file_poll_wait_seconds,
                lambda: file.reload(models),
            )
    if config.file_system_poll_wait_seconds > 0:
        models.keep_polling(config.file_system_poll_wait_seconds)
    return models


async def read_body(request):
    """Reads a request's body; raises `ValueError` as soon as it is too long."""
    problem = ValueError(f"request body must have at most {MAX_BODY_BYTES} bytes")
    if int(request.headers.get("content-length", 0)) > MAX_BODY_BYTES:
        raise problem
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise problem
    return bytes(body)


def make_app(service):
    """Builds the ASGI application: REST API and web page."""
    answer = RestApi(service)
    pool = futures.ThreadPoolExecutor(service.max_threads)

    async def api(request):
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await read_body(request)
        except (TimeoutError, ValueError) as error:
            late = isinstance(error, TimeoutError)
            text = f"no request body within {BODY_SECONDS} s" if late else str(error)
            # the connection cannot be reused: part of the body is unread
            headers = {"Connection": "close"}
            return JSONResponse({"error": text}, 408 if late else 413, headers)
        path = request.scope["raw_path"].decode("latin-1")
        status, text = await asyncio.get_running_loop().run_in_executor(
            pool, answer, request.method, path, body
        )
        return Response(text, status, media_type="application/json")

    methods = ["GET", "POST", "PUT", "DELETE", "PATCH"]
    page = StaticFiles(directory=Path(__file__).parent / "page", html=True)
    return Starlette(
        routes=[Route("/v1/{rest:path}", api, methods=methods), Mount("/", page)]
    )


def bind(host, port):
    """Binds the socket of the REST API."""
    try:
        listening = socket.create_server((host, port), backlog=1024)
        # Nagle's algorithm would delay a response's second packet by 40 ms
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except OSError as error:
        raise ValueError(f"Cannot bind REST port {port} on {host}: {error}") from error


def main(config):
    """Loads the models and serves them until SIGTERM or SIGINT."""
    for name in ("port", "rest_api_port"):
        if not 0 <= getattr(config, name) < 65536:
            raise ValueError(
                f"{name} must be in [0, 65535]. Received: {getattr(config, name)}"
            )
    check_at_least_one(config, "threads", "max_batch_size", "max_enqueued")
    models = start_models(config)
    service = Service(
        models, config.threads, config.max_enqueued, config.max_batch_size
    )
    server, port = make_grpc_server(
        service, config.host, config.port, MAX_MESSAGE_BYTES
    )
    rest = uvicorn.Config(
        make_app(service),
        log_level="error",
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    try:
        listening = bind(config.host, config.rest_api_port)
        print(
            f"REST: http://{config.host}:{listening.getsockname()[1]}  "
            f"gRPC: {config.host}:{port}",
            flush=True,
        )
        server.start()
        # uvicorn raises the signal again at its end: ignored, for exit code 0
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.signal(signal.SIGINT, lambda *_: None)
        uvicorn.Server(rest).run([listening])
    finally:
        server.stop(GRACE_SECONDS).wait()
        models.close()


def cli():
    """Runs the command line."""
    run_script(main, ServerConfig, __doc__)


if __name__ == "__main__":
    cli()
