"""serving/local_server.py: flags, limits, graceful shutdown, the page.

What it shares with TF Serving is in `tests/conformance`.
"""

import contextlib
import http.client
import json
import shutil
import signal
import socket
import subprocess
import threading
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from mae_server import flags as server_flags
from mae_server import http_server
from mae_server.process import running
from tests.conformance.calls import Caller
from tests.conformance.conftest import Server
from tests.conformance.models import save_echo
from tests.scripts import ROOT, environment, refusal, run
from tests.waiting import PATIENCE, until

SCRIPT = "serving/local_server.py"
X = {"inputs": {"x": [[1.0, 2.0]]}}
# for requests that are held
REST_TIMEOUT = f"--rest_api_timeout_in_ms={1000 * PATIENCE}"


class Held(tf.Module):
    """Answers a number once the folder has a file `NUMBER.end`; 0 at once.

    A file `NUMBER.begun` says that it runs.
    """

    def __init__(self, folder):
        super().__init__()
        self._path = f"{folder}/"

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.int64, "n")])
    def work(self, n):
        name = self._path + tf.strings.as_string(n[0])
        # before the loop, which may keep the only thread
        with tf.control_dependencies([tf.io.write_file(name + ".begun", "")]):
            end, turns = name + ".end", tf.constant(0, tf.int64)
        while n[0] != 0 and tf.size(tf.io.matching_files(end)) == 0:
            turns += 1
        # a loop whose result nobody uses would be left out
        return {"n": n + tf.minimum(turns, 0)}


def until_begun(folder, *numbers):
    for number in numbers:
        until((folder / f"{number}.begun").exists)


def is_closed(address):
    """Whether nobody listens at a server's address."""
    host, port = address.split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) != 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with `echo/1` and `held/1`, and of the files of `Held`."""
    folder = tmp_path_factory.mktemp("models")
    save_echo(folder / "echo" / "1")
    held = Held(folder)
    signature = held.work.get_concrete_function()
    tf.saved_model.save(held, str(folder / "held" / "1"), signatures=signature)
    return folder


@pytest.fixture
def start():
    """Starts servers, and stops those that a test leaves."""
    processes = []
    with contextlib.ExitStack() as stack:

        def start_one(*flags):
            server = running(ROOT / SCRIPT, *flags, env=environment())
            rest, grpc_address, process = stack.enter_context(server)
            processes.append(process)
            return process, Caller(Server(grpc_address, rest, None))

        yield start_one
    assert not any(process.returncode for process in processes)


def in_background(function, *arguments):
    """Calls a function in a thread; returns the thread and the list it answers in."""
    answers = []
    thread = threading.Thread(target=lambda: answers.append(function(*arguments)))
    thread.start()
    return thread, answers


@pytest.mark.slow
def test_sigterm_finishes_pending_requests(folder, start):
    process, caller = start(
        f"--model_base_path={folder / 'held'}",
        "--model_name=held",
        f"--grace_seconds={PATIENCE}",
        # each of the two that are held keeps a thread busy
        "--tensorflow_inter_op_parallelism=4",
        REST_TIMEOUT,
    )
    body = {"inputs": {"n": [1]}}
    http_thread, http_answers = in_background(caller.post, "held:predict", body)
    grpc_thread, grpc_answers = in_background(
        caller.predict, "held", {"n": np.int64([2])}
    )
    until_begun(folder, 1, 2)
    process.send_signal(signal.SIGTERM)
    until(lambda: is_closed(caller.server.rest))
    until(lambda: is_closed(caller.server.grpc))
    assert http_thread.is_alive() and grpc_thread.is_alive()
    # that of gRPC ends first, and REST still has its grace
    for number, thread in ((2, grpc_thread), (1, http_thread)):
        (folder / f"{number}.end").touch()
        thread.join()
    assert http_answers == [(200, {"outputs": [1]})]
    assert grpc_answers[0][0]["n"].tolist() == [2]
    assert process.wait(timeout=PATIENCE) == 0


@pytest.mark.slow
def test_a_full_queue_is_unavailable_and_drains(folder, start):
    _, caller = start(
        f"--model_base_path={folder / 'held'}",
        "--model_name=held",
        "--threads=1",
        "--max_enqueued=1",
        REST_TIMEOUT,
    )
    body = {"inputs": {"n": [3]}}
    waiting = [in_background(caller.post, "held:predict", body) for _ in range(5)]
    until(lambda: sum(bool(answers) for _, answers in waiting) == 3)
    with pytest.raises(grpc.RpcError) as caught:
        caller.predict("held", {"n": np.int64([0])})
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    (folder / "3.end").touch()
    for thread, _ in waiting:
        thread.join()
    statuses = sorted(answers[0][0] for _, answers in waiting)
    assert statuses == [200, 200, 503, 503, 503]
    assert caller.post("held:predict", {"inputs": {"n": [0]}})[0] == 200


@pytest.mark.slow
def test_batch_and_body_size_limits(folder, start):
    process, caller = start(
        f"--model_base_path={folder / 'echo'}",
        "--model_name=echo",
        "--max_batch_size=4",
    )
    message = "Task size 5 is larger than maximum input batch size 4"
    status, answer = caller.post("echo:predict", {"instances": [[1, 2]] * 5})
    assert (status, answer) == (400, {"error": message})
    with pytest.raises(grpc.RpcError, match=message):
        caller.predict("echo", {"x": np.ones((5, 2), "float32")})
    host, port = caller.server.rest.split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=300)
    connection.putrequest("POST", "/v1/models/echo:predict")
    connection.putheader("Content-Length", str(65 * 2**20))
    connection.endheaders()
    assert connection.getresponse().status == 413
    with pytest.raises((AssertionError, OSError)):
        chunks = (b" " * 2**20 for _ in range(80))
        assert caller.http("POST", "/v1/models/echo:predict", chunks)[0] != 413
    assert caller.post("echo:predict", X)[0] == 200
    assert process.poll() is None


@pytest.mark.slow
def test_the_grace_is_kept_whatever_runs(folder):
    """A run of TensorFlow can't be stopped: the process ends without it."""
    flags = (f"--model_base_path={folder / 'held'}", "--model_name=held")
    flags += ("--grace_seconds=1", REST_TIMEOUT)
    with running(ROOT / SCRIPT, *flags, env=environment()) as (rest, address, process):
        caller = Caller(Server(address, rest, None))
        body = {"inputs": {"n": [4]}}

        def ask():
            # an error, or a connection that ends
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
                assert caller.post("held:predict", body)[0] >= 500

        thread, _ = in_background(ask)
        until_begun(folder, 4)
        process.send_signal(signal.SIGTERM)
        # the request would never end
        assert process.wait(timeout=PATIENCE) == 1
        thread.join()


@pytest.mark.nightly
def test_sigterm_does_not_wait_for_a_load(folder, tmp_path):
    """Nor is it an error: no request is cut off."""
    shutil.copytree(folder / "held", tmp_path / "held")
    flags = (f"--model_base_path={tmp_path / 'held'}", "--model_name=held")
    # waiting for the load would be its end, with an error
    flags += ("--grace_seconds=60",)
    options = {"stderr": subprocess.PIPE, "env": environment()}
    with running(ROOT / SCRIPT, *flags, **options) as (_, _, process):
        # a warm-up without an end
        warm_up = tmp_path / "2" / "assets.extra" / "tf_serving_warmup_requests"
        shutil.copytree(folder / "held" / "1", tmp_path / "2")
        warm_up.parent.mkdir()
        log = prediction_log_pb2.PredictionLog()
        request = log.predict_log.request
        request.inputs["n"].CopyFrom(tf.make_tensor_proto(np.int64([5])))
        with tf.io.TFRecordWriter(str(warm_up)) as writer:
            writer.write(log.SerializeToString())
        (tmp_path / "2").rename(tmp_path / "held" / "2")
        until_begun(folder, 5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=PATIENCE) == 0
        assert "cut off" not in process.stderr.read()


@pytest.mark.slow
def test_deadlines_and_strangers_over_http(folder, start):
    _, caller = start(
        f"--model_base_path={folder / 'held'}",
        "--model_name=held",
        "--rest_api_timeout_in_ms=500",
        "--threads=1",
        "--enable_batching=true",
        "--enable_serialization_as_tensor_content=true",
    )
    content = caller.predict("held", {"n": np.int64([0, 2])})[1].outputs["n"]
    assert content.tensor_content and not content.int64_val
    status, answer = caller.post("held:predict", {"inputs": {"n": [6, 0]}})
    assert (status, answer) == (504, {"error": "Timed out waiting for notification"})
    (folder / "6.end").touch()
    for headers in (
        {"Host": "evil.example"},
        {"Origin": "http://evil.example"},
        {"Content-Type": "text/plain"},
    ):
        status, answer = caller.http("POST", "/v1/models/held:predict", b"{}", headers)
        assert status in (403, 415) and "error" in answer


@pytest.mark.nightly
def test_half_sent_headers_and_too_many_connections_are_closed(folder, start):
    process, caller = start(f"--model_base_path={folder / 'echo'}", "--model_name=echo")
    host, port = caller.server.rest.split(":")
    with contextlib.ExitStack() as stack:

        def connect(text):
            made = stack.enter_context(socket.create_connection((host, int(port)), 100))
            made.sendall(text)
            return made

        half = connect(b"POST /v1/models/echo:predict HTTP/1.1\r\nHost: ")
        long = connect(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 99_000)
        with contextlib.suppress(ConnectionError):
            assert long.recv(100).startswith(b"HTTP/1.1 400")
        assert caller.post("echo:predict", X)[0] == 200
        # the server closes it, after its time
        with contextlib.suppress(ConnectionError):
            assert half.recv(100) == b""
        many = [connect(b"") for _ in range(http_server.MOST_CONNECTIONS)]
        last = connect(b"")
        with contextlib.suppress(ConnectionError):
            assert last.recv(100).startswith(b"HTTP/1.1 503")
        for one in many:
            one.close()

    def answers():
        with contextlib.suppress(OSError, ValueError):
            return caller.post("echo:predict", X)[0] == 200

    until(answers)
    assert process.poll() is None


def test_flags_of_tf_serving_are_taken(capsys):
    words = ["--model_base_path=x", "--flush_filesystem_caches", "--num_load_threads=2"]
    words += ["--enable_model_warmup=false", "--version=true", "--port=1"]
    kept = server_flags.for_this_server(words, {"enable_model_warmup", "version"})
    assert kept == [
        "--model_base_path=x",
        "--no-enable_model_warmup",
        "--version",
        "--port=1",
    ]
    warned = capsys.readouterr().err.splitlines()
    assert len(warned) == 2 and "--flush_filesystem_caches does nothing" in warned[0]
    parsed = server_flags.channel_arguments("grpc.max_connection_age_ms=2000,grpc.lb=x")
    assert parsed == {"grpc.max_connection_age_ms": 2000, "grpc.lb": "x"}


@pytest.mark.parametrize("value", ["64M", "", "--1", "9999999999"])
def test_a_size_of_messages_that_is_no_int_is_refused_at_once(tmp_path, value):
    argument = f"grpc.max_receive_message_length={value}"
    # before the models: there are none
    error = refusal(
        SCRIPT,
        f"--model_base_path={tmp_path}",
        f"--grpc_channel_arguments={argument}",
    )
    assert "max_receive_message_length must be an int of 32 bits" in error
    assert repr(value) in error


@pytest.mark.nightly
def test_config_file_is_reloaded(folder, start, tmp_path):
    file = tmp_path / "models.config"
    platform = 'model_platform: "tensorflow"'
    text = f'config {{ name: "echo" base_path: "{folder}/echo" {platform} }}'
    file.write_text(f"model_config_list {{ {text} }}")
    _, caller = start(
        f"--model_config_file={file}",
        "--model_config_file_poll_wait_seconds=1",
        "--file_system_poll_wait_seconds=0.2",
    )
    assert caller.get("held")[0] == 404
    file.write_text("model_config_list { broken")
    time.sleep(1.5)
    assert caller.post("echo:predict", X)[0] == 200
    more = f'config {{ name: "held" base_path: "{folder}/held" {platform} }}'
    file.write_text(f"model_config_list {{ {text} {more} }}")
    until(lambda: caller.get("held")[0] != 404)
    assert caller.post("echo:predict", X)[0] == 200


@pytest.mark.slow
def test_it_listens_on_loopback_and_shows_the_page(folder, start):
    _, caller = start(f"--model_base_path={folder / 'echo'}", "--model_name=echo")
    for address in (caller.server.rest, caller.server.grpc):
        assert address.startswith("127.0.0.1:")
    connection = http.client.HTTPConnection(caller.server.rest, timeout=300)
    connection.request("GET", "/")
    response = connection.getresponse()
    assert response.status == 200
    assert response.getheader("Content-Type").startswith("text/html")
    assert b"<html" in response.read()


@pytest.mark.parametrize("make", [lambda p: None, lambda p: (p / "1").mkdir()])
def test_a_folder_without_a_model_is_one_line(tmp_path, make):
    make(tmp_path)
    error = refusal(SCRIPT, f"--model_base_path={tmp_path}", "--rest_api_port=0")
    assert str(tmp_path) in error


@pytest.mark.nightly  # each run imports TensorFlow
def test_wrong_flags_are_one_line(folder, tmp_path):
    echo = f"--model_base_path={folder / 'echo'}"
    broken = tmp_path / "broken.config"
    broken.write_text("models!")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for flags, message in (
            ([], "either --model_base_path or --model_config_file"),
            ([echo, f"--model_config_file={broken}"], "must be a ModelServerConfig"),
            ([echo, "--grace_seconds=0"], "grace_seconds must be at least 1"),
            ([echo, "--grpc_channel_arguments=x"], "must be name=value,..."),
            ([f"--model_config_file={broken}"], "must be a ModelServerConfig"),
            ([echo, "--port=70000"], "port must be in [0, 65535]"),
            ([echo, "--threads=0"], "threads must be at least 1"),
            ([echo, "--port=0", f"--rest_api_port={port}"], "Cannot bind REST"),
            ([echo, f"--port={port}"], "Cannot bind gRPC"),
        ):
            finished = run(SCRIPT, *flags)
            assert finished.returncode == 2, flags
            assert message in finished.stderr, finished.stderr
            assert len(finished.stderr.splitlines()) == 1, finished.stderr


def test_responses_are_json():
    from mae_server import json_outputs

    for outputs, rows, wanted in (
        ({"y": np.float32([[0.1]])}, True, {"predictions": [[0.1]]}),
        ({"y": np.float32([[0.1]])}, False, {"outputs": [[0.1]]}),
        ({"y": np.zeros((0, 3), "f4")}, False, {"outputs": []}),
        ({"y": np.float32([0.1, np.inf])}, True, {"predictions": [0.1, np.inf]}),
        (
            {"y": np.int64([1, 2]), "x_bytes": np.array([b"a", b"b"], object)},
            True,
            {
                "predictions": [
                    {"x_bytes": {"b64": "YQ=="}, "y": 1},
                    {"x_bytes": {"b64": "Yg=="}, "y": 2},
                ]
            },
        ),
    ):
        assert json.loads(json_outputs.write_outputs(outputs, rows)) == wanted
