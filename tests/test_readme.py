"""The README: its Python runs as pasted; flags, presets and pictures exist.

Its commands are in `tests/test_readme_commands.py`.
"""

import contextlib
import dataclasses
import os
import re
import subprocess
import sys

import pytest

import keras_mae
from tests.hub_server import serve
from tests.scripts import ROOT, config_class

TEXT = (ROOT / "README.md").read_text()


@contextlib.contextmanager
def stand_in_hub(folder):
    """Serves a vit-mae-base of few parameters; yields the variables that find it."""
    model = keras_mae.MAEPretrainer.from_preset(
        "mae_base", hidden_dim=24, num_heads=2, mlp_dim=8, decoder_mlp_dim=8
    )
    model.save_pretrained(folder / "hub")
    keras_mae.MAEImageProcessor().save_pretrained(folder / "hub")
    with serve({"main": folder / "hub"}) as (_, endpoint):
        yield {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "cache")}


def test_python_blocks_run_in_order(tmp_path):
    pytest.importorskip("keras_hub")
    folder = tmp_path / "work"
    folder.mkdir()
    code = "\n".join(re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL))
    with stand_in_hub(tmp_path) as hub:
        finished = subprocess.run(
            [sys.executable, "-c", code],
            cwd=folder,
            env={**os.environ, **hub},
            capture_output=True,
            text=True,
        )
    assert finished.returncode == 0, finished.stderr
    for name in ("look.png", "mae.keras", "for-transformers/model.safetensors"):
        assert (folder / name).exists()
    report = re.search(r"```text\n(facebook/vit-mae-base: .*?)```", TEXT, re.DOTALL)
    assert report[1] in finished.stdout


def test_flags_named_in_commands_exist():
    scripts = re.findall(r"python (\w+/\w+\.py)((?: \\\n|[^\n`])*)", TEXT)
    assert len(scripts) > 5
    for script, rest in scripts:
        if script == "serving/client.py":
            continue  # tests/conformance runs its lines
        known = {field.name for field in dataclasses.fields(config_class(script))}
        for flag in re.findall(r"--(?:no-)?(\w+)", rest):
            assert flag in known, (script, flag)


def test_the_table_lists_every_preset():
    assert set(re.findall(r"^\| `(mae_\w+)`", TEXT, re.MULTILINE)) == set(
        keras_mae.PRESETS
    )


def test_pictures_exist():
    for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", TEXT):
        assert (ROOT / path).exists(), path


def test_links_lead_to_headings():
    text = re.sub(r"^```.*?^```", "", TEXT, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    # as GitHub makes them
    anchors = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
    links = re.findall(r"\]\(#([^)]*)\)", TEXT)
    assert links and set(links) <= anchors
