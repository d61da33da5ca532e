"""training/pretrain.py, whole, on real data: what it writes, refuses and survives."""

import ast
import csv
import json
import subprocess
import time

import keras
import numpy as np
import pytest
from PIL import Image

import keras_mae
from tests.scripts import ROOT, command, environment, run

SCRIPT = "training/pretrain.py"
SMALL = ("--epochs=2", "--warmup_epochs=1", "--blr=8e-3", "--patch_size=8")

pytest.importorskip("sklearn")
pytest.importorskip("skimage")
pytest.importorskip("tensorboard")


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits") / "run"
    finished = run(SCRIPT, *SMALL, f"--output={folder}")
    assert finished.returncode == 0, finished.stderr
    return folder, finished


def test_a_run_leaves_all_that_it_promises(digits_run):
    folder, finished = digits_run
    assert finished.stderr == ""
    rows = list(csv.DictReader((folder / "history.csv").open()))
    assert len(rows) == 2
    assert float(rows[1]["val_loss"]) < float(rows[0]["val_loss"])
    config = json.loads((folder / "config.json").read_text())
    assert config["patch_size"] == 8 and config["dataset"] == "digits"
    model = keras.models.load_model(folder / "model.keras")
    assert int(model.optimizer.iterations) == 2 * (1437 // 64)
    assert model.encoder.patch_size == (8, 8) and model.norm_pix_loss
    processor = keras_mae.MAEImageProcessor.from_pretrained(folder)
    assert processor.num_channels == 1
    picture = Image.open(folder / "logs" / "pictures" / "epoch-0002.png")
    assert picture.width == 4 * 160 + 12
    for events in ("train", "validation", "pictures"):
        assert list((folder / "logs" / events).glob("events.out.tfevents.*"))


def test_a_run_is_not_overwritten_by_accident(digits_run):
    folder, _ = digits_run
    before = (folder / "model.keras").read_bytes()
    finished = run(SCRIPT, *SMALL, f"--output={folder}")
    assert finished.returncode == 2
    assert "holds a run already" in finished.stderr
    assert (folder / "model.keras").read_bytes() == before


def test_a_wrong_flag_does_not_touch_the_run_it_would_overwrite(digits_run):
    folder, _ = digits_run
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    finished = run(SCRIPT, *SMALL, f"--output={folder}", "--overwrite",
                   "--mask_ratio=0")  # fmt: skip
    assert finished.returncode == 2
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


@pytest.mark.slow
def test_held_out_images_are_shared_by_any_number_of_replicas(tmp_path):
    finished = run(
        SCRIPT,
        *SMALL,
        f"--output={tmp_path / 'run'}",
        "--dataset=photos",
        "--strategy=mirrored",
        "--replicas=3",
        "--batch_size=63",
    )
    assert finished.returncode == 0, finished.stderr


def test_a_folder_that_is_no_run_keeps_its_files(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "mine.txt").write_text("keep")
    finished = run(SCRIPT, *SMALL, f"--output={tmp_path}", "--overwrite")
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "logs" / "mine.txt").read_text() == "keep"


@pytest.mark.slow
def test_photos_under_mirrored_replicas_in_half_precision(tmp_path):
    finished = run(
        SCRIPT,
        *SMALL,
        "--dataset=photos",
        f"--output={tmp_path / 'run'}",
        "--strategy=mirrored",
        "--replicas=2",
        "--precision=mixed_bfloat16",
        "--no-norm_pix_loss",
    )
    assert finished.returncode == 0, finished.stderr
    assert "2 replica(s)" in finished.stdout
    rows = list(csv.DictReader((tmp_path / "run" / "history.csv").open()))
    losses = [float(row["loss"]) for row in rows]
    assert np.isfinite(losses).all() and losses[1] < losses[0]


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--dataset=imagenet", "dataset must be one of digits, photos"),
        ("--preset=mae_giant", "preset must be one of"),
        ("--strategy=warp", "strategy must be one of"),
        ("--mask_ratio=1.0", "mask_ratio must be in [0, 1). Received: 1.0"),
        ("--patch_size=5", "divisible"),
        ("--batch_size=0", "batch_size must be in [1, 1437]"),
        ("--epochs=0", "warmup_epochs must be in [0, epochs)"),
        ("--mask_ratio=0", "at least one must be removed"),
        ("--precision=float64", "invalid choice"),
        ("--checkpoint_every=0", "every must be at least 1"),
        ("--picture_every=0", "every must be at least 1"),
        ("--pictures=0", "pictures must be at least 1"),
        ("--blr=0", "learning_rate must be positive"),
        ("--speed=9", "unrecognized arguments"),
        ("--output=/proc/run", "/proc/run"),
    ],
)
def test_bad_input_is_one_line_and_code_2(tmp_path, flag, message):
    output = [] if "output" in flag else [f"--output={tmp_path / 'run'}"]
    finished = run(SCRIPT, *output, flag)
    assert finished.returncode == 2
    assert len(finished.stderr.splitlines()) == 1, finished.stderr
    assert message in finished.stderr
    assert not (tmp_path / "run" / "model.keras").exists()


def test_replicas_must_share_the_batch_equally(tmp_path):
    finished = run(SCRIPT, f"--output={tmp_path}", "--strategy=mirrored",
                   "--batch_size=63")  # fmt: skip
    assert finished.returncode == 2
    assert "divisible by the 2 replicas. Received: 63" in finished.stderr


def test_every_flag_is_read():
    tree = ast.parse((ROOT / SCRIPT).read_text())
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    fields = {item.target.id for item in classes[0].body if hasattr(item, "target")}
    read = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "config"
    }
    assert fields == read


@pytest.mark.slow
def test_a_killed_run_leaves_a_whole_checkpoint_or_none(tmp_path):
    rng = np.random.default_rng(0)
    for attempt in range(8):
        folder = tmp_path / str(attempt)
        process = subprocess.Popen(
            command(SCRIPT, f"--output={folder}", "--epochs=500", "--patch_size=16",
                    "--checkpoint_every=1", "--picture_every=500"),
            env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        # past the start, and then anywhere in an epoch or in a save
        deadline = time.monotonic() + 90
        while not (folder / "model.keras").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(rng.uniform(0, 3))
        process.kill()
        process.wait()
        model = keras.models.load_model(folder / "model.keras")
        assert int(model.optimizer.iterations) >= 22
