"""Benchmark loading of pretrained weights: time and peak memory.

Run: python training/benchmark_loading.py --preset=mae_huge

Saves an encoder of random weights, then measures, each in a new process: reading the
file alone, building the model, and `from_pretrained`. The file is in the page cache.
"""

import keras_mae  # first: it imports TensorFlow quietly

# isort: split
import dataclasses
import multiprocessing
import resource
import statistics
import tempfile
import time
from pathlib import Path

from keras_mae.presets import preset_sizes
from keras_mae.profiling.costs import GIB
from keras_mae.utils.flags import check_at_least, flag, run_script

FILES = {
    "huggingface": "model.safetensors",
    "timm": "model.safetensors",
    "facebook": "model.pth",
}


@dataclasses.dataclass
class LoadingConfig:
    """Flags of this script."""

    preset: str = flag(f"model size: one of {', '.join(keras_mae.PRESETS)}", "mae_huge")
    format: str = flag("checkpoint format", "huggingface", (*FILES,))
    repeats: int = flag("number of measurements", 3)


def write(folder, config):
    """Saves an encoder of random weights."""
    encoder = keras_mae.MAEEncoder.from_preset(config.preset)
    encoder.save_pretrained(folder, config.format)


def read(folder, config):
    """Reads the file and nothing else."""
    with open(Path(folder, FILES[config.format]), "rb", buffering=0) as file:
        piece = bytearray(2**24)
        while file.readinto(piece):
            pass


def build(folder, config):
    """Builds the encoder with random weights."""
    return keras_mae.MAEEncoder.from_preset(config.preset)


def load(folder, config):
    """Builds the encoder and loads its weights."""
    return keras_mae.MAEEncoder.from_pretrained(folder)


def _report(task, folder, config, results):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    kept = task(folder, config)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    del kept
    results.put((seconds, peak * 1024))


def measure(task, folder, config):
    """Runs a task in a new process; returns seconds, and growth of its peak memory."""
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    process = context.Process(target=_report, args=(task, folder, config, results))
    process.start()
    process.join()
    if process.exitcode:
        raise ValueError(f"{task.__name__} failed with exit code {process.exitcode}")
    return results.get()


def main(config):
    """Prints median times and peak memory."""
    preset_sizes(config.preset)  # raises for an unknown one
    check_at_least(config, 1, "repeats")
    with tempfile.TemporaryDirectory() as folder:
        measure(write, folder, config)
        size = Path(folder, FILES[config.format]).stat().st_size
        rounds = [
            {
                task.__name__: measure(task, folder, config)
                for task in (read, build, load)
            }
            for _ in range(config.repeats)
        ]
    seconds = {
        name: statistics.median(values[name][0] for values in rounds)
        for name in ("read", "build", "load")
    }
    peak = statistics.median(values["load"][1] for values in rounds)
    filling = statistics.median(r["load"][0] - r["build"][0] for r in rounds)
    print(f"{config.preset}, encoder, {config.format}: {size / GIB:.2f} GiB")
    speed = size / GIB / seconds["read"]
    print(f"  read the file only    {seconds['read']:.1f} s, {speed:.2f} GiB/s")
    print(f"  build, random weights {seconds['build']:.1f} s")
    print(f"  build and load        {seconds['load']:.1f} s")
    print(f"  loading alone         {filling:.1f} s, {size / GIB / filling:.2f} GiB/s")
    print(f"  peak memory           {peak / GIB:.2f} GiB, {peak / size:.2f} x the file")


if __name__ == "__main__":
    run_script(main, LoadingConfig, __doc__)
