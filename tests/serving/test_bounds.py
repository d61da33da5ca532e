"""What a request may cost: memory of a document, of its errors, and time."""

import asyncio
import contextlib
import gzip
import io
import json
import threading
import time
import tracemalloc
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from starlette.requests import ClientDisconnect
from tensorflow.core.framework import tensor_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import input_pb2, predict_pb2

from mae_server import (
    bodies,
    browsers,
    errors,
    http_server,
    json_documents,
    json_inputs,
    json_outputs,
    rest,
    rpc,
    splitting,
)
from mae_server.bundle import Bundle
from mae_server.calls import Call
from mae_server.errors import RequestError
from mae_server.service import Service

MIB = 2**20


def peak(function):
    """Returns the peak of Python's memory in a call, bytes."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "item", [b"[],", b"{},", b"0,", b'{"":0},', b'"",', b"[[[]]],", b"[{},[0,0]],"]
)
def test_documents_of_many_values_are_refused_unparsed(item):
    body = b'{"instances": [' + item * (60 * MIB // len(item)) + b"0]}"

    def parse():
        with pytest.raises(RequestError, match="would take more than") as caught:
            json_documents.parse(body)
        assert caught.value.code == "INVALID_ARGUMENT"

    assert peak(parse) < MIB


@pytest.mark.parametrize(
    "item", [b"[],", b"{},", b"0.5,", b'{"a":0},', b'"a",', b"[[[]]],", b"[{},[0,9]],"]
)
def test_parsing_takes_no_more_than_is_estimated(item):
    body = b"[" + item * 20_000 + b"0]"
    with pytest.raises(RequestError):
        json_documents.parse(body)
    body = b'{"instances": ' + body + b"}"
    estimate = json_documents._memory_of(body)
    # beside the objects: a copy of the text, and lists grow ahead
    assert (
        peak(lambda: json_documents.parse(body)) < 1.3 * estimate + len(body) + 100_000
    )


def test_images_of_floats_and_a_long_text_are_parsed():
    image = b"[" + b"[[0.125,0.25,0.5]]," * 100_000 + b"[[0,0,0]]]"
    assert len(json_documents.parse(b'{"inputs": ' + image + b"}")["inputs"]) == 100_001
    text = b'{"inputs": "' + b"a" * 60 * MIB + b'"}'
    assert len(json_documents.parse(text)["inputs"]) == 60 * MIB


X = {"x": meta_graph_pb2.TensorInfo(dtype=tf.float32.as_datatype_enum)}
HUGE, LONG = "x" * (8 * MIB), [0] * MIB


@pytest.mark.parametrize(
    "refuse",
    [
        lambda: json_inputs.read_inputs({"instances": HUGE}, X),
        lambda: json_inputs.read_inputs({"instances": {HUGE: [HUGE]}}, X),
        lambda: json_inputs.read_inputs({"instances": 1, "inputs": LONG}, X),
        lambda: json_inputs.signature_name({"signature_name": [[HUGE]]}),
        lambda: json_inputs.from_base64({"b64": HUGE, "more": HUGE}),
        lambda: raise_(errors.signature_not_found(HUGE)),
        lambda: raise_(errors.model_not_found(HUGE)),
        lambda: raise_(errors.invalid(errors.DUPLICATE_OUTPUT, name=HUGE)),
    ],
)
def test_an_error_does_not_copy_the_document(refuse):
    def catch():
        with pytest.raises(RequestError) as caught:
            refuse()
        assert len(str(caught.value)) < 3000

    assert peak(catch) < MIB


def raise_(error):
    raise error


def test_a_long_text_among_numbers_does_not_make_others_as_long():
    rows = [["x" * 20_000, *["x"] * 1000]]

    def read():
        with pytest.raises(RequestError, match="not of expected type: float"):
            json_inputs.read_inputs({"instances": rows}, X)

    assert peak(read) < MIB


def test_more_rows_than_a_request_may_have_are_not_read():
    rows, message = [0] * 2_000_000, "2000000 is larger than maximum input batch size 9"

    def read():
        with pytest.raises(RequestError, match=message):
            json_inputs.read_inputs({"instances": rows}, X, 9)

    assert peak(read) < MIB
    body = b'{"examples": [{}' + b", {}" * 9 + b"]}"
    with pytest.raises(RequestError, match="10 is larger than maximum"):
        rest._read_examples(body, 9)
    message = input_pb2.Input()
    message.example_list.examples.extend([tf.train.Example()] * 10)
    assert Service(None, max_batch_size=10).examples_of(message) == [b""] * 10
    with pytest.raises(RequestError, match="10 is larger than maximum"):
        Service(None, max_batch_size=9).examples_of(message)


def test_the_context_of_many_examples_is_bounded():
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[HUGE.encode()]))
    message = input_pb2.Input()
    listed = message.example_list_with_context
    listed.context.features.feature["x"].CopyFrom(feature)
    listed.examples.extend([tf.train.Example()] * 40)
    with pytest.raises(RequestError, match="would take 335") as caught:
        Service(None).examples_of(message)
    assert caught.value.code == "INVALID_ARGUMENT"
    body = json.dumps({"context": {"x": HUGE}, "examples": [{}] * 40}).encode()
    with pytest.raises(RequestError, match="would take 335"):
        rest._read_examples(body)


class Context:
    """The context of an RPC; it aborts by a `RequestError`."""

    def time_remaining(self):
        return None

    def add_callback(self, _):
        return True

    def abort(self, code, message):
        raise RequestError(code.name, message)


class Served:
    """A model whose signature has the inputs `x`, floats, and `text`."""

    def __init__(self):
        self.signatures = {"serving_default": meta_graph_pb2.SignatureDef()}
        for name, dtype in (("x", tf.float32), ("text", tf.string)):
            described = self.signatures["serving_default"].inputs[name]
            described.dtype = dtype.as_datatype_enum

    @contextlib.contextmanager
    def use(self, *_):
        yield 1, self

    def run(self, *_):
        raise RequestError("UNKNOWN", "it ran")


def announcing(shape, **values):
    """A tensor of a value that is repeated to fill the shape."""
    dtype = tf.float32 if "float_val" in values else tf.string
    proto = tensor_pb2.TensorProto(dtype=dtype.as_datatype_enum, **values)
    proto.tensor_shape.CopyFrom(tf.TensorShape(shape).as_proto())
    return proto


X_ONE, TEXT_ONE = announcing([1], float_val=[1]), announcing([1], string_val=[b"a"])
X_LARGE = announcing([2**20], float_val=[1])


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({"x": X_ONE, "text": TEXT_ONE}, "it ran"),
        ({str(n): X_LARGE for n in range(40)}, "input size does not match"),
        ({"x": announcing([2**21], float_val=[1]), "text": TEXT_ONE}, "too large"),
        ({"x": X_LARGE, "text": announcing([2**19], string_val=[b""])}, "too large"),
        ({"x": X_ONE, "text": announcing([99], string_val=[b"a" * 99_999])}, "too lar"),
        ({"x": announcing([2**62] * 300, float_val=[1]), "text": TEXT_ONE}, "invalid"),
    ],
)
def test_tensors_are_unpacked_within_a_bound(inputs, message):
    served = Service(Served())
    asked = rpc.PredictionService(served, 6 * MIB, as_content=False)
    request = predict_pb2.PredictRequest(inputs=inputs)
    request.model_spec.name = "mae"

    def predict():
        with pytest.raises(RequestError, match=message):
            asked.Predict(request, Context())

    assert peak(predict) < MIB


def test_a_short_value_is_quoted_whole():
    for value in ([1, "x", None, True], [], {}, "text", 1.5):
        with pytest.raises(RequestError) as caught:
            json_inputs.read_inputs({"instances": 1, "inputs": 2, "a": value}, X)
        assert json_documents.text_of(value) in str(caught.value)
    found = json_documents.text_of({"a": [1, "ö", None, {"b": {}}], "c": True})
    assert found == (
        '{\n    "a": [1, "ö", null, {\n            "b": {}\n        }],\n'
        '    "c": true\n}'
    )


@pytest.mark.parametrize("in_rows", [True, False])
def test_an_answer_that_is_too_long_is_not_written(in_rows, monkeypatch):
    monkeypatch.setattr(json_outputs, "MOST_BYTES", 1000)
    small = {"x": np.zeros((2, 30), "float32"), "text": np.array([b"a", "b"], object)}
    assert json_outputs.write_outputs(small, in_rows)
    for large in ({"x": np.zeros((2, 40))}, {"text": np.array([b"a" * 800], object)}):
        with pytest.raises(RequestError, match="more than 1000 bytes") as caught:
            json_outputs.write_outputs(large, in_rows)
        assert caught.value.http_status == 400


def png(width, height):
    file = io.BytesIO()
    Image.new("L", (width, height)).save(file, "PNG")
    return file.getvalue()


def test_large_images_are_looked_at_one_by_one():
    large, small = png(5000, 3000), png(10, 10)
    encoded = np.array([small, small, large, large, b"none", small], object)
    seeds = np.arange(6)
    parts = list(splitting.split({"image_bytes": encoded, "seed": seeds}))
    assert [part["seed"].tolist() for part in parts] == [[0, 1, 2], [3, 4, 5]]
    joined = splitting.join(parts)
    assert joined["image_bytes"].tolist() == encoded.tolist()
    for whole in (
        {"image_bytes": encoded[:3]},
        {"image_bytes": encoded[:0]},
        {"image_bytes": encoded, "seed": seeds[:2]},
        {"image_bytes": encoded, "mask": np.eye(6, 4)},  # the graph refuses it
        {"text": encoded},
    ):
        assert [*splitting.split(whole)] == [whole]
    parts = splitting.split({"image_bytes": np.array([png(5000, 4000), b"", b"none"])})
    assert [len(part["image_bytes"]) for part in parts] == [1, 2]
    pixels = {"pixels": np.zeros((70, 500, 500, 1), "uint8")}
    assert [len(part["pixels"]) for part in splitting.split(pixels)] == [64, 6]


# the server ignores it; pytest sets its own filters
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_looked_at_alone():
    encoded = np.array([png(10_000, 9_000), png(10, 10)], object)
    parts = list(splitting.split({"image_bytes": encoded}))
    assert [len(part["image_bytes"]) for part in parts] == [1, 1]


def test_long_headers_are_not_read_to_their_end(monkeypatch):
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "JPEG")
    start, rest_of_it = file.getvalue()[:2], file.getvalue()[2:]
    empty = b"\xff\xe5\x00\x02"  # a segment
    short, long = (start + empty * n + rest_of_it for n in (100, 10 * MIB))
    encoded = np.array([short, long, short, b"no image", short], object)
    lengths, open_image = [], Image.open

    def look(file, **options):
        lengths.append(len(file.getbuffer()))
        return open_image(file, **options)

    monkeypatch.setattr(splitting.Image, "open", look)
    parts = list(splitting.split({"image_bytes": encoded}))
    assert [len(part["image_bytes"]) for part in parts] == [1, 1, 3]
    # all ten million segments would take 20 s
    assert len(lengths) == 5 and max(lengths) <= 2**18
    call = Call()
    call.cancel()
    with pytest.raises(RequestError, match="cancelled by the client"):
        next(splitting.split({"image_bytes": encoded}, call.check))


def test_images_in_examples_are_looked_at_too():
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[png(5000, 3000)]))
    features = tf.train.Features(feature={"image/encoded": feature})
    example = tf.train.Example(features=features).SerializeToString()
    inputs = {"inputs": np.array([example, b"\xff", example, example], object)}
    assert [len(p["inputs"]) for p in splitting.split(inputs)] == [2, 1, 1]


def test_a_call_ends_when_its_caller_leaves_or_its_time_is_over():
    call = Call()
    call.check()
    assert call.seconds_left() is None and Call(1e15).seconds_left() is None
    call.cancel()
    with pytest.raises(RequestError) as caught:
        call.check()
    assert (caught.value.code, caught.value.http_status) == ("CANCELLED", 499)
    with pytest.raises(RequestError) as caught:
        Call(0).check()
    assert (caught.value.code, caught.value.http_status) == ("DEADLINE_EXCEEDED", 504)


def test_waiting_for_a_thread_ends_with_the_call():
    service = Service(None, threads=1, max_enqueued=1)
    waiting = Call()
    with service.slot(Call()):
        timer = threading.Timer(0.1, waiting.cancel)
        timer.start()
        with (
            pytest.raises(RequestError, match="cancelled by the client"),
            service.slot(waiting),
        ):
            pass
        with pytest.raises(RequestError, match="Timed out"), service.slot(Call(0.1)):
            pass
    with service.slot(Call()):  # none of them kept its place
        pass


class Lengths(tf.Module):
    """Answers how long encoded images are."""

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, "image_bytes")])
    def serve(self, image_bytes):
        return {"length": tf.strings.length(image_bytes)}


def test_work_ends_between_images_when_the_caller_leaves(tmp_path, monkeypatch):
    lengths = Lengths()
    tf.saved_model.save(lengths, str(tmp_path), signatures=lengths.serve)
    bundle = Bundle(tmp_path)
    large = png(5000, 3000)
    inputs = {"image_bytes": np.array([large] * 3, object)}
    found = bundle.run("serving_default", inputs, (), Call())
    assert found["length"].tolist() == [len(large)] * 3
    call, run, runs = Call(), bundle._run, []

    def leave_after_two(*arguments):
        runs.append(run(*arguments))
        if len(runs) == 2:
            call.cancel()
        return runs[-1]

    monkeypatch.setattr(bundle, "_run", leave_after_two)
    with pytest.raises(RequestError, match="cancelled by the client"):
        bundle.run("serving_default", inputs, (), call)
    assert len(runs) == 2
    bundle.close()


PATH, LEAVE = "/v1/models/mae:predict", object()


class Sent:
    """A request's headers, and chunks that come one after the other; then it leaves."""

    method = "POST"

    def __init__(self, *chunks, **headers):
        self.scope = {"raw_path": PATH.encode(), "query_string": b""}
        self.headers = headers
        self._chunks = chunks

    async def receive(self):
        return {"type": "http.disconnect"}

    async def stream(self):
        for chunk in self._chunks:
            if chunk is None:
                await asyncio.sleep(600)
            if chunk is LEAVE:
                raise ClientDisconnect
            yield chunk


def test_bodies_are_bounded_alone_together_and_in_time(monkeypatch):
    async def check():
        held = bodies.Bodies(most_bytes_together=10)
        with pytest.raises(bodies.BodyError) as caught:
            await held.read(Sent(**{"content-length": "9" * 5000}))
        assert caught.value.status == 413
        first = await held.read(Sent(b"abc", b"def"))
        assert first == b"abcdef"
        with pytest.raises(bodies.BodyError) as caught:
            await held.read(Sent(b"1234", b"5"))
        assert caught.value.status == 503
        monkeypatch.setattr(held, "_seconds", 0.1)
        with pytest.raises(bodies.BodyError) as caught:
            await held.read(Sent(b"1", None))
        assert caught.value.status == 408
        monkeypatch.undo()
        held.release(first)
        assert await held.read(Sent(b"0123456789")) == b"0123456789"

    asyncio.run(check())


def test_gzip_bodies():
    gzip_header = {"content-encoding": "gzip"}
    text = bytes(range(256)) * 5000
    packed = gzip.compress(text)
    plain = zlib.compress(text)

    async def check():
        held = bodies.Bodies()
        for chunks, wanted in (
            ([packed, b""], text),  # as it ends in Starlette
            ([packed[n : n + 1] for n in range(len(packed))], text),
            ([gzip.compress(bytes(3 * MIB))], bytes(3 * MIB)),
            ([gzip.compress(b"")], b""),
            # TF Serving takes these for empty bodies
            ([packed[:-1]], b""),
            ([packed + b"x"], b""),
            ([packed, packed], b""),
            ([packed[:-8] + bytes(8)], b""),
            ([text], b""),
            ([plain], b""),
            ([], b""),
        ):
            body = await held.read(Sent(*chunks, **gzip_header))
            assert body == wanted
            held.release(body)
        assert held._held == 0
        assert await held.read(Sent(packed)) == packed

    asyncio.run(check())


# a small file of much, and a large one of blocks that hold nothing
@pytest.mark.parametrize("kind", ["zeros", "empty"])
def test_a_gzip_bomb_ends_in_bounded_time_and_memory(kind):
    if kind == "zeros":
        chunks = [gzip.compress(bytes(256 * MIB), 6)]
    else:
        blocks = b"\x00\x00\x00\xff\xff" * 13_000
        chunks = [gzip.compress(b"")[:10], *[blocks] * (64 * MIB // 65_000 + 1)]
    turns = 0

    async def watch():
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async def send():
        held = bodies.Bodies(seconds=600)
        watching = asyncio.ensure_future(watch())
        try:
            with pytest.raises(bodies.BodyError) as caught:
                await held.read(Sent(*chunks, **{"content-encoding": "gzip"}))
            assert (caught.value.status, held._held) == (413, 0)
        finally:
            watching.cancel()

    begin = time.process_time()
    assert peak(lambda: asyncio.run(send())) < 80 * MIB
    assert time.process_time() - begin < 60
    # others are answered meanwhile: after each 256 KiB, or each chunk
    assert turns > 200


def test_pages_of_strangers_are_refused():
    names = browsers.allowed_names("0.0.0.0", "b.example, Mae.example")

    def status(method="POST", host="localhost:8501", **headers):
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        refused = browsers.refusal(method, {"host": host, **headers}, names)
        return refused and refused[0]

    for host in ("localhost", "127.0.0.1:8501", "[::1]:8501", "192.168.0.7", "", 
                 "MAE.example:80"):  # fmt: skip
        assert status(host=host) is None, host
    for host in ("evil.example", "evil.example:8501", "127.0.0.1.evil.example", "[::1"):
        assert status(host=host) == status("GET", host=host) == 403, host
    assert status(origin="http://localhost:8501") is None
    for origin in ("http://evil.example", "null", "http://localhost:3000", "http://["):
        assert status(origin=origin) == status("GET", origin=origin) == 403
    assert status(sec_fetch_site="cross-site") == 403
    assert status(sec_fetch_site="same-origin") is None
    for kind in ("text/plain;charset=UTF-8", "multipart/form-data; boundary=x"):
        assert status(content_type=kind) == 415
    # curl's own
    assert status(content_type="application/x-www-form-urlencoded") is None
    assert status(content_type="application/json") is None
    assert browsers.refusal("GET", {"host": "any"}, {"*"}) is None
    _, text = browsers.refusal("GET", {"host": "evil.example:8501"}, names)
    assert "--allowed_hosts. Received: evil.example:8501" in text
    _, text = browsers.refusal("GET", {"sec-fetch-site": "cross-site"}, names)
    assert "CORS" in text and "--rest_api_enable_cors_support" in text


def test_pages_are_let_in_by_a_flag():
    page = {"host": "localhost:8501", "origin": "http://evil.example"}
    page |= {"sec-fetch-site": "cross-site", "content-type": "text/plain"}
    for method in ("POST", "GET", "OPTIONS"):
        assert browsers.refusal(method, page, {"localhost"}, True) is None
    # a name that a page has pointed here is no address of ours yet
    renamed = {**page, "host": "evil.example"}
    assert browsers.refusal("POST", renamed, {"localhost"}, True)[0] == 403
    for any_page in (False, True):
        api = http_server.Api(Service(None), {"localhost"}, 100, any_page)
        request = Sent(b"", **page)
        request.method = "OPTIONS"
        response = asyncio.run(api(request))
        assert response.status_code == (200 if any_page else 403)
        found = {k: v for k, v in response.headers.items() if "access" in k}
        wanted = {
            "access-control-allow-origin": "*",
            "access-control-allow-methods": "POST, GET",
            "access-control-allow-headers": "Content-Type",
        }
        assert found == (wanted if any_page else {})
    request.headers = {}
    assert asyncio.run(api(request)).status_code == 400


class Peer:
    """A connection that takes some bytes of an answer each time its server looks."""

    def __init__(self, waiting, taken):
        self.waiting, self.taken, self.aborted = waiting, taken, False

    def get_write_buffer_size(self):
        return self.waiting

    def abort(self):
        self.aborted = True

    def call_later(self, seconds, function, *arguments):
        self.waiting -= self.taken
        if self.waiting > 0:  # else the server is told to go on writing
            function(*arguments)


@pytest.mark.parametrize("taken, aborted", [(0, True), (10_000, True), (2**21, False)])
def test_answers_are_sent_for_as_long_as_they_are_taken(taken, aborted):
    protocol = object.__new__(http_server.BoundedProtocol)
    protocol.loop = protocol.transport = Peer(100 * MIB, taken)
    protocol._time_sending()
    assert protocol.transport.aborted == aborted


def test_a_client_that_leaves_ends_its_call():
    ended = threading.Event()

    def answer(method, path, body, call):
        assert (method, path, body) == ("POST", PATH, b"{}")
        with contextlib.suppress(RequestError):
            while True:
                call.check()
                time.sleep(0.01)
        ended.set()
        return 200, b""

    api = http_server.Api(Service(None), {"localhost"}, 100)
    api._answer = answer
    response = asyncio.run(api(Sent(b"{}")))
    assert response.status_code == 499
    assert ended.wait(60)
    api = http_server.Api(Service(None), {"localhost"}, 100)
    assert asyncio.run(api(Sent(b"{}", origin="http://evil"))).status_code == 403
    assert asyncio.run(api(Sent(b"{", LEAVE))).status_code == 499
    assert api._bodies._held == 0
    too_long = Sent(**{"content-length": str(65 * MIB)})
    assert asyncio.run(api(too_long)).status_code == 413
