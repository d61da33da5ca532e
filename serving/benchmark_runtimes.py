"""Benchmark a model's encoder in several runtimes on this machine's CPU.

Run: python serving/benchmark_runtimes.py --preset=mae_tiny --formats=openvino,litert

The SavedModel is run by a session, as a server runs it. All runtimes compute features
from the same pixels in float32, round after round; the table has medians.
"""

import keras_mae  # first: it imports TensorFlow quietly

# isort: split
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from keras_mae.export import export_runtime, export_savedmodel, load_runtime
from keras_mae.utils.flags import check_at_least, flag, parse_ints, run_script
from mae_server.bundle import Bundle
from mae_server.calls import Call


@dataclasses.dataclass
class RuntimesConfig:
    """Flags of this script."""

    preset: str = flag("model size, of random weights", "mae_tiny")
    formats: str = flag(
        "runtimes beside the SavedModel, separated by commas", "openvino,litert,onnx"
    )
    batch_sizes: str = flag("images per call, separated by commas", "1,8")
    rounds: int = flag("rounds of all runtimes", 10)
    calls: int = flag("calls of each in a round", 3)


def load(encoder, folder, formats):
    """Exports an encoder; returns a dict from runtime to function of pixels."""
    processor = keras_mae.MAEImageProcessor(encoder.image_size)
    export_savedmodel(encoder, processor, folder / "1", warmup_batch_sizes=())
    bundle = Bundle(folder / "1")

    def run(pixels):
        name, inputs = "features_from_pixels", {"pixels": pixels}
        return bundle.run(name, inputs, (), Call())

    functions = {"SavedModel": run}
    for format in formats:
        export_runtime(encoder, processor, folder / format, format)
        encode = load_runtime(folder / format)["encode"]
        functions[format] = lambda pixels, encode=encode: encode(pixels=pixels)
    return functions


def measure(functions, pixels, rounds, calls):
    """Returns a dict from runtime to its median milliseconds a call."""
    times = {name: [] for name in functions}
    for function in functions.values():
        function(pixels)
    for _ in range(rounds):
        for name, function in functions.items():
            begin = time.perf_counter()
            for _ in range(calls):
                function(pixels)
            times[name].append(1000 * (time.perf_counter() - begin) / calls)
    return {name: statistics.median(found) for name, found in times.items()}


def main(config):
    """Prints a row per batch size and runtime."""
    check_at_least(config, 1, "rounds", "calls")
    batch_sizes = parse_ints("batch_sizes", config.batch_sizes)
    encoder = keras_mae.MAEEncoder.from_preset(config.preset)
    formats = [name for name in config.formats.split(",") if name]
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        functions = load(encoder, Path(folder), formats)
        print("| runtime | batch size | ms | images/s | of SavedModel |")
        print("|---|---|---|---|---|")
        for size in batch_sizes:
            shape = (size, *encoder.image_size, encoder.num_channels)
            pixels = rng.standard_normal(shape).astype("float32")
            medians = measure(functions, pixels, config.rounds, config.calls)
            for name, median in medians.items():
                share = medians["SavedModel"] / median
                print(
                    f"| {name} | {size} | {median:.1f} | {1000 * size / median:.1f} | "
                    f"{share:.0%} |",
                    flush=True,
                )


if __name__ == "__main__":
    run_script(main, RuntimesConfig, __doc__)
