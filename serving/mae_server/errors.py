"""Errors of requests: a status code by name, and a message for the caller."""

import tensorflow as tf

# names of gRPC's status codes -> HTTP's, as TF Serving maps them
HTTP_STATUS = {
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
    getattr(tf.errors, name): name for name in HTTP_STATUS if hasattr(tf.errors, name)
}


class RequestError(Exception):
    """What is wrong with a request.

    Args:
        code: Name of a gRPC status code, such as `"INVALID_ARGUMENT"`.
        message: Str for the caller.

    Example:

    ```python
    assert RequestError("NOT_FOUND", "no such model").http_status == 404
    ```
    """

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code

    @property
    def http_status(self):
        """Int, the HTTP status of the code."""
        return HTTP_STATUS[self.code]

    @classmethod
    def from_tensorflow(cls, error):
        """Keeps code and message of a `tf.errors.OpError`.

        Args:
            error: The `tf.errors.OpError`.

        Returns:
            A `RequestError`.

        Example:

        ```python
        error = tf.errors.InvalidArgumentError(None, None, "Input is empty.")
        assert RequestError.from_tensorflow(error).code == "INVALID_ARGUMENT"
        ```
        """
        # what Python's session puts before the kernel's message
        message = error.message.removeprefix("Graph execution error:").strip()
        return cls(_NUMBERS.get(error.error_code, "UNKNOWN"), message)


def type_name(dtype):
    """Names a type as TF Serving does.

    Args:
        dtype: A `tf.DType`.

    Returns:
        Str.

    Example:

    ```python
    assert type_name(tf.float32) == "float" and type_name(tf.int64) == "int64"
    ```
    """
    return {"float32": "float", "float64": "double"}.get(dtype.name, dtype.name)


def invalid(message):
    """Makes the most frequent error, `INVALID_ARGUMENT`.

    Args:
        message: Str for the caller.

    Returns:
        A `RequestError`.

    Example:

    ```python
    assert invalid("Input is empty.").http_status == 400
    ```
    """
    return RequestError("INVALID_ARGUMENT", message)
