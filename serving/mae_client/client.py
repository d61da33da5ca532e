"""`Client`: asks a server with blocking calls."""

import concurrent.futures
import contextlib
import itertools
import threading
from collections.abc import Sequence
from typing import Self

from numpy.typing import ArrayLike

from . import jobs
from .connection import Connection
from .errors import ServingError
from .images import Images
from .results import (
    Classification,
    Embeddings,
    Features,
    PngReconstruction,
    Reconstruction,
    Signature,
    VersionStatus,
)
from .retries import Attempts


class Client(Connection):
    """Client of a server that speaks TF Serving's protocol.

    Long lists are split into batches, by number and by bytes, which are sent
    concurrently; results come back in order. A request is retried with exponential
    backoff, or when `Retry-After` says, if the server is unreachable or overloaded, and
    not if it rejects the request.

    Without a `version`, two versions of the model may answer parts of a list, if the
    newest changes meanwhile. Over gRPC that is an error, REST does not say which one
    answered: for long lists, give the `version` that `answering_version` returns.

    Args:
        address: `"host:port"`; for REST also `"http://..."` or `"https://..."`.
            Defaults to `localhost` with TF Serving's port.
        model: Name of the model on the server.
        version: Int, the model version. Defaults to the newest.
        label: Version label on the server, instead of `version`.
        grpc: Whether to use gRPC instead of REST.
        timeout: Seconds for each request, retries included. Over REST an attempt may
            last longer: connecting, sending and a stalled answer have as long each.
        retries: Int, the largest number of retries of a request. Defaults to as many
            as `timeout` leaves time for.
        batch_size: Int, the most images per request; fewer if they are large.
        concurrency: Int, the most requests at the same time.
        tls: Whether to encrypt the connection: https, or gRPC with TLS.
        ca_file: Path of a PEM file, the certificates that are trusted instead of the
            system's.
        cert_file: Path of a PEM file, the client's certificate, for a server that asks
            for one (mTLS).
        key_file: Path of a PEM file, the private key of `cert_file`.
        verify: Whether the server must prove who it is; `False` only with REST.
        token: Sent with each request, as the header `Authorization: Bearer TOKEN`.
        headers: Dict of further HTTP headers, or with gRPC of metadata.
        gzip: Whether to compress requests; compressed answers are always read.

    Raises:
        ValueError: If an argument is wrong.
        OSError: If a certificate or key cannot be read.
        ImportError: If `grpc` is set and grpcio or protobuf is not installed.

    Example:

    ```python
    with Client("localhost:8501", model="mae") as client:
        features = client.features(["cat.jpg", "dog.jpg"]).features  # (2, 1 + L, D)
    ```
    """

    def _start(self) -> None:
        self._executor = concurrent.futures.ThreadPoolExecutor(
            self._options.concurrency
        )
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections; the client cannot be used afterwards.

        Calls that other threads still wait for end with a `ServingError` of code
        `"CANCELLED"`; one that is still connecting does so at its timeout.
        """
        self._closed.set()
        self._transport.close()
        # a thread that is connecting can't be woken: it is not waited for
        self._executor.shutdown(wait=False, cancel_futures=True)

    def features(
        self,
        images: Images | None = None,
        *,
        pixels: ArrayLike | None = None,
        pixels_u8: ArrayLike | None = None,
    ) -> Features:
        """Returns encoder features of images, without masking.

        Args:
            images: A path, encoded bytes, a PIL image, an array, or a list of these.
                Arrays are `(H, W)`, `(H, W, C)` or `(B, H, W, C)`; integers in
                [0, 255] or floats in [0, 1].
            pixels: `(H, W, C)` or `(B, H, W, C)` float array, instead of images:
                already resized and normalized as `MAEImageProcessor` does.
            pixels_u8: `(H, W, C)` or `(B, H, W, C)` uint8 array, instead of images:
                grey levels, already resized to the model's size; answers for another
                size are NaN. They are sent as they are, nothing is encoded or decoded.

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
        return self._predict(jobs.features(images, pixels, pixels_u8))

    def embed(
        self,
        images: Images | None = None,
        *,
        pixels: ArrayLike | None = None,
        pixels_u8: ArrayLike | None = None,
    ) -> Embeddings:
        """Returns an embedding of each image, a vector, as for similarity search.

        Args:
            images: As for `features`.
            pixels: As for `features`.
            pixels_u8: As for `features`.

        Returns:
            `Embeddings`.

        Raises:
            ValueError: If an argument is not a valid image.
            OSError: If a file cannot be read.
            ServingError: If the server returns an error, or does not respond.

        Example:

        ```python
        with Client("localhost:8501") as client:
            embedding = client.embed(["cat.jpg", "dog.jpg"]).embedding  # (2, D)
        ```
        """
        return self._predict(jobs.embed(images, pixels, pixels_u8))

    def reconstruct(
        self,
        images: Images | None = None,
        seed: int | Sequence[int] | None = None,
        mask: ArrayLike | None = None,
        noise: ArrayLike | None = None,
        *,
        pixels: ArrayLike | None = None,
        pixels_u8: ArrayLike | None = None,
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
            pixels_u8: As for `features`.

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
        return self._predict(
            jobs.reconstruct(images, seed, mask, noise, pixels, pixels_u8)
        )

    def reconstruct_png(
        self,
        images: Images | None = None,
        seed: int | Sequence[int] | None = None,
        *,
        pixels: ArrayLike | None = None,
        pixels_u8: ArrayLike | None = None,
    ) -> PngReconstruction:
        """Masks patches of images and reconstructs them as PNG files.

        Args:
            images: As for `features`.
            seed: As for `reconstruct`; the default is 0.
            pixels: As for `features`.
            pixels_u8: As for `features`.

        Returns:
            `PngReconstruction`.

        Raises:
            ValueError: If an argument is invalid, or its rows are not as many as the
                images.
            OSError: If a file cannot be read.
            ServingError: If the server returns an error, or does not respond.

        Example:

        ```python
        with Client("localhost:8501") as client:
            (png,) = client.reconstruct_png("cat.jpg", seed=7).png_bytes
        Path("reconstruction.png").write_bytes(png)
        ```
        """
        return self._predict(jobs.reconstruct_png(images, seed, pixels, pixels_u8))

    def classify(
        self,
        images: Images | None = None,
        *,
        pixels: ArrayLike | None = None,
        pixels_u8: ArrayLike | None = None,
    ) -> Classification:
        """Returns the most likely classes of images; for a served classifier.

        Args:
            images: As for `features`.
            pixels: As for `features`.
            pixels_u8: As for `features`.

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
        return self._predict(jobs.classify(images, pixels, pixels_u8))

    def status(self) -> list[VersionStatus]:
        """Lists the versions of the model and their states.

        Returns:
            List of `VersionStatus`; of one if the client has a `version`. A `label`
            is not looked at: `answering_version` says which version it names.

        Raises:
            ServingError: If there is no such model, or the server does not respond.

        Example:

        ```python
        with Client("localhost:8501") as client:
            states = {each.version: each.state for each in client.status()}
        ```
        """
        return self._ask(self._messages.status())

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
        return self._ask(self._messages.metadata())

    def answering_version(self) -> int:
        """Returns the version of the model that answers requests now.

        Raises:
            ServingError: If there is no such model, version or label, or the server
                does not respond.

        Example:

        ```python
        with Client("localhost:8501", label="stable") as client:
            version = client.answering_version()
        ```
        """
        return self._ask(self._messages.version())

    def _predict(self, job):
        """Sends batches concurrently; concatenates their results in order."""

        def ask(start):
            return [
                self._ask(self._messages.predict(job.full_signature, part, job.names))
                for part in job.parts(start, self._options.batch_size)
            ]

        with self._while_open():
            batches = self._executor.map(ask, job.starts(self._options.batch_size))
            return job.join(itertools.chain.from_iterable(batches))

    def _ask(self, request):
        attempts = Attempts(self._options.timeout, self._options.retries)
        with self._while_open():
            while True:
                try:
                    response = self._transport.send(request, attempts.deadline)
                    return request.read(response)
                except ServingError as error:
                    pause = attempts.pause_after(error)
                self._closed.wait(pause)

    @contextlib.contextmanager
    def _while_open(self):
        """Turns what a call fails by when the client is closed into one error."""
        try:
            yield
        except Exception as error:
            if self._closed.is_set():
                raise ServingError("The client was closed", "CANCELLED") from error
            raise
