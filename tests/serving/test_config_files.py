"""Files for TF Serving, Docker and Kubernetes: formats, flags, and what they refer to.

The server itself comes in a container, which no test here starts.
"""

import functools
import http.server
import json
import re
import subprocess
import threading
import time

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

SERVING = ROOT / "serving"
CONFIG = SERVING / "config"

# tensorflow_model_server --help names these, and more
FLAGS = {
    "batching_parameters_file",
    "enable_batching",
    "grpc_channel_arguments",
    "model_config_file",
    "model_config_file_poll_wait_seconds",
    "monitoring_config_file",
    "port",
    "rest_api_port",
    "tensorflow_inter_op_parallelism",
    "tensorflow_intra_op_parallelism",
}

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


def read_yaml(name):
    yaml = pytest.importorskip("yaml")
    return list(yaml.safe_load_all((SERVING / name).read_text()))


def model_config(text):
    config = pytest.importorskip("tensorflow_serving.config.model_server_config_pb2")
    message = text_format.Parse(text, config.ModelServerConfig())
    (model,) = message.model_config_list.config
    return model


def test_the_models_file_names_the_exported_folder():
    text = (CONFIG / "models.config").read_text()
    model = model_config(text)
    assert (model.name, model.base_path) == ("mae", "/models/mae")
    assert model.model_platform == "tensorflow"
    assert model.model_version_policy.latest.num_versions == 1
    # where serving/export.py writes to, seen from the mounted folder
    assert load("serving/export.py").ExportConfig("run").out == "models/mae"


def test_the_canary_in_the_comments_is_right():
    text = (CONFIG / "models.config").read_text()
    text = re.sub(r"(?m)^ *model_version_policy \{ latest.*\n", "", text)
    text = re.sub(
        r"(?m)^( *)# ((model_version_policy|version_labels) \{)", r"\1\2", text
    )
    model = model_config(text)
    assert list(model.model_version_policy.specific.versions) == [1, 2]
    assert dict(model.version_labels) == {"stable": 1, "canary": 2}


def test_batches_are_padded_to_sizes_that_end_with_the_largest():
    parameters = read("batching.config", message_class("BatchingParameters")())
    sizes = list(parameters.allowed_batch_sizes)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == parameters.max_batch_size.value
    assert {1, 8} <= set(sizes)  # those of the warm-up requests
    assert parameters.num_batch_threads.value >= 1
    assert 0 < parameters.batch_timeout_micros.value < 100_000
    assert parameters.max_enqueued_batches.value > 0


def test_metrics_have_their_usual_path():
    config = read("monitoring.config", message_class("MonitoringConfig")())
    assert config.prometheus_config.enable
    assert config.prometheus_config.path == "/monitoring/prometheus/metrics"
    deployment = named("Deployment")
    annotations = deployment["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/path"] == config.prometheus_config.path


def check_flags(arguments):
    """Checks flags for TF Serving; returns them as a dict."""
    flags = dict(re.fullmatch("--([a-z_]+)=(.*)", it).groups() for it in arguments)
    assert len(flags) == len(arguments) and set(flags) <= FLAGS
    assert (flags["port"], flags["rest_api_port"]) == ("8500", "8501")
    for value in flags.values():
        if value.startswith("/"):
            check_file(value)
    assert flags["model_config_file"] and flags["monitoring_config_file"]
    assert int(flags["model_config_file_poll_wait_seconds"]) > 0
    # it refuses one without the other
    batching = flags.get("enable_batching") == "true"
    assert bool(flags.get("batching_parameters_file")) == batching
    return flags


def check_file(path):
    folder, _, name = path.removeprefix("/").partition("/")
    assert folder == "config" and (CONFIG / name).is_file(), path


def interpolate(value, variables):
    """Fills `${NAME:-default}` and `${NAME:+replacement}` in, as Compose does."""

    def fill(match):
        name, sign, text = match.groups()
        given = variables.get(name)
        return (given or text) if sign == ":-" else (text if given else "")

    filled = re.sub(r"\$\{(\w+)(:[-+])([^}]*)\}", fill, value)
    assert "$" not in filled
    return filled


@pytest.mark.parametrize("batching", [None, "true"])
@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_the_compose_files_flags_and_mounts_exist(profile, batching):
    (document,) = read_yaml("docker-compose.yml")
    service = document["services"][profile]
    assert service["profiles"] == [profile]
    variables = {"BATCHING": batching}
    arguments = [interpolate(it, variables) for it in service["command"]]
    flags = check_flags(arguments)
    assert flags["enable_batching"] == (batching or "false")
    assert service["entrypoint"] == ["tensorflow_model_server"] and service["init"]
    mounts = {it["target"]: it for it in service["volumes"]}
    assert all(it["read_only"] for it in mounts.values())
    source = interpolate(mounts["/models"]["source"], {})
    assert (SERVING / source).resolve() == ROOT / "models"
    assert (SERVING / mounts["/config"]["source"]).resolve() == CONFIG
    # loopback alone, REST and gRPC
    assert service["ports"] == ["127.0.0.1:8500:8500", "127.0.0.1:8501:8501"]
    check_probe(service["healthcheck"]["test"][1:])


@pytest.mark.parametrize("profile, ending", [("cpu", ""), ("gpu", "-gpu")])
def test_the_server_has_the_tensorflow_that_exports(profile, ending):
    version = ".".join(tf.__version__.split(".")[:2])
    (document,) = read_yaml("docker-compose.yml")
    image = interpolate(document["services"][profile]["image"], {})
    assert re.fullmatch(rf"tensorflow/serving:{version}\.\d+{ending}", image)
    if not ending:
        assert container()["image"] == image
    devices = document["services"][profile].get("deploy")
    assert (devices is not None) == (profile == "gpu")


def check_probe(arguments):
    interpreter, script, model = arguments
    assert interpreter == "bash"
    check_file(script)
    assert model == model_config((CONFIG / "models.config").read_text()).name


def named(kind):
    (found,) = (it for it in read_yaml("kubernetes.yaml") if it["kind"] == kind)
    return found


def container():
    (found,) = named("Deployment")["spec"]["template"]["spec"]["containers"]
    return found


def test_kubernetes_flags_and_mounts_exist():
    pod = named("Deployment")["spec"]["template"]["spec"]
    serving = container()
    assert serving["command"] == ["tensorflow_model_server"]
    flags = check_flags(serving["args"])
    cores = serving["resources"]["requests"]["cpu"]
    assert flags["tensorflow_intra_op_parallelism"] == cores
    volumes = {it["name"]: it for it in pod["volumes"]}
    mounts = {it["mountPath"]: it["name"] for it in serving["volumeMounts"]}
    claim = volumes[mounts["/models"]]["persistentVolumeClaim"]["claimName"]
    assert claim == named("PersistentVolumeClaim")["metadata"]["name"]
    config_map = volumes[mounts["/config"]]["configMap"]["name"]
    text = (SERVING / "kubernetes.yaml").read_text()
    assert f"kubectl create configmap {config_map} --from-file=serving/config" in text
    # what a ConfigMap holds lies in one folder
    assert all(path.is_file() for path in CONFIG.iterdir())
    # the flags that the comments offer, put in
    offered = re.findall(r"(?m)^ *# - (--\S+)$", text)
    assert len(offered) == 2 and check_flags(serving["args"] + offered)


def test_kubernetes_sends_requests_to_pods_that_are_ready():
    deployment, service, serving = named("Deployment"), named("Service"), container()
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert labels == deployment["spec"]["selector"]["matchLabels"]
    assert labels == service["spec"]["selector"]
    ports = {it["name"]: it["containerPort"] for it in serving["ports"]}
    assert ports == {"grpc": 8500, "rest": 8501}
    assert {it["targetPort"] for it in service["spec"]["ports"]} == set(ports)
    assert {it["port"] for it in service["spec"]["ports"]} == set(ports.values())
    for probe in ("startupProbe", "readinessProbe"):
        check_probe(serving[probe]["exec"]["command"])
        assert serving[probe]["timeoutSeconds"] > 4  # the script's own limit
    assert serving["livenessProbe"]["tcpSocket"]["port"] in ports


def test_kubernetes_ends_pods_gracefully():
    spec = named("Deployment")["spec"]
    assert spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    pod = spec["template"]["spec"]
    assert pod["shareProcessNamespace"]
    _, seconds = container()["lifecycle"]["preStop"]["exec"]["command"]
    assert int(seconds) < pod["terminationGracePeriodSeconds"]
    # by then every gRPC connection has ended
    (age,) = re.findall(r"max_connection_age_ms=(\d+)", " ".join(container()["args"]))
    assert int(age) < 1000 * int(seconds)


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
STATUS_HOLDS = 30


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


@pytest.mark.slow
def test_the_embedded_server_takes_the_same_files(tmp_path, served_mae):
    text = (CONFIG / "models.config").read_text()
    path = tmp_path / "models.config"
    path.write_text(text.replace("/models/mae", str(served_mae)))
    flags = (ROOT / "serving/local_server.py", f"--model_config_file={path}")
    with running(*flags, env=environment()) as (rest, _, server):
        assert ready(rest.partition(":")[2])
    assert server.returncode == 0
