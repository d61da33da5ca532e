"""gRPC API of TF Serving's protocol, by its own stubs."""

import functools
from concurrent import futures

import grpc
import numpy as np
import tensorflow as tf
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tensorflow.core.protobuf import error_codes_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from mae_server import errors, inference
from mae_server.bodies import MOST_BYTES
from mae_server.bundle import check_names
from mae_server.calls import Call
from mae_server.errors import RequestError, invalid
from mae_server.tensor_protos import announced_bytes, typed_tensor_proto

# of an answer; a request may be as large as an HTTP body
MOST_ANSWER_BYTES = 512 * 2**20
CHANNEL_OPTIONS = {
    "grpc.max_receive_message_length": MOST_BYTES,
    "grpc.max_send_message_length": MOST_ANSWER_BYTES,
    # a port in use is an error, not shared
    "grpc.so_reuseport": 0,
    "grpc.server_handshake_timeout_ms": 10_000,
}


def make_grpc_server(
    service, host, port, options=(), as_content=False, with_health=False
):
    """Returns a `grpc.Server`, not yet started, and its port (0: a free one)."""
    options = {**CHANNEL_OPTIONS, **dict(options)}
    server = grpc.server(
        futures.ThreadPoolExecutor(service.max_threads),
        options=list(options.items()),
        # a call that waits for a thread holds its message
        maximum_concurrent_rpcs=service.max_threads,
    )
    most_bytes = options["grpc.max_receive_message_length"]
    if most_bytes < 0:  # gRPC's word for any length
        most_bytes = 2**31 - 1
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        PredictionService(service, most_bytes, as_content), server
    )
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(
        ModelService(service), server
    )
    if with_health:
        health_pb2_grpc.add_HealthServicer_to_server(_health(), server)
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError:
        bound = 0
    if not bound:
        raise ValueError(f"Cannot bind gRPC port {port} on {host}")
    return server, bound


def _health():
    """Makes a health service with the names of tensorflow_serving's server.cc."""
    servicer = health.HealthServicer()
    for name in ("", "ModelService", "PredictionService"):
        servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    return servicer


def _counted(method):
    """Counts a method's requests, as TF Serving's prediction_service_impl.cc."""

    @functools.wraps(method)
    def answer(self, request, call):
        labels = (request.model_spec.name, method.__name__, "GRPC")
        with self._service.metrics.request(*labels):
            return method(self, request, call)

    return answer


def _answered(method):
    """Gives a method its `Call`, and converts a `RequestError` to the RPC's status."""

    def answer(self, request, context):
        call = Call(context.time_remaining())
        self._service.in_hand.add(call)

        def end():
            call.cancel()
            self._service.in_hand.remove(call)

        if not context.add_callback(end):
            end()
        try:
            return method(self, request, call)
        except RequestError as error:
            context.abort(grpc.StatusCode[error.code], str(error))

    return answer


def _spec(request):
    """Returns model name, version and label of a request."""
    if not request.HasField("model_spec"):
        raise invalid(errors.NO_MODEL_SPEC)
    return _fields(request.model_spec)


def _fields(spec):
    version = spec.version.value if spec.HasField("version") else None
    return spec.name, version, spec.version_label or None


def _fill_spec(response, name, version, signature_name=""):
    response.model_spec.name = name
    response.model_spec.version.value = version
    response.model_spec.signature_name = signature_name


def _fill_classes(result, rows):
    for row in rows:
        classes = result.classifications.add().classes
        for label, score in row:
            classes.add(label=label, score=float(score))


def _fill_values(result, values):
    for value in values:
        result.regressions.add(value=float(value))


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict, Classify, Regress, MultiInference and GetModelMetadata."""

    def __init__(self, service, max_bytes, as_content):
        self._service = service
        self._max_bytes = max_bytes
        self._to_proto = tf.make_tensor_proto if as_content else typed_tensor_proto

    @_answered
    @_counted
    def Predict(self, request, call):
        spec = _spec(request)
        with self._service.slot(call):
            version, name, outputs = self._service.predict(
                spec,
                request.model_spec.signature_name,
                lambda signature: self._arrays(request.inputs, signature),
                request.output_filter,
                call,
            )
            response = predict_pb2.PredictResponse()
            _fill_spec(response, spec[0], version, name)
            for key, value in outputs.items():
                response.outputs[key].CopyFrom(self._to_proto(value))
            return response

    @_answered
    @_counted
    def Classify(self, request, call):
        spec = _spec(request)
        with self._service.slot(call):
            version, name, rows = self._service.classify(
                spec,
                request.model_spec.signature_name,
                self._service.examples_of(request.input),
                call,
            )
        response = classification_pb2.ClassificationResponse()
        _fill_spec(response, spec[0], version, name)
        _fill_classes(response.result, rows)
        return response

    @_answered
    @_counted
    def Regress(self, request, call):
        spec = _spec(request)
        with self._service.slot(call):
            version, name, values = self._service.regress(
                spec,
                request.model_spec.signature_name,
                self._service.examples_of(request.input),
                call,
            )
        response = regression_pb2.RegressionResponse()
        _fill_spec(response, spec[0], version, name)
        _fill_values(response.result, values)
        return response

    @_answered
    def MultiInference(self, request, call):
        tasks = [
            (_fields(task.model_spec), task.model_spec.signature_name, task.method_name)
            for task in request.tasks
        ]
        with self._service.slot(call):
            version, results = self._service.multi_inference(
                tasks, self._service.examples_of(request.input), call
            )
        response = inference_pb2.MultiInferenceResponse()
        for (spec, _, method), (name, found) in zip(tasks, results, strict=True):
            result = response.results.add()
            _fill_spec(result, spec[0], version, name)
            if method == inference.CLASSIFY:
                _fill_classes(result.classification_result, found)
            else:
                _fill_values(result.regression_result, found)
        return response

    @_answered
    def GetModelMetadata(self, request, call):
        spec = _spec(request)
        if not request.metadata_field:
            raise invalid(errors.NO_METADATA_FIELD)
        for field in request.metadata_field:
            if field != "signature_def":
                raise invalid(errors.UNKNOWN_METADATA_FIELD, field=field)
        version, signatures = self._service.metadata(spec)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        _fill_spec(response, spec[0], version)
        message = get_model_metadata_pb2.SignatureDefMap(signature_def=signatures)
        response.metadata["signature_def"].Pack(message)
        return response

    def _arrays(self, protos, signature):
        """Reads a signature's tensors, whose shapes may be larger than the data."""
        check_names(signature.inputs, protos)
        # nothing is unpacked before all of them together are known to be bounded
        total = 0
        for name, proto in protos.items():
            total += _tried(name, announced_bytes, proto)
            if total > self._max_bytes:
                raise invalid(errors.INVALID_TENSOR_SHAPE, name=name)
        return {
            name: np.asarray(_tried(name, tf.make_ndarray, proto))
            for name, proto in protos.items()
        }


def _tried(name, read, proto):
    try:
        return read(proto)
    except (TypeError, ValueError, OverflowError, KeyError) as error:
        raise invalid(errors.INVALID_TENSOR, name=name, error=error) from error


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus and HandleReloadConfigRequest."""

    def __init__(self, service):
        self._service = service

    @_answered
    def GetModelStatus(self, request, call):
        response = get_model_status_pb2.GetModelStatusResponse()
        # get_model_status_impl.cc looks at no label
        name, version, _ = _spec(request)
        for status in self._service.models.status(name, version):
            row = response.model_version_status.add(version=status.version)
            state = get_model_status_pb2.ModelVersionStatus.State.Value(status.state)
            row.state = state
            row.status.error_code = error_codes_pb2.Code.Value(status.code)
            row.status.error_message = status.error
        return response

    @_answered
    def HandleReloadConfigRequest(self, request, call):
        self._service.reload(request.config)
        return model_management_pb2.ReloadConfigResponse()
