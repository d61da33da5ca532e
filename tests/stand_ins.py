"""Stand-ins for a server of TF Serving's protocol, over REST and gRPC, and the client.

Both answer by real sockets what one `Brain` makes up: features that are the mean level
of an image, losses that are its seed.
"""

import base64
import gzip
import http.server
import importlib.util
import io
import json
import sys
import threading
import time
from concurrent import futures

import numpy as np
import pytest
from PIL import Image

from tests.http_server import Server
from tests.scripts import ROOT

grpc = pytest.importorskip("grpc")
pytest.importorskip("tensorflow_serving.apis")
pytest.importorskip("httpx2")

import tensorflow as tf  # noqa: E402
from google.protobuf import json_format  # noqa: E402
from tensorflow_serving.apis import (  # noqa: E402
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

# seconds after which what a test waits for is taken for lost
PATIENCE = 120
PACKAGE = ROOT / "serving" / "mae_client"


def load_package(path):
    """Imports a folder as a package, as if the folder above were on the path."""
    spec = importlib.util.spec_from_file_location(path.name, path / "__init__.py")
    # before it runs: its modules import one another
    package = sys.modules[path.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    return package


mae_client = load_package(PACKAGE)


def info(dtype, *sizes):
    dims = [{"size": str(size)} for size in sizes]
    return {"dtype": f"DT_{dtype}", "tensor_shape": {"dim": dims}}


SIGNATURES = {
    "features": {
        "inputs": {"image_bytes": info("STRING", -1)},
        "outputs": {"features": info("FLOAT", -1, 5, 2)},
    },
    "embed": {
        "inputs": {"image_bytes": info("STRING", -1)},
        "outputs": {"embedding": info("FLOAT", -1, 2)},
    },
    "reconstruct": {
        "inputs": {"image_bytes": info("STRING", -1), "seed": info("INT64", -1)},
        "outputs": {
            "reconstruction": info("FLOAT", -1, 8, 8, 3),
            "mask": info("FLOAT", -1, 4),
            "loss": info("FLOAT", -1),
            "patch_size": info("INT32", -1, 2),
        },
    },
    "reconstruct_png_bytes": {
        "inputs": {"image_bytes": info("STRING", -1), "seed": info("INT64", -1)},
        "outputs": {
            "png_bytes": info("STRING", -1),
            "mask": info("FLOAT", -1, 4),
            "loss": info("FLOAT", -1),
            "patch_size": info("INT32", -1, 2),
        },
    },
    "__saved_model_init_op": {
        "outputs": {
            "op": {"dtype": "DT_INVALID", "tensor_shape": {"unknown_rank": True}}
        }
    },
}
STATUSES = [
    {"version": "2", "state": "AVAILABLE", "status": {}},
    {
        "version": "3",
        "state": "END",
        "status": {"error_code": "UNKNOWN", "error_message": "torn"},
    },
]
HTTP_STATUS = {
    "INVALID_ARGUMENT": 400,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 413,
    "UNAVAILABLE": 503,
}


class Refusal(Exception):
    """A stand-in's error: the code's name and the message."""


class Gate:
    """A `Brain.hold` that lasts until `go` is set; `begun` says that a request came."""

    def __init__(self):
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self, _):
        self.begun.set()
        assert self.go.wait(PATIENCE)
        return 0


class Together:
    """A `Brain.hold` for which the first `count` requests wait for one another.

    Each then takes `seconds(level)`, by the level of its first image.
    """

    def __init__(self, count, seconds):
        self._seconds, self._lock, self._asked = seconds, threading.Lock(), 0
        self._first = threading.Barrier(count)

    def __call__(self, inputs):
        with self._lock:
            self._asked += 1
            waits = self._asked <= self._first.parties
        if waits:
            self._first.wait(PATIENCE)
        return self._seconds(level(inputs["image_bytes"][0]))


class Brain:
    """What both stand-ins answer; they note what they were asked.

    `refusals` are raised first, one a request; `hold` is how long an answer takes, or
    a function of the inputs that returns it.
    `headers` are those of each request, names in lower case.
    """

    version = 2

    def __init__(self):
        self.calls = []
        self.headers = []
        self.refusals = []
        self.hold = 0
        self.stretch = 1
        self.busy = self.most_busy = 0
        self._lock = threading.Lock()

    def predict(self, signature, inputs, place):
        with self._lock:
            self.calls.append((signature, inputs, place))
            self.busy += 1
            self.most_busy = max(self.most_busy, self.busy)
            refusal = self.refusals.pop(0) if self.refusals else None
        try:
            time.sleep(self.hold(inputs) if callable(self.hold) else self.hold)
        finally:
            with self._lock:
                self.busy -= 1
        if refusal is not None:
            raise Refusal(*refusal)
        return self.answer(signature.partition("_from_pixels")[0], inputs)

    def answer(self, signature, inputs):
        if "pixels" in inputs:
            means = inputs["pixels"].mean(axis=(1, 2, 3))
        elif "pixels_u8" in inputs:
            means = np.array([np.mean(list(item)) for item in inputs["pixels_u8"]])
        else:
            means = np.array([level(item) for item in inputs["image_bytes"]])
        count = len(means)
        means = means.astype("float32")
        if signature == "features":
            shape = (count, 5, 2 * self.stretch)
            return {"features": np.broadcast_to(means[:, None, None], shape)}
        if signature == "embed":
            # an angle for a level: the nearer the levels, the more similar
            angles = means / 255
            return {"embedding": np.stack([np.cos(angles), np.sin(angles)], axis=1)}
        if signature == "classify":
            return {
                "class_ids": np.tile(np.int64([7, 2**40]), (count, 1)),
                "probabilities": np.tile(np.float32([0.75, 0.25]), (count, 1)),
                "labels": np.array([["Käse", "cat"]] * count, object).reshape(-1, 2),
            }
        mask = np.tile(np.float32([1, 0, 0, 1]), (count, 1))
        if signature == "reconstruct_with_mask":
            mask = inputs["mask"]
        loss = inputs.get("seed", np.full(count, np.nan))
        if signature == "reconstruct_png_bytes":
            # no text in any encoding
            files = [b"\x89PNG\xff\0" + bytes([int(mean)]) for mean in means]
            return {
                "png_bytes": np.array(files, object),
                "mask": mask,
                "loss": np.asarray(loss, "float32"),
                "patch_size": np.tile(np.int32([4, 4]), (count, 1)),
            }
        grey = np.broadcast_to(means[:, None, None, None] / 2, (count, 8, 8, 3))
        return {
            "reconstruction": grey.astype("float32"),
            "mask": mask,
            "loss": np.asarray(loss, "float32"),
            "patch_size": np.tile(np.int32([4, 4]), (count, 1)),
        }


def level(encoded):
    return np.asarray(Image.open(io.BytesIO(encoded))).mean()


class RestHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.note_headers()
        if self.headers["Content-Encoding"] == "gzip":
            data = gzip.decompress(data)
        body = json.loads(data)
        inputs = {name: from_json(value) for name, value in body["inputs"].items()}
        brain = self.server.brain
        try:
            outputs = brain.predict(body["signature_name"], inputs, self.path)
        except Refusal as error:
            code, message = error.args
            self.send(HTTP_STATUS[code], {"error": message})
            return
        outputs = {name: to_json(name, value) for name, value in outputs.items()}
        if len(outputs) == 1:
            (outputs,) = outputs.values()
        self.send(200, {"outputs": outputs})

    def note_headers(self):
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.brain.headers.append(headers)

    def do_GET(self):
        self.note_headers()
        if self.path.endswith("/metadata"):
            table = {"signature_def": {"signature_def": SIGNATURES}}
            spec = {"name": "mae", "version": str(self.server.brain.version)}
            self.send(200, {"model_spec": spec, "metadata": table})
        else:
            self.send(200, {"model_version_status": STATUSES})

    def send(self, status, answer):
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def to_json(name, value):
    if name.endswith("_bytes"):
        return [{"b64": base64.b64encode(item).decode()} for item in value]
    return value.tolist()


def from_json(value):
    if value and isinstance(value[0], dict):
        items = [base64.b64decode(item["b64"], validate=True) for item in value]
        return np.array(items, object)
    return np.array(value)


class RestServer(Server):
    # more than the five that wait by default: many clients knock at once
    request_queue_size = 64


class Stub:
    """A stand-in with a `brain` at an `address`; `grpc` is the client's option."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


class RestStub(Stub):
    grpc = False

    def __init__(self, port=0, handler=RestHandler, context=None):
        self.server = RestServer(("127.0.0.1", port), handler)
        if context is not None:
            # the handshake in the thread of the request, not in that of the server
            self.server.socket = context.wrap_socket(
                self.server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.server.brain = self.brain = Brain()
        self.address = f"127.0.0.1:{self.server.server_port}"
        # looking for a stop each 50 ms: the default of half a second adds up
        threading.Thread(
            target=self.server.serve_forever, args=(0.05,), daemon=True
        ).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


class PredictionServicer(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, brain):
        self.brain = brain

    def Predict(self, request, context):
        inputs = {
            name: tf.make_ndarray(value) for name, value in request.inputs.items()
        }
        spec = request.model_spec
        self.brain.headers.append(dict(context.invocation_metadata()))
        try:
            outputs = self.brain.predict(spec.signature_name, inputs, spec)
        except Refusal as error:
            code, message = error.args
            context.abort(getattr(grpc.StatusCode, code), message)
        response = predict_pb2.PredictResponse()
        response.model_spec.version.value = self.brain.version
        for name, value in outputs.items():
            response.outputs[name].CopyFrom(tf.make_tensor_proto(value))
        return response

    def GetModelMetadata(self, request, context):
        assert list(request.metadata_field) == ["signature_def"]
        self.brain.headers.append(dict(context.invocation_metadata()))
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.version.value = self.brain.version
        table = get_model_metadata_pb2.SignatureDefMap()
        json_format.ParseDict({"signature_def": SIGNATURES}, table)
        response.metadata["signature_def"].Pack(table)
        return response


class ModelServicer(model_service_pb2_grpc.ModelServiceServicer):
    def GetModelStatus(self, request, context):
        answer = get_model_status_pb2.GetModelStatusResponse()
        return json_format.ParseDict({"model_version_status": STATUSES}, answer)


class GrpcStub(Stub):
    grpc = True

    def __init__(self, port=0, credentials=None, **settings):
        self.brain = Brain()
        options = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
        ]
        self.server = grpc.server(
            futures.ThreadPoolExecutor(16), options=options, **settings
        )
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            PredictionServicer(self.brain), self.server
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(
            ModelServicer(), self.server
        )
        place = f"127.0.0.1:{port}"
        if credentials is None:
            port = self.server.add_insecure_port(place)
        else:
            port = self.server.add_secure_port(place, credentials)
        self.address = f"127.0.0.1:{port}"
        self.server.start()

    def stop(self):
        self.server.stop(0).wait()


@pytest.fixture(params=[RestStub, GrpcStub], ids=["rest", "grpc"])
def stub_class(request):
    return request.param


@pytest.fixture
def stub(stub_class):
    with stub_class() as stub:
        yield stub


def connect(stub, **options):
    return mae_client.Client(stub.address, grpc=stub.grpc, **options)


def grey(value, size=(8, 8)):
    return np.full((*size, 3), value, "uint8")
