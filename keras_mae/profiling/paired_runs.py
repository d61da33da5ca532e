"""Two processes that take turns, so that their speeds can be compared on one machine.

A worker is a script that prepares a step, and then runs it whenever a line comes in on
standard input: what else the machine does falls on both sides alike, and each side's
memory is its own.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path


def serve_steps(step, about):
    """Runs a step for each line on standard input, and prints what it took.

    Args:
        step: Function without arguments that returns when its result is there.
        about: Dict for the first line: versions, device, sizes.

    Example:

    ```python
    # what a worker's script ends with
    if __name__ == "__main__" and not sys.stdin.isatty():
        serve_steps(lambda: time.sleep(0.1), {"library": "none"})
    ```
    """
    begin = time.perf_counter()
    step()
    first = time.perf_counter() - begin
    print(json.dumps({**about, "first_step": first}), flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        step()
        seconds = time.perf_counter() - begin
        print(json.dumps({"seconds": seconds, "peak": peak_memory()}), flush=True)


def peak_memory():
    """Returns the most memory that this process has held so far, in bytes.

    Returns:
        Int; 0 where the system does not tell.

    Example:

    ```python
    assert peak_memory() >= 0
    ```
    """
    path = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+)", path.read_text()) if path.exists() else None
    return int(found[1]) * 1024 if found else 0


class Worker:
    """A worker's process.

    Args:
        command: List of strs, its command line.
        environment: Dict of variables beside those of this process.

    Attributes:
        about: Dict, the worker's first line: what it is, and `first_step` in seconds.
        seconds: List of floats, what each of its steps took.
        peak: Int, the most memory that it has held, in bytes.

    Raises:
        ValueError: If it ends before its first step.

    Example:

    ```python
    module = "keras_mae.profiling.paired_runs"
    code = f"from {module} import *; serve_steps(lambda: None, {{}})"
    with Worker([sys.executable, "-c", code]) as worker:
        take_turns([worker], warmup=1, repeats=2)
    assert len(worker.seconds) == 2
    ```
    """

    def __init__(self, command, environment=()):
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **dict(environment)},
        )
        self.seconds = []
        self.peak = 0
        self.about = self._read()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait()

    def step(self):
        """Lets it run one step; returns the seconds that it took."""
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        answer = self._read()
        self.peak = answer["peak"]
        return answer["seconds"]

    def _read(self):
        for line in self._process.stdout:
            if line.startswith("{"):  # libraries print as well
                return json.loads(line)
        raise ValueError(f"the worker ended: {' '.join(self._process.args)}")


def take_turns(workers, warmup, repeats):
    """Lets workers run one step after the other, again and again.

    Args:
        workers: List of `Worker`; their `seconds` are filled.
        warmup: Int, rounds that don't count.
        repeats: Int, rounds that do.
    """
    for number in range(warmup + repeats):
        for worker in workers:
            seconds = worker.step()
            if number >= warmup:
                worker.seconds.append(seconds)


def compare(ours, theirs):
    """Compares the speed of two workers that took turns.

    Args:
        ours: List of floats, seconds of our steps.
        theirs: List of floats, seconds of the peer's steps in the same rounds.

    Returns:
        A tuple of three floats: the ratio of the medians, above 1 where ours are
        faster, and the quartiles of the rounds' own ratios.

    Example:

    ```python
    ratio, low, high = compare([1.0, 1.0, 1.0], [2.0, 2.0, 2.0])
    assert ratio == low == high == 2.0
    ```
    """
    ratios = [theirs / ours for ours, theirs in zip(ours, theirs, strict=True)]
    if len(ratios) > 1:
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    else:
        low = high = ratios[0]
    return statistics.median(theirs) / statistics.median(ours), low, high
