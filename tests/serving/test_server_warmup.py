"""Warm-up records of each kind that TF Serving replays, and those that it refuses."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import prediction_log_pb2

from mae_server import warmup
from mae_server.tensor_protos import typed_tensor_proto

EXAMPLE = tf.train.Example()


def signature(output):
    made = meta_graph_pb2.SignatureDef()
    made.inputs["inputs"].name, made.outputs[output].name = "inputs:0", "outputs:0"
    return made


class Recorder:
    """A bundle that keeps what it is asked to run."""

    def __init__(self):
        self.runs = []
        self.signatures = {
            "classify_log": signature("scores"),
            "first": signature("scores"),
            "regress_log": signature("outputs"),
            "second": signature("outputs"),
        }

    def run(self, name, inputs, outputs, call):
        sizes = {key: len(value) for key, value in inputs.items()}
        self.runs.append((name, sizes))
        return {key: np.zeros((sizes["inputs"], 1), "float32") for key in outputs}


def log(kind):
    made = prediction_log_pb2.PredictionLog()
    if kind is None:
        return made
    record = getattr(made, kind)
    record.SetInParent()
    if kind == "predict_log":
        proto = typed_tensor_proto(np.float32([[1, 2]] * 3))
        record.request.inputs["x"].CopyFrom(proto)
    elif kind == "multi_inference_log":
        record.request.input.example_list.examples.extend([EXAMPLE] * 2)
        for name, method in (("first", "classify"), ("second", "regress")):
            task = record.request.tasks.add(method_name=f"tensorflow/serving/{method}")
            task.model_spec.signature_name = name
    elif kind in ("classify_log", "regress_log"):
        listed = record.request.input.example_list_with_context
        listed.context.CopyFrom(EXAMPLE)
        listed.examples.extend([EXAMPLE] * 2)
        record.request.model_spec.signature_name = kind
    return made


def write(path, *logs):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for one in logs:
            writer.write(one.SerializeToString())
    return path


@pytest.mark.parametrize(
    "kind, runs",
    [
        ("predict_log", [("serving_default", {"x": 3})]),
        ("classify_log", [("classify_log", {"inputs": 2})]),
        ("regress_log", [("regress_log", {"inputs": 2})]),
        ("multi_inference_log", [("first", {"inputs": 2}), ("second", {"inputs": 2})]),
        (None, []),
    ],
)
def test_records_of_each_kind_are_replayed(tmp_path, kind, runs):
    bundle = Recorder()
    warmup.warm_up(bundle, write(tmp_path / "records", log(kind)), repeats=2)
    assert bundle.runs == runs * 2


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda log: log.request.ClearField("input"), "Input is empty"),
        (
            lambda log: setattr(log.request.model_spec, "signature_name", "second"),
            "Expected classification signature outputs",
        ),
        (
            lambda log: setattr(log.request.model_spec, "signature_name", "none"),
            "No signature was found with the name: none",
        ),
    ],
)
def test_records_are_checked_as_requests_are(tmp_path, change, message):
    record = log("classify_log")
    change(record.classify_log)
    with pytest.raises(ValueError, match=message):
        warmup.warm_up(Recorder(), write(tmp_path / "records", record))


# tensorflow_serving/servables/tensorflow/saved_model_warmup.cc, RunWarmupRequest
@pytest.mark.parametrize("kind", ["session_run_log", "predict_streamed_log"])
def test_kinds_that_tf_serving_refuses_are_refused(tmp_path, kind):
    with pytest.raises(ValueError, match="Unsupported log_type for warmup"):
        warmup.warm_up(Recorder(), write(tmp_path / "records", log(kind)))


def test_too_many_records_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(warmup, "MOST_RECORDS", 2)
    bundle = Recorder()
    two = write(tmp_path / "two", *[log("predict_log")] * 2)
    warmup.warm_up(bundle, two)
    assert len(bundle.runs) == 2
    three = write(tmp_path / "three", *[log("predict_log")] * 3)
    with pytest.raises(ValueError, match="exceeds the maximum"):
        warmup.warm_up(bundle, three)
    warmup.warm_up(bundle, tmp_path / "none")


@pytest.mark.parametrize(
    "dtype, field",
    [
        ("float32", "float_val"),
        ("float64", "double_val"),
        ("int64", "int64_val"),
        ("int32", "int_val"),
        ("uint8", "int_val"),
        ("bool", "bool_val"),
        ("uint32", "uint32_val"),
        ("uint64", "uint64_val"),
        ("float16", "half_val"),
        (object, "string_val"),
    ],
)
def test_tensors_are_written_to_typed_fields(dtype, field):
    """As tensorflow/core/framework/tensor.cc's AsProtoField does."""
    values = np.array([[0, 1, 2]] * 70)
    array = np.array([[b"a", b"", b"\xff"]]) if dtype is object else values
    array = array.astype(dtype)
    proto = typed_tensor_proto(array)
    assert len(getattr(proto, field)) == array.size and not proto.tensor_content
    np.testing.assert_array_equal(tf.make_ndarray(proto), array)
    assert tf.make_ndarray(typed_tensor_proto(array[:0])).shape == (0, 3)
    assert tf.make_ndarray(typed_tensor_proto(array[0, 0])) == array[0, 0]
