"""REST API of TF Serving's protocol."""

import json
import re
import traceback
from urllib.parse import unquote

import tensorflow as tf
from google.protobuf import json_format
from tensorflow_serving.apis import get_model_metadata_pb2

from mae_server import errors, json_inputs, json_outputs, metrics
from mae_server.errors import RequestError, invalid

_WHICH = r"/v1/models/([^/:]+)(?:/versions/(\d+)|/labels/([^/:]+))?"
_POST = re.compile(_WHICH + ":(classify|predict)", re.IGNORECASE | re.ASCII)
_GET = re.compile(_WHICH + "(/metadata)?", re.IGNORECASE | re.ASCII)


class RestApi:
    """Answers a request to `/v1/models/...` with an HTTP status and a JSON body."""

    def __init__(self, service):
        self._service = service

    def __call__(self, method, path, body, call):
        try:
            labels = metrics.rest_labels(method, path)
            with self._service.metrics.request(*labels, "REST"):
                return 200, self._answer(method, path, body, call)
        except RequestError as error:
            return refused(error)
        except RecursionError:
            return refused(invalid(errors.NESTED_TOO_DEEP))
        except Exception:  # a bug must end one request, not the server
            traceback.print_exc()
            return refused(errors.internal_error())

    def _answer(self, method, path, body, call):
        match = {"POST": _POST, "GET": _GET}.get(method, _GET).fullmatch(path)
        if match is None or method not in ("POST", "GET"):
            raise invalid(errors.MALFORMED_REQUEST, method=method, path=path)
        name, version, label, verb = match.groups()
        if version is not None and int(version) >= 2**63:
            raise invalid(errors.VERSION_TOO_LARGE, version=version)
        version = None if version is None else int(version)
        spec = (unquote(name), version, None if label is None else unquote(label))
        if method == "GET":
            return self._metadata(spec) if verb else self._status(spec)
        answer = self._predict if verb.lower() == "predict" else self._classify
        # documents that are parsed take memory: no more of them than requests that run
        with self._service.slot(call):
            return answer(spec, body, call)

    def _predict(self, spec, body, call):
        document = json_inputs.parse(body)
        _, _, outputs = self._service.predict(
            spec,
            json_inputs.signature_name(document),
            lambda signature: json_inputs.read_inputs(document, signature.inputs),
            call=call,
        )
        return json_outputs.write_outputs(outputs, rows="instances" in document)

    def _classify(self, spec, body, call):
        document = json_inputs.parse(body)
        name = json_inputs.signature_name(document)
        if "examples" not in document:
            raise invalid(errors.NO_EXAMPLES)
        if not isinstance(document["examples"], list):
            raise invalid(errors.EXAMPLES_NOT_A_LIST)
        if not document["examples"]:
            raise invalid(errors.EMPTY_EXAMPLES)
        # concatenated serialized messages are merged
        context = _example(document.get("context", {}))
        examples = [context + _example(row) for row in document["examples"]]
        _, _, rows = self._service.classify(spec, name, examples, call)
        return json_outputs.write_results(rows)

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


def refused(error):
    """Returns the HTTP status and JSON body of a `RequestError`."""
    return error.http_status, json.dumps({"error": str(error)}).encode()


def _example(features):
    """Serializes a JSON object of features as a `tf.train.Example`."""
    if not isinstance(features, dict):
        raise invalid(errors.EXAMPLE_NOT_AN_OBJECT)
    example = tf.train.Example()
    for name, values in features.items():
        feature = example.features.feature[name]
        for value in values if isinstance(values, list) else [values]:
            _add_value(feature, name, value)
    return example.SerializeToString()


def _add_value(feature, name, value):
    if isinstance(value, dict):
        kind, value = "bytes_list", json_inputs.from_base64(value)
    elif isinstance(value, str):
        kind, value = "bytes_list", value.encode(errors="replace")
    elif isinstance(value, int):  # a bool too, as TF Serving has it
        kind = "int64_list"
    elif isinstance(value, float):
        kind = "float_list"
    else:
        raise invalid(errors.WRONG_FEATURE_TYPE, name=name)
    if feature.WhichOneof("kind") not in (None, kind):
        wanted = feature.WhichOneof("kind").removesuffix("_list")
        raise invalid(errors.MIXED_FEATURE, name=name, wanted=wanted)
    try:
        getattr(feature, kind).value.append(value)
    except ValueError as error:
        raise invalid(errors.INVALID_FEATURE, name=name, error=error) from error
