"""TF Serving's gRPC API, without its stubs, which need TensorFlow."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
from google.protobuf import json_format
from google.protobuf.message import DecodeError

from . import messages
from .errors import (
    ServingError,
    check_names,
    deadline_exceeded,
    invalid_response,
    unavailable,
)
from .options import Options
from .results import Answer, read_signatures, read_statuses
from .tensors import from_proto, to_proto

_OPTIONS = {
    "grpc.max_send_message_length": 512 * 2**20,
    "grpc.max_receive_message_length": 512 * 2**20,
    # the address alone says where a request goes, not the environment
    "grpc.enable_http_proxy": 0,
    # milliseconds: the default of a second would outlast the first retries. The minimum
    # backoff keeps its default, which is also the timeout of connecting
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 1000,
}
# of grpc._server, of too many calls at once; other exhausted resources are sizes
_BUSY = "Concurrent RPC limit exceeded!"
_PREDICT = "/tensorflow.serving.PredictionService/Predict"
_METADATA = "/tensorflow.serving.PredictionService/GetModelMetadata"
_STATUS = "/tensorflow.serving.ModelService/GetModelStatus"
_RESPONSES = {
    _PREDICT: messages.PredictResponse,
    _METADATA: messages.GetModelMetadataResponse,
    _STATUS: messages.GetModelStatusResponse,
}


class _GrpcRequest(NamedTuple):
    """A message for a method, and how its response is read."""

    method: str
    message: Any
    read: Callable[[Any], Any]


class GrpcMessages:
    """Makes the requests of a client."""

    def __init__(self, options: Options) -> None:
        self.address = options.address
        self._spec = messages.ModelSpec(name=options.model)
        if options.version is not None:
            self._spec.version.value = options.version
        if options.label is not None:
            self._spec.version_label = options.label

    def predict(
        self, signature: str, inputs: Mapping[str, np.ndarray], names: Sequence[str]
    ) -> _GrpcRequest:
        """Asks for an `Answer`."""
        request = messages.PredictRequest(model_spec=self._spec)
        request.model_spec.signature_name = signature
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(to_proto(value))

        def read(response):
            check_names(self.address, response.outputs, names)
            try:
                outputs = {
                    name: _decode(name, response.outputs[name]) for name in names
                }
            except ValueError as error:
                raise invalid_response(self.address, str(error)) from error
            return Answer(outputs, response.model_spec.version.value)

        return _GrpcRequest(_PREDICT, request, read)

    def status(self) -> _GrpcRequest:
        request = messages.GetModelStatusRequest(model_spec=self._spec)

        def read(response):
            return read_statuses(map(_to_dict, response.model_version_status))

        return _GrpcRequest(_STATUS, request, read)

    def metadata(self) -> _GrpcRequest:
        def read(response):
            data = response.metadata["signature_def"].value
            try:
                table = messages.SignatureDefMap.FromString(data)
            except DecodeError as error:
                raise invalid_response(self.address, str(error)) from error
            items = table.signature_def.items()
            return read_signatures({name: _to_dict(each) for name, each in items})

        return self._metadata(read)

    def version(self) -> _GrpcRequest:
        """Asks which version answers."""
        return self._metadata(lambda response: response.model_spec.version.value)

    def _metadata(self, read):
        request = messages.GetModelMetadataRequest(
            model_spec=self._spec, metadata_field=["signature_def"]
        )
        return _GrpcRequest(_METADATA, request, read)


class _Grpc:
    """What both transports share; `library` is `grpc` or `grpc.aio`."""

    def __init__(self, options: Options) -> None:
        self._address = options.address
        self._metadata = tuple(options.all_headers().items())
        self._credentials = _credentials(options) if options.encrypted else None
        compression = grpc.Compression.Gzip if options.gzip else None
        self._settings = (list(_OPTIONS.items()), compression)
        self._channel: Any = None

    def _open(self, library):
        place = self._address
        if self._credentials is None:
            self._channel = library.insecure_channel(place, *self._settings)
        else:
            self._channel = library.secure_channel(
                place, self._credentials, *self._settings
            )
        self._methods = {
            name: self._channel.unary_unary(
                name,
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=response.FromString,
            )
            for name, response in _RESPONSES.items()
        }

    def _call(self, request, deadline):
        return self._methods[request.method](
            request.message,
            timeout=max(deadline - time.monotonic(), 0),
            metadata=self._metadata,
        )

    def _error(self, error):
        code, message = error.code().name, error.details()
        if code == "UNAVAILABLE":
            return unavailable(self._address, message)
        if code == "DEADLINE_EXCEEDED":
            return deadline_exceeded(self._address)
        if code == "RESOURCE_EXHAUSTED" and message == _BUSY:
            return ServingError(message, code, 0)
        return ServingError(message, code)


class GrpcTransport(_Grpc):
    """Sends requests with blocking calls; may be used by several threads."""

    def __init__(self, options: Options, _: GrpcMessages) -> None:
        super().__init__(options)
        self._open(grpc)

    def close(self) -> None:
        self._channel.close()

    def send(self, request: _GrpcRequest, deadline: float) -> Any:
        """Returns a response message; raises `ServingError` without one."""
        try:
            return self._call(request, deadline)
        except grpc.RpcError as error:
            raise self._error(error) from error


class AsyncGrpcTransport(_Grpc):
    """Sends requests in an event loop; a cancelled one is cancelled on the server."""

    def __init__(self, options: Options, _: GrpcMessages) -> None:
        super().__init__(options)

    async def close(self) -> None:
        if self._channel is None:
            self._open(grpc.aio)  # closed, it refuses later calls
        await self._channel.close()

    async def send(self, request: _GrpcRequest, deadline: float) -> Any:
        """As `GrpcTransport.send`."""
        if self._channel is None:
            # not before: a channel belongs to the loop that it is opened in
            self._open(grpc.aio)
        try:
            return await self._call(request, deadline)
        except grpc.RpcError as error:
            raise self._error(error) from error


def _credentials(options):
    root, key, chain = (
        None if path is None else Path(path).read_bytes()
        for path in (options.ca_file, options.key_file, options.cert_file)
    )
    return grpc.ssl_channel_credentials(root, key, chain)


def _decode(name, proto):
    """Reads a tensor; strings are text, but for outputs `*_bytes`."""
    array = from_proto(proto)
    if array.dtype != object or name.endswith("_bytes"):
        return array
    texts = [item.decode() for item in array.ravel()]
    return np.array(texts, dtype="str").reshape(array.shape)


def _to_dict(message):
    """Converts a message to the JSON of the REST API."""
    return json_format.MessageToDict(message, preserving_proto_field_name=True)
