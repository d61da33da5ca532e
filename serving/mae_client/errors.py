"""The one exception, and what both protocols say alike."""

from collections.abc import Iterable


class ServingError(Exception):
    """What a server said, or that none could be reached.

    Args:
        message: The server's own message; that of an unreachable server names its
            address.
        code: Name of a gRPC status code, such as `"INVALID_ARGUMENT"`. Over REST it
            follows from the HTTP status, which tells fewer apart: a signature that does
            not exist is `"FAILED_PRECONDITION"` over gRPC, and 400 over REST.
    """

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


def unavailable(address: str, message: object) -> ServingError:
    return ServingError(f"{address} is unavailable: {message}", "UNAVAILABLE")


def overdue(address: str) -> ServingError:
    message = f"{address} did not answer before the deadline"
    return ServingError(message, "DEADLINE_EXCEEDED")


def strange(address: str, what: str) -> ServingError:
    return ServingError(f"{address} gave a strange answer: {what}", "INTERNAL")


def check_names(address: str, outputs: Iterable[str], names: Iterable[str]) -> None:
    """Raises `ServingError` if an answer lacks one of the outputs `names`."""
    missing = sorted(set(names) - set(outputs))
    if missing:
        raise strange(address, f"the output {missing[0]} is missing")
