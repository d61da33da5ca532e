"""training/finetune.py on digits: outputs, evaluation, wrong flags, resuming."""

import csv
import dataclasses
import json
import re
import shutil
import sys

import keras
import numpy as np
import pytest
from PIL import Image

import keras_mae
from keras_mae.models.loading import load_classifier
from keras_mae.recipes import FINE_TUNING
from keras_mae.runs.run_folder import saved_flags
from keras_mae.utils.flags import parse_flags
from tests import pictures
from tests.scripts import config_class, load, refusal, run
from tests.training.test_pretrain_script import assert_same_run, start, wait_for

SCRIPT = "training/finetune.py"
SMALL = ("--epochs=2", "--warmup_epochs=1", "--batch_size=128")

pytest.importorskip("sklearn")
pytest.importorskip("tensorboard")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A run of a small model that never saw an image."""
    folder = tmp_path_factory.mktemp("pretrained")
    keras.utils.set_random_seed(3)  # fixtures of a file come before its tests' seed
    model = keras_mae.MAEPretrainer.from_preset(
        "mae_tiny", num_channels=1, patch_size=8, hidden_dim=48, decoder_depth=1
    )
    model.save(folder / "model.keras")
    processor = keras_mae.MAEImageProcessor(32, (0.3,), (0.35,))
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tuned(pretrained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned") / "run"
    finished = run(SCRIPT, *SMALL, f"--model={pretrained}", f"--output={folder}")
    assert finished.returncode == 0, finished.stderr
    return folder, finished


@pytest.mark.slow
def test_run_writes_its_files(tuned, pretrained):
    folder, finished = tuned
    assert finished.stderr == ""
    rows = list(csv.DictReader((folder / "history.csv").open()))
    assert len(rows) == 2
    best = json.loads((folder / "best.json").read_text())
    assert best["val_top1"] == max(float(row["val_top1"]) for row in rows)
    assert f"top-1 {best['val_top1']:.2%}" in finished.stdout
    config = json.loads((folder / "config.json").read_text())
    for name, value in FINE_TUNING["small"].items():
        if name not in ("epochs", "warmup_epochs", "batch_size"):
            assert config[name] == value, name
    model = keras.models.load_model(folder / "model.keras")
    assert model.num_classes == 10 and model.encoder.hidden_dim == 48
    processor = keras_mae.MAEImageProcessor.from_pretrained(folder)
    assert processor.image_mean == (0.3,)


@pytest.mark.nightly
def test_eval_uses_all_held_out_images(tuned, tmp_path):
    folder, _ = tuned
    flags = (f"--model={folder / 'best.keras'}", "--eval", f"--output={tmp_path}")
    finished = run(SCRIPT, *flags, "--batch_size=100")
    assert finished.returncode == 0, finished.stderr
    best = json.loads((folder / "best.json").read_text())
    row = list(csv.DictReader((folder / "history.csv").open()))[best["epoch"] - 1]
    assert f"360 held-out images: top-1 {best['val_top1']:.3%}" in finished.stdout
    assert f"top-5 {float(row['val_top5']):.3%}" in finished.stdout
    loss = float(re.search(r"loss ([\d.]+)", finished.stdout)[1])
    assert loss == pytest.approx(float(row["val_loss"]), abs=1e-4)
    assert Image.open(tmp_path / "confusion.png").mode == "RGB"


@pytest.mark.nightly
def test_resuming_after_sigterm_is_bit_exact(tuned, pretrained, tmp_path):
    wanted, _ = tuned
    folder = tmp_path / "run"
    flags = (*SMALL, f"--model={pretrained}", f"--output={folder}")
    process = start(*flags, "--checkpoint_steps=2", script=SCRIPT)
    # in the middle of the second epoch, of 11 steps each
    wait_for(lambda: (folder / "checkpoints/step-000000014.keras").exists(), process)
    process.terminate()
    assert process.wait() == 75
    finished = run(SCRIPT, *flags, "--resume")
    assert finished.returncode == 0, finished.stderr
    assert_same_run(folder, wanted)
    assert (folder / "best.json").read_text() == (wanted / "best.json").read_text()


@pytest.mark.nightly
def test_mirrored_replicas_fine_tune_as_one(tuned, pretrained, tmp_path):
    wanted, _ = tuned
    folder = tmp_path / "run"
    finished = run(
        SCRIPT,
        *(*SMALL, f"--model={pretrained}", f"--output={folder}"),
        *("--strategy=mirrored", "--replicas=2", "--accumulation_steps=2"),
    )
    assert finished.returncode == 0, finished.stderr
    rows, wanted_rows = (
        list(csv.DictReader((path / "history.csv").open())) for path in (folder, wanted)
    )
    for mine, theirs in zip(rows, wanted_rows, strict=True):
        for name in ("loss", "val_loss", "val_top1", "val_top5", "gradient_norm"):
            assert float(mine[name]) == pytest.approx(float(theirs[name]), abs=1e-5)
    models = [
        keras.models.load_model(path / "model.keras") for path in (folder, wanted)
    ]
    for mine, theirs in zip(*(model.weights for model in models), strict=True):
        difference = np.abs(np.asarray(mine) - np.asarray(theirs))
        if mine.path.endswith("qkv/bias"):
            # softmax doesn't feel a key's bias: its gradient is rounding, which AdamW
            # divides by its own size
            queries, _, values = np.split(difference, 3)
            difference = np.concatenate([queries, values])
        assert difference.max(initial=0) < 1e-5, mine.path


@pytest.mark.nightly
def test_a_folder_of_classes_with_all_augmentations(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 9), ("val", 3)):
        for number, name in enumerate(("dark", "light")):
            path = tmp_path / "data" / split / name
            path.mkdir(parents=True)
            for index in range(count):
                image = rng.integers(0, 100, (40, 36, 3)) + 150 * number
                Image.fromarray(image.astype("uint8")).save(path / f"{index}.png")
    script = load(SCRIPT)
    flags = [f"--dataset=folder:{tmp_path / 'data'}", "--recipe=base", "--batch_size=8",
             "--epochs=3", "--warmup_epochs=1", f"--output={tmp_path / 'run'}",
             "--trainable_blocks=1", "--head_dropout_rate=0.1", "--labels_per_class=4",
             "--image_size=16", "--steps_per_execution=2"]  # fmt: skip
    model = script.main(parse_flags(script.FinetuneConfig, "", flags))
    assert model.encoder.image_size == (16, 16) and model.num_classes == 2
    assert not model.encoder.blocks[0].trainable and model.encoder.blocks[-1].trainable


@pytest.mark.nightly
def test_lora_is_resumed_and_evaluated(pretrained, tmp_path):
    weights = shutil.copytree(pretrained, tmp_path / "weights")
    folders = [tmp_path / name for name in ("whole", "cut")]
    for folder in folders:
        flags = (*SMALL, f"--model={weights}", f"--output={folder}", "--lora_rank=2")
        finished = run(SCRIPT, *flags, "--layer_decay=0.5")
        assert finished.returncode == 0, finished.stderr
        # a block has 48 x 2 + 2 x 144 + 144; then the head, and its norm
        assert f"({4 * 528 + 48 * 10 + 10 + 96:,} trainable)" in finished.stdout
    cut = folders[1]
    # as after a kill in the second epoch
    for path in (cut / "checkpoints").glob("*22.keras"):
        path.unlink()
    shutil.rmtree(weights)
    finished = run(SCRIPT, *flags, "--layer_decay=0.5", "--resume")
    assert finished.returncode == 0, finished.stderr
    whole, resumed = (keras.models.load_model(f / "model.keras") for f in folders)
    for ours, theirs in zip(resumed.weights, whole.weights, strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    kernel = keras.models.load_model(pretrained / "model.keras").encoder.blocks[0]
    ours, theirs = whole.encoder.blocks[0].attention.qkv, kernel.attention.qkv
    np.testing.assert_array_equal(np.asarray(ours._kernel), np.asarray(theirs.kernel))
    assert np.abs(np.asarray(ours.lora_kernel_b)).max() > 0
    results = evaluate(folders[0])
    assert 0 <= results["top1"] <= 1


@pytest.mark.nightly
def test_lora_begins_anew_on_a_run_of_lora_and_never_on_a_quantized_one(
    pretrained, tmp_path, capsys
):
    model = load_classifier(pretrained, 10)
    model.encoder.enable_lora(3)
    model.save(tmp_path / "lora.keras")
    script = load(SCRIPT)
    flags = (f"--model={tmp_path / 'lora.keras'}", "--lora_rank=2", "--dry_run")
    script.main(parse_flags(script.FinetuneConfig, "", flags))
    said = capsys.readouterr().out
    assert f"({4 * 528 + 48 * 10 + 10 + 96:,} trainable)" in said
    model.merge_lora()
    model.quantize("int8")
    model.save(tmp_path / "int8.keras")
    line = refusal(SCRIPT, f"--model={tmp_path / 'int8.keras'}", "--dry_run")
    assert "Quantized weights can't be trained: train first" in line


def test_published_weights_are_fine_tuned(make_model, tmp_path, capsys):
    make_model(hidden_dim=24, num_heads=2).save_pretrained(tmp_path / "hub")
    script = load(SCRIPT)
    flags = [f"--model={tmp_path / 'hub'}", "--dry-run", "--pooling=cls"]
    script.main(parse_flags(script.FinetuneConfig, "", flags))
    said = capsys.readouterr().out
    assert '"pooling": "cls"' in said and "parameters:" in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["finetune", "linear_probe"])
def test_another_recipe_beside_a_run_s_flags(name, tmp_path):
    """A run's config.json has the values of its recipe, which nobody gave."""
    script = load(f"training/{name}.py")
    recipes = getattr(script, {"finetune": "FINE_TUNING"}.get(name, "LINEAR_PROBING"))
    config = config_class(f"training/{name}.py")
    saved = script.apply_recipe(config(recipe="small", blr=0.125), recipes).resolved()
    path = tmp_path / "config.json"
    path.write_text(json.dumps(saved_flags(saved, ("config",))))
    asked = parse_flags(config, "", [f"--config={path}", "--recipe=large"])
    filled = script.apply_recipe(asked, recipes)
    assert filled.batch_size == recipes["large"]["batch_size"]
    assert filled.epochs == 50 and filled.blr == 0.125


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags, message",
    [
        (["--recipe=giant"], "recipe must be one of base, large, huge, small"),
        (["--model=/no/run.keras"], "/no/run.keras, which does not exist"),
        (["--model=/no/such"], "/no/such"),
        (["--eval"], "--eval needs --model"),
        (["--batch_size=63"], "a replica's batch must be even. Received: 63"),
        (["--num_classes=3"], "must be in [0, 3), the number of classes. Received: 3"),
        (["--labels_per_class=1000"], "labels_per_class must be in [1, "),
        (["--trainable_blocks=9"], "blocks must be in [0, 4]. Received: 9"),
        (["--lora_rank=0"], "rank must be a positive int. Received: 0"),
        (["--lora_rank=2", "--trainable_blocks=1"], "Give one of --lora_rank and"),
        (["--drop_path_rate=1"], "drop_path_rate must be in [0, 1)"),
        (["--layer_decay=0"], "layer_decay must be in (0, 1]"),
        (["--dataset=photos"], "has no labels"),
        (["--crop_scale=0"], "crop_scale must be in (0, 1]. Received: 0.0"),
        (["--magnitude=11"], "magnitude must be in [0, 10]. Received: 11.0"),
        (["--erase=2"], "erase must be in [0, 1]. Received: 2.0"),
        (["--mixup=-1"], "mixup"),
        (["--smoothing=2"], "smoothing must be in [0, 1]"),
        (["--pooling=max"], "invalid choice"),
        (["--callback=no_such:f"], "no_such:f can't be made: ModuleNotFoundError"),
    ],
)
def test_bad_input_is_one_line_and_code_2(tmp_path, flags, message):
    assert message in refusal(SCRIPT, f"--output={tmp_path / 'run'}", *flags)
    assert not (tmp_path / "run").exists()


def test_eval_needs_a_classifier_of_the_same_classes(pretrained, tmp_path):
    script = load(SCRIPT)
    flags = [f"--model={pretrained}", "--eval", f"--output={tmp_path}"]
    with pytest.raises(
        ValueError, match=r"classifier of the 10 classes.*MAEPretrainer"
    ):
        script.main(parse_flags(script.FinetuneConfig, "", flags))


@pytest.fixture(scope="module")
def measured(pretrained, tmp_path_factory):
    """A classifier of digits that learnt nothing."""
    folder = tmp_path_factory.mktemp("measured")
    load_classifier(pretrained, 10, head={"head_range": 1.0}).save(
        folder / "model.keras"
    )
    return folder


def evaluate(folder, *flags):
    script = load(SCRIPT)
    argv = [f"--model={folder}", "--eval", f"--output={folder / 'eval'}", *flags]
    return script.main(parse_flags(script.FinetuneConfig, "", argv))


@pytest.mark.nightly
def test_eval_precision(measured):
    wanted = evaluate(measured)
    same = evaluate(measured, "--image_size=32", "--pooling=mean")
    assert same == wanted
    half = evaluate(measured, "--precision=mixed_bfloat16")
    assert half["loss"] != wanted["loss"]
    assert half["loss"] == pytest.approx(wanted["loss"], rel=0.05)


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--image_size=64", r"image_size must be \(32, 32\). Received: \(64, 64\)"),
        ("--pooling=cls", "pooling must be mean. Received: cls"),
        ("--residual_dtype=float32", "residual_dtype must be None. Received: float32"),
    ],
)
def test_eval_does_not_change_the_model(flag, message, measured):
    with pytest.raises(ValueError, match=message):
        evaluate(measured, flag)


@pytest.mark.slow
def test_eval_reads_a_few_files_as_the_model_does(pretrained, tmp_path):
    for name in ("dark", "light"):
        (tmp_path / name).mkdir()
        for index in range(3):
            image = Image.new("RGB", (40, 40), (index * 20, 60, 0))
            image.save(tmp_path / name / f"{index}.png")
    load_classifier(pretrained, 2).save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match=r"num_channels must be 1. Received: 3"):
        evaluate(tmp_path, f"--dataset=folder:{tmp_path}")
    flags = [f"--dataset=folder:{tmp_path}", "--num_channels=1"]
    evaluate(tmp_path, *flags, "--dry_run")
    assert not (tmp_path / "eval").exists()
    results = evaluate(tmp_path, *flags)
    assert 0 <= results["top1"] <= 1


@pytest.mark.slow
def test_images_that_cannot_be_read_do_not_count(pretrained, tmp_path, capsys):
    for number in range(12):
        split, name = ("train", "val")[number % 2], ("dark", "light")[number // 6]
        path = tmp_path / "data" / split / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (number * 20, 60, 0)).save(path)
    load_classifier(pretrained, 2, head={"head_range": 1.0}).save(
        tmp_path / "model.keras"
    )
    flags = [f"--dataset=folder:{tmp_path / 'data'}", "--num_channels=1",
             "--batch_size=4", "--no-pictures"]  # fmt: skip
    wanted = evaluate(tmp_path, *flags)
    bad = tmp_path / "data" / "val" / "dark" / "bad.png"
    bad.write_text("no picture")
    assert evaluate(tmp_path, *flags) == pytest.approx(wanted, rel=1e-5)
    assert capsys.readouterr().out.count("6 held-out images: top-1") == 2
    assert not (tmp_path / "eval").exists()
    for path in bad.parents[1].glob("*/*.png"):
        path.write_text("no picture")
    with pytest.raises(ValueError, match="None of the 7 held-out images can be read"):
        evaluate(tmp_path, *flags)


def test_eval_without_matplotlib_says_so_before_it_evaluates(measured, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"keras-mae\[demo\]', or give --no-pictures"):
        evaluate(measured)


@pytest.mark.slow
def test_a_run_goes_on_without_the_files_of_its_model(make_model, tmp_path, capsys):
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    model = keras_mae.MAEClassifier(make_model(num_channels=1).encoder, 10)
    model.encoder.enable_lora(2)
    model.save(checkpoints / "step-000000004.keras")
    keras_mae.MAEImageProcessor(32, (0.3,), (0.4,)).save_pretrained(tmp_path / "run")
    script, seen = load(SCRIPT), []
    flags = [f"--output={tmp_path / 'run'}", "--model=deleted", "--lora_rank=2",
             "--resume"]  # fmt: skip
    script.train = lambda training, *parts: seen.extend(parts)
    script.main(parse_flags(script.FinetuneConfig, "", flags))
    built, processor = seen
    assert [w.shape for w in built.weights] == [w.shape for w in model.weights]
    assert (processor.image_mean, processor.image_std) == ((0.3,), (0.4,))


@pytest.fixture(scope="module")
def bordered(tmp_path_factory):
    """Pictures whose border tells the class, and an untrained classifier of them."""
    folder = tmp_path_factory.mktemp("bordered")
    for split in ("train", "val"):
        pictures.write_bordered(folder / "data" / split, range(4))
    model = keras_mae.MAEClassifier.from_preset(
        "mae_tiny", num_classes=2, image_size=16, patch_size=8, hidden_dim=48
    )
    (folder / "run" / "checkpoints").mkdir(parents=True)
    for name in ("best", "checkpoints/step-000000001"):
        model.save(folder / "run" / f"{name}.keras")
    keras_mae.MAEImageProcessor(16).save_pretrained(folder / "run")
    return folder


def evaluated_whole(bordered, monkeypatch, *flags):
    """Whether the border is in the images that --eval reads."""
    script = load(SCRIPT)

    def first_images(training, model, processor):
        batches, _ = training.evaluation(processor)
        images, _, _ = next(iter(batches))
        return processor.denormalize(images.numpy())

    monkeypatch.setattr(script, "evaluate", first_images)
    flags = [
        "--eval",
        f"--dataset=folder:{bordered / 'data'}",
        "--batch_size=4",
        *flags,
    ]
    images = script.main(parse_flags(script.FinetuneConfig, "", flags))
    return np.abs(images[:, 0].mean(axis=(1, 2)) - 127.5).min() > 60


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "best.keras",
        pytest.param("checkpoints/step-000000001.keras", marks=pytest.mark.nightly),
    ],
)
def test_eval_sees_images_as_the_runs_own_evaluation(name, bordered, monkeypatch):
    model = bordered / "run" / name
    given = f"--model={model}"
    config = bordered / "run" / "config.json"
    config.unlink(missing_ok=True)
    assert evaluated_whole(bordered, monkeypatch, given)  # recipe small
    assert not evaluated_whole(bordered, monkeypatch, given, "--recipe=base")
    for crop_scale, whole in ((1.0, True), (0.08, False)):
        config.write_text(json.dumps({"crop_scale": crop_scale}))
        assert evaluated_whole(bordered, monkeypatch, given) == whole
    assert evaluated_whole(bordered, monkeypatch, given, "--crop_scale=1")


def test_eval_holds_out_what_the_run_did(tmp_path):
    script, config = load(SCRIPT), config_class(SCRIPT)
    flags = {"dataset": "folder:pets", "held_out": "folder:others"}
    (tmp_path / "config.json").write_text(json.dumps(flags))
    asked = config(model=str(tmp_path), dataset="folder:pets", eval=True)
    assert script.as_trained(asked).held_out == "folder:others"
    for change in ({"eval": False}, {"dataset": "folder:cars"}):
        other = dataclasses.replace(asked, **change)
        assert script.as_trained(other).held_out is None
    given = dataclasses.replace(asked, held_out="folder:mine")
    assert script.as_trained(given).held_out == "folder:mine"


@pytest.mark.parametrize(
    "written, kept",
    [("black\nwhite\n", True), ("0\n1\n", True), ("black\nred\n", False)],
)
def test_a_head_is_for_classes_of_the_same_names(
    written, kept, bordered, tmp_path, monkeypatch, capsys
):
    run = shutil.copytree(bordered / "run", tmp_path / "run")
    (run / "best.keras").rename(run / "model.keras")
    (run / "config.json").write_text(json.dumps({"dataset": "folder:pets"}))
    (run / "labels.txt").write_text(written)
    script, seen = load(SCRIPT), []
    monkeypatch.setattr(script, "train", lambda _, model, processor: seen.append(model))
    monkeypatch.setattr(script, "evaluate", lambda *_: None)
    flags = [f"--model={run}", f"--dataset=folder:{bordered / 'data'}",
             "--batch_size=4", f"--output={tmp_path / 'new'}"]  # fmt: skip
    script.main(parse_flags(script.FinetuneConfig, "", flags))
    heads = [
        keras.ops.convert_to_numpy(model.head.kernel)
        for model in (*seen, keras.models.load_model(run / "model.keras"))
    ]
    assert np.array_equal(*heads) == kept
    said = f"The head of {run} is left out: it is for red instead of white\n"
    assert capsys.readouterr().out == ("" if kept else said)
    evaluation = parse_flags(script.FinetuneConfig, "", [*flags, "--eval"])
    if kept:
        script.main(evaluation)
    else:
        with pytest.raises(ValueError, match=f"Received: {run}, of red instead of wh"):
            script.main(evaluation)
