"""training/demo.py, end to end, with few epochs."""

import json
import re

import pytest
from PIL import Image

from tests.scripts import run

for name in ("sklearn", "skimage", "tensorboard", "starlette", "uvicorn"):
    pytest.importorskip(name)


def run_demo(folder, *arguments):
    finished = run("training/demo.py", f"--output={folder}", *arguments)
    assert finished.returncode == 0, finished.stderr
    return finished, json.loads((folder / "results.json").read_text())


@pytest.mark.nightly
def test_demo_runs_every_step(tmp_path):
    folder = tmp_path / "demo"
    finished, results = run_demo(folder, "--epochs=2")
    assert set(results["masked_patch_mse"]) == {
        "model",
        "training_mean",
        "visible_mean",
    }
    assert set(results["probe_accuracy"]) == {"pretrained", "random", "raw_pixels"}
    assert results["served"]["features_shape"] == [1, 65, 128]
    assert results["served"]["largest_difference_to_keras"] < 1e-4
    assert Image.open(folder / "reconstructions.png").width == 4 * 160 + 12
    assert (folder / "models" / "mae" / "1" / "saved_model.pb").exists()
    for part in ("pretraining", "probing", "exporting", "serving and querying"):
        assert f"-- {part} took " in finished.stdout
    assert re.search(r"This takes about [\d.]+ minutes", finished.stdout)
    for line in ("POST http://127.0.0.1:", "training mean", "predicted digit"):
        assert line in finished.stdout


@pytest.mark.nightly
def test_pretraining_beats_a_random_encoder_and_raw_pixels(tmp_path):
    _, results = run_demo(tmp_path / "demo")
    errors, accuracies = results["masked_patch_mse"], results["probe_accuracy"]
    assert errors["model"] < 0.5 * errors["training_mean"]
    for labels, accuracy in accuracies["pretrained"].items():
        assert accuracy > accuracies["random"][labels] + 0.05
        assert accuracy > accuracies["raw_pixels"][labels]


@pytest.mark.nightly
def test_failed_step_ends_the_demo(tmp_path):
    (tmp_path / "file").write_text("in the way")
    finished = run("training/demo.py", f"--output={tmp_path / 'file'}", "--epochs=1")
    assert finished.returncode == 2
    assert "training/pretrain.py failed with exit code 2" in finished.stderr
