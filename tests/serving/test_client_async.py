"""serving/mae_client: `AsyncClient`, by REST and gRPC alike."""

import asyncio
import threading

import numpy as np
import pytest

from tests import stand_ins
from tests.stand_ins import (
    PATIENCE,
    Gate,
    GrpcStub,
    RestHandler,
    RestStub,
    Together,
    grey,
    mae_client,
)

ServingError = mae_client.ServingError
stub, stub_class = stand_ins.stub, stand_ins.stub_class


def ask(stub, method, **options):
    """Runs `method(client)` in an event loop."""

    async def main():
        client = mae_client.AsyncClient(stub.address, grpc=stub.grpc, **options)
        async with client:
            return await method(client)

    return asyncio.run(main())


def test_a_client_may_be_made_outside_of_the_loop(stub):
    client = mae_client.AsyncClient(stub.address, grpc=stub.grpc)

    async def main():
        async with client:
            return await client.features(grey(3))

    assert asyncio.run(main()).features[0, 0, 0] == 3
    asyncio.run(mae_client.AsyncClient(grpc=stub.grpc).close())


def test_methods_are_those_of_the_blocking_client(stub):
    images = [grey(value) for value in range(5)]
    levels = np.stack(images)

    async def everything(client):
        return await asyncio.gather(
            client.features(images),
            client.embed(pixels_u8=levels),
            client.reconstruct(images, seed=7),
            client.classify(images),
            client.reconstruct_png(images, seed=7),
        ), (
            await client.status(),
            await client.metadata(),
            await client.answering_version(),
            await client.features([]),
        )

    several, (status, metadata, version, nothing) = ask(
        stub, everything, batch_size=2, concurrency=3
    )
    with stand_ins.connect(stub, batch_size=2) as asked:
        wanted = (
            asked.features(images),
            asked.embed(images),
            asked.reconstruct(images, seed=7),
            asked.classify(images),
            asked.reconstruct_png(images, seed=7),
        )
        assert (status, metadata) == (asked.status(), asked.metadata())
    assert version == 2 and nothing.features.shape == (0, 5, 2)
    for got, want in zip(several, wanted, strict=True):
        for name, value in vars(want).items():
            np.testing.assert_array_equal(getattr(got, name), value)
    names = {name for name in dir(mae_client.Client) if not name.startswith("_")}
    assert names <= set(dir(mae_client.AsyncClient))


def test_order_and_number_of_requests_at_once(stub):
    stub.brain.hold = Together(3, lambda value: (20 - value) * 0.01)
    images = [grey(value) for value in range(20)]

    async def twice(client):
        return await asyncio.gather(client.features(images), client.features(images))

    for answer in ask(stub, twice, batch_size=3, concurrency=3):
        np.testing.assert_array_equal(answer.features[:, 0, 0], np.arange(20))
    assert stub.brain.most_busy == 3


def test_the_loop_goes_on_meanwhile(stub):
    stub.brain.hold = gate = Gate()

    async def beside(client):
        task = asyncio.create_task(client.features(grey(1)))
        assert await asyncio.to_thread(gate.begun.wait, PATIENCE)
        # the answer needs a turn of the loop
        gate.go.set()
        return await task

    answer = ask(stub, beside, timeout=3 * PATIENCE)
    assert answer.features[0, 0, 0] == 1


def test_failures_and_retries(stub, monkeypatch):
    monkeypatch.setattr(mae_client.retries, "FIRST_PAUSE", 0.01)
    stub.brain.refusals = [("UNAVAILABLE", "busy")] * 2 + [("NOT_FOUND", "none")]

    async def asked(client):
        return await client.features([grey(1)])

    # the third attempt is refused for good; no group of errors
    with pytest.raises(ServingError, match="none") as error:
        ask(stub, asked)
    assert error.value.code == "NOT_FOUND" and len(stub.brain.calls) == 3
    stub.brain.hold = gate = Gate()
    with pytest.raises(ServingError) as error:
        ask(stub, asked, timeout=0.5)
    gate.go.set()
    assert error.value.code == "DEADLINE_EXCEEDED"
    with pytest.raises(ValueError, match="either images or pixels"):
        ask(stub, lambda client: client.features())


def cancelled_after(begun, left):
    """Returns a method that is cancelled once the server has begun, until that ends."""

    async def method(client):
        task = asyncio.create_task(client.features(grey(1)))
        assert await asyncio.to_thread(begun.wait, PATIENCE)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # before the client is closed
        assert await asyncio.to_thread(left.wait, PATIENCE)
        # the client can be used on
        return await client.status()

    return method


def test_a_cancelled_task_closes_its_connection():
    begun, left = threading.Event(), threading.Event()

    class Waits(RestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            begun.set()
            # ends when the client leaves
            if self.rfile.read(1) == b"":
                left.set()
            self.close_connection = True

    with RestStub(handler=Waits) as stub:
        method = cancelled_after(begun, left)
        assert ask(stub, method, concurrency=1, timeout=3 * PATIENCE)


def test_a_cancelled_task_cancels_its_call(monkeypatch):
    begun, left = threading.Event(), threading.Event()

    def predict(self, request, context):
        context.add_callback(left.set)
        begun.set()
        left.wait(2 * PATIENCE)

    monkeypatch.setattr(stand_ins.PredictionServicer, "Predict", predict)
    with GrpcStub() as stub:
        method = cancelled_after(begun, left)
        assert ask(stub, method, concurrency=1, timeout=3 * PATIENCE)
