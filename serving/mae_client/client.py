"""`Client`: batches requests, and sends them by REST or gRPC."""

import concurrent.futures
import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from .images import Images, encode
from .inputs import read_rows, read_seeds, read_source
from .rest import RestTransport
from .results import (
    Classification,
    Features,
    Reconstruction,
    Signature,
    VersionStatus,
    read_signatures,
    read_statuses,
)
from .retries import call

# per request: as base64 or digits still below the 64 MiB that a server accepts
_MAX_BYTES = 32 * 2**20
# a float32 as JSON digits, in units of its own size
_JSON_GROWTH = 3


class Client:
    """Client of a server that speaks TF Serving's protocol.

    Long lists are split into batches, by number and by bytes, which are sent
    concurrently; results come back in order. A request is retried with exponential
    backoff if the server is unreachable or overloaded, and not if it rejects the
    request.

    Args:
        address: `"host:port"`; for REST also `"http://..."` or `"https://..."` (gRPC
            is without TLS). Defaults to `localhost` with TF Serving's port.
        model: Name of the model on the server.
        version: Int, the model version. Defaults to the newest.
        label: Version label on the server, instead of `version`.
        grpc: Whether to use gRPC instead of REST.
        timeout: Seconds for each request, retries included.
        retries: Int, the largest number of retries of a request.
        batch_size: Int, the most images per request; fewer if they are large.
        concurrency: Int, the most requests at the same time.

    Raises:
        ValueError: If an argument is wrong.
        ImportError: If `grpc` is set and `tensorflow-serving-api` is not installed.

    Example:

    ```python
    with Client("localhost:8501", model="mae") as client:
        features = client.features(["cat.jpg", "dog.jpg"]).features  # (2, 1 + L, D)
    ```
    """

    def __init__(
        self,
        address: str | None = None,
        model: str = "mae",
        version: int | None = None,
        label: str | None = None,
        grpc: bool = False,
        timeout: float = 60,
        retries: int = 5,
        batch_size: int = 8,
        concurrency: int = 4,
    ) -> None:
        if version is not None and label is not None:
            raise ValueError(
                f"Give either version or label. Received: {version} and {label!r}"
            )
        least = {"batch_size": batch_size, "concurrency": concurrency}
        for name, value in least.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1. Received: {value}")
        # written so that NaN fails as well
        if not (timeout > 0 and retries >= 0):
            raise ValueError(
                "timeout must be positive and retries not negative. Received: "
                f"timeout={timeout}, retries={retries}"
            )
        self._timeout = timeout
        self._retries = retries
        self._batch_size = batch_size
        address = address or ("localhost:8500" if grpc else "localhost:8501")
        transport = _grpc_transport() if grpc else RestTransport
        self._transport = transport(address, model, version, label, concurrency)
        self._executor = concurrent.futures.ThreadPoolExecutor(concurrency)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections; the client cannot be used afterwards."""
        self._executor.shutdown(cancel_futures=True)
        self._transport.close()

    def features(
        self, images: Images | None = None, *, pixels: ArrayLike | None = None
    ) -> Features:
        """Returns encoder features of images, without masking.

        Args:
            images: A path, encoded bytes, a PIL image, an array, or a list of these.
                Arrays are `(H, W)`, `(H, W, C)` or `(B, H, W, C)`; integers in
                [0, 255] or floats in [0, 1].
            pixels: `(H, W, C)` or `(B, H, W, C)` float array, instead of images:
                already resized and normalized as `MAEImageProcessor` does.

        Returns:
            `Features`; a single image is a batch of one.

        Raises:
            ValueError: If an argument is not a valid image.
            OSError: If a file cannot be read.
            ServingError: If the server returns an error, or does not respond.

        Example:

        ```python
        with Client("localhost:8500", grpc=True) as client:
            features = client.features("cat.jpg").features  # (1, 1 + L, D)
        ```
        """
        return self._predict(Features, "features", *read_source(images, pixels))

    def reconstruct(
        self,
        images: Images | None = None,
        seed: int | Sequence[int] | None = None,
        mask: ArrayLike | None = None,
        noise: ArrayLike | None = None,
        *,
        pixels: ArrayLike | None = None,
    ) -> Reconstruction:
        """Masks patches of images and reconstructs them.

        Give at most one of `seed`, `mask` and `noise`; the default is `seed=0`. Results
        do not depend on how the list is split into batches.

        Args:
            images: As for `features`.
            seed: Int, or a sequence of an int per image. An int gives image `i` the
                seed `seed + i`, so that masks differ.
            mask: `(B, L)` array, 1 = masked, 0 = visible, or `(L,)` for all images.
            noise: `(B, L)` array, or `(L,)` for all images: the patches with the
                largest values are masked, as many as the model's mask ratio says.
            pixels: As for `features`.

        Returns:
            `Reconstruction`.

        Raises:
            ValueError: If an argument is invalid, or its rows are not as many as the
                images.
            OSError: If a file cannot be read.
            ServingError: If the server returns an error, or does not respond.

        Example:

        ```python
        with Client("localhost:8501") as client:
            answer = client.reconstruct(["cat.jpg", "dog.jpg"], seed=7)
            answer.save("picture.png", ["cat.jpg", "dog.jpg"])
        ```
        """
        given: dict[str, Any] = {"seed": seed, "mask": mask, "noise": noise}
        given = {name: value for name, value in given.items() if value is not None}
        if len(given) > 1:
            raise ValueError(f"Give only one of {' and '.join(given)}")
        ((name, value),) = (given or {"seed": 0}).items()
        signature = "reconstruct" if name == "seed" else f"reconstruct_with_{name}"
        items, kind = read_source(images, pixels)
        if name == "seed":
            rows = read_seeds(value, len(items))
        else:
            rows = read_rows(name, value, len(items))
        return self._predict(Reconstruction, signature, items, kind, {name: rows})

    def classify(
        self, images: Images | None = None, *, pixels: ArrayLike | None = None
    ) -> Classification:
        """Returns the most likely classes of images; for a served classifier.

        Args:
            images: As for `features`.
            pixels: As for `features`.

        Returns:
            `Classification`.

        Raises:
            ValueError: If an argument is not a valid image.
            OSError: If a file cannot be read.
            ServingError: If the server returns an error, or does not respond.

        Example:

        ```python
        with Client("localhost:8501", model="classifier") as client:
            label = client.classify("cat.jpg").labels[0, 0]
        ```
        """
        return self._predict(Classification, "classify", *read_source(images, pixels))

    def status(self) -> list[VersionStatus]:
        """Lists the versions of the model and their states.

        Returns:
            List of `VersionStatus`; of one if the client has a `version` or `label`.

        Raises:
            ServingError: If there is no such model, or the server does not respond.

        Example:

        ```python
        with Client("localhost:8501") as client:
            ready = any(each.state == "AVAILABLE" for each in client.status())
        ```
        """
        return read_statuses(self._call(self._transport.status))

    def metadata(self) -> dict[str, Signature]:
        """Returns the signatures of the model.

        Returns:
            Dict from signature name to `Signature`.

        Raises:
            ServingError: If there is no such model, or the server does not respond.

        Example:

        ```python
        with Client("localhost:8501") as client:
            shape = client.metadata()["features"].outputs["features"].shape
        ```
        """
        return read_signatures(self._call(self._transport.metadata))

    def _predict(self, result_class, signature, items, kind, extras=None):
        """Sends batches concurrently; concatenates their results in order."""
        names = [field.name for field in dataclasses.fields(result_class)]
        if kind == "pixels":
            signature += "_from_pixels"

        def ask(start):
            rows = slice(start, start + self._batch_size)
            batch = items[rows]
            if kind == "image_bytes":
                # encoded here, so that only batches being sent take memory
                batch = np.array([encode(image) for image in batch], dtype=object)
            inputs = {name: value[rows] for name, value in (extras or {}).items()}
            inputs[kind] = batch
            return [
                self._call(self._transport.predict, signature, part, names)
                for part in _cut(inputs, kind)
            ]

        # an empty batch is sent too: only the server knows the result shapes
        starts = range(0, max(len(items), 1), self._batch_size)
        batches = self._executor.map(ask, starts)
        answers = list(itertools.chain.from_iterable(batches))
        return result_class(
            **{name: np.concatenate([a[name] for a in answers]) for name in names}
        )

    def _call(self, method, *arguments):
        return call(method, *arguments, timeout=self._timeout, retries=self._retries)


def _cut(inputs, kind):
    """Splits a batch that is too large for a request, between images."""
    sizes = [
        len(item) if kind == "image_bytes" else _JSON_GROWTH * item.nbytes
        for item in inputs[kind]
    ]
    starts, total = [0], 0
    for index, size in enumerate(sizes):
        total += size
        if total > _MAX_BYTES and index > starts[-1]:
            starts.append(index)
            total = size
    for start, end in itertools.pairwise([*starts, len(sizes)]):
        yield {name: value[start:end] for name, value in inputs.items()}


def _grpc_transport():
    try:
        from .rpc import GrpcTransport
    except ImportError as error:
        raise ImportError(f"gRPC needs tensorflow-serving-api: {error}") from error
    return GrpcTransport
