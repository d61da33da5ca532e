"""Prometheus's metrics under TF Serving's names: requests and their times.

Names, labels and buckets are those of tensorflow_serving/servables/tensorflow/util.cc,
the text is that of tensorflow_serving/util/prometheus_exporter.cc. Metrics of
TensorFlow itself, of batching and of warm-up are missing here.
"""

import bisect
import contextlib
import threading
import time

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from mae_server.errors import RequestError

PATH = "/monitoring/prometheus/metrics"
_PREFIX = ":tensorflow:serving:"
# tensorflow_serving/config/monitoring_config.proto, which the Python package lacks
_PACKAGE = "keras_mae.serving"
# of microseconds, and of examples
_TIMES = [10 * 1.8**power for power in range(33)]
_COUNTS = [2.0**power for power in range(15)]
# of label values, which requests choose; others are not counted
_MOST_SERIES, _MOST_CHARACTERS = 1000, 200


class Metric:
    """What is counted for each tuple of label values, a bounded number of them."""

    def __init__(self, *labels):
        self._labels = labels
        self._series = {}

    def add(self, number, *values):
        values = tuple(value[:_MOST_CHARACTERS] for value in values)
        if values in self._series or len(self._series) < _MOST_SERIES:
            self._series[values] = self._sum(self._series.get(values), number)

    def lines(self, name):
        for values, counted in sorted(self._series.items()):
            yield from self._written(name, _labels(self._labels, values), counted)


class Counter(Metric):
    """A number that grows."""

    kind = "counter"

    def _sum(self, counted, number):
        return (counted or 0) + number

    def _written(self, name, labels, counted):
        yield f"{name}{{{labels}}} {counted}"


class _Sampler(Metric):
    """A histogram: counts of numbers below each of the limits, and their sum."""

    kind = "histogram"

    def __init__(self, limits, *labels):
        super().__init__(*labels)
        self._limits = limits

    def _sum(self, counted, number):
        counts, total = counted or ([0] * (len(self._limits) + 1), 0.0)
        counts[bisect.bisect_right(self._limits, number)] += 1
        return counts, total + number

    def _written(self, name, labels, counted):
        below = 0
        limits = [f"{limit:g}" for limit in self._limits]
        for limit, count in zip([*limits, "+Inf"], counted[0], strict=True):
            below += count
            yield f'{name}_bucket{{{labels},le="{limit}"}} {below}'
        yield f"{name}_sum{{{labels}}} {counted[1]:g}"
        yield f"{name}_count{{{labels}}} {below}"


class Metrics:
    """Counts requests, and times those that succeed; threads may share it."""

    def __init__(self):
        self._lock = threading.Lock()
        self._metrics = {
            "request_count": Counter("model_name", "status"),
            "request_example_count_total": Counter("model"),
            "request_example_counts": _Sampler(_COUNTS, "model"),
            "request_latency": _Sampler(_TIMES, "model_name", "API", "entrypoint"),
            "runtime_latency": _Sampler(_TIMES, "model_name", "API", "runtime"),
        }

    @contextlib.contextmanager
    def request(self, model, api, entrypoint):
        """Counts a request by the code it ends with."""
        begin, code = time.monotonic(), "OK"
        try:
            yield
        except RequestError as error:
            code = error.code
            raise
        except BaseException:
            code = "INTERNAL"
            raise
        finally:
            with self._lock:
                self._metrics["request_count"].add(1, model, code)
                if code == "OK":
                    latency = self._metrics["request_latency"]
                    latency.add(_microseconds(begin), model, api, entrypoint)

    @contextlib.contextmanager
    def runtime(self, model, api):
        """Times what TensorFlow computes, if it succeeds."""
        begin = time.monotonic()
        yield
        with self._lock:
            latency = self._metrics["runtime_latency"]
            latency.add(_microseconds(begin), model, api, "TF1")

    def examples(self, model, count):
        """Counts the examples of a MultiInference request."""
        with self._lock:
            self._metrics["request_example_count_total"].add(count, model)
            self._metrics["request_example_counts"].add(count, model)

    def text(self):
        """Returns all metrics in Prometheus's text format."""
        lines = []
        with self._lock:
            for name, metric in self._metrics.items():
                lines.append(f"# TYPE {_PREFIX}{name} {metric.kind}")
                lines += metric.lines(f"{_PREFIX}{name}")
        return "\n".join(lines) + "\n"


def monitoring_config():
    """Returns an empty `MonitoringConfig`, to be parsed from text."""
    file = descriptor_pb2.FileDescriptorProto(
        name="keras_mae/monitoring_config.proto", package=_PACKAGE, syntax="proto3"
    )
    kinds = descriptor_pb2.FieldDescriptorProto
    prometheus = file.message_type.add(name="PrometheusConfig")
    for number, (name, kind) in enumerate(
        [("enable", kinds.TYPE_BOOL), ("path", kinds.TYPE_STRING)], 1
    ):
        prometheus.field.add(
            name=name, number=number, type=kind, label=kinds.LABEL_OPTIONAL
        )
    file.message_type.add(name="MonitoringConfig").field.add(
        name="prometheus_config",
        number=1,
        type=kinds.TYPE_MESSAGE,
        type_name=f".{_PACKAGE}.PrometheusConfig",
        label=kinds.LABEL_OPTIONAL,
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = pool.FindMessageTypeByName(f"{_PACKAGE}.MonitoringConfig")
    return message_factory.GetMessageClass(found)()


def _microseconds(begin):
    return int(1e6 * (time.monotonic() - begin))


def _labels(names, values):
    pairs = zip(names, values, strict=True)
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs)


def _escaped(value):
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
