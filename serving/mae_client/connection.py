"""What `Client` and `AsyncClient` share: options, and the two protocols."""

import os
from collections.abc import Mapping
from typing import Any

from .http import AsyncHttpTransport, HttpTransport
from .options import Options
from .rest import RestMessages


class Connection:
    """Reads the options, which `Client` documents, and opens a transport."""

    _asynchronous = False

    def __init__(
        self,
        address: str | None = None,
        model: str = "mae",
        version: int | None = None,
        label: str | None = None,
        grpc: bool = False,
        timeout: float = 60,
        retries: int | None = None,
        batch_size: int = 8,
        concurrency: int = 4,
        *,
        tls: bool = False,
        ca_file: str | os.PathLike[str] | None = None,
        cert_file: str | os.PathLike[str] | None = None,
        key_file: str | os.PathLike[str] | None = None,
        verify: bool = True,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        gzip: bool = False,
    ) -> None:
        self._options = Options(
            address=address or ("localhost:8500" if grpc else "localhost:8501"),
            model=model,
            version=version,
            label=label,
            grpc=grpc,
            timeout=timeout,
            retries=retries,
            batch_size=batch_size,
            concurrency=concurrency,
            tls=tls,
            ca_file=ca_file,
            cert_file=cert_file,
            key_file=key_file,
            verify=verify,
            token=token,
            headers=dict(headers or {}),
            gzip=gzip,
        )
        self._messages, transports = _protocol(self._options)
        transport: Any = transports[self._asynchronous]
        self._transport = transport(self._options, self._messages)
        self._start()

    def _start(self) -> None:
        """Makes what a client needs besides."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._options.address!r})"


def _protocol(options):
    """Returns the messages of a protocol, and its transports: blocking, async."""
    if not options.grpc:
        return RestMessages(options), (HttpTransport, AsyncHttpTransport)
    try:
        from .rpc import AsyncGrpcTransport, GrpcMessages, GrpcTransport
    except ImportError as error:
        raise ImportError(f"gRPC needs grpcio and protobuf: {error}") from error
    return GrpcMessages(options), (GrpcTransport, AsyncGrpcTransport)
