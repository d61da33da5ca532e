"""--ema and --probe_every: numbers, files, and resuming, on digits."""

import csv
import signal

import keras
import numpy as np
import pytest

from keras_mae.callbacks.checkpoints import list_checkpoints
from keras_mae.callbacks.stopping import StopOnNonFiniteLoss
from keras_mae.models.loading import load_run
from keras_mae.utils.flags import parse_flags
from tests.callbacks.test_callbacks import read_events
from tests.scripts import load, refusal

SCRIPT = "training/pretrain.py"
FLAGS = ("--epochs=3", "--warmup_epochs=1", "--blr=8e-3", "--patch_size=16",
         "--ema=0.9", "--probe_every=4", "--validation_images=64")  # fmt: skip

pytest.importorskip("sklearn")
pytest.importorskip("tensorboard")


def pretrain(*flags):
    script = load(SCRIPT)
    return script.main(parse_flags(script.PretrainConfig, "", list(flags)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    pretrain(*FLAGS, f"--output={folder}")
    return folder


def rows_of(folder):
    return list(csv.DictReader((folder / "history.csv").open()))


def newest(folder):
    path = list(list_checkpoints(folder / "checkpoints").values())[-1]
    return keras.models.load_model(path)


def arrays(variables):
    return [keras.ops.convert_to_numpy(variable) for variable in variables]


def assert_equal(ours, theirs):
    for mine, wanted in zip(arrays(ours), arrays(theirs), strict=True):
        np.testing.assert_array_equal(mine, wanted)


@pytest.mark.nightly
def test_the_probe_equals_the_script_on_the_run(whole):
    rows = rows_of(whole)
    probed = [row["probe_knn_accuracy"] != "" for row in rows]
    assert probed == [True, False, True] and float(rows[-1]["probe_seconds"]) > 0
    script = load("training/linear_probe.py")
    flags = [f"--model={whole}", "--method=knn", "--no-pictures",
             f"--output={whole / 'probe'}"]  # fmt: skip
    top1 = script.main(parse_flags(script.ProbeConfig, "", flags))
    assert float(rows[-1]["probe_knn_accuracy"]) == top1 > 0.3
    curve = read_events(whole / "logs" / "train")["probe_knn_accuracy"]
    assert curve[-1][1] == pytest.approx(top1)


@pytest.mark.slow
def test_the_model_file_has_the_averages_and_checkpoints_both(whole):
    checkpoint = newest(whole)
    averages = checkpoint.optimizer._model_variables_moving_average
    # what is exported, fine-tuned and probed
    model, _ = load_run(whole)
    assert_equal(model.trainable_variables, averages)
    own = arrays(checkpoint.trainable_variables)
    assert np.abs(own[0] - arrays(averages)[0]).max() > 1e-5


@pytest.mark.nightly
def test_an_interrupted_run_goes_on_to_the_bit(whole, tmp_path, monkeypatch):
    folder, steps = tmp_path / "run", []
    checked = StopOnNonFiniteLoss.on_train_batch_end

    def interrupt(self, batch, logs=None):
        steps.append(batch)
        if len(steps) == 30:  # in the second epoch of 22 steps
            signal.raise_signal(signal.SIGTERM)
        checked(self, batch, logs)

    with monkeypatch.context() as patch:
        patch.setattr(StopOnNonFiniteLoss, "on_train_batch_end", interrupt)
        with pytest.raises(SystemExit):
            pretrain(*FLAGS, f"--output={folder}")
    assert max(list_checkpoints(folder / "checkpoints")) == 30
    pretrain(*FLAGS, f"--output={folder}", "--resume")
    ours, theirs = newest(folder), newest(whole)
    assert_equal(ours.variables, theirs.variables)
    assert_equal(ours.optimizer.variables, theirs.optimizer.variables)
    for mine, wanted in zip(rows_of(folder), rows_of(whole), strict=True):
        for name in ("loss", "val_loss", "probe_knn_accuracy"):
            assert mine[name] == wanted[name], name


@pytest.mark.nightly
def test_finetuning_evaluates_and_keeps_the_averages(whole, tmp_path):
    script = load("training/finetune.py")
    flags = [f"--model={whole}", f"--output={tmp_path}", "--epochs=2",
             "--warmup_epochs=1", "--ema=0.8", "--mixup=0"]  # fmt: skip
    script.main(parse_flags(script.FinetuneConfig, "", flags))
    best = max(float(row["val_top1"]) for row in rows_of(tmp_path))
    flags = [f"--model={tmp_path / 'best.keras'}", "--eval", f"--output={tmp_path}"]
    results = script.main(parse_flags(script.FinetuneConfig, "", flags))
    assert results["top1"] == pytest.approx(best, abs=1e-6)
    saved = keras.models.load_model(tmp_path / "best.keras")
    assert_equal(
        saved.trainable_variables, saved.optimizer._model_variables_moving_average
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags, message",
    [
        (["--ema=1"], "ema must be in [0, 1). Received: 1.0"),
        (["--probe_every=0"], "probe_every must be at least 1. Received: 0"),
        (["--probe_every=1", "--dataset=photos"], "give --probe_dataset"),
        (["--probe_every=1", "--probe_method=svm"], "invalid choice"),
        (["--probe_every=1", "--num_classes=9"], "must be in [0, 9)"),
        (["--probe_dataset=digits"], "probe_dataset needs --probe_every"),
        (
            ["--probe_every=1", "--dataset=photos", "--probe_dataset=digits",
             "--image_size=32", "--pictures=1"],
            "must have images of 3 channels, as --dataset has. Received: digits, of 1",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_code_2(tmp_path, flags, message):
    assert message in refusal(SCRIPT, f"--output={tmp_path / 'run'}", *flags)
    assert not (tmp_path / "run").exists()
