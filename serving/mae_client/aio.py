"""`AsyncClient`: asks a server from an event loop."""

import asyncio
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


class AsyncClient(Connection):
    """Client for asyncio, with the arguments and methods of `Client`.

    `concurrency` bounds the batches of all its calls together. A task that is
    cancelled gives its requests up: the connection is closed, or the call cancelled.
    Use it in one event loop.

    Example:

    ```python
    import asyncio

    async def main():
        async with AsyncClient("localhost:8501") as client:
            cat, dog = await asyncio.gather(
                client.embed("cat.jpg"), client.embed("dog.jpg")
            )

    asyncio.run(main())
    ```
    """

    _asynchronous = True

    def _start(self) -> None:
        self._free = asyncio.Semaphore(self._options.concurrency)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections; the client cannot be used afterwards."""
        await self._transport.close()

    async def features(
        self,
        images: Images | None = None,
        *,
        pixels: ArrayLike | None = None,
        pixels_u8: ArrayLike | None = None,
    ) -> Features:
        """As `Client.features`."""
        return await self._predict(jobs.features(images, pixels, pixels_u8))

    async def embed(
        self,
        images: Images | None = None,
        *,
        pixels: ArrayLike | None = None,
        pixels_u8: ArrayLike | None = None,
    ) -> Embeddings:
        """As `Client.embed`."""
        return await self._predict(jobs.embed(images, pixels, pixels_u8))

    async def reconstruct(
        self,
        images: Images | None = None,
        seed: int | Sequence[int] | None = None,
        mask: ArrayLike | None = None,
        noise: ArrayLike | None = None,
        *,
        pixels: ArrayLike | None = None,
        pixels_u8: ArrayLike | None = None,
    ) -> Reconstruction:
        """As `Client.reconstruct`."""
        return await self._predict(
            jobs.reconstruct(images, seed, mask, noise, pixels, pixels_u8)
        )

    async def reconstruct_png(
        self,
        images: Images | None = None,
        seed: int | Sequence[int] | None = None,
        *,
        pixels: ArrayLike | None = None,
        pixels_u8: ArrayLike | None = None,
    ) -> PngReconstruction:
        """As `Client.reconstruct_png`."""
        return await self._predict(
            jobs.reconstruct_png(images, seed, pixels, pixels_u8)
        )

    async def classify(
        self,
        images: Images | None = None,
        *,
        pixels: ArrayLike | None = None,
        pixels_u8: ArrayLike | None = None,
    ) -> Classification:
        """As `Client.classify`."""
        return await self._predict(jobs.classify(images, pixels, pixels_u8))

    async def status(self) -> list[VersionStatus]:
        """As `Client.status`."""
        return await self._ask(self._messages.status())

    async def metadata(self) -> dict[str, Signature]:
        """As `Client.metadata`."""
        return await self._ask(self._messages.metadata())

    async def answering_version(self) -> int:
        """As `Client.answering_version`."""
        return await self._ask(self._messages.version())

    async def _predict(self, job):
        """Sends batches concurrently; concatenates their results in order."""
        size, answers = self._options.batch_size, {}
        starts = iter(job.starts(size))

        async def work():
            # workers that take turns: a task per batch would hold all of a long list
            for start in starts:
                async with self._free:
                    answers[start] = await self._batch(job, start)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._options.concurrency):
                    group.create_task(work())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        parts = [part for start in sorted(answers) for part in answers[start]]
        return await asyncio.to_thread(job.join, parts)

    async def _batch(self, job, start):
        parts = await asyncio.to_thread(job.parts, start, self._options.batch_size)
        answers = []
        for part in parts:
            request = await asyncio.to_thread(
                self._messages.predict, job.full_signature, part, job.names
            )
            answers.append(await self._ask(request))
        return answers

    async def _ask(self, request):
        attempts = Attempts(self._options.timeout, self._options.retries)
        while True:
            try:
                response = await self._transport.send(request, attempts.deadline)
                # JSON of megabytes is read beside the loop
                return await asyncio.to_thread(request.read, response)
            except ServingError as error:
                pause = attempts.pause_after(error)
            await asyncio.sleep(pause)
