"""`ServingError`, and errors that REST and gRPC share."""

from collections.abc import Iterable


class ServingError(Exception):
    """Error of a server, or of the connection to it.

    Args:
        message: The server's message; that of an unreachable server names its address.
        code: Name of a gRPC status code, such as `"INVALID_ARGUMENT"`. With REST it
            follows from the HTTP status, which is less specific: an unknown signature
            is `"FAILED_PRECONDITION"` with gRPC, `"INVALID_ARGUMENT"` with REST.
        retry_after: Seconds after which a server with too much to do may be asked
            again (HTTP 429, 503 with `Retry-After`, or too many calls of gRPC at once),
            or `None`.
    """

    def __init__(
        self, message: str, code: str, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after = retry_after


def unavailable(
    address: str, message: object, retry_after: float | None = None
) -> ServingError:
    message = f"{address} is unavailable: {message}"
    return ServingError(message, "UNAVAILABLE", retry_after)


def deadline_exceeded(address: str) -> ServingError:
    message = f"{address} did not respond before the deadline"
    return ServingError(message, "DEADLINE_EXCEEDED")


def invalid_response(address: str, why: str) -> ServingError:
    return ServingError(f"{address} returned an invalid response: {why}", "INTERNAL")


def check_names(address: str, outputs: Iterable[str], names: Iterable[str]) -> None:
    """Raises `ServingError` if a response lacks one of the outputs `names`."""
    missing = sorted(set(names) - set(outputs))
    if missing:
        raise invalid_response(address, f"missing output {missing[0]}")
