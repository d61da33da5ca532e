"""gRPC transport; imported on demand, as `tensorflow-serving-api` needs TensorFlow."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from .errors import ServingError, check_names, deadline_exceeded, unavailable

_OPTIONS = {
    "grpc.max_send_message_length": 512 * 2**20,
    "grpc.max_receive_message_length": 512 * 2**20,
    # milliseconds: the default of a second would outlast the first retries. The minimum
    # backoff keeps its default, which is also the timeout of connecting
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 1000,
}


class GrpcTransport:
    """Sends requests by gRPC, without TLS; each method raises `ServingError`."""

    def __init__(
        self,
        address: str,
        model: str,
        version: int | None,
        label: str | None,
        concurrency: int,
    ) -> None:
        if "://" in address:
            raise ValueError(f"A gRPC address must be host:port. Received: {address}")
        self._address = address
        self._spec = model_pb2.ModelSpec(name=model)
        if version is not None:
            self._spec.version.value = version
        if label is not None:
            self._spec.version_label = label
        self._channel = grpc.insecure_channel(address, list(_OPTIONS.items()))
        self._predictions = prediction_service_pb2_grpc.PredictionServiceStub(
            self._channel
        )
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    def predict(
        self,
        signature: str,
        inputs: Mapping[str, np.ndarray],
        names: Sequence[str],
        deadline: float,
    ) -> dict[str, np.ndarray]:
        """Returns a dict from output name to array."""
        request = predict_pb2.PredictRequest(model_spec=self._spec)
        request.model_spec.signature_name = signature
        for name, value in inputs.items():
            dtype = tf.string if value.dtype == object else None
            proto = tf.make_tensor_proto(value, dtype, value.shape)
            request.inputs[name].CopyFrom(proto)
        outputs = self._send(self._predictions.Predict, request, deadline).outputs
        check_names(self._address, outputs, names)
        return {name: _from_tensor(tf.make_ndarray(outputs[name])) for name in names}

    def status(self, deadline: float) -> list[dict[str, Any]]:
        request = get_model_status_pb2.GetModelStatusRequest(model_spec=self._spec)
        answer = self._send(self._models.GetModelStatus, request, deadline)
        return [_to_dict(each) for each in answer.model_version_status]

    def metadata(self, deadline: float) -> dict[str, Any]:
        request = get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec=self._spec, metadata_field=["signature_def"]
        )
        answer = self._send(self._predictions.GetModelMetadata, request, deadline)
        table = get_model_metadata_pb2.SignatureDefMap()
        answer.metadata["signature_def"].Unpack(table)
        return {name: _to_dict(each) for name, each in table.signature_def.items()}

    def _send(self, method, request, deadline):
        try:
            return method(request, timeout=max(deadline - time.monotonic(), 0))
        except grpc.RpcError as error:
            code, message = error.code().name, error.details()
        if code == "UNAVAILABLE":
            raise unavailable(self._address, message)
        if code == "DEADLINE_EXCEEDED":
            raise deadline_exceeded(self._address)
        raise ServingError(message, code)


def _from_tensor(array):
    """Decodes TensorFlow's strings, which are bytes."""
    if array.dtype != object:
        return array
    texts = [item.decode() for item in array.ravel()]
    return np.array(texts, dtype="str").reshape(array.shape)


def _to_dict(message):
    """Converts a message to the JSON of the REST API."""
    return json_format.MessageToDict(message, preserving_proto_field_name=True)
