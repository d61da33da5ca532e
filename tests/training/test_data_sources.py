"""The training scripts on hf:PATH and webdataset:GLOB, from flags to accuracy."""

import csv
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from keras_mae.utils.flags import parse_flags
from tests.scripts import config_class, load, refusal

pytestmark = pytest.mark.nightly

pytest.importorskip("tensorboard")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
datasets = pytest.importorskip("datasets")

TINY = ("--batch_size=8", "--warmup_epochs=0", "--image_size=16")
PRETRAIN, TUNE = "training/pretrain.py", "training/finetune.py"
PROBE = "training/linear_probe.py"


def start(script, *flags):
    flags = list(map(str, flags))
    return load(script).main(parse_flags(config_class(script), "", flags))


def png(number):
    """Draws a dark picture, or of an odd number a bright one."""
    pixels = np.random.default_rng(number).integers(0, 90, (20, 20, 3), "uint8")
    content = io.BytesIO()
    Image.fromarray(pixels + np.uint8(150 * (number % 2))).save(content, "PNG")
    return content.getvalue()


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The same pictures as Parquet and as tar shards."""
    folder = tmp_path_factory.mktemp("sources")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "kind": datasets.ClassLabel(names=["dark", "light"]),
        }
    )
    (folder / "parquet").mkdir()
    for split, numbers in (("train", range(24)), ("test", range(24, 32))):
        rows = {
            "image": [{"bytes": png(number)} for number in numbers],
            "kind": [number % 2 for number in numbers],
        }
        table = datasets.Dataset.from_dict(rows, features)
        table.to_parquet(folder / "parquet" / f"{split}-00000-of-00001.parquet")
        with tarfile.open(folder / f"{split}-0.tar", "w") as tar:
            for number in numbers:
                kind = ["dark", "light"][number % 2].encode()
                for name, content in (("png", png(number)), ("cls", kind)):
                    member = tarfile.TarInfo(f"{number:02}.{name}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    shards = f"webdataset:{folder}/{{}}-*.tar"
    return {
        "hf": (f"--dataset=hf:{folder}/parquet", f"--data_dir={folder}/cache"),
        "webdataset": (
            f"--dataset={shards.format('train')}",
            f"--held_out={shards.format('test')}",
        ),
    }


@pytest.fixture(scope="module")
def runs(sources, tmp_path_factory):
    """Two epochs of each source at once, and one by one."""
    folder = tmp_path_factory.mktemp("runs")
    small = (*TINY, "--patch_size=8", "--seed=3")
    for name, flags in sources.items():
        start(PRETRAIN, *flags, *small, "--epochs=2", f"--output={folder / name}")
    return folder


def losses(folder):
    return [
        float(row["loss"]) for row in csv.DictReader((folder / "history.csv").open())
    ]


@pytest.mark.parametrize("name", ["hf", "webdataset"])
def test_pretraining_counts_images_and_learns(name, runs):
    described = json.loads((runs / name / "data.json").read_text())
    assert described["images"] == 24 and described["held_out"] == 8
    assert len(losses(runs / name)) == 2 and np.isfinite(losses(runs / name)).all()
    # the same number of images and the same seed: the same order
    np.testing.assert_allclose(losses(runs / "hf"), losses(runs / "webdataset"))


def test_fine_tuning_reads_the_labels_of_shards(runs, sources, tmp_path):
    model = f"--model={runs / 'webdataset'}"
    flags = ("--epochs=3", "--blr=2e-2", f"--output={tmp_path}")
    start(TUNE, *sources["webdataset"], *TINY, model, *flags)
    assert (tmp_path / "labels.txt").read_text().split() == ["dark", "light"]
    assert json.loads((tmp_path / "best.json").read_text())["val_top1"] == 1


def test_probing_reads_the_labels_of_tables(runs, sources, tmp_path):
    flags = (*sources["hf"], "--batch_size=8", f"--model={runs / 'hf'}")
    probe = ("--labels_per_class=8", "--method=knn", "--k=3", "--no-pictures")
    assert start(PROBE, *flags, *probe, f"--output={tmp_path}") == 1


def test_what_is_wrong_is_one_line(sources, tmp_path):
    for flag, message in (
        ("--dataset=hf:./nowhere", "hf:./nowhere could not be loaded"),
        ("--dataset=webdataset:nowhere-{0..9}.tar", "nowhere-0.tar and 9 more"),
        (sources["hf"][0] + "?image=photo", "Received: image=photo for image (Image)"),
    ):
        output = f"--output={tmp_path / 'run'}"
        assert message in refusal(PRETRAIN, *sources["hf"], flag, output)
