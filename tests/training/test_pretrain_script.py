"""training/pretrain.py on real data: outputs, wrong flags, resuming after kills."""

import csv
import io
import json
import re
import resource
import shutil
import subprocess
import sys
import time
import zipfile

import h5py
import keras
import numpy as np
import pytest
from PIL import Image

import keras_mae
from keras_mae.callbacks.checkpoints import list_checkpoints
from keras_mae.callbacks.tensorboard import TensorBoardScalars
from keras_mae.utils.flags import parse_flags
from tests import pictures
from tests.callbacks.test_callbacks import read_events
from tests.callbacks.test_trackers import stand_in_wandb
from tests.scripts import command, environment, load, refusal, run

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


@pytest.mark.slow
def test_run_writes_its_files(digits_run):
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
    last = [float(row["val_loss"]) for row in rows]
    curves = read_events(folder / "logs" / "validation")
    np.testing.assert_allclose([loss for _, loss in curves["loss"]], last, rtol=1e-6)
    assert "gradient_norm" in read_events(folder / "logs" / "train")
    assert "reconstructions" in read_events(folder / "logs" / "pictures")


@pytest.mark.slow
def test_run_is_not_overwritten_without_the_flag(digits_run):
    folder, _ = digits_run
    before = (folder / "model.keras").read_bytes()
    error = refusal(SCRIPT, *SMALL, f"--output={folder}")
    assert "holds a run already" in error
    assert (folder / "model.keras").read_bytes() == before


@pytest.mark.slow
def test_overwrite_with_a_wrong_flag_keeps_the_run(digits_run):
    folder, _ = digits_run
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    refusal(SCRIPT, *SMALL, f"--output={folder}", "--overwrite", "--mask_ratio=0")
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


@pytest.mark.nightly
def test_validation_with_an_odd_number_of_replicas(tmp_path):
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


@pytest.mark.nightly
def test_overwrite_keeps_files_that_are_not_of_a_run(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "mine.txt").write_text("keep")
    finished = run(SCRIPT, *SMALL, f"--output={tmp_path}", "--overwrite")
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "logs" / "mine.txt").read_text() == "keep"


@pytest.mark.nightly
def test_photos_with_mirrored_replicas_in_mixed_bfloat16(tmp_path):
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


# found once the model is built
REFUSED_LATE = [
    ("--crop_scale=2", "crop_scale"),
    ("--keep=0", "keep must be at least 1"),
    ("--log_every=0", "log_every must be at least 1"),
    ("--mask_ratio_schedule=0:0.5", "at least one must be removed"),
    ("--checkpoint_steps=0", "checkpoint_steps must be at least 1"),
    ("--checkpoint_minutes=0", "checkpoint_minutes must be positive"),
    ("--picture_every=0", "picture_every must be at least 1"),
    ("--pictures=0", "pictures must be at least 1"),
    ("--output=/proc/run", "/proc/run"),
]


@pytest.mark.parametrize(
    "flag, message",
    [
        *(pytest.param(*row, marks=pytest.mark.slow) for row in REFUSED_LATE),
        ("--dataset=imagenet", "imagenet"),
        ("--preset=mae_giant", "preset must be one of"),
        ("--strategy=warp", "strategy must be one of"),
        ("--mask_ratio=1.0", "mask_ratio must be in [0, 1). Received: 1.0"),
        ("--patch_size=5", "divisible"),
        ("--batch_size=0", "batch_size must be in [1, 1437]"),
        ("--batch_size=2000", "batch_size must be in [1, 1437]"),
        ("--steps_per_execution=23", "steps_per_execution=23"),
        ("--strategy=tpu", "strategy 'tpu' needs a TPU"),
        ("--config=/no/config.json", "config must be a JSON object"),
        ("--dataset=folder:/no", "/no"),
        ("--accumulation_steps=0", "accumulation_steps must be at least 1"),
        ("--validation_images=0", "validation_images must be at least 1"),
        ("--corrupt_limit=-1", "corrupt_limit must be at least 0"),
        ("--epochs=0", "warmup_epochs must be in [0, epochs)"),
        ("--mask_ratio=0", "at least one must be removed"),
        ("--mask_ratio_schedule=0.5:0.6 --mask_ratio=0.75", "Received: both"),
        ("--mask_ratio_schedule=0.5", "must be START:END[:VALUES[:SHAPE]]"),
        ("--mask_sampling=stripes", "invalid choice"),
        ("--precision=float64", "invalid choice"),
        ("--blr=0", "learning_rate must be positive"),
        ("--speed=9", "unrecognized arguments"),
        ("--model=/no/run", "/no/run, which does not exist"),
        ("--callback=no_such:make", "no_such:make can't be made: ModuleNotFoundError"),
        ("--callback=builtins", "callback must be module:factory"),
        # before data is read
        ("--callback=builtins:repr --dataset=x", "Received: str"),
    ],
)
def test_bad_input_is_one_line_and_code_2(tmp_path, flag, message):
    output = [] if "output" in flag else [f"--output={tmp_path / 'run'}"]
    assert message in refusal(SCRIPT, *output, *flag.split(" "))
    assert not (tmp_path / "run" / "model.keras").exists()


CALLBACKS = """
import keras

def note(config):
    def write(epoch, logs):
        with open(config.output + "/noted", "a") as file:
            file.write(f"{epoch} {sorted(logs)}\\n")
    return keras.callbacks.LambdaCallback(on_epoch_end=write)
"""


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for index in range(10):
        image = rng.integers(0, 256, (24, 24, 3)).astype("uint8")
        Image.fromarray(image).save(tmp_path / "photos" / f"{index}.png")
    return (f"--dataset=folder:{tmp_path / 'photos'}", "--batch_size=4", "--epochs=1",
            "--warmup_epochs=0", "--pictures=1")  # fmt: skip


def pretrain(*flags):
    script = load(SCRIPT)
    return script.main(parse_flags(script.PretrainConfig, "", [*map(str, flags)]))


@pytest.mark.nightly
def test_published_weights_go_on_also_after_a_nan(
    make_model, photos, tmp_path, monkeypatch, capsys
):
    make_model(num_channels=1, norm_pix_loss=True).save_pretrained(tmp_path / "hub")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("/no/such")  # and sys.path is restored
    (tmp_path / "noting.py").write_text(CALLBACKS)
    wandb = stand_in_wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    photos = (*photos, "--wandb=mae")
    with pytest.raises(FloatingPointError, match="is nan at step 2") as stopped:
        pretrain("--model=hub", "--image_size=24", "--blr=1e36", "--output=a", *photos)
    way_out = str(stopped.value).partition("another folder: ")[2].split()
    names = [flag.partition("=")[0] for flag in way_out]
    assert names == ["--model", "--blr", "--output"] and "=5e+35" in way_out[1]
    flags = (way_out[0], "--blr=1e-3", "--output=b", *photos, "--callback=noting:note")
    model = pretrain(*flags)
    assert model.encoder.image_size == (24, 24) and model.encoder.num_channels == 3
    assert int(model.optimizer.iterations) == 2 and model.norm_pix_loss
    assert "val_loss" in (tmp_path / "b" / "noted").read_text()
    nan, run = wandb.runs.values()
    assert nan["ended"] == 1 and run["ended"] == 0
    assert run["params"] == json.loads((tmp_path / "b" / "config.json").read_text())
    ((step, logged),) = run["rows"]
    ((_, loss, val_loss, *_),) = losses(tmp_path / "b")
    assert step == 2 and logged["loss"] == pytest.approx(float(loss))
    assert logged["val_loss"] == pytest.approx(float(val_loss))
    first = model.get_weights()
    shutil.rmtree(tmp_path / "a")
    capsys.readouterr()
    again = pretrain(*flags, "--resume").get_weights()
    for wanted, found in zip(first, again, strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert "held out; from step 2" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"--model=hub \(a/check"):
        pretrain("--model=hub", *flags[1:], "--resume")


@pytest.mark.nightly
def test_a_model_of_one_channel_goes_on_with_image_files(make_model, photos, tmp_path):
    hub, run = tmp_path / "hub", tmp_path / "run"
    make_model(num_channels=1).save_pretrained(hub)
    keras_mae.MAEImageProcessor(32, [0.2], [0.3]).save_pretrained(hub)
    flags = (f"--model={hub}", "--num_channels=1", "--image_size=24", *photos)
    model = pretrain(*flags, f"--output={run}")
    assert model.encoder.num_channels == 1
    assert keras_mae.MAEImageProcessor.from_pretrained(run).image_mean == (0.2,)


@pytest.mark.slow
def test_a_tracker_that_cannot_start_keeps_the_older_run(photos, tmp_path, monkeypatch):
    wandb = stand_in_wandb()
    wandb.down = True
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    older = tmp_path / "older"
    (older / "checkpoints").mkdir(parents=True)
    files = [older / "model.keras", older / "checkpoints" / "step-000000009.keras"]
    for path in files:
        path.write_text("weights")
    flags = (*photos, *SMALL[2:], "--wandb=mae")
    error = refusal(SCRIPT, *flags, f"--output={older}", "--overwrite")
    assert "wandb can't start: the server is down" in error
    assert [path.read_text() for path in files] == ["weights"] * 2
    for _ in range(2):  # trying again needs no other flags
        error = refusal(SCRIPT, *flags, f"--output={tmp_path / 'new'}")
        assert "wandb can't start" in error


def test_a_schedule_leaves_no_mask_ratio_beside_it():
    """Else config.json would tell of one that no step had."""
    config = load(SCRIPT).PretrainConfig
    assert config(mask_ratio_schedule="0.5:0.75").resolved().mask_ratio is None
    assert config().resolved().mask_ratio == 0.75


@pytest.mark.nightly
def test_an_accelerator_runs_on_between_reports(photos, tmp_path, monkeypatch):
    """Callbacks that are called less often change no number of the run."""
    flags = (*photos, "--batch_size=2", "--log_every=3")
    seen = []
    report = TensorBoardScalars.on_train_batch_end

    def count(self, batch, logs=None):
        seen.append(batch)
        report(self, batch, logs)

    monkeypatch.setattr(TensorBoardScalars, "on_train_batch_end", count)
    monkeypatch.setattr("time.monotonic", lambda: 100.0)
    pretrain(*flags, f"--output={tmp_path / 'each'}")
    each = seen.copy()
    seen.clear()
    place = "keras_mae.runs.training_run.has_accelerator"
    monkeypatch.setattr(place, lambda strategy: True)
    pretrain(*flags, f"--output={tmp_path / 'few'}")
    assert each == [0, 1, 2, 3] and seen == [0, 2, 3]
    assert losses(tmp_path / "few") == losses(tmp_path / "each")


@pytest.mark.nightly
def test_blocks_by_a_schedule(tmp_path):
    flags = ("--mask_sampling=block", "--mask_ratio_schedule=0.5:0.75")
    finished = run(SCRIPT, *SMALL, *flags, f"--output={tmp_path}")
    assert finished.returncode == 0, finished.stderr
    rows = list(csv.DictReader((tmp_path / "history.csv").open()))
    assert [row["mask_ratio"] for row in rows] == ["0.5", "0.75"]
    # each ratio has its own function, whose wait for data is measured
    assert all(float(row["data_wait"]) > 0 for row in rows)
    model = keras.models.load_model(tmp_path / "model.keras")
    assert (model.mask_sampling, model.mask_ratio) == ("block", 0.75)
    # a run that has ended keeps its ratio, which --model and others read
    pretrain(*SMALL, *flags, f"--output={tmp_path}", "--resume")
    assert keras.models.load_model(tmp_path / "model.keras").mask_ratio == 0.75


@pytest.mark.nightly
def test_bad_input_in_a_subprocess(tmp_path):
    finished = run(SCRIPT, f"--output={tmp_path / 'run'}", "--mask_ratio=1.0")
    assert finished.returncode == 2
    assert len(finished.stderr.splitlines()) == 1, finished.stderr
    assert "mask_ratio must be in [0, 1). Received: 1.0" in finished.stderr


@pytest.mark.nightly
def test_replicas_must_share_the_batch_equally(tmp_path):
    finished = run(SCRIPT, f"--output={tmp_path}", "--strategy=mirrored",
                   "--batch_size=63")  # fmt: skip
    assert finished.returncode == 2
    assert "divisible by the 2 replicas and 1 accum" in finished.stderr


def start(*arguments, script=SCRIPT):
    """Starts a script, to be stopped in the middle."""
    return subprocess.Popen(
        command(script, *arguments),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition, process, seconds=600):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.05)


def state(folder):
    """Reads all that a run's newest checkpoint holds, as raw arrays."""
    arrays = {}
    with zipfile.ZipFile(folder / "model.keras") as archive:
        content = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(content) as file:
        file.visititems(
            lambda name, item: (
                arrays.update({name: np.asarray(item)})
                if isinstance(item, h5py.Dataset)
                else None
            )
        )
    return arrays


def losses(folder):
    rows = csv.DictReader((folder / "history.csv").open())
    names = ("epoch", "loss", "val_loss", "top1", "top5")  # a classifier's too
    return [[row.get(name) for name in names] for row in rows]


def assert_same_run(folder, wanted):
    ours, theirs = state(folder), state(wanted)
    assert set(ours) == set(theirs) and len(ours) > 50
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)
    assert losses(folder) == losses(wanted)


@pytest.mark.slow
def test_sigterm_saves_and_resuming_is_bit_exact(digits_run, tmp_path):
    wanted, _ = digits_run
    folder = tmp_path / "run"
    process = start(*SMALL, f"--output={folder}", "--checkpoint_steps=2")
    # in the middle of the second epoch
    wait_for(lambda: (folder / "checkpoints/step-000000026.keras").exists(), process)
    process.terminate()
    assert process.wait() == 75
    assert "SIGTERM: saved step" in process.stderr.read()
    step = max(list_checkpoints(folder / "checkpoints"))
    assert 26 <= step < 44
    assert "give --resume" in refusal(SCRIPT, *SMALL, f"--output={folder}")
    finished = run(SCRIPT, *SMALL, f"--output={folder}", "--resume")
    assert finished.returncode == 0, finished.stderr
    assert f"from step {step}" in finished.stdout
    assert_same_run(folder, wanted)


@pytest.mark.slow
def test_run_with_other_flags_is_not_resumed(digits_run):
    folder, _ = digits_run
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    other = ("--resume", "--seed=7", "--mask_ratio=0.5")
    error = refusal(SCRIPT, *SMALL, f"--output={folder}", *other)
    assert "--mask_ratio=0.5 (0.75 in the run), --seed=7 (0 in the run)" in error
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


@pytest.mark.nightly
def test_tfrecords_with_accumulation_and_steps_per_execution(tmp_path):
    # as the job for a TPU pod in training/cluster trains, and as Keras alone can't:
    # parts need static shapes, and shapes are static where a data set has no end
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for index in range(24):
        image = rng.integers(0, 256, (40, 40, 3)).astype("uint8")
        Image.fromarray(image).save(tmp_path / "images" / f"{index}.png")
    finished = run("training/write_tfrecords.py", f"--folder={tmp_path / 'images'}",
                   f"--output={tmp_path}", "--shards=3")  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    finished = run(
        SCRIPT,
        *(*SMALL, f"--dataset=tfrecord:{tmp_path}/train-*.tfrecord"),
        *("--batch_size=4", "--accumulation_steps=2", "--steps_per_execution=2"),
        *("--checkpoint_steps=2", f"--output={tmp_path / 'run'}"),
    )
    assert finished.returncode == 0, finished.stderr
    assert (
        list_checkpoints(tmp_path / "run" / "checkpoints")
        and len(list(csv.DictReader((tmp_path / "run" / "history.csv").open()))) == 2
    )


@pytest.mark.slow
def test_run_on_other_data_is_not_resumed(digits_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(digits_run[0], folder)
    (folder / "data.json").write_text('{"images": 1500, "held_out": 360}')
    error = refusal(SCRIPT, *SMALL, f"--output={folder}", "--resume")
    assert "trained on other data" in error and "1437" in error


@pytest.mark.nightly
def test_several_steps_per_execution_need_one_replica(tmp_path):
    finished = run(SCRIPT, *SMALL, f"--output={tmp_path}", "--strategy=mirrored",
                   "--steps_per_execution=2")  # fmt: skip
    assert finished.returncode == 2
    assert "steps_per_execution must be 1 with several replicas" in finished.stderr


@pytest.mark.nightly
def test_resuming_a_finished_run(digits_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(digits_run[0], folder)
    # what a kill in the middle of a save leaves
    (folder / ".part-config.json").touch()
    (folder / "checkpoints" / ".part-step-000000007.keras").touch()
    finished = run(SCRIPT, f"--config={folder / 'config.json'}", "--resume",
                   f"--output={folder}")  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert "from step 44" in finished.stdout
    assert not [path for path in folder.rglob("*") if ".part" in path.name]
    assert_same_run(folder, digits_run[0])


@pytest.mark.nightly
def test_dry_run_reports_and_writes_nothing(digits_run, tmp_path):
    saved = digits_run[0] / "config.json"
    finished = run(SCRIPT, f"--config={saved}", "--dry_run", "--epochs=7",
                   f"--output={tmp_path / 'run'}")  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    text, _, costs = finished.stdout.partition("\nparameters:")
    resolved = json.loads(text)
    assert resolved["patch_size"] == 8 and resolved["epochs"] == 7
    assert "917,632" in costs and "7 x 22" in costs
    assert re.search(r"FLOPs: +0\.\d+ T a step", costs)
    assert re.search(r"memory: +about 0\.\d+ GiB", costs)
    assert not (tmp_path / "run").exists()


@pytest.mark.nightly
def test_full_disk_is_found_before_training(tmp_path):
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))  # noqa: E731
    finished = subprocess.run(
        command(SCRIPT, *SMALL, f"--output={tmp_path / 'run'}"),
        env=environment(), capture_output=True, text=True, preexec_fn=limit,
    )  # fmt: skip
    assert finished.returncode == 2, finished.stderr
    assert "File too large" in finished.stderr
    assert "Epoch 1" not in finished.stdout
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


@pytest.mark.nightly
def test_corrupt_images_are_reported_and_too_many_stop_the_run(tmp_path):
    for index in range(12):
        shade = np.full((40, 40, 3), 20 * index, "uint8")
        Image.fromarray(shade).save(tmp_path / f"{index}.png")
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).write_bytes(b"no picture")
    flags = (f"--dataset=folder:{tmp_path}", "--batch_size=4", "--epochs=3",
             "--warmup_epochs=1", f"--output={tmp_path / 'run'}")  # fmt: skip
    finished = run(SCRIPT, *flags, "--corrupt_limit=1")
    assert finished.returncode == 2, finished.stderr
    assert re.search(r"[abc]\.png", finished.stderr)
    finished = run(SCRIPT, *flags, "--corrupt_limit=9", "--overwrite")
    assert finished.returncode == 0, finished.stderr
    for name in ("a.png", "b.png", "c.png"):
        assert name in finished.stderr


@pytest.mark.nightly
def test_twenty_kills_lose_at_most_an_interval_and_change_nothing(tmp_path):
    flags = ("--epochs=8", "--warmup_epochs=1", "--blr=8e-3", "--patch_size=16",
             "--picture_every=50")  # fmt: skip
    wanted, folder = tmp_path / "wanted", tmp_path / "run"
    finished = run(SCRIPT, *flags, f"--output={wanted}")
    assert finished.returncode == 0, finished.stderr
    rng = np.random.default_rng(0)
    arguments = (*flags, f"--output={folder}", "--checkpoint_steps=4", "--resume")
    for kill in range(20):
        before = max(list_checkpoints(folder / "checkpoints"), default=-1)
        process = start(*arguments)
        # past the start, and then anywhere in a step or in a save
        wait_for(
            lambda before=before, process=process: (
                process.poll() is not None
                or max(list_checkpoints(folder / "checkpoints"), default=-1) > before
            ),
            process,
        )
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.wait()
        # whole, and no older than before
        reached = max(list_checkpoints(folder / "checkpoints"))
        assert reached >= before, kill
        with zipfile.ZipFile(folder / "model.keras") as archive:
            assert archive.testzip() is None
    finished = run(SCRIPT, *arguments)
    assert finished.returncode == 0, finished.stderr
    assert_same_run(folder, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("flags, whole", [((), False), (("--crop_scale=1",), True)])
def test_validation_is_on_whole_images_where_training_is(
    flags, whole, tmp_path, monkeypatch
):
    """The border tells the class; probes see whole images in either case."""
    for split in ("train", "val"):
        pictures.write_bordered(tmp_path / split, range(4))
    script, seen = load(SCRIPT), []

    def keep_validation(images, *_):
        seen.append(images)

    def keep_probed(*parts, **_):
        seen.extend(images.numpy() for part in parts[:2] for images, *_ in part)
        raise StopIteration

    monkeypatch.setattr(script, "validation_batches", keep_validation)
    monkeypatch.setattr(script, "FeatureProbe", keep_probed)
    small = (*SMALL, "--image_size=16", "--batch_size=4", "--probe_every=1", *flags)
    flags = [f"--dataset=folder:{tmp_path}", f"--output={tmp_path / 'run'}", *small]
    with pytest.raises(StopIteration):
        script.main(parse_flags(script.PretrainConfig, "", flags))
    processor = keras_mae.MAEImageProcessor(16)
    edges = [processor.denormalize(images)[:4, 0].mean(axis=(1, 2)) for images in seen]
    told = [bool(np.abs(edge - 127.5).min() > 60) for edge in edges]
    assert told == [whole, True, True]
