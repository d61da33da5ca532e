"""training/segment.py on a few canvases: data, metrics, outputs, wrong flags."""

import json

import keras
import numpy as np
import pytest
from PIL import Image

from tests.scripts import load, refusal, run

SCRIPT = "training/segment.py"
FEW = ("--unlabelled=32", "--labelled=16", "--held_out=20", "--epochs=1")

pytest.importorskip("sklearn")


@pytest.mark.nightly
def test_the_script_compares_pretrained_and_random_weights(tmp_path):
    finished = run(SCRIPT, *FEW, "--pretrain-epochs=1", f"--output={tmp_path}")
    assert finished.returncode == 0, finished.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results) == {"all background", "pretrained", "random"}
    for scores in results.values():
        assert 0 < scores["mean_iou"] < scores["pixel_accuracy"] <= 1
    assert Image.open(tmp_path / "segmentation.png").width > 300
    segmenter = keras.models.load_model(tmp_path / "segmenter.keras")
    assert segmenter(np.zeros((1, 32, 32, 1))).shape == (1, 32, 32, 11)


def test_canvases_match_their_labels():
    script = load(SCRIPT)
    source = script.data.load_digits()
    rng = np.random.default_rng(0)
    images, classes = script.make_canvases(
        source.training, source.training_labels, 30, (32, 32), rng
    )
    assert images.shape == (30, 32, 32, 1) and set(np.unique(classes)) == set(range(11))
    np.testing.assert_array_equal(classes > 0, images[..., 0] >= script.INK)
    # several digits on most of them, and no canvas without one
    counts = np.array([len(np.unique(c)) - 1 for c in classes])
    assert np.mean(counts > 1) > 0.5 and counts.min() > 0


def test_segmentation_scores():
    script = load(SCRIPT)
    truth = np.array([[[0, 0, 1, 1]]])
    scores = script.score(truth, np.array([[[0, 1, 1, 2]]]))
    assert scores["pixel_accuracy"] == 0.5
    assert scores["mean_iou"] == pytest.approx((1 / 2 + 1 / 3 + 0) / 3)


def test_a_missing_model_is_one_line_and_code_2(tmp_path):
    error = refusal(SCRIPT, "--model=/no/model.keras", f"--output={tmp_path}")
    assert "/no/model.keras, which does not exist" in error


@pytest.mark.parametrize("name", ["labelled", "epochs", "batch_size"])
def test_numeric_flags_are_checked(name):
    script = load(SCRIPT)
    with pytest.raises(ValueError, match=f"{name} must be at least 1. Received: 0"):
        script.main(script.SegmentConfig(**{name: 0}))


def test_canvas_smaller_than_a_digit_is_an_error():
    with pytest.raises(ValueError, match=r"at least 16 pixels.*image_size=\(8, 32\)"):
        load(SCRIPT).make_canvases([], [], 1, (8, 32), np.random.default_rng(0))
