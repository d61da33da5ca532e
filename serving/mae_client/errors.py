"""The one exception, and what both protocols say alike."""


class ServingError(Exception):
    """What a server said, or that none could be reached.

    Args:
        message: The server's own message; that of an unreachable server names its
            address.
        code: Name of a gRPC status code, such as `"INVALID_ARGUMENT"`. Over REST it
            follows from the HTTP status, which tells fewer apart: a signature that does
            not exist is `"FAILED_PRECONDITION"` over gRPC, and 400 over REST.
    """

    def __init__(self, message, code):
        super().__init__(message)
        self.code = code


def unavailable(address, message):
    return ServingError(f"{address} is unavailable: {message}", "UNAVAILABLE")


def overdue(address):
    message = f"{address} did not answer before the deadline"
    return ServingError(message, "DEADLINE_EXCEEDED")


def strange(address, what):
    return ServingError(f"{address} gave a strange answer: {what}", "INTERNAL")


def check_names(address, outputs, names):
    """Raises `ServingError` if an answer lacks one of the outputs `names`."""
    missing = sorted(set(names) - set(outputs))
    if missing:
        raise strange(address, f"the output {missing[0]} is missing")
