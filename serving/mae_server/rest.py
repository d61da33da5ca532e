"""REST API of TF Serving's protocol.

As tensorflow_serving/model_servers/http_rest_api_handler.cc and http_rest_api_util.cc
have it; examples as json_tensor.cc.
"""

import json
import re
import traceback
from urllib.parse import unquote

import tensorflow as tf
from google.protobuf import json_format
from tensorflow_serving.apis import get_model_metadata_pb2

from mae_server import errors, json_documents, json_inputs, json_outputs
from mae_server.errors import RequestError, invalid
from mae_server.json_documents import kind_of, text_of
from mae_server.tensor_protos import with_context

_WHICH = r"(?:/versions/(\d+)|/labels/([^/:]+))?"
_FLAGS = re.IGNORECASE | re.ASCII
_PATHS = {
    "POST": re.compile(
        rf"/v1/models/([^/:]+){_WHICH}:(classify|regress|predict)", _FLAGS
    ),
    "GET": re.compile(rf"/v1/models(?:/([^/:]+))?{_WHICH}(?:/(metadata))?", _FLAGS),
}


class RestApi:
    """Answers a request to `/v1/models/...` with an HTTP status and a JSON body."""

    def __init__(self, service):
        self._service = service

    def __call__(self, method, path, body, call):
        try:
            with self._service.metrics.request(*labels(method, path), "REST"):
                return 200, self._answer(method, path, body, call)
        except RequestError as error:
            return refused(error)
        except RecursionError:
            return refused(invalid(errors.NESTED_TOO_DEEP))
        except Exception:  # a bug must end one request, not the server
            traceback.print_exc()
            return refused(errors.internal_error())

    def _answer(self, method, path, body, call):
        match = _match(method, path)
        if match is None:
            raise invalid(errors.MALFORMED_REQUEST, method=method, path=path)
        name, version, label, verb = match.groups()
        if version is not None:
            digits = version.lstrip("0") or "0"
            if len(digits) > 19 or int(digits) >= 2**63:
                raise invalid(errors.VERSION_TOO_LARGE, version=version)
            version = int(digits)
        spec = (unquote(name or ""), version, None if label is None else unquote(label))
        if method == "GET":
            if not spec[0]:
                raise invalid(errors.NO_NAME_IN_PATH)
            # "Metadata" is not its name, though the path matches
            return self._metadata(spec) if verb == "metadata" else self._status(spec)
        answers = {
            "predict": self._predict,
            "classify": self._classify,
            "regress": self._regress,
        }
        if verb not in answers:
            raise invalid(errors.MALFORMED_REQUEST, method=method, path=path)
        # documents that are parsed take memory: no more of them than requests that run
        with self._service.slot(call):
            return answers[verb](spec, body, call)

    def _predict(self, spec, body, call):
        document = json_documents.parse(body)
        call.check()
        most = self._service.max_batch_size
        _, _, outputs = self._service.predict(
            spec,
            json_inputs.signature_name(document),
            lambda signature: json_inputs.read_inputs(document, signature.inputs, most),
            call=call,
            not_found=errors.signature_not_found_rest,
        )
        return json_outputs.write_outputs(outputs, in_rows="instances" in document)

    def _classify(self, spec, body, call):
        name, examples = _read_examples(body, self._service.max_batch_size)
        _, _, rows = self._service.classify(spec, name, examples, call)
        return json_outputs.write_classes(rows)

    def _regress(self, spec, body, call):
        name, examples = _read_examples(body, self._service.max_batch_size)
        _, _, values = self._service.regress(spec, name, examples, call)
        return json_outputs.write_numbers(values)

    def _status(self, spec):
        rows = [
            {
                "version": str(version),
                "state": state,
                "status": {
                    "error_code": code,
                    "error_message": error,
                },
            }
            for version, state, code, error in self._service.models.status(*spec[:2])
        ]
        return json.dumps({"model_version_status": rows}, indent=1).encode()

    def _metadata(self, spec):
        version, signatures = self._service.metadata(spec)
        message = get_model_metadata_pb2.SignatureDefMap(signature_def=signatures)
        described = json_format.MessageToDict(
            message,
            preserving_proto_field_name=True,
            always_print_fields_with_no_presence=True,
        )
        document = {
            "model_spec": {
                "name": spec[0],
                "signature_name": "",
                "version": str(version),
            },
            "metadata": {"signature_def": described},
        }
        return json.dumps(document, indent=1).encode()


def _match(method, path):
    return _PATHS[method].fullmatch(path) if method in _PATHS else None


def labels(method, path):
    """Returns model name and API of a request for metrics, `""` of what has none."""
    match = _match(method, path)
    if match is None:
        return "", ""
    return unquote(match[1] or ""), match[4] if method == "POST" else ""


def refused(error):
    """Returns the HTTP status and JSON body of a `RequestError`."""
    return error.http_status, json.dumps({"error": str(error)}, indent=4).encode()


def _read_examples(body, most=None):
    """Returns the signature's name and serialized `tf.train.Example`s of a body."""
    document = json_documents.parse(body)
    name = json_inputs.signature_name(document)
    context = _example(document.get("context", {}))
    if "examples" not in document:
        raise invalid(errors.NO_EXAMPLES, value=text_of(document))
    if not isinstance(document["examples"], list):
        raise invalid(errors.EXAMPLES_NOT_A_LIST, value=text_of(document))
    if not document["examples"]:
        raise invalid(errors.EMPTY_EXAMPLES, value=text_of(document))
    errors.check_batch_size(len(document["examples"]), most)
    return name, with_context(context, [_example(row) for row in document["examples"]])


def _example(features):
    """Serializes a JSON object of features as a `tf.train.Example`."""
    if not isinstance(features, dict):
        raise invalid(errors.EXAMPLE_NOT_AN_OBJECT, got=kind_of(features))
    example = tf.train.Example()
    for name, values in features.items():
        try:
            feature = example.features.feature[name]
        except UnicodeEncodeError as error:
            raise invalid(errors.LONE_SURROGATE) from error
        for value in values if isinstance(values, list) else [values]:
            _add_value(feature, name, value)
    return example.SerializeToString()


def _add_value(feature, name, value):
    kind, value = _feature_of(name, value)
    if feature.WhichOneof("kind") not in (None, kind):
        wanted = feature.WhichOneof("kind").removesuffix("_list")
        raise invalid(errors.MIXED_FEATURE, name=name, wanted=wanted)
    try:
        getattr(feature, kind).value.append(value)
    except ValueError as error:
        raise invalid(errors.UINT64_FEATURE, name=name) from error


def _feature_of(name, value):
    """Returns the kind of list that holds a JSON value, and the value in it."""
    if json_inputs.is_base64(value):
        return "bytes_list", json_inputs.from_base64(value)
    if isinstance(value, str):
        return "bytes_list", json_inputs.to_bytes(value)
    if isinstance(value, int):  # a bool too
        return "int64_list", int(value)
    if isinstance(value, float):
        return "float_list", value
    raise invalid(errors.WRONG_FEATURE_TYPE, name=name, got=kind_of(value))
