"""Options of a client, checked before anything is sent."""

import dataclasses
import os
import re
import ssl
import urllib.parse
from collections.abc import Mapping
from pathlib import Path

_HEADER_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_HEADER_VALUE = re.compile(r"[!-~]([ -~]*[!-~])?")
# seconds, 23 days: sockets wait for less than 2**31 milliseconds
_LONGEST = 2_000_000
# how a message is sent, which the transport says
_FRAMING = frozenset(
    (
        *("accept-encoding", "connection", "content-encoding", "content-length"),
        *("te", "transfer-encoding"),
    )
)


@dataclasses.dataclass(frozen=True)
class Options:
    """The arguments of `Client`, which documents them."""

    address: str
    model: str
    version: int | None
    label: str | None
    grpc: bool
    timeout: float
    retries: int | None
    batch_size: int
    concurrency: int
    tls: bool
    ca_file: str | os.PathLike[str] | None
    cert_file: str | os.PathLike[str] | None
    key_file: str | os.PathLike[str] | None
    verify: bool
    # secrets: in no repr and no error
    token: str | None = dataclasses.field(repr=False)
    headers: Mapping[str, str] = dataclasses.field(repr=False)
    gzip: bool

    def __post_init__(self) -> None:
        if self.version is not None and self.label is not None:
            raise ValueError(
                f"Give either version or label. Received: {self.version} and "
                f"{self.label!r}"
            )
        for name in ("batch_size", "concurrency"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 1. Received: {getattr(self, name)}"
                )
        # written so that NaN fails as well
        if not 0 < self.timeout <= _LONGEST:
            raise ValueError(
                f"timeout must be above 0 and at most {_LONGEST} seconds. Received: "
                f"{self.timeout}"
            )
        if self.retries is not None and self.retries < 0:
            raise ValueError(f"retries must not be negative. Received: {self.retries}")
        _check_address(self.address, self.grpc)
        self._check_tls()
        self._check_headers()

    @property
    def encrypted(self) -> bool:
        return self.tls or self.address.startswith("https://")

    def _check_tls(self) -> None:
        files = {name: getattr(self, name) for name in FILES}
        given = [name for name, path in files.items() if path is not None]
        if not self.verify:
            given.append("verify=False")
        if given and not self.encrypted:
            raise ValueError(
                f"{given[0]} needs tls, or an https address. Received: {self.address}"
            )
        if self.tls and self.address.startswith("http://"):
            raise ValueError(
                f"tls needs host:port or https://host:port. Received: {self.address}"
            )
        if self.key_file is not None and self.cert_file is None:
            raise ValueError("key_file needs cert_file")
        if self.grpc and self.cert_file is not None and self.key_file is None:
            raise ValueError("cert_file needs key_file with gRPC")
        if self.grpc and not self.verify:
            raise ValueError(
                "gRPC always verifies the server; give its certificate as ca_file"
            )
        for path in files.values():
            if path is not None:
                # ssl's own error of an absent file doesn't name it
                Path(path).read_bytes()
        if given:
            # gRPC's own errors of wrong files would be of an absent server
            self.ssl_context()

    def ssl_context(self) -> ssl.SSLContext:
        """Reads the certificates; an error is an OSError."""
        context = ssl.create_default_context(cafile=self.ca_file)
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.cert_file is not None:
            # an encrypted key is an error: ssl would ask the terminal for its password
            context.load_cert_chain(self.cert_file, self.key_file, lambda: "")
        return context

    def _check_headers(self) -> None:
        # the libraries' own errors would show the values
        if self.token is not None and not re.fullmatch(r"[!-~]+", self.token):
            raise ValueError(
                "token must be of ASCII letters, digits and signs, without spaces"
            )
        for name, value in self.headers.items():
            binary = self.grpc and name.lower().endswith("-bin")
            if not _HEADER_NAME.fullmatch(name) or binary:
                raise ValueError(
                    "The name of a header must be of letters, digits and signs, and of "
                    f"gRPC's must not end in -bin. Received: {name!r}"
                )
            if name.lower() in _FRAMING or name.lower().startswith("grpc-"):
                raise ValueError(f"The client itself sets the header {name}")
            if not _HEADER_VALUE.fullmatch(value):
                raise ValueError(f"The value of header {name} must be ASCII text")
            if self.token is not None and name.lower() == "authorization":
                raise ValueError("Give either token or the header Authorization")

    def all_headers(self) -> dict[str, str]:
        """Headers of each request, the token's among them; names in lower case."""
        headers = {name.lower(): value for name, value in self.headers.items()}
        if self.token is not None:
            headers["authorization"] = f"Bearer {self.token}"
        return headers


FILES = ("ca_file", "cert_file", "key_file")


def _check_address(address: str, grpc: bool) -> None:
    if grpc:
        if "://" in address:
            raise ValueError(f"A gRPC address must be host:port. Received: {address}")
        return
    parts = urllib.parse.urlsplit(address if "://" in address else f"//{address}")
    if "@" in parts.netloc:
        # not shown: it may hold a password
        raise ValueError("address must be without user and password; use headers")
    try:
        fine = parts.scheme in ("", "http", "https") and parts.hostname
        _ = parts.port
    except ValueError:
        fine = False
    if not fine:
        raise ValueError(
            "address must be host:port, http://host:port or https://host:port. "
            f"Received: {address}"
        )
