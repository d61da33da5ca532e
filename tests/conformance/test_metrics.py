"""Prometheus's metrics: names, labels, and which requests are counted."""

import contextlib
import re

import grpc
import numpy as np
import pytest

from tests.conformance.sources import source

X = {"x": np.float32([[1, 2]])}
PATH = "/monitoring/prometheus/metrics"
NAME = ":tensorflow:serving:"


def read(caller):
    """Returns a dict from a line's name and labels to its number."""
    status, kind, text = caller.raw("GET", PATH)
    assert status == 200 and kind.startswith("text/plain") and text.endswith(b"\n")
    lines = [line for line in text.decode().splitlines() if not line.startswith("#")]
    return {key: float(number) for key, _, number in (r.rpartition(" ") for r in lines)}


@pytest.fixture
def grown(caller):
    """Gives a function that says how much a metric has grown in the test."""
    before = read(caller)
    return lambda key: read(caller).get(NAME + key, 0) - before.get(NAME + key, 0)


@source(
    "model_servers/http_server.cc: ProcessPrometheusRequest",
    "util/prometheus_exporter.cc: kPrometheusPath",
    "servables/tensorflow/util.cc: model_request_status_count_total",
)
def test_metrics_have_types(caller):
    caller.predict("echo", X)
    caller.multi_inference([("examples", "", "regress")], [{"x": 0.5}])
    text = caller.raw("GET", PATH)[2].decode()
    for kind in ("counter request_count", "histogram request_latency",
                 "histogram runtime_latency", "histogram request_example_counts",
                 "counter request_example_count_total"):  # fmt: skip
        kind, name = kind.split()
        assert f"# TYPE {NAME}{name} {kind}\n" in text


@source("servables/tensorflow/util.cc: RecordModelRequestCount")
def test_requests_are_counted_by_model_and_code(caller, grown):
    caller.predict("echo", X)
    assert caller.post("echo:predict", {"inputs": X["x"].tolist()})[0] == 200
    assert caller.get("echo")[0] == 200
    with contextlib.suppress(grpc.RpcError):
        caller.predict("echo", X, "X")
    assert caller.post("nothing:predict", {"inputs": []})[0] == 404
    # not counted
    caller.metadata("echo", "signature_def")
    caller.status("echo")
    assert grown('request_count{model_name="echo",status="OK"}') == 3
    assert grown('request_count{model_name="echo",status="FAILED_PRECONDITION"}') == 1
    assert grown('request_count{model_name="nothing",status="NOT_FOUND"}') == 1


@source(
    "servables/tensorflow/util.cc: RecordRequestLatency",
    "model_servers/prediction_service_impl.cc: RecordRequestLatency",
    "model_servers/http_server.cc: RecordRequestLatency",
)
def test_times_of_requests_that_succeed(caller, grown):
    caller.predict("echo", X)
    caller.classify("examples", [{"x": 0.5}], "both")
    caller.regress("examples", [{"x": 0.5}])
    caller.post("echo:predict", {"inputs": X["x"].tolist()})
    caller.get("echo")
    caller.post("echo:predict", {})
    for model, api, entrypoint in (
        ("echo", "Predict", "GRPC"),
        ("examples", "Classify", "GRPC"),
        ("examples", "Regress", "GRPC"),
        ("echo", "predict", "REST"),
        ("echo", "", "REST"),
    ):
        labels = f'model_name="{model}",API="{api}",entrypoint="{entrypoint}"'
        assert grown(f"request_latency_count{{{labels}}}") == 1
        assert grown(f'request_latency_bucket{{{labels},le="+Inf"}}') == 1
        assert grown(f"request_latency_sum{{{labels}}}") > 0
    labels = 'model_name="echo",API="Predict",runtime="TF1"'
    assert grown(f"runtime_latency_count{{{labels}}}") == 2


@source("servables/tensorflow/multi_inference.cc: RecordRequestExampleCount")
def test_examples_of_multi_inference_are_counted(caller, grown):
    caller.multi_inference([("examples", "", "regress")], [{"x": 0.5}] * 3)
    caller.regress("examples", [{"x": 0.5}])
    assert grown('request_example_count_total{model="examples"}') == 3
    for limit, count in (("2", 0), ("4", 1), ("+Inf", 1)):
        key = f'request_example_counts_bucket{{model="examples",le="{limit}"}}'
        assert grown(key) == count


@source(
    "util/prometheus_exporter.cc: SerializeHistogram",
    "servables/tensorflow/util.cc: request_latency",
)
def test_buckets(caller):
    caller.predict("echo", X)
    start = re.escape(f'{NAME}request_latency_bucket{{model_name="echo",API="Predict",')
    limits = [
        found[1]
        for key in read(caller)
        if (found := re.match(start + 'entrypoint="GRPC",le="(.*)"', key))
    ]
    assert limits[:6] == ["10", "18", "32.4", "58.32", "104.976", "188.957"]
    assert len(limits) == 34 and limits[-2:] == ["1.47476e+09", "+Inf"]
