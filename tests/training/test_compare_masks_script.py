"""training/compare_masks.py: a small comparison, its table and picture."""

import json
import re

import pytest
from PIL import Image

from tests.scripts import refusal, run

SCRIPT = "training/compare_masks.py"

pytest.importorskip("sklearn")
pytest.importorskip("skimage")


@pytest.mark.nightly
def test_comparison_writes_table_and_picture(tmp_path):
    finished = run(SCRIPT, "--seeds=2", "--epochs=1", f"--output={tmp_path}")
    assert finished.returncode == 0, finished.stderr
    table = (tmp_path / "table.md").read_text()
    rows = re.findall(r"^\| (\w+) \| (0\.\d+) \| \d+\.\d ± \d+\.\d \|", table, re.M)
    assert rows == [
        *(("random", "0.75"), ("block", "0.5"), ("block", "0.75"), ("grid", "0.75"))
    ]
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results["values"]) == 8
    # better than chance, and not the same whatever the masks
    linear = [row[3] for row in results["values"]]
    assert min(linear) > 0.3 and len(set(linear)) > 4
    with Image.open(tmp_path / "masks.png") as picture:
        assert picture.width == 5 * 224 + 4 * 4


def test_bad_input_is_one_line_and_code_2(tmp_path):
    error = refusal(SCRIPT, "--seeds=0", f"--output={tmp_path / 'new'}")
    assert "seeds must be at least 1. Received: 0" in error
    assert not (tmp_path / "new").exists()
    error = refusal(SCRIPT, "--batch_size=2000", f"--output={tmp_path / 'large'}")
    assert "batch_size must be in [1, 1437]" in error
