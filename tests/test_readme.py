"""The README: its Python runs as pasted, and its commands and numbers exist."""

import re
import subprocess
import sys

import keras_mae
from tests.scripts import ROOT

TEXT = (ROOT / "README.md").read_text()


def test_python_blocks_run_in_order(tmp_path):
    code = "\n".join(re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL))
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    assert (tmp_path / "look.png").exists() and (tmp_path / "mae.keras").exists()


def test_flags_named_in_commands_exist():
    for script, rest in re.findall(r"python (\w+/\w+\.py)((?: \\\n|[^\n])*)", TEXT):
        source = (ROOT / script).read_text()
        for flag in re.findall(r"--(\w+)", rest):
            assert re.search(rf"^    {flag}: ", source, re.MULTILINE), (script, flag)


def test_the_table_lists_every_preset():
    assert set(re.findall(r"^\| `(mae_\w+)`", TEXT, re.MULTILINE)) == set(
        keras_mae.PRESETS
    )


def test_pictures_exist():
    for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", TEXT):
        assert (ROOT / path).exists(), path
