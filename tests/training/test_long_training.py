"""A training of many epochs takes no more memory than one of a few."""

import csv
import subprocess
from pathlib import Path

import pytest

from tests.scripts import command, environment

STATUS = Path("/proc/self/status")
# `resident` goes to history.csv, as what every callback adds to the logs
MEMORY = f"""
import keras

class Memory(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        (line,) = (l for l in open("{STATUS}") if l.startswith("VmRSS:"))
        logs["resident"] = int(line.split()[1])

def memory(config):
    return Memory()
"""


@pytest.mark.nightly
@pytest.mark.skipif(not STATUS.exists(), reason="no /proc tells the resident memory")
def test_memory_does_not_grow_over_twenty_epochs(tmp_path):
    pytest.importorskip("sklearn")
    (tmp_path / "resident.py").write_text(MEMORY)
    flags = ("--dataset=digits", "--blr=8e-3", "--epochs=20", "--output=run")
    finished = subprocess.run(
        command("training/pretrain.py", *flags, "--callback=resident:memory"),
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    rows = list(csv.DictReader((tmp_path / "run" / "history.csv").open()))
    assert len(rows) == 20 and all(float(row["epoch_seconds"]) > 0 for row in rows)
    resident = [float(row["resident"]) for row in rows]
    # the first epochs compile, draw, and write the first checkpoints
    assert resident[-1] <= 1.1 * resident[4], resident
