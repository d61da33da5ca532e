"""keras-mae-convert: either way, checked against PyTorch, one-line errors."""

import json
import subprocess
import sys
from typing import NamedTuple

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from keras_mae import MAEClassifier, MAEImageProcessor
from keras_mae.convert import command
from keras_mae.convert.check import compare_with_torch
from keras_mae.utils.flags import run_script
from keras_mae.weights import export_weights
from keras_mae.weights.checkpoint_reader import open_checkpoint
from keras_mae.weights.hub import PROCESSOR_FILE
from keras_mae.weights.key_mapping import FACEBOOK, HUGGINGFACE
from tests.comparison import assert_same_weights
from tests.scripts import ROOT, environment


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def convert(capfd):
    """Runs the command within this process, which has TensorFlow loaded already."""

    def run(*arguments):
        code = 0
        try:
            run_script(command.convert, command.Config, "", list(map(str, arguments)))
        except SystemExit as stop:
            code = stop.code
        return Done(code, *capfd.readouterr())

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    "format",
    [
        *("huggingface", "facebook"),
        pytest.param("mmpretrain", marks=pytest.mark.nightly),
        pytest.param("solo-learn", marks=pytest.mark.nightly),
        pytest.param("lightly", marks=pytest.mark.nightly),
    ],
)
def test_there_and_back_again(format, make_model, tmp_path, convert):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    model = make_model()
    model.save(tmp_path / "one.keras")
    there = convert(
        tmp_path / "one.keras", tmp_path / "out", f"--format={format}", "--check"
    )
    assert there.returncode == 0, there.stderr
    assert "relative difference to PyTorch" in there.stdout
    heads = ["--num_heads=2", "--decoder_num_heads=2"]  # not all formats tell
    back = convert(tmp_path / "out", tmp_path / "two.keras", "--check", *heads)
    assert back.returncode == 0, back.stderr
    assert "/variable" in back.stdout  # the progress bar
    assert "copied: " in back.stdout and "two.keras: MAEPretrainer" in back.stdout
    assert_same_weights(keras.models.load_model(tmp_path / "two.keras"), model)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["mean", "cls", "probe"])
def test_classifiers_are_checked_too(head, make_model, tmp_path, convert):
    pytest.importorskip("torch")
    pooling = "cls" if head == "probe" else head
    model = MAEClassifier(make_model().encoder, 3, pooling, batch_norm=head == "probe")
    if model.batch_norm:
        model.batch_norm.moving_variance.assign(np.linspace(0.5, 2, 16))
    model.save_pretrained(tmp_path / "in", "facebook")
    done = convert(tmp_path / "in/model.pth", tmp_path / "two.keras", "--check")
    assert done.returncode == 0, done.stderr
    assert "two.keras: MAEClassifier" in done.stdout


TENSORFLOW = ROOT / "tests/fixtures/huggingface_tf"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "kind", "flags"),
    [
        ("pretrainer", "MAEPretrainer", ()),
        ("shards/tf_model.h5.index.json", "MAEPretrainer", ()),
        ("safetensors", "MAEPretrainer", ()),
        ("pretrainer/tf_model.h5", "MAEEncoder", ["--model=encoder"]),
        ("encoder/encoder.h5", "MAEEncoder", ["--num_heads=3"]),
        ("classifier", "MAEClassifier", ()),
    ],
)
def test_files_of_the_tensorflow_classes(source, kind, flags, tmp_path, convert):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    place = TENSORFLOW / source
    done = convert(place, tmp_path / "two.keras", "--check", *flags)
    assert done.returncode == 0, done.stderr
    assert "Hugging Face, TensorFlow, " in done.stdout
    assert f"two.keras: {kind}" in done.stdout
    assert f"{place}: relative difference to PyTorch" in done.stdout


def test_positions_of_wide_images_are_told_by_a_flag(make_model, tmp_path, convert):
    path = tmp_path / "wide.safetensors"
    save_file(export_weights(make_model(image_size=(16, 64)).encoder, FACEBOOK), path)
    given = (path, tmp_path / "two.keras", "--num_heads=2")
    done = convert(*given, "--source_image_size=16x64")
    assert done.returncode == 0, done.stderr
    encoder = keras.models.load_model(tmp_path / "two.keras")
    assert encoder.image_size == (16, 64)
    done = convert(*given)
    assert (
        "note: positions are taken for those of 32x32 pixels, a square" in done.stdout
    )
    for wrong in ("wide", "16x", "16x64x3", "0"):
        done = convert(*given, f"--source_image_size={wrong}")
        assert done.returncode == 2 and "source_image_size must be" in done.stderr


def test_a_keras_file_gives_its_encoder_or_what_it_is(make_model, tmp_path, convert):
    model = make_model()
    model.save(tmp_path / "mae.keras")
    done = convert(tmp_path / "mae.keras", tmp_path / "out", "--model=encoder")
    assert done.returncode == 0, done.stderr
    wanted = export_weights(model.encoder, HUGGINGFACE._replace(prefix=""))
    assert load_file(tmp_path / "out/model.safetensors").keys() == wanted.keys()
    for flags, message in (
        (["--model=classifier"], "--model must be encoder or what"),
        (["--num_heads=4", "--state_key=ema"], "--state_key=ema, --num_heads=4"),
        (["--no-norm_pix_loss"], "Received: --norm_pix_loss=False"),
    ):
        done = convert(tmp_path / "mae.keras", tmp_path / "other", *flags)
        assert done.returncode == 2 and message in done.stderr
    assert not (tmp_path / "other").exists()


def test_positions_that_a_file_lacks_are_checked_as_computed(make_model):
    pytest.importorskip("torch")
    model = make_model()
    state = export_weights(model, FACEBOOK)
    del state["pos_embed"], state["decoder_pos_embed"]
    assert compare_with_torch(model, open_checkpoint(state)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("format", ["huggingface", "timm"])
def test_a_difference_is_found(format, make_model, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    encoder = make_model(qkv_bias=format == "huggingface").encoder
    encoder.save_pretrained(tmp_path, format)
    checkpoint = open_checkpoint(tmp_path)
    assert compare_with_torch(encoder, checkpoint) < 1e-5
    kernel = encoder.blocks[1].mlp.fc2.kernel
    kernel.assign(kernel * 1.01)
    with pytest.raises(ValueError, match="outputs differ from PyTorch's by"):
        compare_with_torch(encoder, checkpoint)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["encoder", "pretrainer"])
def test_one_format_becomes_another(model, make_model, tmp_path, convert):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    make_model().save_pretrained(tmp_path / "in")
    done = convert(
        tmp_path / "in",
        tmp_path / "out",
        "--format=timm",
        f"--model={model}",
        "--check",
    )
    assert done.returncode == 0, done.stderr
    assert "left out: " in done.stdout
    assert done.stdout.count("to PyTorch") == 2  # source and destination
    assert "UNEXPECTED" not in done.stdout + done.stderr
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.keras", "out"], "gone.keras does not exist"),
        (["gone.pth", "out"], "Received: gone.pth, which does not exist"),
        (["{dense}", "out"], "must hold a MAEEncoder or a model around one"),
        (["{folder}", "out", "--format=onnx"], "invalid choice: 'onnx'"),
        (["{folder}", "out", "--model=classifier"], "in has no classifier's head"),
        (["{folder}"], "required: destination"),
        (["{dense}", "out.keras"], "SOURCE or DESTINATION must be another format"),
    ],
)
def test_errors_are_one_line(arguments, message, make_model, tmp_path, convert):
    make_model().save_pretrained(tmp_path / "in")
    dense = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    dense.save(tmp_path / "dense.keras")
    places = {"folder": tmp_path / "in", "dense": tmp_path / "dense.keras"}
    done = convert(*(argument.format(**places) for argument in arguments))
    assert done.returncode == 2
    assert message in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.nightly
def test_as_it_is_typed(make_model, tmp_path):
    make_model().save_pretrained(tmp_path / "in")
    done = subprocess.run(
        [sys.executable, "-m", "keras_mae.weights", "in", "model.keras"],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("model.keras: MAEPretrainer\n")


def test_class_names_of_another_model_are_kept(make_model, tmp_path, convert):
    classifier = MAEClassifier(make_model().encoder, 2, "cls")
    classifier.class_names = ("cat", "dog")
    classifier.save_pretrained(tmp_path / "in")
    labels = tmp_path / "run/labels.txt"
    for _ in range(2):  # the same again is no other
        done = convert(tmp_path / "in", tmp_path / "run/model.keras")
        assert done.returncode == 0 and labels.read_text() == "cat\ndog\n"
    labels.write_text("crow\nhen\n")
    done = convert(tmp_path / "in", tmp_path / "run/other.keras")
    assert done.returncode == 2 and "give another folder" in done.stderr
    assert labels.read_text() == "crow\nhen\n"
    assert not (tmp_path / "run/other.keras").exists()


@pytest.mark.slow
def test_the_image_processor_comes_along(make_model, tmp_path, convert):
    theirs, ours, again = tmp_path / "in", tmp_path / "conv", tmp_path / "out"
    make_model().save_pretrained(theirs)
    MAEImageProcessor(32, (0.1,) * 3).save_pretrained(theirs)
    wanted = (theirs / PROCESSOR_FILE).read_text()
    done = convert(theirs / "model.safetensors", ours / "mae.keras")
    assert done.returncode == 0, done.stderr
    assert f"{PROCESSOR_FILE}: copied from " in done.stdout
    assert (ours / PROCESSOR_FILE).read_text() == wanted
    convert(ours / "mae.keras", again)
    assert (again / PROCESSOR_FILE).read_text() == wanted


@pytest.mark.slow
def test_an_image_processor_that_is_there_stays(make_model, tmp_path, convert):
    make_model().save_pretrained(tmp_path / "in")
    for name, size in (("in", 32), ("conv", 48)):
        (tmp_path / name).mkdir(exist_ok=True)
        MAEImageProcessor(size).save_pretrained(tmp_path / name)
    done = convert(tmp_path / "in", tmp_path / "conv/mae.keras")
    assert PROCESSOR_FILE not in done.stdout
    kept = MAEImageProcessor.from_pretrained(tmp_path / "conv")
    assert kept.image_size == (48, 48)


def test_timms_processor_comes_along(make_model, tmp_path, convert):
    """Out of timm's `config.json`, and into it again."""
    theirs, ours, again = tmp_path / "in", tmp_path / "conv", tmp_path / "out"
    make_model().encoder.save_pretrained(theirs, "timm")
    path = theirs / "config.json"
    config = json.loads(path.read_text())
    card = {"mean": [0.5] * 3, "std": [0.2] * 3, "interpolation": "bilinear"}
    config["pretrained_cfg"] |= card
    path.write_text(json.dumps(config))
    done = convert(theirs, ours / "mae.keras")
    assert done.returncode == 0, done.stderr
    assert f"{PROCESSOR_FILE}: made of what {theirs} says" in done.stdout
    wanted = MAEImageProcessor(32, (0.5,) * 3, (0.2,) * 3).get_config()
    assert MAEImageProcessor.from_pretrained(ours).get_config() == wanted
    done = convert(ours / "mae.keras", again, "--format=timm")
    assert done.returncode == 0, done.stderr
    written = json.loads((again / "config.json").read_text())["pretrained_cfg"]
    assert written.items() >= {**card, "crop_pct": 1.0, "crop_mode": "squash"}.items()
    (again / PROCESSOR_FILE).unlink()  # timm does not read it
    assert MAEImageProcessor.from_pretrained(again).get_config() == wanted


def test_an_unsupported_processor_stops_no_conversion(make_model, tmp_path, convert):
    make_model().encoder.save_pretrained(tmp_path / "in")
    (tmp_path / "in" / PROCESSOR_FILE).write_text('{"do_center_crop": true}')
    done = convert(tmp_path / "in", tmp_path / "out", "--format=timm")
    assert done.returncode == 0, done.stderr
    assert "note: " in done.stdout and "do_center_crop must be False" in done.stdout
    assert "do_center_crop" in (tmp_path / "out" / PROCESSOR_FILE).read_text()
    card = json.loads((tmp_path / "out/config.json").read_text())["pretrained_cfg"]
    assert "mean" not in card
