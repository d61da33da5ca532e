"""Runs a SavedModel's recorded requests, so that no user waits for the first one.

As tensorflow_serving/servables/tensorflow/saved_model_warmup.cc does: it replays
Predict, Classify, Regress and MultiInference, skips empty records and refuses others.
"""

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import prediction_log_pb2

from mae_server import errors, inference
from mae_server.calls import Call
from mae_server.errors import RequestError, invalid
from mae_server.tensor_protos import examples_of

PATH = "assets.extra/tf_serving_warmup_requests"
# tensorflow_serving/servables/tensorflow/saved_model_warmup_util.h
MOST_RECORDS = 1000


def warm_up(bundle, path, repeats=1):
    """Runs the requests of a TFRecord; raises `ValueError` if one fails."""
    if not path.exists():
        return
    records = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    for index, record in enumerate(records):
        if index == MOST_RECORDS:
            raise ValueError(
                f"Number of warmup records exceeds the maximum ({MOST_RECORDS}) at "
                f"{path}"
            )
        try:
            log = prediction_log_pb2.PredictionLog.FromString(record)
            for _ in range(repeats):
                _replay(bundle, log)
        except (RequestError, KeyError, TypeError, DecodeError) as error:
            raise ValueError(f"warm-up request failed: {error}") from error


def _replay(bundle, log):
    kind = log.WhichOneof("log_type")
    if kind is None:
        return
    if kind == "predict_log":
        request = log.predict_log.request
        inputs = {key: tf.make_ndarray(value) for key, value in request.inputs.items()}
        _run(bundle, request.model_spec, inputs, request.output_filter)
    elif kind == "classify_log":
        request = log.classify_log.request
        _infer(bundle, inference.CLASSIFY, request.model_spec, request)
    elif kind == "regress_log":
        request = log.regress_log.request
        _infer(bundle, inference.REGRESS, request.model_spec, request)
    elif kind == "multi_inference_log":
        request = log.multi_inference_log.request
        for task in request.tasks:
            _infer(bundle, task.method_name, task.model_spec, request)
    else:
        raise RequestError("UNIMPLEMENTED", f"Unsupported log_type for warmup: {kind}")


def _infer(bundle, method, spec, request):
    """Runs what Classify and Regress would, with their checks."""
    examples = examples_of(request.input)
    if not examples:
        raise invalid(errors.EMPTY_INPUT)
    name = spec.signature_name or inference.DEFAULT_SIGNATURE
    if name not in bundle.signatures:
        raise invalid(errors.SIGNATURE_NOT_FOUND_EXAMPLES, name=name)
    outputs = inference.outputs_of(method, bundle.signatures[name])
    inputs = {"inputs": np.array(examples, object)}
    inference.read(method, _run(bundle, spec, inputs, outputs), len(examples))


def _run(bundle, spec, inputs, outputs=()):
    name = spec.signature_name or inference.DEFAULT_SIGNATURE
    return bundle.run(name, inputs, list(outputs), Call())
