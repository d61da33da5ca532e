"""serving/mae_client: HTTP servers that ask for patience, compress, or are strange."""

import asyncio
import datetime
import email.utils
import gzip
import json
import threading
import time
from typing import ClassVar

import numpy as np
import pytest

from tests.stand_ins import (
    PATIENCE,
    STATUSES,
    RestHandler,
    RestStub,
    connect,
    mae_client,
)

ServingError = mae_client.ServingError


class Busy(RestHandler):
    """Answers once or twice that it has too much to do."""

    replies: ClassVar = []

    def do_GET(self):
        if not self.replies:
            super().do_GET()
            return
        status, pause = self.replies.pop(0)
        self.send_response(status)
        if pause is not None:
            self.send_header("Retry-After", pause)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.mark.parametrize(
    "replies, least", [([(429, None), (429, "soon")], 0.2), ([(503, "1")], 1)]
)
def test_too_many_requests_are_retried_as_told(monkeypatch, replies, least):
    monkeypatch.setattr(Busy, "replies", replies)
    start = time.monotonic()
    with RestStub(handler=Busy) as stub, connect(stub) as asked:
        assert asked.status()
    assert time.monotonic() - start > least and not replies


def read_retry_after(monkeypatch, status, text):
    """Returns what the client's error says of a `Retry-After` header."""
    monkeypatch.setattr(Busy, "replies", [(status, text)])
    with (
        RestStub(handler=Busy) as stub,
        connect(stub, retries=0) as asked,
        pytest.raises(ServingError) as error,
    ):
        asked.status()
    return error.value.retry_after


def test_retry_after_may_be_a_date(monkeypatch):
    then = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
    date = email.utils.format_datetime(then)
    for text, least, most in (
        (date, 3500, 3601),
        ("Thu, 01 Jan 2026 00:00:00 GMT", 0, 0),
    ):
        assert least <= read_retry_after(monkeypatch, 429, text) <= most


def test_a_strange_retry_after_is_passed_over(monkeypatch):
    for text in ("9" * 400, "31 Dec 9999999999999999999 23:59:59 -0000"):
        assert read_retry_after(monkeypatch, 503, text) is None


class Odd(RestHandler):
    """Answers in JSON that no client of Python can take."""

    body: ClassVar = b""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()


@pytest.mark.parametrize(
    "body, ask",
    [
        (b"[" * 100_000, lambda asked: asked.status()),
        (b'{"model_spec": {"version": 1e400}}', lambda it: it.answering_version()),
        (
            b'{"outputs": {"class_ids": [[1e400]], "probabilities": [[1]], '
            b'"labels": [["a"]]}}',
            lambda asked: asked.classify(b"\xff\xd8\xff"),
        ),
        (
            b'{"outputs": {"class_ids": [[%d]], "probabilities": [[1]], '
            b'"labels": [["a"]]}}' % 2**70,
            lambda asked: asked.classify(b"\xff\xd8\xff"),
        ),
    ],
    ids=["nested", "version", "infinite", "large"],
)
def test_answers_that_python_cannot_take_are_errors(monkeypatch, body, ask):
    monkeypatch.setattr(Odd, "body", body)
    with (
        RestStub(handler=Odd) as stub,
        connect(stub) as asked,
        pytest.raises(ServingError, match="invalid response") as error,
    ):
        ask(asked)
    assert error.value.code == "INTERNAL"


def test_a_pause_beyond_the_deadline_is_the_error(monkeypatch):
    monkeypatch.setattr(Busy, "replies", [(429, "3600")])
    start = time.monotonic()
    with (
        RestStub(handler=Busy) as stub,
        connect(stub, timeout=3000) as asked,
        pytest.raises(ServingError) as error,
    ):
        asked.status()
    # it neither pauses nor waits for the deadline
    assert time.monotonic() - start < 600
    assert error.value.code == "RESOURCE_EXHAUSTED"
    assert error.value.retry_after == 3600


class NoGzip(RestHandler):
    """Refuses compressed bodies."""

    def do_POST(self):
        if "Content-Encoding" in self.headers:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send(415, {"error": "Unsupported Content-Encoding"})
        else:
            super().do_POST()


def test_a_server_that_refuses_gzip_is_asked_without():
    noise = np.random.default_rng(0).integers(0, 256, (99, 99, 3), "uint8")
    with RestStub(handler=NoGzip) as stub, connect(stub, gzip=True) as asked:
        assert asked.features([noise]).features.shape == (1, 5, 2)
        asked.features([noise])
    assert len(stub.brain.calls) == 2


@pytest.mark.parametrize("asynchronous", [False, True])
def test_requests_at_once_that_refuse_gzip_are_all_sent_again(asynchronous):
    both, through = threading.Barrier(2), threading.Event()

    class Late(NoGzip):
        """Refuses two compressed requests, the second one when the first is through."""

        def do_POST(self):
            if "Content-Encoding" not in self.headers:
                super().do_POST()
                through.set()
                return
            if both.wait(PATIENCE) == 1:
                assert through.wait(PATIENCE)
            super().do_POST()

    noise = np.random.default_rng(0).integers(0, 256, (2, 99, 99, 3), "uint8")
    with RestStub(handler=Late) as stub:
        options = {"gzip": True, "batch_size": 1, "timeout": 3 * PATIENCE}
        if asynchronous:

            async def ask():
                async with mae_client.AsyncClient(stub.address, **options) as asked:
                    return await asked.features(noise)

            answer = asyncio.run(ask())
        else:
            with connect(stub, **options) as asked:
                answer = asked.features(noise)
    assert answer.features.shape == (2, 5, 2)


class Zipped(RestHandler):
    """Answers in gzip: well, cut short, not at all, or a bomb."""

    def do_GET(self):
        kind = self.path.split("/")[1]
        data = gzip.compress(json.dumps({"model_version_status": STATUSES}).encode())
        if kind == "bomb":
            data = gzip.compress(bytes(2**22))
        data = {"short": data[:-20], "other": b"{}"}.get(kind, data)
        self.send_response(200)
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def test_compressed_answers_are_read_up_to_a_bound(monkeypatch):
    monkeypatch.setattr(mae_client.http, "MAX_ANSWER", 2**20)
    with RestStub(handler=Zipped) as stub:
        with mae_client.Client(f"{stub.address}/well") as asked:
            assert asked.status()[0] == (2, "AVAILABLE", "")
        for kind, message in (
            ("short", "cut short"),
            ("other", "incorrect header"),
            ("bomb", "over 1048576 bytes"),
        ):
            with (
                mae_client.Client(f"{stub.address}/{kind}") as asked,
                pytest.raises(ServingError, match=message) as error,
            ):
                asked.status()
            assert error.value.code == "INTERNAL"


class Strange(RestHandler):
    def do_GET(self):
        if self.path.startswith("/html"):
            self.send_response(502)
            self.end_headers()
            self.close_connection = True
        elif self.path.startswith("/other"):
            self.send(200, {"hello": "there"})
        elif self.path.startswith("/trickle"):
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            for _ in range(600):
                self.wfile.write(b" ")
                time.sleep(0.05)


@pytest.mark.parametrize(
    "path, timeout, code",
    [
        ("html", PATIENCE, "UNAVAILABLE"),
        ("other", PATIENCE, "INTERNAL"),
        # else the answer's early end would be UNAVAILABLE
        ("trickle", 1, "DEADLINE_EXCEEDED"),
    ],
)
def test_other_http_servers_are_an_error(path, timeout, code):
    with (
        RestStub(handler=Strange) as stub,
        mae_client.Client(
            f"{stub.address}/{path}", timeout=timeout, retries=0
        ) as asked,
        pytest.raises(ServingError) as error,
    ):
        asked.status()
    assert error.value.code == code and stub.address in str(error.value)
