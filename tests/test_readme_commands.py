"""The README's commands: each runs on something small, here or in another test."""

import ast
import configparser
import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

import keras_mae
from keras_mae.flags import parse_flags
from tests.scripts import ROOT, config_class, environment
from tests.test_readme import TEXT, stand_in_hub


class Run(NamedTuple):
    """A line that runs here, after the lines of the same group that stand above it.

    `smaller` are flags put behind the pasted ones, of which the last counts. Then
    `leaves` must exist, and `says` be printed.
    """

    group: str
    smaller: str = ""
    leaves: str = "."
    says: str = ""


class Serve(NamedTuple):
    """A line that serves until it is told to stop, at free ports."""

    group: str


class Elsewhere(NamedTuple):
    """A line whose work is done by another test, as `file::function`."""

    test: str


class Extras(NamedTuple):
    """A line that installs the package: its extras are in setup.cfg."""


class Never(NamedTuple):
    """A line that no test machine can run, why, and what test reads its file."""

    why: str
    test: str = ""


ASKED = Elsewhere("tests/conformance/test_readme_lines.py::test_lines_of_the_shell")

# by what a line begins with
ROWS = {
    "make demo": Elsewhere("tests/test_demo.py::test_the_demo_does_the_whole_job"),
    "make test": Never("it would run this test"),
    "python training/visualize.py": Run(
        "hub", leaves="reconstruction.png", says="147 of 196 patches removed"
    ),
    "python training/own_images.py": Run(
        "pets",
        "--image_size=16 --pretrain_epochs=1 --epochs=1 --batch_size=8",
        "runs/own_images/classifier/model.keras",
        "Accuracy on 4 held-out pictures:",
    ),
    "python -m keras_mae.weights facebook/vit-mae-base": Run(
        "hub", leaves="mae-base.keras", says="of the scale from PyTorch"
    ),
    "python -m keras_mae.weights mae_pretrain_vit_base_full.pth": Run(
        "hub", leaves="mae-full.keras", says="of the scale from PyTorch"
    ),
    "python -m keras_mae.weights mae-full.keras": Run(
        "hub", leaves="for-timm/model.safetensors"
    ),
    "pip install -e": Extras(),
    "python training/pretrain.py --dataset=photos": Run(
        "photos",
        "--image_size=32 --epochs=1 --warmup_epochs=0 --validation_images=8 "
        "--log_every=1",
        "runs/photos/model.keras",
        "The run lies in runs/photos",
    ),
    # instead of serving a page: whether there is something to show
    "tensorboard --logdir": Run("photos", "--inspect", says="gradient_norm"),
    "python training/pretrain.py --strategy=mirrored": Run(
        "pets",
        "--dataset=folder:pets --preset=mae_tiny --replicas=2 --batch_size=8 "
        "--epochs=1 --warmup_epochs=0",
        "runs/mae_base/model.keras",
        r"2 replica\(s\); from step 0",
    ),
    "sbatch": Elsewhere("tests/test_cluster.py::test_slurm_tells_each_node_who_it_is"),
    "kubectl apply -f training/cluster/gke-tpu.yaml": Never(
        "a cluster",
        "tests/test_cluster.py::test_the_kubernetes_job_names_flags_that_exist",
    ),
    "python training/pretrain.py --preset=mae_large": Elsewhere(
        "tests/test_tpu_check.py::test_the_script_answers_for_the_tiny_preset"
    ),
    "python training/pretrain.py --blr": Run(
        "digits",
        "--epochs=1 --warmup_epochs=0 --batch_size=256 --validation_images=8",
        "runs/pretrain/model.keras",
    ),
    "python training/finetune.py --model=runs/pretrain": Run(
        "digits",
        "--batch_size=256 --epochs=1 --warmup_epochs=0",
        "runs/tuned/labels.txt",
        "best: runs/tuned/best.keras, top-1",
    ),
    "python training/finetune.py --model=runs/tuned/best.keras": Run(
        "digits",
        leaves="runs/finetune/confusion.png",
        says="360 held-out images: top-1",
    ),
    "python training/linear_probe.py": Run(
        "digits",
        leaves="runs/probe/features-tsne.png",
        says="knn: 360 held-out images, top-1",
    ),
    "python training/compare.py": Elsewhere(
        "tests/test_compare_script.py::"
        "test_a_comparison_makes_a_table_and_goes_on_where_it_was"
    ),
    "python serving/export.py": Run(
        "photos", leaves="models/mae/1/saved_model.pb", says="lies in models/mae/1"
    ),
    "python serving/local_server.py": Serve("photos"),
    "echo": ASKED,
    "python serving/client.py": ASKED,
    # the fixture of its tests builds the same models
    "python -m tests.conformance.models": Elsewhere(
        "tests/conformance/test_rest.py::test_versions_and_labels"
    ),
    "tensorflow_model_server": Never("TF Serving's binary is on no package index"),
    "pytest tests/conformance": Never("it asks the server of the line before"),
    "python serving/benchmark.py --preset=mae_small": Elsewhere(
        "tests/test_benchmarks.py::test_a_server_is_measured_by_each_protocol"
    ),
    "python serving/benchmark.py --preset=mae_tiny": Elsewhere(
        "tests/test_benchmarks.py::test_a_soak_reloads_and_counts_failures"
    ),
    "docker compose": Never(
        "a container",
        "tests/test_serving_files.py::test_the_compose_files_flags_and_mounts_exist",
    ),
    "kubectl create configmap": Never("a cluster"),
    "kubectl apply -f serving/kubernetes.yaml": Never(
        "a cluster",
        "tests/test_serving_files.py::test_kubernetes_flags_and_mounts_exist",
    ),
    "python training/benchmark.py --mode": Elsewhere(
        "tests/test_benchmarks.py::test_every_mode_against_the_peer"
    ),
    "python training/benchmark.py --backend=jax": Never(
        "a GPU", "tests/test_benchmarks.py::test_other_ways_to_run"
    ),
}


def read_lines(text):
    """Lists the commands of the bash blocks, without comments and line breaks."""
    text = "".join(re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    text = re.sub(r" *\\\n *", " ", text)
    text = re.sub(r" *\|\n *", " | ", text)
    lines = (re.sub(r"(^| +)# .*", "", line) for line in text.splitlines())
    return [line for line in lines if line]


LINES = read_lines(TEXT)


def rows_of(line):
    return [begin for begin in ROWS if line.startswith(begin)]


def test_every_line_has_a_row_and_every_row_a_line():
    assert len(LINES) > 30
    rows = {line: rows_of(line) for line in LINES}
    assert {line: found for line, found in rows.items() if len(found) != 1} == {}
    assert {begin for found in rows.values() for begin in found} == set(ROWS)


def test_tests_named_for_lines_exist():
    for row in ROWS.values():
        if getattr(row, "test", ""):
            path, _, name = row.test.partition("::")
            tree = ast.parse((ROOT / path).read_text())
            names = {x.name for x in tree.body if isinstance(x, ast.FunctionDef)}
            assert name in names, row.test


def test_extras_that_lines_install_exist():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    found = re.findall(r'pip install -e "\.\[([\w,-]+)\]"', TEXT)
    # each is quoted, as some shells read brackets themselves
    assert len(found) == TEXT.count("pip install -e") - TEXT.count("-e .`") > 5
    for name in ",".join(found).split(","):
        assert name in setup["options.extras_require"], name


def test_files_that_lines_name_exist():
    for line in LINES:
        for path in re.findall(r"\b(?:training|serving)/[\w./-]+", line):
            assert (ROOT / path).exists(), line


def test_scripts_take_the_flags_of_their_lines():
    pytest.importorskip("tensorflow_serving")
    for line in LINES:
        found = re.match(r"\w+ ((?:training|serving)/\S+) (.*)", line)
        # the client's lines run in tests/conformance
        if found and found[1] != "serving/client.py" and "kubectl" not in line:
            script = found[1].replace("cluster/slurm.sh", "pretrain.py")
            parse_flags(config_class(script), line, shlex.split(found[2]))


@pytest.mark.parametrize(
    "target, says", [("demo", "training/demo.py --output=demo"), ("test", "pytest")]
)
def test_make_has_the_targets(target, says):
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    assert f"make {target}" in LINES
    finished = subprocess.run(
        ["make", "--dry-run", "--always-make", target],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    assert says in finished.stdout


def write_published(folder):
    """Writes a picture, and a file of weights as facebook's code wrote it."""
    write_pets(folder)
    shutil.copy(folder / "pets/cat/0.jpg", folder / "cat.jpg")
    model = keras_mae.MAEPretrainer.from_preset("mae_tiny", depth=1, decoder_depth=1)
    model.save_pretrained(folder, "facebook")
    (folder / "model.pth").rename(folder / "mae_pretrain_vit_base_full.pth")


def write_pets(folder):
    """Writes a folder of pictures for each of two classes."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / "pets" / name).mkdir(parents=True)
        for index in range(10):
            pixels = rng.integers(0, 256, (40, 50, 3), "uint8")
            Image.fromarray(pixels).save(folder / "pets" / name / f"{index}.jpg")


# by group: what its lines import beyond the package, and what they read
GROUPS = {
    "hub": (("torch", "transformers"), write_published),
    "pets": ((), write_pets),
    "photos": (("skimage", "tensorboard", "starlette", "uvicorn", "grpc"), None),
    "digits": (("sklearn", "matplotlib"), None),
}


def run_line(line, row, folder, variables):
    """Runs a line as it is pasted, but for the flags that make it small."""
    finished = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"{line} {row.smaller}"],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, f"{line}\n{finished.stderr}"
    assert re.search(row.says, finished.stdout), f"{line}\n{finished.stdout}"
    assert (folder / row.leaves).exists(), line


def serve_line(line, folder, variables):
    """Starts a server as it is pasted, asks whether it serves, and stops it."""
    from keras_mae.server.process import running

    _, script, *flags = shlex.split(line)
    with running(script, *flags, cwd=folder, env=variables) as (rest, _, process):
        answer = urllib.request.urlopen(f"http://{rest}/v1/models/mae").read()
        assert b"AVAILABLE" in answer
    assert process.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_lines_run_as_pasted(group, tmp_path):
    packages, prepare = GROUPS[group]
    for package in packages:
        pytest.importorskip(package)
    folder = tmp_path / "work"
    folder.mkdir()
    for name in ("training", "serving"):
        (folder / name).symlink_to(ROOT / name)
    if prepare is not None:
        prepare(folder)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = {**environment(), "PATH": path}
    with contextlib.ExitStack() as stack:
        if group == "hub":
            variables |= stack.enter_context(stand_in_hub(tmp_path))
        for line in LINES:
            row = ROWS[rows_of(line)[0]]
            if getattr(row, "group", None) != group:
                continue
            if isinstance(row, Serve):
                serve_line(line, folder, variables)
            else:
                run_line(line, row, folder, variables)
