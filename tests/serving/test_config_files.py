"""Files for TF Serving and Docker: formats, flags, and what they refer to.

The server itself comes in a container, which no test here starts.
"""

import dataclasses
import functools
import http.server
import json
import re
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request

import pytest
import tensorflow as tf
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
    wrappers_pb2,
)

from mae_server.process import running
from tests.http_server import Server
from tests.scripts import ROOT, environment, load
from tests.serving.deployment import (
    CONFIG,
    SERVING,
    check_probe,
    check_server,
    interpolate,
    known_flags,
    model_config,
    parse_flags,
    read_yaml,
)

# tensorflow_serving/servables/tensorflow/session_bundle_config.proto, and
# tensorflow_serving/config/monitoring_config.proto, which its Python package lacks
INT64, STRING = ".google.protobuf.Int64Value", ".google.protobuf.StringValue"
MESSAGES = {
    "BatchingParameters": {
        "max_batch_size": INT64,
        "batch_timeout_micros": INT64,
        "max_enqueued_batches": INT64,
        "num_batch_threads": INT64,
        "thread_pool_name": STRING,
        "allowed_batch_sizes": "repeated int64",
        "pad_variable_length_inputs": "bool",
    },
    "PrometheusConfig": {"enable": "bool", "path": "string"},
    "MonitoringConfig": {"prometheus_config": ".serving.PrometheusConfig"},
}


@functools.cache
def message_class(name):
    """Builds the class of a message in `MESSAGES`."""
    file = descriptor_pb2.FileDescriptorProto(
        name="serving.proto",
        package="serving",
        syntax="proto3",
        dependency=[wrappers_pb2.DESCRIPTOR.name],
    )
    for message, fields in MESSAGES.items():
        described = file.message_type.add(name=message)
        for number, (field, kind) in enumerate(fields.items(), 1):
            repeated, _, kind = kind.rpartition(" ")
            item = described.field.add(name=field, number=number)
            item.label = item.LABEL_REPEATED if repeated else item.LABEL_OPTIONAL
            if kind.startswith("."):
                item.type, item.type_name = item.TYPE_MESSAGE, kind
            else:
                item.type = getattr(item, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return message_factory.GetMessageClass(
        pool.FindMessageTypeByName(f"serving.{name}")
    )


def read(name, message):
    return text_format.Parse((CONFIG / name).read_text(), message)


def test_the_models_file_names_the_exported_folder():
    text = (CONFIG / "models.config").read_text()
    model = model_config(text)
    assert (model.name, model.base_path) == ("mae", "/models/mae")
    assert model.model_platform == "tensorflow"
    assert model.model_version_policy.latest.num_versions == 1
    # where serving/export.py writes to, seen from the mounted folder
    assert load("serving/export.py").ExportConfig("run").out == "models/mae"


def with_canary(text):
    """Puts the canary release that the comments offer in."""
    text = re.sub(r"(?m)^ *model_version_policy \{ latest.*\n", "", text)
    return re.sub(
        r"(?m)^( *)# ((model_version_policy|version_labels) \{)", r"\1\2", text
    )


def test_the_canary_in_the_comments_is_right():
    model = model_config(with_canary((CONFIG / "models.config").read_text()))
    assert list(model.model_version_policy.specific.versions) == [1, 2]
    assert dict(model.version_labels) == {"stable": 1, "canary": 2}


def test_batching_has_threads_and_leaves_the_rest_to_the_model():
    parameters = read("batching.config", message_class("BatchingParameters")())
    (field,) = parameters.ListFields()  # the others would be ignored
    assert field[0].name == "num_batch_threads"
    assert parameters.num_batch_threads.value >= 1


def test_metrics_have_their_usual_path():
    config = read("monitoring.config", message_class("MonitoringConfig")())
    assert config.prometheus_config.enable
    assert config.prometheus_config.path == "/monitoring/prometheus/metrics"


def test_flags_in_docs_and_comments_exist():
    page = re.sub(r"\\\n *", "", (ROOT / "docs/serving.md").read_text())
    lines = re.findall(r"^tensorflow_model_server (.*)", page, re.MULTILINE)
    assert lines
    for line in lines:
        parse_flags(line.split())
    for path in [*CONFIG.iterdir(), *SERVING.glob("*.y*ml")]:
        named = re.findall(r"--([a-z]+(?:_[a-z]+)+)", path.read_text())
        assert set(named) <= set(known_flags()), path


def test_the_embedded_server_knows_every_flag():
    from mae_server.flags import WITHOUT_EFFECT

    known = set(known_flags())
    script = load("serving/local_server.py")
    fields = {it.name for it in dataclasses.fields(script.ServerConfig)}
    assert known <= fields | WITHOUT_EFFECT
    assert known >= WITHOUT_EFFECT


def compose(name):
    (document,) = read_yaml("docker-compose.yml")
    return document["services"][name]


def compose_flags(profile="cpu", **variables):
    command = compose(profile)["command"]
    return parse_flags([interpolate(it, variables) for it in command])


@pytest.mark.parametrize("batching", [None, "true", "false"])
@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_the_compose_files_flags_and_mounts_exist(profile, batching):
    service = compose(profile)
    assert service["profiles"] == [profile]
    flags = compose_flags(profile, BATCHING=batching)
    check_server(flags)
    assert flags["enable_batching"] == (batching or "true")
    assert service["entrypoint"] == ["tensorflow_model_server"] and service["init"]
    mounts = {it["target"]: it for it in service["volumes"]}
    assert all(it["read_only"] for it in mounts.values())
    source = interpolate(mounts["/models"]["source"], {})
    assert (SERVING / source).resolve() == ROOT / "models"
    assert (SERVING / mounts["/config"]["source"]).resolve() == CONFIG
    # loopback alone, REST and gRPC
    assert service["ports"] == ["127.0.0.1:8500:8500", "127.0.0.1:8501:8501"]
    check_probe(service["healthcheck"]["test"][1:])


@pytest.mark.parametrize("name", ["cpu", "gpu", "proxy"])
def test_containers_have_few_rights(name):
    service = compose(name)
    assert service["read_only"] and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert interpolate(service["user"], {}) == "1000:1000"


def test_the_proxy_has_what_its_configuration_names():
    service, text = compose("proxy"), (CONFIG / "nginx.conf").read_text()
    given = {it for it in service["environment"] if it.startswith("MAE_")}
    assert set(re.findall(r"\$\{(\w+)\}", text)) == given
    assert re.match(service["environment"]["NGINX_ENVSUBST_FILTER"], "MAE_TOKEN")
    mounts = {it["target"]: it["source"] for it in service["volumes"]}
    sources = {k: SERVING / interpolate(v, {}) for k, v in mounts.items()}
    assert sources.pop("/certs").resolve() == ROOT / "certs"
    assert all(path.exists() for path in sources.values())
    assert sources["/page"] == SERVING / "page"
    # the other end of each address
    for profile in ("cpu", "gpu"):
        (name,) = compose(profile)["networks"]["default"]["aliases"]
        flags = compose_flags(profile)
        rest, grpc = flags["rest_api_port"], flags["port"]
        assert service["environment"]["MAE_REST"] == f"{name}:{rest}"
        assert service["environment"]["MAE_GRPC"] == f"{name}:{grpc}"
        assert not service["depends_on"][profile]["required"]
    (port,) = re.findall(r"listen (\d+)", text)
    assert service["ports"] == [f"{port}:{port}"]
    # without a token nobody gets in: tests/serving/test_proxy.py
    assert interpolate(service["environment"]["MAE_TOKEN"], {}) == ""


@pytest.mark.parametrize("profile, ending", [("cpu", ""), ("gpu", "-gpu")])
def test_the_server_has_the_tensorflow_that_exports(profile, ending):
    version = ".".join(tf.__version__.split(".")[:2])
    image = interpolate(compose(profile)["image"], {})
    assert re.fullmatch(rf"tensorflow/serving:{version}\.\d+{ending}", image)
    assert ("deploy" in compose(profile)) == (profile == "gpu")


class Status(http.server.BaseHTTPRequestHandler):
    """Answers with the server's `state`, and may leave the connection open."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        known = self.path == "/v1/models/mae"
        row = {
            "version": "1",
            "state": self.server.state,
            "status": {"error_code": "UNAVAILABLE", "error_message": ""},
        }
        self.send_response(200 if known else 404)
        self.end_headers()
        answer = {"model_version_status": [row]} if known else {"error": "not found"}
        self.wfile.write(json.dumps(answer, indent=1).encode() + b"\n")
        self.server.may_close.wait(STATUS_HOLDS)


# seconds that the server keeps a connection which its client should close
STATUS_HOLDS = 300


@pytest.fixture
def status():
    with Server(("127.0.0.1", 0), Status) as server:
        server.may_close = threading.Event()
        server.may_close.set()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.may_close.set()
        server.shutdown()


def ready(port, model="mae"):
    arguments = ["bash", CONFIG / "ready.sh", model, str(port)]
    return subprocess.run(arguments, stderr=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize("state", ["START", "LOADING", "AVAILABLE", "UNLOADING", "END"])
def test_ready_means_available(status, state):
    status.state = state
    assert ready(status.server_port) == (state == "AVAILABLE")


def test_an_unknown_model_is_not_ready(status):
    status.state = "AVAILABLE"
    assert not ready(status.server_port, model="other")


@pytest.mark.slow
def test_ready_waits_for_no_connection_to_close(status):
    status.may_close.clear()
    start = time.monotonic()
    status.state = "AVAILABLE"
    assert ready(status.server_port)
    status.state = "LOADING"
    assert not ready(status.server_port)
    assert time.monotonic() - start < STATUS_HOLDS


def test_nothing_that_listens_is_not_ready(status):
    port = status.server_port
    status.shutdown()
    status.server_close()
    assert not ready(port)


@pytest.mark.nightly
def test_the_embedded_server_takes_the_same_files_and_flags(tmp_path):
    """With the canary of the comments, whose second version is still to come."""
    for package in ("starlette", "uvicorn", "grpc", "tensorflow_serving"):
        pytest.importorskip(package)
    shutil.unpack_archive(ROOT / "tests/fixtures/v0_1/savedmodel.zip", tmp_path)
    text = with_canary((CONFIG / "models.config").read_text())
    path = tmp_path / "models.config"
    path.write_text(text.replace("/models/mae", str(tmp_path)))
    flags = compose_flags() | {"model_config_file": path}
    flags = [f"--{k}={v}" for k, v in flags.items() if not k.endswith("port")]
    flags = [flag.replace("=/config/", f"={CONFIG}/") for flag in flags]
    script = ROOT / "serving/local_server.py"
    with running(script, *flags, env=environment()) as (rest, _, server):
        assert ready(rest.partition(":")[2])
        url = f"http://{rest}/v1/models/mae/labels"
        assert urllib.request.urlopen(f"{url}/stable/metadata").status == 200
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{url}/canary/metadata")
    assert server.returncode == 0
