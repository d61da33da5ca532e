"""Serve a SavedModel on a laptop, by TF Serving's REST protocol.

Run: python serving/local_server.py --model_name=mae --model_base_path=models/mae

Answers `POST /v1/models/NAME[/versions/N]:predict` in row and column format and
`GET /v1/models/NAME[/versions/N]`, for the newest version in the folder. It is bound
to loopback unless told otherwise. For production use TF Serving itself, which takes
the same flags and the same folder.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras_mae  # noqa: F401, before TensorFlow, whose chatter it silences

# isort: split
import base64
import binascii
import dataclasses
import json
import re
import signal
import sys
from pathlib import Path

import flask
import numpy as np
import tensorflow as tf
import waitress

from keras_mae import flags
from keras_mae.flags import flag

MAX_BODY_BYTES = 64 * 1024 * 1024


@dataclasses.dataclass
class ServerConfig:
    """The flags of this script."""

    model_base_path: str = flag("folder whose numbered folders are SavedModels")
    model_name: str = flag("the NAME in the addresses", "mae")
    rest_api_port: int = flag("port of the REST API; 0 takes a free one", 8501)
    host: str = flag("address to bind to", "127.0.0.1")
    threads: int = flag("requests answered at the same time", 4)


class RequestError(Exception):
    """What is wrong with a request, and its HTTP status."""

    def __init__(self, message, status=400):
        super().__init__(message)
        self.status = status


class ServedModel:
    """The newest version of a model, with its signatures.

    Args:
        name: The model's name in the addresses.
        base_path: Path of the folder that holds the numbered versions.

    Raises:
        ValueError: If the folder holds no version, or it can't be loaded.
    """

    def __init__(self, name, base_path):
        folder = Path(base_path)
        names = [path.name for path in folder.glob("*/")]
        versions = [int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name)]
        if not versions:
            raise ValueError(
                f"model_base_path must hold folders named by a number. Received: "
                f"{base_path}"
            )
        self.name = name
        self.version = max(versions)
        path = folder / str(self.version)
        try:
            self._loaded = tf.saved_model.load(str(path))
        except (OSError, tf.errors.OpError) as error:
            raise ValueError(f"{path} is no readable SavedModel: {error}") from error

    def signature(self, name):
        """Returns a signature's function, or raises `RequestError`."""
        signatures = self._loaded.signatures
        if not isinstance(name, str) or name not in signatures:
            raise RequestError(
                f'Serving signature name: "{name}" not found in signature def'
            )
        return signatures[name]

    def predict(self, body):
        """Answers the body of a predict request.

        Args:
            body: Dict with `instances` (rows) or `inputs` (columns), and perhaps
                `signature_name`.

        Returns:
            Dict with `predictions` or `outputs`.

        Raises:
            RequestError: If the request does not fit the signature.
        """
        function = self.signature(body.get("signature_name", "serving_default"))
        specs = function.structured_input_signature[1]
        if ("instances" in body) == ("inputs" in body):
            raise RequestError("Missing 'inputs' or 'instances' key, or both are given")
        rows = "instances" in body
        columns = (
            _columns_of_rows(body["instances"], specs)
            if rows
            else _columns(body["inputs"], specs)
        )
        tensors = {name: _tensor(columns[name], spec) for name, spec in specs.items()}
        try:
            outputs = function(**tensors)
        except tf.errors.InvalidArgumentError as error:
            raise RequestError(error.message) from error
        outputs = {name: value.numpy() for name, value in sorted(outputs.items())}
        outputs = {name: _to_json(name, value) for name, value in outputs.items()}
        alone = next(iter(outputs.values())) if len(outputs) == 1 else None
        if not rows:
            return {"outputs": outputs if alone is None else alone}
        if alone is not None:
            return {"predictions": alone}
        items = zip(*outputs.values(), strict=True)
        return {"predictions": [dict(zip(outputs, row, strict=True)) for row in items]}


def _columns_of_rows(instances, specs):
    """Turns TF Serving's row format into a dict from input name to a list of rows."""
    if not isinstance(instances, list):
        raise RequestError("Expecting 'instances' value to be a list")
    named = [isinstance(row, dict) and set(row) != {"b64"} for row in instances]
    if not any(named):
        if instances and len(specs) > 1:
            raise RequestError(
                f"Each instance must be an object with the keys {sorted(specs)}"
            )
        return {name: instances for name in specs}
    if not all(named):
        raise RequestError("Expecting every instance to be an object, or none")
    for row in instances:
        _check_names(row, specs, "instances")
    return {name: [row[name] for row in instances] for name in specs}


def _columns(inputs, specs):
    """Turns TF Serving's column format into a dict from input name to its value."""
    if isinstance(inputs, dict) and set(inputs) != {"b64"}:
        _check_names(inputs, specs, "inputs")
        return inputs
    if len(specs) > 1:
        raise RequestError(f"'inputs' must be an object with the keys {sorted(specs)}")
    return {name: inputs for name in specs}


def _check_names(given, specs, where):
    missing = sorted(set(specs) - set(given))
    if missing:
        raise RequestError(f"Missing named input: {missing[0]} in '{where}' object.")
    extra = sorted(set(given) - set(specs))
    if extra:
        raise RequestError(f"Unknown named input: {extra[0]} in '{where}' object.")


def _tensor(value, spec):
    """Turns parsed JSON into a tensor of a signature's type and shape."""
    leaves = []
    shape = _shape(value, leaves, depth=spec.shape.rank)
    if spec.dtype == tf.string:
        array = np.array([_bytes(leaf) for leaf in leaves], dtype=object)
    else:
        kinds = (int, float) if spec.dtype.is_floating else (int,)
        for leaf in leaves:
            if isinstance(leaf, bool) or not isinstance(leaf, kinds):
                raise RequestError(
                    f"JSON Value: {json.dumps(leaf)[:80]} Type: "
                    f"{type(leaf).__name__} is not of expected type: {spec.dtype.name}"
                )
        try:
            array = np.array(leaves, dtype=spec.dtype.as_numpy_dtype)
        except OverflowError as error:
            raise RequestError(f"{error} for type {spec.dtype.name}") from error
    if not leaves and spec.shape.rank is not None:
        # an empty batch can't tell the sizes behind its first axis
        shape = (0, *spec.shape[1:])
    if not spec.shape.is_compatible_with(shape):
        raise RequestError(
            f"Input {spec.name} must have the shape {spec.shape}. Received: {shape}"
        )
    return tf.constant(array.reshape(shape), spec.dtype)


def _shape(value, leaves, depth):
    """Returns the shape of nested lists and appends what they hold to `leaves`."""
    if not isinstance(value, list):
        leaves.append(value)
        return ()
    if depth == 0:
        raise RequestError("Input tensor has more dimensions than its signature")
    shapes = [_shape(item, leaves, depth - 1) for item in value]
    for shape in shapes:
        if shape != shapes[0]:
            raise RequestError(
                f"Expecting tensor size: {shapes[0]} but got: {shape} (ragged rows)"
            )
    return (len(value), *(shapes[0] if shapes else ()))


def _bytes(leaf):
    """Reads a JSON string, or `{"b64": "..."}`, as bytes."""
    if isinstance(leaf, str):
        # a lone surrogate, which JSON can say, has no bytes of its own
        return leaf.encode(errors="replace")
    if isinstance(leaf, dict) and set(leaf) == {"b64"}:
        try:
            return base64.b64decode(leaf["b64"], validate=True)
        except (TypeError, ValueError, binascii.Error) as error:
            raise RequestError(f"Unable to base64 decode: {error}") from error
    raise RequestError(
        f"JSON Value: {json.dumps(leaf)[:80]} Type: {type(leaf).__name__} is not of "
        "expected type: string"
    )


def _to_json(name, value):
    """Turns an output into nested lists, bytes as b64 where the name ends in _bytes."""
    if value.dtype != object:
        return value.tolist()
    encode = (
        (lambda item: {"b64": base64.b64encode(item).decode()})
        if name.endswith("_bytes")
        else bytes.decode
    )
    return [encode(item) for item in value.tolist()]


def make_app(model):
    """Builds the WSGI application around a model.

    Args:
        model: A `ServedModel`.

    Returns:
        A `flask.Flask`.
    """
    app = flask.Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES

    def check(name, version, message):
        if name != model.name or version not in (None, model.version):
            raise RequestError(message, 404)

    @app.post("/v1/models/<name>:predict")
    @app.post("/v1/models/<name>/versions/<int:version>:predict")
    def predict(name, version=None):
        wanted = (
            f"Latest({name})" if version is None else f"Specific({name}, {version})"
        )
        check(name, version, f"Servable not found for request: {wanted}")
        try:
            body = json.loads(flask.request.get_data())
        except (ValueError, RecursionError) as error:
            raise RequestError(f"JSON Parse error: {error}") from error
        if not isinstance(body, dict):
            raise RequestError("JSON Parse error: the body must be an object")
        return flask.Response(
            json.dumps(model.predict(body)), mimetype="application/json"
        )

    @app.get("/v1/models/<name>")
    @app.get("/v1/models/<name>/versions/<int:version>")
    def status(name, version=None):
        check(name, version, f"Could not find any versions of model {name}")
        version_status = {
            "version": str(model.version),
            "state": "AVAILABLE",
            "status": {"error_code": "OK", "error_message": ""},
        }
        return {"model_version_status": [version_status]}

    @app.errorhandler(RequestError)
    def refuse(error):
        return {"error": str(error)}, error.status

    @app.errorhandler(404)
    @app.errorhandler(405)
    @app.errorhandler(413)
    @app.errorhandler(500)
    def reject(error):
        message = f"Malformed request: {flask.request.method} {flask.request.path}"
        return {"error": f"{message}: {error.name}"}, error.code

    return app


def main(config):
    """Loads the model and serves it until SIGTERM or SIGINT."""
    model = ServedModel(config.model_name, config.model_base_path)
    if not 0 <= config.rest_api_port < 65536:
        raise ValueError(
            f"rest_api_port must be in [0, 65535]. Received: {config.rest_api_port}"
        )
    server = waitress.create_server(
        make_app(model),
        host=config.host,
        port=config.rest_api_port,
        threads=config.threads,
        max_request_body_size=MAX_BODY_BYTES,
    )
    # waitress finishes the requests in hand when it meets SystemExit
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    address = f"http://{config.host}:{server.effective_port}/v1/models/{model.name}"
    print(f"Serving version {model.version} at {address}", flush=True)
    server.run()


if __name__ == "__main__":
    flags.run_script(main, ServerConfig, __doc__.splitlines()[0])
