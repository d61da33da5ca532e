"""Request errors: gRPC status code, HTTP status and message."""

import tensorflow as tf

# gRPC status codes -> HTTP statuses, as TF Serving maps them
_HTTP_STATUS = {
    "CANCELLED": 499,
    "UNKNOWN": 500,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 400,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DATA_LOSS": 500,
    "UNAUTHENTICATED": 401,
}
_NUMBERS = {
    getattr(tf.errors, name): name for name in _HTTP_STATUS if hasattr(tf.errors, name)
}


class RequestError(Exception):
    """An error answered to the caller: name of a gRPC status code, and a message."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code

    @property
    def http_status(self):
        return _HTTP_STATUS[self.code]

    @classmethod
    def from_tensorflow(cls, error):
        """Keeps code and message of a `tf.errors.OpError`."""
        # a prefix that the Python session adds to the kernel's message
        message = error.message.removeprefix("Graph execution error:").strip()
        return cls(_NUMBERS.get(error.error_code, "UNKNOWN"), message)


def type_name(dtype):
    """Returns a `tf.DType`'s name as TF Serving writes it."""
    return {"float32": "float", "float64": "double"}.get(dtype.name, dtype.name)


def invalid(message):
    """Returns the most frequent `RequestError`."""
    return RequestError("INVALID_ARGUMENT", message)
