"""Requests of gRPC that the embedded server refuses, and TF Serving does not."""

import contextlib

import grpc
import numpy as np
import pytest
import tensorflow as tf

from mae_server import metrics, rest
from mae_server.errors import RequestError
from mae_server.rpc import make_grpc_server
from mae_server.service import Service
from mae_server.versions import ModelConfig, Models
from tests.conformance.calls import Caller
from tests.conformance.conftest import Server
from tests.conformance.models import save_echo
from tests.scripts import ROOT, load

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def caller(tmp_path_factory):
    folder = tmp_path_factory.mktemp("echo")
    save_echo(folder / "1")
    with contextlib.closing(Models([ModelConfig("echo", folder)])) as models:
        service = Service(models)
        server, port = make_grpc_server(service, "127.0.0.1", 0)
        server.start()
        with Caller(Server(f"127.0.0.1:{port}", "", None)) as caller:
            caller.service = service
            yield caller
        server.stop(0).wait()


def test_messages_of_any_length_are_taken(caller):
    options = {"grpc.max_receive_message_length": -1}
    server, port = make_grpc_server(caller.service, "127.0.0.1", 0, options)
    server.start()
    with Caller(Server(f"127.0.0.1:{port}", "", None)) as unlimited:
        x = np.ones((1, 2), "float32")
        assert unlimited.predict("echo", {"x": x})[0]["doubled"].tolist() == [[2, 2]]
    server.stop(0).wait()


def refused(caller, x, message):
    with pytest.raises(grpc.RpcError) as caught:
        caller.predict("echo", {"x": x})
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert message in caught.value.details()


def test_shapes_that_the_signature_has_not(caller):
    text = "Shape of tensor x [2,3] is not compatible with expected shape [?,2]."
    refused(caller, np.zeros((2, 3), "float32"), text)


@pytest.mark.parametrize("dims, count", [((2**40, 2), 1), ((-1, 2), 1), ((3, 2), 9)])
def test_tensors_of_another_size_than_their_data(caller, dims, count):
    proto = tf.make_tensor_proto(np.ones(count, "float32"))
    del proto.tensor_shape.dim[:]
    for size in dims:
        proto.tensor_shape.dim.add(size=size)
    refused(caller, proto, "tensor parsing error: x")


def test_the_init_op_computes_nothing(caller):
    with pytest.raises(grpc.RpcError) as caught:
        caller.predict("echo", {}, "__saved_model_init_op")
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "output index too large" in caught.value.details()


def test_no_health_service_without_its_flag(caller):
    with pytest.raises(grpc.RpcError) as caught:
        caller.health()
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_a_monitoring_file_names_the_path_of_the_metrics(tmp_path):
    path_of, file = load("serving/local_server.py").metrics_path, tmp_path / "m.config"
    assert path_of(None) is None
    for text, path in (
        ("", None),
        ("prometheus_config { path: '/metrics' }", None),
        ("prometheus_config { enable: true }", metrics.PATH),
        ("prometheus_config { enable: true path: '/metrics' }", "/metrics"),
    ):
        file.write_text(text)
        assert path_of(file) == path
    assert path_of(ROOT / "serving/config/monitoring.config") == metrics.PATH
    file.write_text("prometheus_config { enable: true path: 'metrics' }")
    with pytest.raises(ValueError, match=r"must begin with /\. Received: metrics"):
        path_of(file)
    file.write_text("prometheus!")
    for wrong in (file, tmp_path / "none"):
        with pytest.raises(ValueError, match="must be a MonitoringConfig"):
            path_of(wrong)


def test_labels_of_rest_requests_and_their_text():
    for method, path, labels in (
        ("POST", "/v1/models/mae:predict", ("mae", "predict")),
        ("POST", "/v1/models/m%61e/versions/1:classify", ("mae", "classify")),
        ("POST", "/v1/models/mae", ("", "")),
        ("GET", "/v1/models/mae/labels/x/metadata", ("mae", "")),
        ("GET", "/v1/nothing", ("", "")),
        ("DELETE", "/v1/models/mae", ("", "")),
    ):
        assert rest.labels(method, path) == labels
    counted = metrics.Metrics()
    with counted.request('a"\\', "Predict", "GRPC"):
        pass
    assert r'request_count{model_name="a\"\\",status="OK"} 1' in counted.text()


def test_names_that_requests_make_up_are_bounded():
    counted = metrics.Metrics()
    for number in range(3000):
        name = f"{number}{'x' * 1000}"
        with contextlib.suppress(RequestError), counted.request(name, "", "REST"):
            raise RequestError("NOT_FOUND", "")
    assert counted.text().count("NOT_FOUND") == 1000
    assert len(counted.text()) < 400_000
