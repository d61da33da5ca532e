"""The training scripts on Keras's JAX backend, one after the other, on the digits."""

import csv
import importlib.util
import os
import subprocess
import sys

import pytest

from tests.scripts import ROOT

pytest.importorskip("sklearn")
pytest.importorskip("tensorboard")

RUN = """
import sys
from keras_mae.utils.flags import parse_flags
from tests.scripts import config_class, load

folder = sys.argv[1]
SHORT = ["--batch_size=128", "--warmup_epochs=0", "--image_size=16"]

def main(script, *flags):
    path = f"training/{script}.py"
    config = parse_flags(config_class(path), "", [*SHORT, *flags])
    return load(path).main(config)

main("pretrain", "--epochs=2", "--patch_size=8", "--blr=8e-3", "--ema=0.9",
     "--probe_every=1", "--mask_ratio_schedule=0.25:0.75:2", "--pictures=1",
     "--validation_images=8", f"--output={folder}/run")
knn = main("linear_probe", "--method=knn", f"--model={folder}/run",
           "--no-pictures", f"--output={folder}/probe")
main("finetune", "--epochs=1", "--ema=0.9", "--lora_rank=2", "--mixup=0",
     f"--model={folder}/run", f"--output={folder}/tuned")
top1 = main("finetune", "--eval", f"--model={folder}/tuned/best.keras",
            f"--output={folder}/eval")["top1"]
print(f"RESULTS {knn} {top1}")
"""


@pytest.mark.nightly
@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="needs jax")
def test_averages_probes_and_lora(tmp_path):
    finished = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "KERAS_BACKEND": "jax"},
        cwd=ROOT,
    )
    assert finished.returncode == 0, finished.stderr
    knn, top1 = map(float, finished.stdout.rpartition("RESULTS ")[2].split())
    rows = list(csv.DictReader((tmp_path / "run" / "history.csv").open()))
    assert float(rows[-1]["probe_knn_accuracy"]) == pytest.approx(knn, abs=3e-3)
    rows = list(csv.DictReader((tmp_path / "tuned" / "history.csv").open()))
    # both of the averaged weights
    assert float(rows[-1]["val_top1"]) == pytest.approx(top1, abs=1e-6)
