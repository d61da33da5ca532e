"""Serve SavedModels on a laptop by TF Serving's REST and gRPC protocols.

Run: python serving/local_server.py --model_name=mae --model_base_path=models/mae

gRPC listens on --port and REST on --rest_api_port, whose root is a web page to try the
model. Model folders are polled: a new version is available before the old one is
unloaded. The server binds to loopback by default.

For production use TF Serving. This server takes its flags and folders, and refuses the
configurations that it refuses; flags without effect are a warning.
"""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # a port in use is our one-line error
import keras_mae

# isort: split
import dataclasses
import signal
import socket
import sys
from pathlib import Path

import tensorflow as tf
from google.protobuf import text_format

try:
    from tensorflow_serving.config import model_server_config_pb2
except ModuleNotFoundError as error:
    sys.exit(f"The server needs: pip install 'keras-mae[serve]'. Received: {error}")

from keras_mae.utils.flags import check_at_least, flag, run_script
from mae_server.batching import (
    BatchingOptions,
    BatchingParameters,
    read_parameters,
)
from mae_server.browsers import allowed_names
from mae_server.bundle import LoadOptions
from mae_server.errors import RequestError
from mae_server.flags import channel_arguments, for_this_server
from mae_server.http_server import HttpServer, make_app
from mae_server.metrics import PATH as METRICS_PATH
from mae_server.metrics import monitoring_config
from mae_server.rpc import CHANNEL_OPTIONS, make_grpc_server
from mae_server.service import Service, read_config
from mae_server.stopping import Stopping
from mae_server.versions import ModelConfig, Models

PAGE = Path(__file__).parent / "page"


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
    threads: int = flag("requests processed, or batched, at the same time", 4)
    max_enqueued: int = flag("maximum queued requests; more get 503 / UNAVAILABLE", 100)
    max_batch_size: int = flag("largest number of images per request", 1024)
    enable_batching: bool = flag("batch concurrent requests", False)
    batching_parameters_file: str | None = flag(
        "BatchingParameters text file, with --enable_batching", None
    )
    enable_per_model_batching_parameters: bool = flag(
        "batch only models with batching_params.pbtxt, by it", False
    )
    rest_api_timeout_in_ms: int = flag("milliseconds to answer a REST request", 30_000)
    allowed_hosts: str = flag(
        "names by which REST clients may call this server (HTTP's Host), separated by "
        "commas, beside IP addresses, localhost, this machine's name and --host; "
        "*: any",
        "",
    )
    rest_api_enable_cors_support: bool = flag(
        "let web pages of any site use the REST API", False
    )
    grace_seconds: int = flag("seconds to finish requests after SIGTERM", 30)
    allow_version_labels_for_unavailable_models: bool = flag(
        "let new labels name versions that are not loaded yet", False
    )
    enable_grpc_healthcheck_service: bool = flag("answer grpc.health.v1 too", False)
    monitoring_config_file: str | None = flag(
        "MonitoringConfig text file, which says where REST gives Prometheus's metrics",
        None,
    )
    enable_serialization_as_tensor_content: bool = flag(
        "answer gRPC in tensor_content, not in typed fields", False
    )
    enable_model_warmup: bool = flag("run a SavedModel's recorded requests", True)
    num_request_iterations_for_warmup: int = flag(
        "times to run each recorded request, if above 0", 0
    )
    saved_model_tags: str = flag(
        "tags of the graph to load, separated by commas", "serve"
    )
    tensorflow_session_parallelism: int = flag(
        "threads within an operation and operations at the same time, if above 0", 0
    )
    tensorflow_intra_op_parallelism: int = flag(
        "threads within an operation; 0: TensorFlow's choice", 0
    )
    tensorflow_inter_op_parallelism: int = flag(
        "operations at the same time; 0: TensorFlow's choice", 0
    )
    grpc_channel_arguments: str = flag("gRPC's settings: name=value,...", "")
    version: bool = flag("print versions and end", False)


class ConfigFile:
    """A `ModelServerConfig` text file, read again when it has changed."""

    def __init__(self, path):
        self._path = Path(path)
        self._text = None
        self._problem = None

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
        """Reconfigures the models if the file has changed; tries again on errors."""
        try:
            if self._problem is not None or self._path.read_text() != self._text:
                models.configure(self.read())
            self._problem = None
        except (OSError, ValueError, RequestError) as error:
            if str(error) != self._problem:
                print(f"Cannot reload {self._path}: {error}", flush=True)
            self._problem = str(error)


def start_models(config):
    """Loads the models, and starts polling."""
    options = (config.allow_version_labels_for_unavailable_models, load_options(config))
    if config.model_config_file is None:
        if config.model_base_path is None:
            raise ValueError("Give either --model_base_path or --model_config_file")
        folder = os.path.abspath(config.model_base_path)
        models = Models([ModelConfig(config.model_name, folder)], *options)
    else:
        if config.model_base_path is not None:
            print(
                "Warning: --model_config_file wins over --model_base_path", flush=True
            )
        file = ConfigFile(config.model_config_file)
        models = Models(file.read(), *options)
        if config.model_config_file_poll_wait_seconds > 0:
            models.keep_polling(
                config.model_config_file_poll_wait_seconds,
                lambda: file.reload(models),
            )
    if config.file_system_poll_wait_seconds > 0:
        models.keep_polling(config.file_system_poll_wait_seconds)
    return models


def load_options(config):
    """Collects the flags that say how SavedModels are loaded."""
    both = config.tensorflow_session_parallelism
    return LoadOptions(
        tuple(config.saved_model_tags.split(",")),
        config.enable_model_warmup,
        max(config.num_request_iterations_for_warmup, 1),
        config.tensorflow_intra_op_parallelism or both,
        config.tensorflow_inter_op_parallelism or both,
        batching_options(config),
    )


def metrics_path(file):
    """Returns the REST path of the metrics that a file turns on, `None` without."""
    if file is None:
        return None
    try:
        config = text_format.Parse(Path(file).read_text(), monitoring_config())
    except (OSError, ValueError, text_format.ParseError) as error:
        raise ValueError(
            f"--monitoring_config_file must be a MonitoringConfig: {error}"
        ) from error
    path = config.prometheus_config.path or METRICS_PATH
    if not path.startswith("/"):
        raise ValueError(
            f"--monitoring_config_file: the path must begin with /. Received: {path}"
        )
    return path if config.prometheus_config.enable else None


def batching_options(config):
    """Collects the flags of batching; `None` without it."""
    file = config.batching_parameters_file
    if not config.enable_batching:
        if file:
            raise ValueError("batching_parameters_file needs --enable_batching")
        return None
    common = read_parameters(file) if file else BatchingParameters()
    return BatchingOptions(common, config.enable_per_model_batching_parameters)


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
    if config.version:
        print(f"keras_mae {keras_mae.__version__}, TensorFlow {tf.__version__}")
        return
    check_flags(config)
    channel_options = channel_arguments(config.grpc_channel_arguments, CHANNEL_OPTIONS)
    metrics = metrics_path(config.monitoring_config_file)
    models = start_models(config)
    service = Service(
        models, config.threads, config.max_enqueued, config.max_batch_size
    )
    server, port = make_grpc_server(
        service,
        config.host,
        config.port,
        channel_options,
        config.enable_serialization_as_tensor_content,
        config.enable_grpc_healthcheck_service,
    )
    stopping = Stopping(server, config.grace_seconds)
    names = allowed_names(config.host, config.allowed_hosts)
    app = make_app(
        service,
        names,
        PAGE,
        config.rest_api_timeout_in_ms / 1000,
        metrics,
        config.rest_api_enable_cors_support,
    )
    try:
        listening = bind(config.host, config.rest_api_port)
        addresses = (
            f"REST: http://{config.host}:{listening.getsockname()[1]}  "
            f"gRPC: {config.host}:{port}"
        )
        rest = HttpServer(
            app,
            config.grace_seconds,
            lambda: print(addresses, flush=True),
            stopping.begin,
        )
        server.start()
        # uvicorn raises the signal again at its end: ignored, for exit code 0
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.signal(signal.SIGINT, lambda *_: None)
        rest.run([listening])
    finally:
        stopping.begin()
        service.in_hand.wait(config.grace_seconds)
        # idle clients would keep their connections for seconds
        server.stop(0).wait()
        closed = models.close()
    if not closed:
        # no request is in hand; a thread that still loads would crash Python's end
        sys.stdout.flush()
        os._exit(0)


def check_flags(config):
    """Raises `ValueError` on numbers out of range."""
    for name in ("port", "rest_api_port"):
        if not 0 <= getattr(config, name) < 65536:
            raise ValueError(
                f"{name} must be in [0, 65535]. Received: {getattr(config, name)}"
            )
    check_at_least(
        config,
        1,
        *("threads", "max_batch_size", "max_enqueued"),
        *("rest_api_timeout_in_ms", "grace_seconds"),
    )


def cli():
    """Runs the command line."""
    fields = dataclasses.fields(ServerConfig)
    bools = {field.name for field in fields if field.type is bool}
    run_script(main, ServerConfig, __doc__, for_this_server(sys.argv[1:], bools))


if __name__ == "__main__":
    cli()
