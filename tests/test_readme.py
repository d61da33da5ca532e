"""The README: its blocks run as pasted; flags, extras, presets and pictures exist."""

import configparser
import contextlib
import dataclasses
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import keras_mae
from keras_mae.utils.flags import parse_flags
from mae_server.process import running
from tests.hub_server import serve
from tests.scripts import ROOT, config_class, environment

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


@pytest.mark.slow
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


def test_values_of_flags_are_read():
    for line in read_lines():
        found = re.match(r"\w+ ((?:training|serving)/\S+) (.*)", line)
        if found and found[1] != "serving/client.py" and "kubectl" not in line:
            script = found[1].replace("cluster/slurm.sh", "pretrain.py")
            parse_flags(config_class(script), line, shlex.split(found[2]))


def test_files_that_lines_name_exist():
    for line in read_lines():
        for path in re.findall(r"\b(?:training|serving)/[\w./-]+", line):
            assert (ROOT / path).exists(), line


def test_each_line_runs_or_is_said_to_run_elsewhere():
    known = (*SMALLER, *ELSEWHERE, "python serving/local_server.py")
    assert [line for line in read_lines() if not line.startswith(known)] == []


def test_extras_that_lines_install_exist():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for extras in re.findall(r'pip install -e "\.\[([\w,-]+)\]"', TEXT):
        for name in extras.split(","):
            assert name in setup["options.extras_require"], name


# what a line that begins so is given besides, to be small
SMALLER = {
    "python training/visualize.py": "",
    "python training/own_images.py": "--image_size=16 --pretrain_epochs=1 --epochs=1 "
    "--batch_size=8",
    "python -m keras_mae.weights": "",
    "python training/pretrain.py --dataset=photos": "--image_size=32 --epochs=1 "
    "--warmup_epochs=0 --validation_images=8 --log_every=1",
    "python training/pretrain.py --blr": "--epochs=1 --warmup_epochs=0",
    "python training/pretrain.py --strategy=mirrored": "--dataset=folder:pets "
    "--preset=mae_tiny --replicas=2 --batch_size=8 --epochs=1 --warmup_epochs=0",
    "python training/finetune.py --model=runs/pretrain": "--epochs=1 --warmup_epochs=0",
    "python training/finetune.py --model=runs/tuned/best.keras": "",
    "python training/linear_probe.py": "",
    "tensorboard": "--inspect",
    "python serving/export.py": "",
    "echo": "",
    "python serving/client.py": "",
}
# what runs elsewhere, or can't run here
ELSEWHERE = (
    *("make", "pip install", "pytest tests/conformance", "tensorflow_model_server"),
    *("docker", "kubectl", "sbatch", "python -m tests.conformance.models"),
    *("python training/benchmark", "python serving/benchmark.py"),
    *("python training/compare.py", "python training/pretrain.py --preset=mae_large"),
)


def read_lines():
    """Lists the commands of the bash blocks, without comments and line breaks."""
    text = "".join(re.findall(r"^```bash\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL))
    text = re.sub(r" *\\\n *", " ", text)
    text = re.sub(r" *\|\n *", " | ", text)
    lines = (re.sub(r"(^| +)# .*", "", line) for line in text.splitlines())
    return [line for line in lines if line]


def write_files(folder):
    """Writes what the lines read: class folders, a picture, a published file."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / "pets" / name).mkdir(parents=True)
        for index in range(10):
            pixels = rng.integers(0, 256, (40, 50, 3), "uint8")
            Image.fromarray(pixels).save(folder / "pets" / name / f"{index}.jpg")
        shutil.copy(folder / "pets" / name / "0.jpg", folder / f"{name}.jpg")
    model = keras_mae.MAEPretrainer.from_preset("mae_tiny", depth=1, decoder_depth=1)
    model.save_pretrained(folder, "facebook")
    (folder / "model.pth").rename(folder / "mae_pretrain_vit_base_full.pth")
    for name in ("training", "serving"):
        (folder / name).symlink_to(ROOT / name)


@pytest.mark.nightly
def test_commands_run_in_order(tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    write_files(folder)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = {**environment(), "PATH": path}
    with contextlib.ExitStack() as stack:
        variables |= stack.enter_context(stand_in_hub(tmp_path))
        address = "localhost:8501"
        for line in read_lines():
            if line.startswith(ELSEWHERE):
                continue
            if line.startswith("python serving/local_server.py"):
                _, script, *flags = shlex.split(line)
                server = running(script, *flags, cwd=folder, env=variables)
                address, grpc, _ = stack.enter_context(server)
                continue
            (smaller,) = (SMALLER[key] for key in SMALLER if line.startswith(key))
            line = f"{line} {smaller}".replace("localhost:8501", address)
            if "client.py" in line:
                line += f" --address={grpc if '--grpc' in line else address}"
            finished = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", line],
                cwd=folder,
                env=variables,
                capture_output=True,
                text=True,
                timeout=900,
            )
            assert finished.returncode == 0, f"{line}\n{finished.stderr}"
        block = re.search(r"```python client\n(.*?)```", TEXT, re.DOTALL)[1]
        (folder / "lines.py").write_text(block.replace("localhost:8501", address))
        subprocess.run(
            [sys.executable, "lines.py"],
            cwd=folder,
            env={**variables, "PYTHONPATH": str(ROOT / "serving")},
            check=True,
        )
    for name in ("reconstruction.png", "mae-base.keras", "for-timm/model.safetensors"):
        assert (folder / name).exists(), name
    assert np.load(folder / "features.npz")["features"].shape[0] == 2
