"""Interleaved benchmarks: worker processes take turns, one step each.

Other load on the machine then slows all of them alike, and each has a memory peak of
its own. A worker runs a step for each line on its standard input.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path


def serve_steps(step, about, backend=None):
    """Runs a step per line on standard input; prints `about`, then seconds, as JSON."""
    begin = time.perf_counter()
    step()
    first = time.perf_counter() - begin
    print(json.dumps({**about, "first_step": first}), flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        step()
        seconds = time.perf_counter() - begin
        print(json.dumps({"seconds": seconds, **peak_memory(backend)}), flush=True)


def peak_memory(backend):
    """Peak memory in bytes, and whose: an accelerator's, or else this process's."""
    peak = _accelerator_peak(backend)
    if peak is not None:
        return {"peak": peak, "peak_of": "accelerator"}
    return {"peak": _resident_peak(), "peak_of": "process"}


def _accelerator_peak(backend):
    """Peak memory that the backend took of its first accelerator; None without one."""
    if backend == "jax":
        import jax

        stats = jax.devices()[0].memory_stats() or {}  # None on CPUs
        return stats.get("peak_bytes_in_use")
    if backend == "torch":
        import torch

        there = torch.cuda.is_available()
        return torch.cuda.max_memory_allocated() if there else None
    if backend == "tensorflow":
        import tensorflow as tf

        if tf.config.list_physical_devices("GPU"):
            return tf.config.experimental.get_memory_info("GPU:0")["peak"]
    return None


def _resident_peak():
    """Peak resident memory of this process; 0 where /proc does not tell."""
    path = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+)", path.read_text()) if path.exists() else None
    return int(found[1]) * 1024 if found else 0


class Worker:
    """Runs a command that calls `serve_steps`: `about`, seconds, and peak in bytes."""

    def __init__(self, command, environment=()):
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **dict(environment)},
        )
        self.seconds = []
        # `peak_of` is "accelerator" or "process"
        self.peak, self.peak_of = 0, None
        self.about = self._read()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait()

    def step(self):
        """Runs one step; returns its seconds."""
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        answer = self._read()
        self.peak, self.peak_of = answer["peak"], answer["peak_of"]
        return answer["seconds"]

    def _read(self):
        for line in self._process.stdout:
            if line.startswith("{"):  # libraries print other lines
                return json.loads(line)
        raise ValueError(f"Worker process failed: {' '.join(self._process.args)}")


def use_tf32():
    """Has PyTorch multiply as TF32 on GPUs, as others do; returns its setting."""
    import torch

    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
    return torch.get_float32_matmul_precision()


def take_turns(workers, warmup, repeats):
    """Runs a step of each worker in turn, and fills their `seconds` after warmup."""
    for number in range(warmup + repeats):
        for worker in workers:
            seconds = worker.step()
            if number >= warmup:
                worker.seconds.append(seconds)


def compare(ours, theirs):
    """Returns the ratio of medians (> 1: ours is faster), and quartiles over rounds."""
    ratios = [theirs / ours for ours, theirs in zip(ours, theirs, strict=True)]
    if len(ratios) > 1:
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    else:
        low = high = ratios[0]
    return statistics.median(theirs) / statistics.median(ours), low, high
