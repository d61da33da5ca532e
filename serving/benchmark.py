"""Benchmark a SavedModel server: throughput, latency, and long load with reloads.

Run: python serving/benchmark.py --model_base_path=models/mae
     python serving/benchmark.py --preset=mae_base
     python serving/benchmark.py --preset=mae_tiny --soak_minutes=10

Starts the embedded server, or uses the one at --endpoint and --rest_endpoint. locust
sends `features` requests from a process of its own on the same machine: pixels by REST,
JPEGs by REST and by gRPC. The baseline is a TensorFlow session on the same JPEGs,
without a server. With --soak_minutes two versions are served, and each minute a new one
appears, the label by which requests come moves to it, and the oldest one goes; a failed
request or growing memory is an error.
"""

import keras_mae  # first: it imports TensorFlow quietly

# isort: split
import base64
import collections
import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import tensorflow as tf
from PIL import Image
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)
from tensorflow_serving.config import model_server_config_pb2

from keras_mae.export import export_savedmodel
from keras_mae.utils.flags import flag, parse_ints, run_script
from mae_server.bundle import Bundle
from mae_server.calls import Call
from mae_server.process import running

FOLDER = Path(__file__).parent
PHOTO = (500, 375)
SOAK_USERS = 4
LABEL = "stable"
# after which a new version comes in each minute, and for it to be there
MOVE_SECONDS, READY_SECONDS = 5, 180
# of the first minute's memory
MOST_GROWTH = 1.25
RPC = "/tensorflow.serving.PredictionService/Predict"


@dataclasses.dataclass
class BenchmarkConfig:
    """Flags of this script."""

    model_base_path: str | None = flag("folder of numbered model versions", None)
    preset: str = flag(
        "model size to export with random weights, without --model_base_path",
        "mae_tiny",
    )
    endpoint: str | None = flag(
        "gRPC address HOST:PORT of a running server; default: start the embedded one",
        None,
    )
    rest_endpoint: str | None = flag("REST address HOST:PORT of that server", None)
    model_name: str = flag("model name in requests", "mae")
    batch_sizes: str = flag("images per request, separated by commas", "1,8")
    concurrency: str = flag("concurrent requests, separated by commas", "1,4")
    seconds: int = flag("seconds per measurement", 10)
    soak_minutes: int = flag("minutes of load with a label that moves each minute", 0)
    out: str | None = flag("JSON file to write the results to", None)


def find_model(config, folder):
    """Returns the folder of the versions to serve, exporting a preset if needed."""
    if config.model_base_path:
        return Path(config.model_base_path)
    model = keras_mae.MAEPretrainer.from_preset(config.preset)
    processor = keras_mae.MAEImageProcessor(model.encoder.image_size)
    export_savedmodel(model, processor, folder / "models" / "1")
    return folder / "models"


def newest(base_path):
    """Returns the path of the newest version."""
    return max(
        (path for path in base_path.iterdir() if path.name.isdigit()),
        key=lambda path: int(path.name),
    )


@contextlib.contextmanager
def serve(config, flags):
    """Yields REST address, gRPC address and process (or `None`) of the server."""
    if config.endpoint and config.rest_endpoint:
        yield config.rest_endpoint, config.endpoint, None
        return
    with running(FOLDER / "local_server.py", *flags) as addresses:
        yield addresses


class Requests:
    """Bodies of `features` requests for random images."""

    def __init__(self, bundle, name, batch_size, label=""):
        rng = np.random.default_rng(0)
        self._encoded = [draw_jpeg(rng) for _ in range(batch_size)]
        info = bundle.signatures["features_from_pixels"].inputs["pixels"]
        sizes = [dimension.size for dimension in info.tensor_shape.dim[1:]]
        self._pixels = rng.standard_normal((batch_size, *sizes)).astype("float32")
        self._name, self._label = name, label
        self.arrays = {"image_bytes": np.array(self._encoded, object)}

    def rest_bytes(self):
        """Returns the body of a REST request with JPEGs."""
        rows = [{"b64": base64.b64encode(one).decode()} for one in self._encoded]
        return json.dumps({"instances": rows}).encode()

    def rest_pixels(self):
        """Returns the body of a REST request with pixels, as JSON."""
        body = {
            "signature_name": "features_from_pixels",
            "instances": self._pixels.round(4).tolist(),
        }
        return json.dumps(body).encode()

    def grpc_bytes(self):
        """Returns the serialized gRPC request with JPEGs."""
        request = predict_pb2.PredictRequest()
        request.model_spec.name = self._name
        if self._label:
            request.model_spec.version_label = self._label
        request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto(self._encoded))
        return request.SerializeToString()


def draw_jpeg(rng):
    """Returns a smooth random image of a photograph's size as JPEG."""
    levels = rng.integers(0, 256, (12, 16, 3), "uint8")
    file = io.BytesIO()
    Image.fromarray(levels).resize(PHOTO, Image.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()


def load(kind, body, addresses, name, users, seconds):
    """Runs locust with a request; returns its statistics."""
    protocol = kind.partition("_")[0]
    # the model's name may have a label behind it
    path = f"/v1/models/{name}:predict" if protocol == "rest" else RPC
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(body)
        command = [sys.executable, "-m", "locust", "-f", str(FOLDER / "locustfile.py")]
        command += ["--headless", "--only-summary", "--skip-log", "--json"]
        command += [f"--users={users}", f"--spawn-rate={users}", "--stop-timeout=60"]
        command += [f"--run-time={seconds}s", f"--host=http://{addresses[protocol]}"]
        finished = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env={
                **os.environ,
                "LOAD_BODY": file.name,
                "LOAD_PROTOCOL": protocol,
                "LOAD_PATH": path,
            },
        )
    try:
        return json.loads(finished.stdout)[0]
    except (ValueError, IndexError) as error:
        raise ValueError(f"locust failed: {finished.stderr}") from error


def summarize(latencies, users, failures=0):
    """Returns rate and percentiles of latencies in milliseconds."""
    p50, p95, p99 = np.percentile(latencies, [50, 95, 99])
    # users send their next request at once; those cut off at an end do not distort it
    rate = 1000 * users / np.mean(latencies)
    return {"requests_s": rate, "p50": p50, "p95": p95, "p99": p99, "failed": failures}


def summarize_locust(found, users):
    """Returns rate and percentiles of locust's statistics."""
    counts = {float(ms): count for ms, count in found["response_times"].items()}
    latencies = np.repeat(list(counts), list(counts.values()))
    return summarize(latencies, users, found["num_failures"])


def run_session(bundle, inputs, users, seconds):
    """Measures the session of a SavedModel in threads, without a server."""
    latencies = []
    begin = time.monotonic()

    def ask():
        while time.monotonic() < begin + seconds:
            before = time.monotonic()
            bundle.run("features", inputs, (), Call())
            latencies.append(1000 * (time.monotonic() - before))

    threads = [threading.Thread(target=ask) for _ in range(users)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return summarize(latencies, users)


def measure(config, batch_sizes, concurrency, base_path, addresses):
    """Prints and returns a row per request kind, batch size and concurrency."""
    bundle = Bundle(newest(base_path))
    rows = []
    print(
        "| request | batch size | concurrency | images/s | of session "
        "| p50 | p95 | p99 |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for batch_size in batch_sizes:
        requests = Requests(bundle, config.model_name, batch_size)
        for users in concurrency:
            baseline = None
            for kind in ("session", "grpc_bytes", "rest_bytes", "rest_pixels"):
                if kind == "session":
                    bundle.run("features", requests.arrays, (), Call())
                    row = run_session(bundle, requests.arrays, users, config.seconds)
                    baseline = row["requests_s"]
                else:
                    body = getattr(requests, kind)()
                    arguments = (kind, body, addresses, config.model_name, users)
                    load(*arguments, 2)  # warms up
                    row = summarize_locust(load(*arguments, config.seconds), users)
                row = {"kind": kind, "batch_size": batch_size, "users": users, **row}
                rows.append(row)
                print_row(row, baseline)
    bundle.close()
    return rows


def print_row(row, baseline):
    """Prints a row of the table."""
    name = (
        row["kind"].replace("_", ", ").replace("rest", "REST").replace("grpc", "gRPC")
    )
    name += f" ({row['failed']} failed)" if row["failed"] else ""
    times = " | ".join(f"{row[key]:.0f} ms" for key in ("p50", "p95", "p99"))
    print(
        f"| {name} | {row['batch_size']} | {row['users']} | "
        f"{row['requests_s'] * row['batch_size']:.1f} | "
        f"{row['requests_s'] / baseline:.0%} | {times} |",
        flush=True,
    )


def memory_of(process):
    """Resident memory of a process in MiB."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


class LabelledVersions:
    """Two versions of a model, and a label that moves to a third one."""

    def __init__(self, source, folder, name):
        self._folder, self._name = folder / name, name
        self.newest = 2
        for number in (1, 2):
            shutil.copytree(source, self._folder / str(number))

    def flags(self, file):
        """Writes the configuration file of a server; returns the server's flags."""
        file.write_text(str(self._config()))
        # the label names a version that is still to be loaded
        labels = "--allow_version_labels_for_unavailable_models=true"
        return [f"--model_config_file={file}", labels]

    def move(self, address):
        """Adds a version, moves the label to it, and takes the oldest version away."""
        aside, number = self._folder / "part-next", self.newest + 1
        shutil.copytree(self._folder / str(self.newest), aside)
        aside.rename(self._folder / str(number))
        with grpc.insecure_channel(address) as channel:
            models = model_service_pb2_grpc.ModelServiceStub(channel)
            self._wait(models, number)
            self.newest = number
            request = model_management_pb2.ReloadConfigRequest(config=self._config())
            answer = models.HandleReloadConfigRequest(request, timeout=READY_SECONDS)
            served = self._labelled(channel)
        if answer.status.error_code or served != number:
            raise ValueError(
                f"{LABEL} must name version {number}. Received: {served}, "
                f"{answer.status.error_message or 'OK'}"
            )
        shutil.rmtree(self._folder / str(number - 2))

    def _config(self):
        config = model_server_config_pb2.ModelServerConfig()
        model = config.model_config_list.config.add()
        model.name, model.model_platform = self._name, "tensorflow"
        model.base_path = str(self._folder)
        model.model_version_policy.all.SetInParent()
        model.version_labels[LABEL] = self.newest
        return config

    def _wait(self, models, number):
        """Waits until a version is available."""
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = self._name
        end = time.monotonic() + READY_SECONDS
        while time.monotonic() < end:
            rows = models.GetModelStatus(request, timeout=10).model_version_status
            if any(
                row.version == number and row.state == row.AVAILABLE for row in rows
            ):
                return
            time.sleep(0.1)
        raise ValueError(f"Version {number} must be available in {READY_SECONDS} s")

    def _labelled(self, channel):
        """Returns the version that answers requests by label."""
        request = predict_pb2.PredictRequest()
        request.model_spec.name = self._name
        request.model_spec.version_label = LABEL
        request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto([], tf.string))
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        return stub.Predict(request, timeout=READY_SECONDS).model_spec.version.value


class Moving(threading.Thread):
    """Moves a label after some seconds; `join` raises what went wrong."""

    def __init__(self, seconds, versions, address):
        super().__init__(name="moving", daemon=True)
        self._seconds, self._versions, self._address = seconds, versions, address
        self._error = None

    def run(self):
        time.sleep(self._seconds)
        try:
            self._versions.move(self._address)
        except Exception as error:  # of another thread's
            self._error = error

    def join(self, timeout=None):
        super().join(timeout)
        if self._error is not None:
            raise self._error


def soak(config, base_path, folder):
    """Loads a server whose label moves each minute; returns a row a minute."""
    if config.endpoint:
        raise ValueError("--soak_minutes needs the embedded server")
    name = config.model_name
    versions = LabelledVersions(newest(base_path), folder / "soak", name)
    bundle = Bundle(newest(base_path))
    requests = Requests(bundle, name, 1, LABEL)
    bundle.close()
    rows = []
    flags = versions.flags(folder / "models.config")
    with serve(config, flags) as (rest, address, process):
        addresses = {"rest": rest, "grpc": address}
        print("| minute | version | requests | failed | p99 | server memory |")
        print("|---|---|---|---|---|---|")
        for minute in range(1, config.soak_minutes + 1):
            kind = ("grpc_bytes", "rest_bytes")[minute % 2]
            body = getattr(requests, kind)()
            moving = Moving(MOVE_SECONDS, versions, address)
            moving.start()
            path = f"{name}/labels/{LABEL}"
            found = load_while(moving, kind, body, addresses, path, SOAK_USERS)
            moving.join()
            row = summarize_locust(found, SOAK_USERS)
            row |= {"minute": minute, "requests": found["num_requests"]}
            row |= {"memory": memory_of(process), "version": versions.newest}
            rows.append(row)
            print_minute(row)
    check_soak(rows)
    return rows


def load_while(moving, *arguments):
    """Runs locust for a minute, and on while a thread runs; returns its statistics."""
    found = load(*arguments, 60)
    while moving.is_alive():
        more = load(*arguments, 10)
        for key in ("num_requests", "num_failures"):
            found[key] += more[key]
        times = collections.Counter(found["response_times"])
        found["response_times"] = times + collections.Counter(more["response_times"])
    return found


def print_minute(row):
    """Prints a row of the soak's table."""
    print(
        f"| {row['minute']} | {row['version']} | {row['requests']} | {row['failed']} | "
        f"{row['p99']:.0f} ms | {row['memory']:.0f} MiB |",
        flush=True,
    )


def check_soak(rows):
    """Raises `ValueError` on failed requests, and on memory that grew."""
    failed = sum(row["failed"] for row in rows)
    # from first to last minute: in between it varies with each reload
    first, last = rows[0]["memory"], rows[-1]["memory"]
    if failed or last > MOST_GROWTH * first:
        raise ValueError(
            "No request may fail, and memory may grow by a quarter. Received: "
            f"{failed} failed, {first:.0f} to {last:.0f} MiB"
        )


def main(config):
    """Benchmarks, or runs the soak test."""
    if (config.endpoint is None) != (config.rest_endpoint is None):
        raise ValueError("Give both --endpoint and --rest_endpoint, or neither")
    batch_sizes = parse_ints("batch_sizes", config.batch_sizes)
    concurrency = parse_ints("concurrency", config.concurrency)
    with tempfile.TemporaryDirectory() as folder:
        base_path = find_model(config, Path(folder))
        if config.soak_minutes:
            rows = soak(config, base_path, Path(folder))
        else:
            flags = [f"--model_base_path={base_path}"]
            flags.append(f"--model_name={config.model_name}")
            with serve(config, flags) as (rest, address, _):
                addresses = {"rest": rest, "grpc": address}
                rows = measure(config, batch_sizes, concurrency, base_path, addresses)
    if config.out:
        Path(config.out).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    run_script(main, BenchmarkConfig, __doc__)
