"""serving/mae_client: wrong arguments, retries, deadlines, and servers that fail."""

import contextlib
import socket
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from tests import stand_ins
from tests.stand_ins import (
    PATIENCE,
    Gate,
    GrpcStub,
    RestStub,
    connect,
    grey,
    mae_client,
)
from tests.waiting import until

ServingError = mae_client.ServingError
stub, stub_class = stand_ins.stub, stand_ins.stub_class


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "either images or pixels"),
        ({"images": [], "pixels": np.zeros((1, 8, 8, 3))}, "either images or pixels"),
        ({"pixels": np.zeros((8, 8))}, "pixels must be"),
        ({"images": [grey(1)], "seed": 1, "mask": [1, 0]}, "only one of seed and mask"),
        ({"images": [grey(1)], "seed": [1, 2]}, "for each of 1 images"),
        ({"images": [grey(1)], "seed": 0.5}, "seed must be an int"),
        ({"images": [grey(1)], "seed": 2**70}, "seed must be an int"),
        ({"images": [grey(1)], "mask": np.zeros((2, 4))}, "a row for each of 1"),
        ({"images": [grey(1)], "noise": np.zeros((1, 2, 2))}, "noise must be"),
        ({"images": [grey(1)], "mask": ["a"]}, "mask must be"),
    ],
)
def test_wrong_arguments(stub, arguments, message):
    with connect(stub) as asked, pytest.raises(ValueError, match=message):
        asked.reconstruct(**arguments)
    assert not stub.brain.calls


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"concurrency": 0},
        {"timeout": 0},
        {"timeout": float("nan")},
        {"timeout": float("inf")},
        {"timeout": 1e10},
        {"retries": -1},
        {"version": 1, "label": "stable"},
        {"address": "ftp://host"},
        {"address": "http://"},
        {"address": "host:port"},
        {"address": "http://host:1", "grpc": True},
    ],
)
def test_wrong_options(options):
    with pytest.raises(ValueError):
        mae_client.Client(**options)


def test_grpc_without_its_package_is_an_import_error(monkeypatch):
    monkeypatch.delitem(sys.modules, "mae_client.rpc", raising=False)
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(ImportError, match="needs grpcio"):
        mae_client.Client(grpc=True)


def test_no_proxy_of_the_environment_is_used(stub_class, monkeypatch):
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    with stub_class() as stub:
        address = f"localhost:{stub.address.partition(':')[2]}"
        with mae_client.Client(address, grpc=stub.grpc, retries=0) as asked:
            assert asked.status()


def test_unavailable_is_retried(stub, monkeypatch):
    monkeypatch.setattr(mae_client.retries, "FIRST_PAUSE", 0.05)
    stub.brain.refusals = [("UNAVAILABLE", "busy")] * 3
    start = time.monotonic()
    with connect(stub) as asked:
        assert asked.features(grey(3)).features[0, 0, 0] == 3
    assert len(stub.brain.calls) == 4
    # 0.05 + 0.1 + 0.2 seconds, each times 0.5 to 1.5
    assert time.monotonic() - start > 0.17


def test_big_requests_are_retried(stub):
    stub.brain.refusals = [("UNAVAILABLE", "busy")]
    noise = np.random.default_rng(0).integers(0, 256, (500, 500, 3), "uint8")
    with connect(stub) as asked:
        asked.features(noise)
    assert len(stub.brain.calls) == 2
    assert len(stub.brain.calls[1][1]["image_bytes"][0]) > 500_000


def test_retries_end(stub, monkeypatch):
    monkeypatch.setattr(mae_client.retries, "FIRST_PAUSE", 0.01)
    stub.brain.refusals = [("UNAVAILABLE", "busy")] * 9
    with connect(stub, retries=6) as asked, pytest.raises(ServingError) as error:
        asked.features(grey(3))
    assert error.value.code == "UNAVAILABLE"
    assert str(error.value).endswith(f"{stub.address} is unavailable: busy")
    assert len(stub.brain.calls) == 7


def test_a_server_that_is_away_for_long_is_waited_for(stub, monkeypatch, caplog):
    for name in ("FIRST_PAUSE", "LONGEST_PAUSE"):
        monkeypatch.setattr(mae_client.retries, name, 0.01)
    now = time.monotonic()
    stopped = SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr(mae_client.retries, "time", stopped)
    stub.brain.refusals = [("UNAVAILABLE", "it loads")] * 20
    with connect(stub, timeout=600) as asked:
        assert asked.features(grey(3)).features[0, 0, 0] == 3
    assert len(stub.brain.calls) == 21
    (told,) = caplog.messages
    assert "it loads" in told and "trying again for up to 600 s" in told


def test_the_deadline_ends_retries(stub, monkeypatch):
    def clock():
        """An hour is over once the server was asked three times."""
        return time.monotonic() + 3600 * (len(stub.brain.calls) > 2)

    monkeypatch.setattr(mae_client.retries, "FIRST_PAUSE", 0.01)
    # of the retries alone: sockets keep the machine's
    monkeypatch.setattr(mae_client.retries, "time", SimpleNamespace(monotonic=clock))
    stub.brain.refusals = [("UNAVAILABLE", "busy")] * 99
    with (
        connect(stub, timeout=600) as asked,
        pytest.raises(ServingError) as error,
    ):
        asked.features(grey(3))
    assert error.value.code == "UNAVAILABLE"
    assert len(stub.brain.calls) == 3


@pytest.mark.parametrize("code", ["INVALID_ARGUMENT", "NOT_FOUND"])
def test_rejected_requests_are_not_retried(stub, code):
    stub.brain.refusals = [(code, "Input is empty.")] * 2
    with connect(stub) as asked, pytest.raises(ServingError) as error:
        asked.features(grey(3))
    assert (error.value.code, str(error.value)) == (code, "Input is empty.")
    assert len(stub.brain.calls) == 1


def test_too_many_calls_of_grpc_at_once_are_retried(monkeypatch):
    monkeypatch.setattr(mae_client.retries, "FIRST_PAUSE", 0.01)
    gate = Gate()
    with (
        GrpcStub(maximum_concurrent_rpcs=1) as stub,
        connect(stub, timeout=3 * PATIENCE) as asked,
    ):
        stub.brain.hold = gate
        first = threading.Thread(target=asked.features, args=(grey(1),))
        first.start()
        assert gate.begun.wait(PATIENCE)
        with connect(stub, retries=0) as other:
            with pytest.raises(ServingError) as error:
                other.features(grey(2))
            assert error.value.code == "RESOURCE_EXHAUSTED"
            assert error.value.retry_after == 0
        gate.go.set()
        first.join()
        # sizes are refused by the same code, for good
        stub.brain.hold = 0
        stub.brain.refusals = [("RESOURCE_EXHAUSTED", "Received message larger than")]
        with pytest.raises(ServingError, match="larger"):
            asked.features(grey(2))
        assert len(stub.brain.calls) == 2


def test_an_error_in_one_batch_is_raised(stub):
    stub.brain.refusals = [("INVALID_ARGUMENT", "bad")]
    with connect(stub, batch_size=1) as asked, pytest.raises(ServingError, match="bad"):
        asked.features([grey(value) for value in range(9)])


def test_deadline_exceeded(stub):
    stub.brain.hold = gate = Gate()
    with connect(stub, timeout=0.5) as asked, pytest.raises(ServingError) as error:
        asked.features(grey(3))
    assert error.value.code == "DEADLINE_EXCEEDED"
    assert stub.address in str(error.value)
    # on a slow machine none may have come in time; none is sent again
    assert len(stub.brain.calls) <= 1
    gate.go.set()


def free_port():
    with RestStub() as stub:
        return int(stub.address.split(":")[1])


def test_an_unreachable_server_is_named(stub_class, monkeypatch):
    monkeypatch.setattr(mae_client.retries, "FIRST_PAUSE", 0.01)
    address = f"127.0.0.1:{free_port()}"
    with (
        mae_client.Client(address, grpc=stub_class.grpc, retries=3) as asked,
        pytest.raises(ServingError) as error,
    ):
        asked.status()
    assert error.value.code == "UNAVAILABLE"
    assert address in str(error.value) and "refused" in str(error.value)


def test_connects_to_a_server_that_starts_later(stub_class, monkeypatch):
    port = free_port()
    started, attempts = [], mae_client.retries.Attempts
    pause_after = attempts.pause_after

    def start(self, error):
        if not started:
            started.append(stub_class(port))
        return pause_after(self, error)

    monkeypatch.setattr(attempts, "pause_after", start)
    with mae_client.Client(f"127.0.0.1:{port}", grpc=stub_class.grpc) as asked:
        assert asked.features(grey(3)).features[0, 0, 0] == 3
    started[0].stop()


def delay(source, target, seconds):
    """Passes bytes on, late, until an end is closed."""
    with source, target, contextlib.suppress(OSError):
        while data := source.recv(2**16):
            time.sleep(seconds)
            target.sendall(data)


@pytest.mark.parametrize("moment", ["call", "pause"])
def test_closing_ends_calls_of_other_threads(stub, monkeypatch, moment):
    gate, errors = Gate(), []
    if moment == "call":
        stub.brain.hold = gate
    else:
        monkeypatch.setattr(mae_client.retries, "FIRST_PAUSE", 3 * PATIENCE)
        monkeypatch.setattr(mae_client.retries, "LONGEST_PAUSE", 3 * PATIENCE)
        stub.brain.refusals = [("UNAVAILABLE", "busy")]

    def ask():
        with pytest.raises(ServingError) as error:
            asked.features([grey(1), grey(2)])
        errors.append(error.value)

    asked = connect(stub, batch_size=1, concurrency=1, timeout=9 * PATIENCE)
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    until(lambda: stub.brain.calls)
    asked.close()
    thread.join(PATIENCE)
    gate.go.set()
    (error,) = errors
    assert (error.code, str(error)) == ("CANCELLED", "The client was closed")
    with pytest.raises(ServingError, match="The client was closed"):
        asked.features(grey(1))


@pytest.mark.slow
def test_grpc_connects_over_a_slow_network():
    with GrpcStub() as stub, socket.create_server(("127.0.0.1", 0)) as far:

        def link():
            near, _ = far.accept()
            server = socket.create_connection(stub.address.split(":"))
            for ends in ((near, server), (server, near)):
                threading.Thread(target=delay, args=(*ends, 0.4), daemon=True).start()

        threading.Thread(target=link, daemon=True).start()
        # a second attempt to connect would find nobody
        address = f"127.0.0.1:{far.getsockname()[1]}"
        with mae_client.Client(address, grpc=True, timeout=PATIENCE) as asked:
            assert asked.features(grey(3)).features[0, 0, 0] == 3
