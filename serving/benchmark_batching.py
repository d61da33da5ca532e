"""Benchmark the embedded server's batching with clients of one image each.

Run: python serving/benchmark_batching.py --preset=mae_tiny --clients=1,8,16

Two servers have the same SavedModel of `export.py --batching`, one batches. Clients,
threads of this process, ask for embeddings of packed pixels by gRPC, one server at a
time, round after round; the table has medians.
"""

import keras_mae  # first: it imports TensorFlow quietly

# isort: split
import contextlib
import dataclasses
import math
import statistics
import tempfile
import threading
import time
from pathlib import Path

import grpc
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2

from keras_mae.export import export_savedmodel
from keras_mae.utils.flags import check_at_least, flag, parse_ints, run_script
from mae_server.process import running

FOLDER = Path(__file__).parent
RPC = "/tensorflow.serving.PredictionService/Predict"
BATCHING = {
    "alone": [],
    "batched": ["--enable_batching", "--enable_per_model_batching_parameters"],
}


@dataclasses.dataclass
class BatchingConfig:
    """Flags of this script."""

    preset: str = flag("model size, of random weights", "mae_tiny")
    clients: str = flag("clients at the same time, separated by commas", "1,8,16")
    rounds: int = flag("rounds of both servers", 5)
    seconds: float = flag("seconds per measurement", 4.0)


def make_request(encoder):
    """Returns a serialized request of one image."""
    pixels = bytes(math.prod(encoder.image_size) * encoder.num_channels)
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "mae"
    request.model_spec.signature_name = "embed_from_pixels_u8"
    request.inputs["pixels_u8"].CopyFrom(tf.make_tensor_proto([pixels]))
    return request.SerializeToString()


def ask(address, body, clients, seconds):
    """Asks a server from threads; returns images a second."""
    counts = [0] * clients
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(RPC)  # bytes in, bytes out
        call(body, wait_for_ready=True)
        end = time.monotonic() + seconds

        def work(index):
            while time.monotonic() < end:
                call(body)
                counts[index] += 1

        threads = [threading.Thread(target=work, args=(i,)) for i in range(clients)]
        begin = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(counts) / (time.monotonic() - begin)


def main(config):
    """Prints a row per number of clients."""
    check_at_least(config, 1, "rounds")
    sizes = parse_ints("clients", config.clients)
    model = keras_mae.MAEEncoder.from_preset(config.preset)
    processor = keras_mae.MAEImageProcessor(model.image_size)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        export_savedmodel(model, processor, Path(folder, "mae", "1"), batching=True)
        flags = [f"--model_base_path={Path(folder, 'mae')}", f"--threads={max(sizes)}"]
        addresses = {}
        for name, more in BATCHING.items():
            server = running(FOLDER / "local_server.py", *flags, *more)
            _, addresses[name], _ = stack.enter_context(server)
        body = make_request(model)
        print("| clients | images/s alone | images/s batched | ratio |")
        print("|---|---|---|---|")
        for clients in sizes:
            rates = {name: [] for name in addresses}
            for _ in range(config.rounds):
                for name, address in addresses.items():
                    rates[name].append(ask(address, body, clients, config.seconds))
            alone, batched = (statistics.median(rates[name]) for name in BATCHING)
            print(
                f"| {clients} | {alone:.1f} | {batched:.1f} | {batched / alone:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    run_script(main, BatchingConfig, __doc__)
