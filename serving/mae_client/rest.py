"""TF Serving's REST API: what is sent, in column format, and how answers are read."""

import base64
import email.utils
import json
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .errors import ServingError, check_names, invalid_response, unavailable
from .inputs import as_objects
from .options import Options
from .results import Answer, read_signatures, read_statuses

# HTTP status -> gRPC code, the inverse of TF Serving's; 413 and 502 are of proxies
_CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ALREADY_EXISTS",
    413: "RESOURCE_EXHAUSTED",
    415: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
# JSON has no dtypes; outputs that are not listed are float32
_DTYPES = {"class_ids": "int64", "labels": "str", "patch_size": "int32"}
# what reading may raise of an answer that is another JSON than it should be
_UNREADABLE = (
    *(ValueError, TypeError, KeyError, AttributeError),
    *(OverflowError, RecursionError),
)


class Response(NamedTuple):
    """An HTTP response, its body inflated; whether its request was `packed`."""

    status: int
    reason: str
    retry_after: str | None
    data: bytes
    packed: bool


class HttpRequest(NamedTuple):
    """An HTTP request, and how its response is read; `read` raises `ServingError`."""

    method: str
    url: str
    body: bytes | None
    read: Callable[[Response], Any]


class RestMessages:
    """Makes the requests of a client."""

    def __init__(self, options: Options) -> None:
        address = options.address
        if "://" not in address:
            address = f"{'https' if options.tls else 'http'}://{address}"
        self.address = address.rstrip("/")
        url = f"{self.address}/v1/models/{urllib.parse.quote(options.model, safe='')}"
        if options.version is not None:
            url += f"/versions/{options.version}"
        if options.label is not None:
            url += f"/labels/{urllib.parse.quote(options.label, safe='')}"
        self._url = url
        # off from the first refusal on; others may be on their way
        self.gzip = options.gzip

    def predict(
        self, signature: str, inputs: Mapping[str, np.ndarray], names: Sequence[str]
    ) -> HttpRequest:
        """Asks for an `Answer`."""
        if not len(next(iter(inputs.values()))):
            # JSON cannot express the shape behind an empty axis
            return self._get(
                "/metadata", lambda answer: self._empty(answer, signature, names)
            )
        columns = {name: _to_json(value) for name, value in inputs.items()}
        body = json.dumps({"signature_name": signature, "inputs": columns}).encode()

        def read(response):
            outputs = self._read(response, "outputs")
            if not isinstance(outputs, dict):
                # TF Serving leaves out the name of a single output
                outputs = {names[0]: outputs}
            check_names(self.address, outputs, names)
            try:
                found = {name: _from_json(name, outputs[name]) for name in names}
            except _UNREADABLE as error:
                raise invalid_response(self.address, str(error)) from error
            return Answer(found)

        return HttpRequest("POST", f"{self._url}:predict", body, read)

    def status(self) -> HttpRequest:
        return self._get("", read_statuses, "model_version_status")

    def metadata(self) -> HttpRequest:
        return self._get("/metadata", _signatures)

    def version(self) -> HttpRequest:
        """Asks which version answers."""
        return self._get("/metadata", lambda spec: int(spec["version"]), "model_spec")

    def _get(self, suffix, convert, key="metadata"):
        def read(response):
            answer = self._read(response, key)
            try:
                return convert(answer)
            except _UNREADABLE as error:
                raise invalid_response(
                    self.address, f"cannot read its {key}: {error!r}"
                ) from error

        return HttpRequest("GET", self._url + suffix, None, read)

    def _empty(self, metadata, signature, names):
        """Returns an empty answer, with shapes from the model's metadata."""
        known = _signatures(metadata)
        if signature not in known:
            raise ServingError(
                f'Serving signature name: "{signature}" not found in signature def',
                "INVALID_ARGUMENT",
            )
        outputs = known[signature].outputs
        check_names(self.address, outputs, names)
        sizes = {name: (outputs[name].shape or ())[1:] for name in names}
        return Answer(
            {
                name: np.zeros((0, *(size or 0 for size in sizes[name])), _dtype(name))
                for name in names
            }
        )

    def _read(self, response, key):
        """Returns the value of `key` in a response."""
        try:
            answer = json.loads(response.data)
            if response.status == 200:
                return answer[key]
            message = answer["error"]
        except _UNREADABLE as error:
            message = f"HTTP {response.status} {response.reason}"
            if response.status == 200:
                raise invalid_response(self.address, f"no {key}") from error
        raise self._failure(response, message)

    def _failure(self, response, message):
        code = _CODES.get(response.status, "UNKNOWN")
        pause = _seconds(response.retry_after)
        if code == "UNAVAILABLE":
            return unavailable(self.address, message, pause)
        if response.status == 429:
            return ServingError(message, code, pause or 0)
        if response.status == 415 and response.packed:
            self.gzip = False
            return ServingError(message, code, 0)
        return ServingError(message, code)


def _seconds(retry_after):
    """Reads a `Retry-After` header: seconds, or a date."""
    if retry_after is None:
        return None
    try:
        return max(float(int(retry_after)), 0.0)
    except (ValueError, OverflowError):
        pass
    try:
        then = email.utils.parsedate_to_datetime(retry_after).timestamp()
    except (ValueError, OverflowError):
        return None
    return max(then - time.time(), 0.0)


def _signatures(metadata):
    return read_signatures(metadata["signature_def"]["signature_def"])


def _dtype(name):
    if name.endswith("_bytes"):
        return "object"
    return _DTYPES.get(name, "float32")


def _from_json(name, value):
    """Converts nested lists to an array; of outputs `*_bytes` base64 to bytes."""
    if name.endswith("_bytes"):
        return as_objects([base64.b64decode(item["b64"]) for item in value])
    return np.array(value, _dtype(name))


def _to_json(array):
    """Converts an array to nested lists, bytes to base64."""
    if array.dtype != object:
        return array.tolist()
    return [{"b64": base64.b64encode(item).decode()} for item in array]
