"""The embedded server's batching: requests that wait together run together."""

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import keras_mae
from keras_mae.export import export_savedmodel
from mae_server.batching import (
    Batcher,
    BatchingOptions,
    BatchingParameters,
    read_parameters,
)
from mae_server.calls import Call
from mae_server.errors import RequestError
from mae_server.process import running
from tests.conformance.calls import Caller, b64
from tests.conformance.conftest import Server
from tests.scripts import ROOT, environment
from tests.waiting import PATIENCE, until

FETCHES = {"y": "y:0"}


class Model:
    """Doubles its input, and remembers the sizes of its runs."""

    def __init__(self):
        self.sizes = []
        self.begun, self.may_run = threading.Event(), threading.Event()

    def run(self, fetches, feeds, seconds):
        self.begun.set()
        assert self.may_run.wait(PATIENCE)
        self.sizes.append(len(feeds["x"]))
        if (feeds["x"] < 0).any():
            raise RequestError("INVALID_ARGUMENT", "x must not be negative")
        return {name: 2 * feeds["x"] for name in fetches}


def ask(batcher, values, call=None):
    feeds = {"x": np.array(values, float)}
    return batcher.run(FETCHES, feeds, call or Call())["y"].tolist()


def submit(pool, batcher, values, call=None):
    """Asks in a thread; returns its future once the request is in a batch."""
    call = call or Call()
    asked = pool.submit(ask, batcher, values, call)
    until(lambda: call in in_open_batches(batcher))
    return asked


def in_open_batches(batcher):
    return [call for batch in list(batcher._open.values()) for call in batch.calls]


@pytest.fixture
def pool():
    with ThreadPoolExecutor(8) as executor:
        yield executor


def batcher_of(model, **parameters):
    # runs that are not full wait for as long as they may
    parameters = {
        **{"batch_timeout_micros": 10**6 * PATIENCE, "num_batch_threads": 1},
        **parameters,
    }
    return Batcher(model.run, BatchingParameters(**parameters))


def test_waiting_requests_run_together_and_get_their_own_rows(pool):
    model = Model()
    model.may_run.set()
    asked = [[float(i)] * (1 + i % 2) for i in range(8)]
    # in any order they fill a run, and the last one ends the waiting
    batcher = batcher_of(model, max_execution_batch_size=12)
    answers = list(pool.map(lambda values: ask(batcher, values), asked))
    assert answers == [[2 * value for value in values] for values in asked]
    assert model.sizes == [12]


def test_while_one_batch_runs_the_next_ones_grow(pool):
    model = Model()
    batcher = batcher_of(model, max_execution_batch_size=4, batch_timeout_micros=0)
    first = pool.submit(ask, batcher, [0.0])
    assert model.begun.wait(PATIENCE)
    others = [submit(pool, batcher, [float(i)]) for i in range(1, 7)]
    model.may_run.set()
    assert first.result() == [0.0]
    assert [other.result() for other in others] == [[2.0 * i] for i in range(1, 7)]
    assert model.sizes[0] == 1 and sorted(model.sizes[1:]) == [2, 4]


# tensorflow/core/kernels/batching_util/shared_batch_scheduler.h, Options
def test_as_many_batches_run_at_once_as_there_are_cores(pool):
    cores = min(os.cpu_count(), 8)
    together = threading.Barrier(cores)

    def run(fetches, feeds, seconds):
        together.wait(PATIENCE)  # an error if the others don't come
        return {name: feeds["x"] for name in fetches}

    batcher = Batcher(run, BatchingParameters(max_execution_batch_size=1))
    futures = [pool.submit(ask, batcher, [float(i)]) for i in range(cores)]
    assert [future.result() for future in futures] == [[float(i)] for i in range(cores)]


def test_a_large_request_is_run_in_parts_and_an_empty_one_at_once():
    model = Model()
    model.may_run.set()
    batcher = batcher_of(
        model,
        max_batch_size=10,
        max_execution_batch_size=4,
        batch_timeout_micros=0,
    )
    values = [float(i) for i in range(10)]
    assert ask(batcher, values) == [2 * value for value in values]
    assert model.sizes == [4, 4, 2]
    assert ask(batcher, []) == []
    with pytest.raises(RequestError, match=r"11 is larger than maximum .* size 10"):
        ask(batcher, [*values, 0.0])


def test_requests_of_other_outputs_or_shapes_are_not_merged(pool):
    model = Model()
    batcher = batcher_of(model, batch_timeout_micros=1000)
    model.may_run.set()
    requests = [({"y": "y:0"}, (1,)), ({"z": "z:0"}, (1,)), ({"y": "y:0"}, (1, 3))]
    found = pool.map(
        lambda it: batcher.run(it[0], {"x": np.ones(it[1])}, Call()), requests
    )
    assert [{k: v.shape for k, v in one.items()} for one in found] == [
        {"y": (1,)},
        {"z": (1,)},
        {"y": (1, 3)},
    ]
    assert model.sizes == [1, 1, 1]


def test_errors_reach_each_request_and_the_next_batch_runs(pool):
    model = Model()
    model.may_run.set()
    batcher = batcher_of(model, max_execution_batch_size=2)
    futures = [pool.submit(ask, batcher, [value]) for value in (-1.0, 1.0)]
    for future in futures:
        with pytest.raises(RequestError, match="must not be negative"):
            future.result()
    assert ask(batcher, [1.0, 2.0]) == [2.0, 4.0]
    for feeds, text in (
        ({"x": np.float64(1)}, "at least one dimension"),
        ({"x": np.ones(2), "z": np.ones(3)}, "equal 0th-dimension size"),
    ):
        with pytest.raises(RequestError, match=text):
            batcher.run(FETCHES, feeds, Call())


def test_a_full_queue_refuses_and_who_left_is_not_waited_for(pool):
    model = Model()
    batcher = batcher_of(
        model,
        max_execution_batch_size=1,
        batch_timeout_micros=0,
        max_enqueued_batches=1,
    )
    first = pool.submit(ask, batcher, [1.0])
    assert model.begun.wait(PATIENCE)
    second = submit(pool, batcher, [2.0])
    with pytest.raises(RequestError, match=r"batch scheduling queue .* is full"):
        ask(batcher, [3.0])
    model.may_run.set()
    assert (first.result(), second.result()) == ([2.0], [4.0])
    call = Call()
    call.cancel()
    with pytest.raises(RequestError):
        ask(batcher, [1.0], call)
    assert ask(batcher, [1.0]) == [2.0]


class Timed(Call):
    """A call whose time is over when a test says so."""

    def __init__(self):
        super().__init__()
        self.over = threading.Event()

    def seconds_left(self):
        return 0.0 if self.over.is_set() else 3600.0


def test_a_batch_that_nobody_waits_for_is_not_run(pool):
    model = Model()
    model.may_run.set()
    # an int64, as in its file: more than a thread can wait
    batcher = batcher_of(model, batch_timeout_micros=2**63 - 1)
    cancelled, timed = Call(), Timed()
    asked = [submit(pool, batcher, [1.0], call) for call in (cancelled, timed)]
    cancelled.cancel()
    timed.over.set()
    for future in asked:
        with pytest.raises(RequestError):
            future.result(PATIENCE)
    assert (model.sizes, batcher._waiting, batcher._open) == ([], 0, {})


def test_a_run_may_take_as_long_as_its_most_patient_request(pool):
    given = []

    def run(fetches, feeds, seconds):
        given.append(seconds)
        return {name: feeds["x"] for name in fetches}

    parameters = BatchingParameters(
        batch_timeout_micros=10**6 * PATIENCE, max_execution_batch_size=2
    )
    for seconds in ((5000, 9000), (5000, None)):
        batcher = Batcher(run, parameters)
        futures = [pool.submit(ask, batcher, [1.0], Call(s)) for s in seconds]
        assert [future.result() for future in futures] == [[1.0]] * 2
    assert 5000 < given[0] <= 9000 and given[1] is None


@pytest.mark.parametrize(
    "output, message",
    [(np.float64(1), "has 0 dimensions"), (np.ones(3), "does not equal the sum")],
)
def test_outputs_without_a_row_for_each_input_are_an_error(output, message):
    batcher = Batcher(lambda *_: {"y": output}, BatchingParameters())
    with pytest.raises(RequestError, match=message) as caught:
        ask(batcher, [1.0, 2.0])
    assert caught.value.code == "FAILED_PRECONDITION"


def test_parameters_are_read_as_tf_serving_reads_them(tmp_path):
    file = tmp_path / "batching_params.pbtxt"
    options = BatchingOptions(BatchingParameters(num_batch_threads=3), True)
    assert options.of_model(tmp_path) is None
    file.write_text(
        "max_batch_size { value: 64 } batch_timeout_micros { value: 5 }\n"
        "allowed_batch_sizes: 64  # not needed here\n"
        "max_execution_batch_size { value: 8 } num_batch_threads { value: 9 }"
    )
    # without splitting the size of a run is not looked at; threads are the server's
    assert options.of_model(tmp_path) == (64, 64, 5, 10, 3)
    assert BatchingOptions().of_model(tmp_path) == BatchingParameters()
    file.write_text(
        f"{file.read_text()} enable_large_batch_splitting {{ value: true }}"
    )
    assert read_parameters(file) == (64, 8, 5, 10, 9)
    file.write_text("max_execution_batch_size { value: 8 }")
    assert read_parameters(file) == BatchingParameters()
    for text, message in (
        ("max_batch: 3", "must be BatchingParameters"),
        ("max_batch_size { value: 0 }", "max_batch_size is too small. Received: 0"),
        ("allowed_batch_sizes: 8", "last entry was 8; expected 1000"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_parameters(file)


@pytest.mark.slow
def test_a_server_batches_what_export_made_safe(tmp_path):
    """Sixteen clients at once, one of which sends nonsense."""
    model = keras_mae.MAEPretrainer.from_preset(
        "mae_tiny", patch_size=8, depth=1, decoder_depth=1
    )
    folder = tmp_path / "mae"
    processor = keras_mae.MAEImageProcessor(image_size=32)
    export_savedmodel(model, processor, folder / "1", batching=True)
    levels = np.random.default_rng(0).integers(0, 256, (15, 32, 32, 3), "uint8")
    levels[:, -1] = 0  # zeros at a row's end are part of it
    rows = [image.tobytes() for image in levels] + [b"nonsense"]
    features = np.asarray(model.encoder(processor(levels)))
    flags = [f"--model_base_path={folder}", "--threads=16", "--enable_batching"]
    flags += ["--enable_per_model_batching_parameters"]
    flags += [f"--rest_api_timeout_in_ms={1000 * PATIENCE}"]
    script = ROOT / "serving/local_server.py"
    with contextlib.ExitStack() as stack:
        server = running(script, *flags, env=environment())
        rest, grpc, process = stack.enter_context(server)
        caller = stack.enter_context(Caller(Server(grpc, rest, None)))
        pool = stack.enter_context(ThreadPoolExecutor(16))

        def by_grpc(row):
            return caller.predict("mae", {"pixels_u8": [row]})[0]["features"]

        def by_rest(row):
            return caller.post("mae:predict", {"instances": [b64(row)]})

        for _ in range(3):
            found = np.concatenate(list(pool.map(by_grpc, rows)))
            np.testing.assert_allclose(found[:-1], features, atol=1e-4)
            assert np.isnan(found[-1]).all()
        for row, wanted in zip(pool.map(by_rest, rows[:-1]), features, strict=True):
            assert row[0] == 200
            np.testing.assert_allclose(row[1]["predictions"][0], wanted, atol=1e-4)
        # a request of more images than a run has
        found = caller.predict("mae", {"pixels_u8": rows})[0]["features"]
        np.testing.assert_allclose(found[:-1], features, atol=1e-4)
    assert process.returncode == 0
