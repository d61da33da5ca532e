"""README and docs: blocks run as pasted; flags, extras, presets, links, paths exist."""

import configparser
import contextlib
import dataclasses
import glob
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import keras_mae
from keras_mae.utils.flags import parse_flags
from mae_server.process import running
from tests.hub_server import serve
from tests.scripts import ROOT, config_class, environment

# in the order in which they are read: later lines use what earlier ones wrote
NAMES = (
    *("getting-started", "weights", "migration", "pretraining", "fine-tuning"),
    "serving",
    *("benchmarks", "parity", "comparison", "architecture"),
)
PAGES = {
    path: (ROOT / path).read_text()
    for path in ("README.md", *(f"docs/{name}.md" for name in NAMES))
}
TEXT = "\n".join(PAGES.values())
# every page that links, these too
LINKING = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md")
    for path in map(Path, glob.glob(pattern, root_dir=ROOT, recursive=True))
)
COMMANDS = {
    "keras-mae-pretrain": "training/pretrain.py",
    "keras-mae-finetune": "training/finetune.py",
    "keras-mae-probe": "training/linear_probe.py",
    "keras-mae-export": "serving/export.py",
    "keras-mae-serve": "serving/local_server.py",
    "keras-mae-client": "serving/client.py",
}


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


TENSORFLOW = ROOT / "tests/fixtures/huggingface_tf/pretrainer"


def python_blocks(path):
    return re.findall(r"```python\n(.*?)```", PAGES[path], re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=() if path == "README.md" else pytest.mark.nightly)
        for path in PAGES
        if python_blocks(path)
    ],
)
def test_python_blocks_run_in_order(path, tmp_path):
    if "keras_hub" in PAGES[path]:
        pytest.importorskip("keras_hub")
    folder = tmp_path / "work"
    folder.mkdir()
    # what the TensorFlow class wrote
    shutil.copytree(TENSORFLOW, folder / "my-tf-model")
    with stand_in_hub(tmp_path) as hub:
        finished = subprocess.run(
            [sys.executable, "-c", "\n".join(python_blocks(path))],
            cwd=folder,
            env={**os.environ, **hub},
            capture_output=True,
            text=True,
        )
    assert finished.returncode == 0, finished.stderr
    for name in re.findall(r"save\w*\(\"([\w.-]+)\"", "".join(python_blocks(path))):
        assert (folder / name).exists(), name
    pattern = r"```text\n(facebook/vit-mae-base: .*?)```"
    for report in re.findall(pattern, PAGES[path], re.DOTALL):
        assert report in finished.stdout


def test_blocks_save_what_they_name():
    names = {"look.png", "mae.keras", "for-transformers"}
    code = "".join(block for path in PAGES for block in python_blocks(path))
    assert names <= set(re.findall(r"save\w*\(\"([\w.-]+)\"", code))
    assert "\nfacebook/vit-mae-base: " in PAGES["docs/weights.md"]


def test_flags_named_in_commands_exist():
    names = "|".join(COMMANDS)
    scripts = re.findall(rf"(?:python (\w+/\w+\.py)|({names}))\b{REST}", TEXT)
    assert len(scripts) > 20
    for script, command, rest in scripts:
        script = script or COMMANDS[command]
        if script == "serving/client.py":
            continue  # tests/conformance runs its lines
        known = {field.name for field in dataclasses.fields(config_class(script))}
        for flag in re.findall(r"--(?:no-)?(\w+)", rest):
            assert flag in (*known, "help"), (script, flag)


# of a command, up to the end of the line, block or code
REST = r"((?: \\\n|[^\n`])*)"


@pytest.mark.parametrize("path", ["README.md", "docs/getting-started.md"])
def test_the_table_lists_every_preset(path):
    rows = re.findall(r"^\| `(mae_\w+)` \|(.*)\|$", PAGES[path], re.MULTILINE)
    assert {name for name, _ in rows} == set(keras_mae.PRESETS)
    for name, cells in rows:
        sizes = keras_mae.PRESETS[name]
        wanted = [f"{sizes['image_size']}, {sizes['patch_size']}"]
        wanted += [f"{sizes['hidden_dim']}, {sizes['depth']}, {sizes['num_heads']}"]
        assert [cell.strip() for cell in cells.split("|")][:2] == wanted, name


def test_fresh_weights_are_told_where_presets_are():
    text = " ".join(PAGES["README.md"].replace("> ", "").split())
    assert "`from_preset(name)` builds a model of a published size with fresh" in text


def anchors(path):
    """The anchors of a page, as GitHub makes them of headings."""
    text = (ROOT / path).read_text()
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("path", LINKING, ids=str)
def test_links_and_pictures_lead_somewhere(path):
    text = re.sub(r"`[^`\n]*`", "", (ROOT / path).read_text())
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = os.path.normpath(path.parent / name) if name else path
        assert (ROOT / target).is_file(), link
        assert not anchor or anchor in anchors(target), link


def test_pictures_are_shown():
    shown = set(re.findall(r"!\[[^]]*\]\((?:docs/)?(pictures/[^)]+)\)", TEXT))
    there = (ROOT / "docs/pictures").iterdir()
    assert shown == {f"pictures/{path.name}" for path in there}


def test_the_site_has_every_page():
    listed = re.findall(r"^ +- [^:\n]+: (\S+\.md)$", SITE, re.MULTILINE)
    pages = {str(p.relative_to("docs")) for p in LINKING if p.parts[0] == "docs"}
    roots = {"CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"}
    assert sorted(listed) == sorted(pages | roots)
    order = [name for name in listed if name.removesuffix(".md") in NAMES]
    assert order == [f"{name}.md" for name in NAMES]


SITE = (ROOT / "mkdocs.yml").read_text()


def test_paths_in_the_sources_exist():
    text = "".join((ROOT / path).read_text() for path in LINKING if path != CHANGELOG)
    folders = "keras_mae|training|serving|tests|docs"
    found = set(re.findall(rf"`((?:{folders})/[\w./-]*)`", text))
    assert len(found) > 50
    assert {path for path in found if not (ROOT / path).exists()} == set()


# it tells of paths that were
CHANGELOG = Path("CHANGELOG.md")


def test_names_in_the_sources_exist():
    rows = re.findall(r"^\| [^|]+ \| `([\w.]+).*?` in `([\w/.]+)`", TEXT, re.MULTILINE)
    assert len(rows) > 3
    for name, path in rows:
        assert not (ROOT / path).exists() or name in (ROOT / path).read_text(), path


def test_the_commands_are_the_scripts():
    for command, script in COMMANDS.items():
        row = f"| `{command}` | `{script}` |"
        assert row in PAGES["docs/getting-started.md"], row


def test_values_of_flags_are_read():
    for line in read_lines():
        found = re.match(r"\w+ ((?:training|serving)/\S+) (.*)", as_script(line))
        if found and found[1] != "serving/client.py" and "kubectl" not in line:
            script = found[1].replace("cluster/slurm.sh", "pretrain.py")
            parse_flags(config_class(script), line, shlex.split(found[2]))


def test_files_that_lines_name_exist():
    for line in read_lines():
        for path in re.findall(r"\b(?:training|serving)/[\w./-]+", line):
            assert (ROOT / path).exists(), line


def test_each_line_runs_or_is_said_to_run_elsewhere():
    known = (*SMALLER, *ELSEWHERE, *SERVERS)
    assert [line for line in read_lines() if not line.startswith(known)] == []


def test_each_run_has_a_folder_of_its_own():
    lines = [line for line in read_lines() if not line.startswith(ELSEWHERE)]
    runs = [
        found[1]
        for line in lines
        if not re.search(r"--(resume|overwrite|eval|dry_run|name)\b", line)
        and (found := re.search(r"--output=(\S+)", line))
    ]
    assert sorted(set(runs)) == sorted(runs)


def test_extras_that_lines_install_exist():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for extras in re.findall(r'pip install -e "\.\[([\w,-]+)\]"', TEXT):
        for name in extras.split(","):
            assert name in setup["options.extras_require"], name


ON_JAX = "KERAS_BACKEND=jax python training/pretrain.py"
# what a line that begins so is given besides, to be small
SMALLER = {
    "python training/visualize.py": "",
    "python training/plot_history.py": "",
    "python training/own_images.py": "--image_size=16 --pretrain_epochs=1 --epochs=1 "
    "--batch_size=8",
    "keras-mae-convert": "",
    "keras-mae-pretrain": "--epochs=1 --warmup_epochs=0",
    "keras-mae-finetune": "--epochs=1 --warmup_epochs=0",
    "keras-mae-export": "",
    "python training/pretrain.py --dataset=photos": "--image_size=32 --epochs=1 "
    "--warmup_epochs=0 --validation_images=8 --log_every=1",
    "python training/pretrain.py --dataset=folder:": "--batch_size=8 --epochs=1 "
    "--warmup_epochs=0",
    "python training/write_tfrecords.py": "--shards=2",
    "python training/pretrain.py --dataset='tfrecord:": "--batch_size=8 --epochs=1 "
    "--warmup_epochs=0",
    "python training/pretrain.py --dataset=hf:": "--dataset=hf:pets --image_size=32 "
    "--batch_size=8 --epochs=1 --warmup_epochs=0",
    "python training/pretrain.py --dataset='webdataset:": "--held_out=folder:pets "
    "--dataset=webdataset:pets.tar --image_size=32 --batch_size=8 --epochs=1 "
    "--warmup_epochs=0",
    "python training/pretrain.py --model=facebook": "--batch_size=2 --epochs=1 "
    "--warmup_epochs=0 --image_size=32 --pictures=1",
    "python training/pretrain.py --model=published": "--epochs=1 --warmup_epochs=0",
    "python training/pretrain.py --model=runs/photos": "--epochs=1 --warmup_epochs=0 "
    "--model=runs/photos/checkpoints/step-000000010.keras",
    "python training/pretrain.py --callback": "--epochs=1 --warmup_epochs=0",
    "python training/pretrain.py --mask": "--epochs=2 --warmup_epochs=0",
    "python training/compare_masks.py": "--seeds=1 --epochs=1",
    "python training/pretrain.py --blr": "--epochs=1 --warmup_epochs=0",
    f"{ON_JAX} --strategy=data_parallel": "--epochs=1 --warmup_epochs=0",
    f"{ON_JAX} --strategy=model_parallel": "--dataset=folder:pets --preset=mae_tiny "
    "--model_shards=2 --batch_size=8 --epochs=1 --warmup_epochs=0",
    "python training/pretrain.py --strategy=mirrored": "--dataset=folder:pets "
    "--preset=mae_tiny --replicas=2 --batch_size=8 --epochs=1 --warmup_epochs=0",
    "python training/finetune.py --model=runs/pretrain": "--epochs=1 --warmup_epochs=0",
    "python training/finetune.py --model=runs/tuned/best.keras": "",
    "python training/linear_probe.py": "",
    "tensorboard": "--inspect",
    "python serving/export.py": "",
    "echo": "",
    "curl": "",
    "python serving/client.py": "",
}
# what runs elsewhere, or can't run here
ELSEWHERE = (
    *("make", "pip install", "pytest tests/conformance", "tensorflow_model_server"),
    *("docker", "kubectl", "sbatch", "python -m tests.conformance"),
    # tests/serving/test_proxy.py runs the certificate's
    *("mkdir", "openssl", "export TOKEN", "curl --cacert"),
    *("python training/benchmark", "python serving/benchmark.py"),
    "bash training/benchmark_gpu.sh",
    *("python training/compare.py", "python training/pretrain.py --preset=mae_large"),
    "python training/pretrain.py --wandb",
)


SERVERS = ("python serving/local_server.py", "keras-mae-serve")


def as_script(line):
    """Puts the script's path in the place of an installed command's name."""
    command, _, flags = line.partition(" ")
    if command == "keras-mae-convert":
        return f"python -m keras_mae.weights {flags}"
    return f"python {COMMANDS[command]} {flags}" if command in COMMANDS else line


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
    for name in ("train", "val"):
        shutil.copytree(folder / "pets", folder / "scans" / name)
    with tarfile.open(folder / "pets.tar", "w") as tar:
        tar.add(folder / "pets", "pets")
    model = keras_mae.MAEPretrainer.from_preset("mae_tiny", depth=1, decoder_depth=1)
    model.save_pretrained(folder, "facebook")
    (folder / "model.pth").rename(folder / "mae_pretrain_vit_base_full.pth")
    block = re.search(r"```python title=\"my_callbacks.py\"\n(.*?)```", TEXT, re.DOTALL)
    (folder / "my_callbacks.py").write_text(block[1])
    shutil.copytree(TENSORFLOW, folder / "my-tf-model")
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
            if line.startswith(SERVERS):
                _, script, *flags = shlex.split(as_script(line))
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
        pattern = r"```python title=\"(?:async_)?client.py\"\n(.*?)```"
        for block in re.findall(pattern, TEXT, re.DOTALL):
            (folder / "lines.py").write_text(block.replace("localhost:8501", address))
            subprocess.run(
                [sys.executable, "lines.py"],
                cwd=folder,
                env={**variables, "PYTHONPATH": str(ROOT / "serving")},
                check=True,
            )
    names = ("reconstruction.png", "base/model.keras", "for-timm/model.safetensors")
    for name in (*names, "sheet.png"):
        assert (folder / name).exists(), name
    assert np.load(folder / "features.npz")["features"].shape[0] == 2
