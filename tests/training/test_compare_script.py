"""training/compare.py: a small comparison, its table, and resuming it."""

import json
import re

import pytest

from tests.scripts import refusal, run

SCRIPT = "training/compare.py"
TINY = ("--seeds=1", "--pretrain_epochs=1", "--updates=2")

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


@pytest.mark.nightly
def test_comparison_writes_a_table_and_resumes(tmp_path):
    finished = run(SCRIPT, *TINY, f"--output={tmp_path}")
    assert finished.returncode == 0, finished.stderr
    table = (tmp_path / "table.md").read_text()
    assert len(re.findall(r"^\| (?:fine-tuning|linear|k-NN) \|", table, re.M)) == 8
    assert len(re.findall(r"\d+\.\d ± 0\.0", table)) == 32
    assert (tmp_path / "accuracies.png").exists()
    results = json.loads((tmp_path / "results.json").read_text())
    results["values"] = results["values"][:-1]
    (tmp_path / "results.json").write_text(json.dumps(results))
    finished = run(SCRIPT, *TINY, f"--output={tmp_path}")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("labels per class,") == 1
    assert (tmp_path / "table.md").read_text() == table
    finished = run(SCRIPT, *TINY[:2], "--updates=3", f"--output={tmp_path}")
    assert finished.returncode == 2 and "other settings" in finished.stderr


@pytest.mark.slow
def test_bad_input_is_one_line_and_code_2(tmp_path):
    error = refusal(SCRIPT, "--seeds=0", f"--output={tmp_path / 'new'}")
    assert "seeds must be at least 1. Received: 0" in error
    assert not (tmp_path / "new").exists()
