"""The README: its Python runs as pasted, and its commands and numbers exist."""

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


@pytest.fixture
def stand_in(tmp_path):
    """A hub whose vit-mae-base has few parameters, and a folder to work in."""
    model = keras_mae.MAEPretrainer.from_preset(
        "mae_base", hidden_dim=24, num_heads=2, mlp_dim=8, decoder_mlp_dim=8
    )
    model.save_pretrained(tmp_path / "hub")
    keras_mae.MAEImageProcessor().save_pretrained(tmp_path / "hub")
    work = tmp_path / "work"
    work.mkdir()
    with serve({"main": tmp_path / "hub"}) as (_, endpoint):
        cache = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "cache")}
        yield work, {**os.environ, **cache}


def test_python_blocks_run_in_order(stand_in):
    pytest.importorskip("keras_hub")
    folder, environment = stand_in
    code = "\n".join(re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL))
    finished = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    for name in ("look.png", "mae.keras", "for-transformers/model.safetensors"):
        assert (folder / name).exists()
    report = re.search(r"```text\n(facebook/vit-mae-base: .*?)```", TEXT, re.DOTALL)
    assert report[1] in finished.stdout


@pytest.mark.slow
def test_weights_are_converted_as_pasted(stand_in):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    folder, environment = stand_in
    tiny = keras_mae.MAEPretrainer.from_preset("mae_tiny")
    tiny.save_pretrained(folder, "facebook")
    (folder / "model.pth").rename(folder / "mae_pretrain_vit_base_full.pth")
    lines = re.findall(r"^python (-m keras_mae\.weights .*)$", TEXT, re.MULTILINE)
    assert len(lines) == 3
    for line in lines:
        command = [sys.executable, *line.split()]
        subprocess.run(command, check=True, cwd=folder, env=environment)
    assert (folder / "for-timm" / "model.safetensors").exists()


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
