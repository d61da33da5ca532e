"""Measures how fast published weights load, and how much memory that takes.

Run: python training/benchmark_loading.py --preset=mae_huge

Writes a made-up encoder, then, each time in a new process: reads the file and nothing
else, builds the model with fresh weights, and builds and fills it by `from_pretrained`.
The file is taken out of the system's cache each time.
"""

import keras_mae  # first: it imports TensorFlow quietly

# isort: split
import dataclasses
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path

from keras_mae.utils.flags import flag, run_script

GIB = 2**30
FILES = {
    "huggingface": "model.safetensors",
    "timm": "model.safetensors",
    "facebook": "model.pth",
}


@dataclasses.dataclass
class LoadingConfig:
    """The flags of this script."""

    preset: str = flag(f"one of {', '.join(keras_mae.PRESETS)}", "mae_huge")
    format: str = flag("how the weights are stored", "huggingface", (*FILES,))
    repeats: int = flag("how often each is measured", 3)


def write(folder, config):
    """Writes an encoder with random weights."""
    encoder = keras_mae.MAEEncoder.from_preset(config.preset)
    encoder.save_pretrained(folder, config.format)


def read(folder, config):
    """Reads the file in pieces, as fast as the machine can."""
    with open(Path(folder, FILES[config.format]), "rb", buffering=0) as file:
        piece = bytearray(2**24)
        while file.readinto(piece):
            pass


def build(folder, config):
    """Builds the model with fresh weights."""
    return keras_mae.MAEEncoder.from_preset(config.preset)


def load(folder, config):
    """Builds the model and fills it."""
    return keras_mae.MAEEncoder.from_pretrained(folder)


def forget(path):
    """Takes a file out of the system's cache, so that the disk is measured."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _report(task, folder, config, results):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    kept = task(folder, config)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    del kept
    results.put((seconds, peak * 1024))


def measure(task, folder, config):
    """Runs a task in a new process.

    Returns:
        A tuple: seconds, and bytes by which the process's peak of memory grew.
    """
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    process = context.Process(target=_report, args=(task, folder, config, results))
    process.start()
    process.join()
    if process.exitcode:
        raise ValueError(f"{task.__name__} failed in its process")
    return results.get()


def main(config):
    """Measures, and prints medians."""
    if config.preset not in keras_mae.PRESETS:
        raise ValueError(
            f"preset must be one of {', '.join(keras_mae.PRESETS)}. "
            f"Received: {config.preset}"
        )
    if config.repeats < 1:
        raise ValueError(f"repeats must be at least 1. Received: {config.repeats}")
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
    print(f"  build, fresh weights  {seconds['build']:.1f} s")
    print(f"  build and fill        {seconds['load']:.1f} s")
    print(f"  filling alone         {filling:.1f} s, {size / GIB / filling:.2f} GiB/s")
    print(f"  peak of memory        {peak / GIB:.2f} GiB, {peak / size:.2f} x the file")


if __name__ == "__main__":
    run_script(main, LoadingConfig, __doc__)
