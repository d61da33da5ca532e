"""Requests of the conformance suite: plain HTTP, and the official gRPC stubs."""

import base64
import http.client
import io
import json

import grpc
import numpy as np
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

LIMIT = 512 * 2**20


def picture(seed=0, size=(40, 50)):
    """Draws a picture; returns it and its PNG bytes."""
    levels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), "uint8")
    image = Image.fromarray(levels).resize(size, Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "PNG")
    return image, file.getvalue()


def b64(encoded):
    return {"b64": base64.b64encode(encoded).decode()}


class Caller:
    """Sends requests to a `Server`."""

    def __init__(self, server):
        self.server = server
        self._channel = grpc.insecure_channel(
            server.grpc,
            [
                ("grpc.max_receive_message_length", LIMIT),
                ("grpc.max_send_message_length", LIMIT),
            ],
        )
        self.prediction = prediction_service_pb2_grpc.PredictionServiceStub(
            self._channel
        )
        self.models = model_service_pb2_grpc.ModelServiceStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._channel.close()

    def http(self, method, path, body=b"", headers=None):
        """Sends a request by HTTP; returns the status and the parsed body."""
        status, _, text = self.raw(method, path, body, headers)
        return status, json.loads(text)

    def raw(self, method, path, body=b"", headers=None):
        """Sends a request by HTTP; returns status, content type and body's bytes."""
        connection = http.client.HTTPConnection(self.server.rest, timeout=300)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            kind = response.getheader("Content-Type", "")
            return response.status, kind, response.read()
        finally:
            connection.close()

    def post(self, path, body):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.http("POST", f"/v1/models/{path}", data)

    def get(self, path):
        return self.http("GET", f"/v1/models/{path}")

    def predict(self, name, inputs, signature="", outputs=(), version=None, label=""):
        """Calls Predict; arrays in, dict of arrays out, beside the whole response."""
        request = predict_pb2.PredictRequest(output_filter=list(outputs))
        fill(request.model_spec, name, signature, version, label)
        for key, value in inputs.items():
            if not hasattr(value, "tensor_shape"):  # a proto is sent as it is
                value = tf.make_tensor_proto(value)
            request.inputs[key].CopyFrom(value)
        response = self.prediction.Predict(request, timeout=300)
        found = {key: tf.make_ndarray(v) for key, v in response.outputs.items()}
        return found, response

    def classify(self, name, features, signature="classify_examples", context=None):
        """Calls Classify on dicts from feature name to bytes."""
        request = classification_pb2.ClassificationRequest()
        fill(request.model_spec, name, signature)
        fill_examples(request.input, features, context)
        return self.prediction.Classify(request, timeout=300)

    def regress(self, name, features, signature="", context=None):
        """Calls Regress on dicts from feature name to floats."""
        request = regression_pb2.RegressionRequest()
        fill(request.model_spec, name, signature)
        fill_examples(request.input, features, context)
        return self.prediction.Regress(request, timeout=300)

    def multi_inference(self, tasks, features):
        """Calls MultiInference; tasks are (model, signature, `classify` or such)."""
        request = inference_pb2.MultiInferenceRequest()
        for name, signature, method in tasks:
            task = request.tasks.add(method_name=f"tensorflow/serving/{method}")
            fill(task.model_spec, name, signature)
        fill_examples(request.input, features)
        return self.prediction.MultiInference(request, timeout=300)

    def metadata(self, name, *fields, **which):
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=fields)
        fill(request.model_spec, name, **which)
        return self.prediction.GetModelMetadata(request, timeout=300)

    def status(self, name, **which):
        """Calls GetModelStatus; returns a dict from version to state's name."""
        request = get_model_status_pb2.GetModelStatusRequest()
        fill(request.model_spec, name, **which)
        response = self.models.GetModelStatus(request, timeout=300)
        state = get_model_status_pb2.ModelVersionStatus.State.Name
        return {row.version: state(row.state) for row in response.model_version_status}

    def health(self, service=""):
        """Calls grpc.health.v1's Check; returns the status's name."""
        request = health_pb2.HealthCheckRequest(service=service)
        response = self._health.Check(request, timeout=300)
        return health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)


def example(row):
    """Makes a `tf.train.Example` of a dict from feature name to bytes or float."""
    made = tf.train.Example()
    for name, value in row.items():
        feature = made.features.feature[name]
        if isinstance(value, bytes):
            feature.bytes_list.value.append(value)
        else:
            feature.float_list.value.append(value)
    return made


def fill_examples(message, features, context=None):
    """Fills an `Input` with examples, and what all of them have in common."""
    examples = [example(row) for row in features]
    if context is None:
        message.example_list.examples.extend(examples)
    else:
        message.example_list_with_context.examples.extend(examples)
        message.example_list_with_context.context.CopyFrom(example(context))


def fill(spec, name, signature="", version=None, label=""):
    spec.name = name
    spec.signature_name = signature
    if label:
        spec.version_label = label
    if version is not None:
        spec.version.value = version
