"""REST transport: TF Serving's HTTP API, in column format."""

import base64
import json
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import urllib3

from .errors import (
    ServingError,
    check_names,
    deadline_exceeded,
    invalid_response,
    unavailable,
)
from .results import read_signatures

# HTTP status -> gRPC code, the inverse of TF Serving's; 413 and 502 are of proxies
_CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ALREADY_EXISTS",
    413: "RESOURCE_EXHAUSTED",
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


class RestTransport:
    """Sends requests by HTTP; each method raises `ServingError`."""

    def __init__(
        self,
        address: str,
        model: str,
        version: int | None,
        label: str | None,
        concurrency: int,
    ) -> None:
        address = address if "://" in address else f"http://{address}"
        parts = urllib3.util.parse_url(address)
        if parts.scheme not in ("http", "https") or not parts.host:
            raise ValueError(
                "address must be host:port, http://host:port or https://host:port. "
                f"Received: {address}"
            )
        self._address = address.rstrip("/")
        self._path = f"/v1/models/{urllib.parse.quote(model, safe='')}"
        if version is not None:
            self._path += f"/versions/{version}"
        if label is not None:
            self._path += f"/labels/{urllib.parse.quote(label, safe='')}"
        self._pool = urllib3.PoolManager(maxsize=concurrency)

    def close(self) -> None:
        self._pool.clear()

    def predict(
        self,
        signature: str,
        inputs: Mapping[str, np.ndarray],
        names: Sequence[str],
        deadline: float,
    ) -> dict[str, np.ndarray]:
        """Returns a dict from output name to array."""
        if not len(next(iter(inputs.values()))):
            # JSON cannot express the shape behind an empty axis
            return self._empty(signature, names, deadline)
        columns = {name: _to_json(value) for name, value in inputs.items()}
        body = {"signature_name": signature, "inputs": columns}
        outputs = self._request("POST", ":predict", deadline, body, "outputs")
        if not isinstance(outputs, dict):
            # TF Serving leaves out the name of a single output
            outputs = {names[0]: outputs}
        check_names(self._address, outputs, names)
        return {name: np.array(outputs[name], _dtype(name)) for name in names}

    def status(self, deadline: float) -> list[dict[str, Any]]:
        return self._request("GET", "", deadline, key="model_version_status")

    def metadata(self, deadline: float) -> dict[str, Any]:
        answer = self._request("GET", "/metadata", deadline, key="metadata")
        return answer["signature_def"]["signature_def"]

    def _empty(self, signature, names, deadline):
        """Returns empty outputs, with shapes from the model's metadata."""
        known = read_signatures(self.metadata(deadline))
        if signature not in known:
            raise ServingError(
                f'Serving signature name: "{signature}" not found in signature def',
                "INVALID_ARGUMENT",
            )
        outputs = known[signature].outputs
        check_names(self._address, outputs, names)
        sizes = {name: (outputs[name].shape or ())[1:] for name in names}
        return {
            name: np.zeros((0, *(size or 0 for size in sizes[name])), _dtype(name))
            for name in names
        }

    def _request(self, method, suffix, deadline, body=None, key=None):
        """Sends a request; returns the value of `key` in the response."""
        response, data = self._send(method, suffix, deadline, body)
        try:
            answer = json.loads(data)
            if response.status == 200:
                return answer[key]
            message = answer["error"]
        except (ValueError, KeyError, TypeError) as error:
            message = f"HTTP {response.status} {response.reason}"
            if response.status == 200:
                raise invalid_response(self._address, f"no {key}") from error
        raise self._failure(response.status, message)

    def _send(self, method, suffix, deadline, body):
        """Returns a response of any status, and its body."""
        try:
            response = self._pool.request(
                method,
                f"{self._address}{self._path}{suffix}",
                body=None if body is None else json.dumps(body),
                headers={"Content-Type": "application/json"},
                timeout=urllib3.Timeout(total=max(deadline - time.monotonic(), 1e-3)),
                retries=False,
                preload_content=False,
            )
            data = bytearray()
            # in chunks, so that a slow body cannot outlast the deadline; a stalled one
            # ends by the socket's timeout
            while piece := response.read1(2**20):
                data += piece
                if time.monotonic() > deadline:
                    response.close()
                    raise deadline_exceeded(self._address)
        except urllib3.exceptions.HTTPError as error:
            # urllib3 raises a kind of timeout for a refused connection
            refused = isinstance(error, urllib3.exceptions.NewConnectionError)
            if isinstance(error, urllib3.exceptions.TimeoutError) and not refused:
                raise deadline_exceeded(self._address) from error
            raise unavailable(self._address, error) from error
        response.release_conn()
        return response, data

    def _failure(self, status, message):
        code = _CODES.get(status, "UNKNOWN")
        if code == "UNAVAILABLE":
            return unavailable(self._address, message)
        return ServingError(message, code)


def _dtype(name):
    return _DTYPES.get(name, "float32")


def _to_json(array):
    """Converts an array to nested lists, bytes to base64."""
    if array.dtype != object:
        return array.tolist()
    return [{"b64": base64.b64encode(item).decode()} for item in array]
