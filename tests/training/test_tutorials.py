"""The two tutorials, end to end, on small images and models."""

import contextlib
import csv
import dataclasses
import io
import re
import sys
import types

import keras
import numpy as np
import pytest
from PIL import Image

import keras_mae
from keras_mae.models.loading import find_labels, load_model
from tests.hub_server import serve
from tests.scripts import ROOT, load, refusal, run

VISUALIZE, OWN_IMAGES = "training/visualize.py", "training/own_images.py"
CLASSES = ("dark", "light")
SMALL = {"image_size": 16, "batch_size": 8, "pretrain_epochs": 2, "epochs": 8}


def write_pictures(folder, count, rng):
    """Writes pictures of two kinds that anyone can tell apart, in class folders."""
    for number, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 100, (30, 40, 3)) + 150 * number
            Image.fromarray(pixels.astype("uint8")).save(folder / name / f"{index}.png")
    return folder


def save_run(folder, model):
    """Saves a model as a run does."""
    folder.mkdir()
    model.save(folder / "model.keras")
    keras_mae.MAEImageProcessor(model.encoder.image_size).save_pretrained(folder)
    return folder


@pytest.fixture
def painter(make_model, tmp_path):
    return save_run(tmp_path / "painter", make_model())


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), "uint8")
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def panels(path, size):
    """Cuts a picture of one row into its four panels, at the size of the model."""
    picture = np.asarray(Image.open(path))
    width = -(-160 // size) * size
    assert picture.shape[1] == 4 * width + 3 * 4
    lefts = range(0, picture.shape[1], width + 4)
    step = width // size
    return [picture[20 : 20 + width : step, x : x + width : step] for x in lefts]


@pytest.mark.nightly
def test_picture_shows_masked_and_reconstructed_patches(painter, photo, tmp_path):
    out = tmp_path / "new" / "look.png"
    finished = run(
        VISUALIZE,
        *(f"--image={photo}", f"--model={painter}", f"--out={out}"),
        *("--mask_ratio=0.5", "--seed=3"),
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    assert "8 of 16 patches masked" in finished.stdout
    model, processor = load_model(painter)
    images = processor(photo)
    mask = keras.ops.convert_to_numpy(
        model.encoder(images, mask_ratio=0.5, seed=3)["mask"]
    )
    loss = float(model(images, mask=mask)["loss"])
    assert f"Loss: {loss:.4f}" in finished.stdout
    removed = mask.reshape(4, 4).repeat(8, axis=0).repeat(8, axis=1) > 0  # (H, W)
    original, masked, painted, pasted = panels(out, 32)
    np.testing.assert_array_equal(original, processor.to_uint8(images)[0])
    for panel in (masked, pasted):
        np.testing.assert_array_equal(panel[~removed], original[~removed])
    np.testing.assert_array_equal(pasted[removed], painted[removed])
    assert np.abs(pasted[removed].astype(int) - original[removed]).mean() > 1


@pytest.mark.nightly
def test_default_model_and_image(tmp_path, monkeypatch):
    pytest.importorskip("skimage")
    # the published sizes, narrow
    model = keras_mae.MAEPretrainer.from_preset(
        "mae_base", hidden_dim=24, num_heads=2, mlp_dim=8, depth=1, decoder_depth=1
    )
    model.save_pretrained(tmp_path / "hub")
    keras_mae.MAEImageProcessor().save_pretrained(tmp_path / "hub")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with serve({"main": tmp_path / "hub"}) as (_, endpoint):
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        finished = run(VISUALIZE)
    assert finished.returncode == 0, finished.stderr
    assert "147 of 196 patches masked" in finished.stdout
    assert "brightness and contrast" not in finished.stdout
    original, masked, *_ = panels(tmp_path / "reconstruction.png", 224)
    kept = (original == masked).all(axis=-1).mean()
    assert original.std() > 20 and 0.25 <= kept < 0.27


def test_normalized_targets_are_explained(make_model, photo, tmp_path, capsys):
    folder = save_run(tmp_path / "normalized", make_model(norm_pix_loss=True))
    script = load(VISUALIZE)
    config = script.VisualizeConfig(str(photo), str(folder), out=f"{tmp_path}/a.png")
    script.main(config)
    said = capsys.readouterr().out
    assert "brightness and contrast of the original" in said
    # a patch's own mean leaves its deviation, which is 1
    assert float(re.search(r"constant prediction: ([\d.]+)", said)[1]) == pytest.approx(
        1, abs=0.02
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags, message",
    [
        (["--image=/no/cat.jpg"], "--image must be an image file"),
        (["--image={broken}"], "An image must be a readable picture"),
        (["--model=/no/such"], "/no/such"),
        (["--model={encoder}"], "must have a decoder"),
        (["--mask_ratio=1"], "mask_ratio must be in [0, 1)"),
        (["--mask_ratio=0"], "at least one must be removed"),
        (["--out={folder}/look.paint"], "unknown file extension"),
    ],
)
def test_wrong_flags_of_visualize_are_one_line_and_code_2(
    painter, photo, tmp_path, flags, message
):
    (tmp_path / "broken.jpg").write_bytes(photo.read_bytes()[:200])
    encoder = keras_mae.MAEEncoder.from_preset("mae_tiny", depth=1)
    encoder.save_pretrained(tmp_path / "encoder")
    names = {"broken": tmp_path / "broken.jpg", "encoder": tmp_path / "encoder"}
    flags = [flag.format(folder=tmp_path, **names) for flag in flags]
    given = (f"--image={photo}", f"--model={painter}", f"--out={tmp_path / 'a.png'}")
    assert message in refusal(VISUALIZE, *given, *flags)


TENSORFLOW = ROOT / "tests/fixtures/huggingface_tf/pretrainer/tf_model.h5"


def test_a_file_of_the_tensorflow_class_is_visualized(photo, tmp_path, capsys):
    script, out = load(VISUALIZE), tmp_path / "look.png"
    script.main(script.VisualizeConfig(str(photo), str(TENSORFLOW), out=str(out)))
    said = capsys.readouterr().out
    assert "No preprocessor_config.json was found" in said
    assert "8 of 16 patches masked" in said
    assert len(panels(out, 16)) == 4


def test_own_images_take_the_weights_of_a_file_of_the_tensorflow_class(capsys):
    script = load(OWN_IMAGES)
    model = script.build(script.OwnImagesConfig("", image_size=32, model=TENSORFLOW))
    start = keras_mae.MAEPretrainer.from_pretrained(TENSORFLOW)
    for ours, wanted in zip(model.decoder.blocks, start.decoder.blocks, strict=True):
        for one, two in zip(ours.weights, wanted.weights, strict=True):
            np.testing.assert_array_equal(one.numpy(), two.numpy())
    assert model.encoder.grid == (8, 8) and model.norm_pix_loss
    assert "Hugging Face, TensorFlow, HDF5" in capsys.readouterr().out


@pytest.mark.nightly
def test_own_images_start_from_a_file_of_the_tensorflow_class(tmp_path, capsys):
    pictures = write_pictures(tmp_path / "pictures", 10, np.random.default_rng(0))
    script, folder = load(OWN_IMAGES), tmp_path / "run"
    few = {**SMALL, "pretrain_epochs": 1, "epochs": 1}
    given = {"model": str(TENSORFLOW), "norm_pix_loss": False, "seed": 0}
    script.main(script.OwnImagesConfig(str(pictures), str(folder), **given, **few))
    assert "Hugging Face, TensorFlow, HDF5" in capsys.readouterr().out
    start = keras_mae.MAEPretrainer.from_pretrained(TENSORFLOW)
    trained, _ = load_model(folder / "pretrained")
    for part in ("encoder", "decoder"):
        sizes = [getattr(m, part).get_config()["hidden_dim"] for m in (start, trained)]
        assert sizes[0] == sizes[1]
    # one epoch at the paper's rate leaves them where they were, but for a little
    old, new = (m.encoder.blocks[0].mlp.fc1.kernel.numpy() for m in (start, trained))
    assert 0 < np.abs(new - old).max() < 0.05


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What a run leaves and says, of sizes that compile faster than mae_tiny's."""
    folder = tmp_path_factory.mktemp("own")
    write_pictures(folder / "pictures", 20, np.random.default_rng(0))
    script, said = load(OWN_IMAGES), io.StringIO()
    config = script.OwnImagesConfig(
        str(folder / "pictures"), str(folder / "run"), **SMALL, labels_per_class=12
    )
    sizes = {"depth": 1, "hidden_dim": 32, "mlp_dim": 64, "decoder_depth": 1}
    tiny = {**keras_mae.PRESETS["mae_tiny"], **sizes}
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setitem(keras_mae.PRESETS, "mae_tiny", tiny)
        script.main(config)
    return folder / "run", said.getvalue()


def assert_both_stages_learned(folder, said):
    assert "Stage 1: pretrain on 32 images" in said
    found = re.findall(r"^  (\w+) +([\d.]+)%$", said, re.MULTILINE)
    accuracies = {name: float(accuracy) for name, accuracy in found}
    assert set(accuracies) == {"scratch", "pretrained"}
    assert accuracies["pretrained"] > 80  # of 100, where guesses get 50
    for name, key in (("pretraining", "pretrain_epochs"), ("tuning-scratch", "epochs")):
        rows = list(csv.DictReader((folder / f"{name}.csv").open()))
        assert len(rows) == SMALL[key]
        assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    # four held-out pictures below each other
    assert Image.open(folder / "reconstructions.png").height > 4 * 160


@pytest.mark.nightly
def test_both_stages_learn_from_a_folder(trained):
    assert_both_stages_learned(*trained)


@pytest.mark.nightly
def test_own_images_script_prints_nothing_to_stderr(tmp_path):
    pictures = write_pictures(tmp_path / "pictures", 20, np.random.default_rng(0))
    flags = [f"--{name}={value}" for name, value in SMALL.items()]
    folder = tmp_path / "run"
    finished = run(OWN_IMAGES, f"--folder={pictures}", f"--output={folder}", *flags)
    assert finished.returncode == 0 and finished.stderr == "", finished.stderr
    assert_both_stages_learned(folder, finished.stdout)


@pytest.mark.nightly
def test_saved_classifier_classifies_new_images(trained):
    folder, _ = trained
    model, processor = load_model(folder / "classifier")
    assert find_labels(folder / "classifier", model.num_classes) == CLASSES
    rng = np.random.default_rng(1)
    pictures = [rng.integers(0, 100, (30, 40, 3), "uint8") + 150 * n for n in (0, 1)]
    assert model(processor(pictures)).numpy().argmax(axis=-1).tolist() == [0, 1]


@pytest.mark.nightly
def test_pretrained_model_can_be_visualized(trained, photo, tmp_path, capsys):
    folder, _ = trained
    script = load(VISUALIZE)
    out = tmp_path / "look.png"
    script.main(
        script.VisualizeConfig(str(photo), str(folder / "pretrained"), out=str(out))
    )
    assert "48 of 64 patches masked" in capsys.readouterr().out
    assert len(panels(out, 16)) == 4


def test_every_fifth_picture_of_a_class_is_held_out(tmp_path):
    write_pictures(tmp_path / "pictures", 11, np.random.default_rng(0))
    source = load(OWN_IMAGES).read_folder(tmp_path / "pictures", 8, seed=0)
    assert np.bincount(source.training_labels).min() >= 8
    assert np.bincount(source.held_out_labels).min() >= 2
    seen = {picture.tobytes() for picture in source.training}
    unseen = {picture.tobytes() for picture in source.held_out}
    assert len(seen | unseen) == 22 and not seen & unseen
    for pictures, labels in (
        (source.training, source.training_labels),
        (source.held_out, source.held_out_labels),
    ):
        assert pictures[0].shape == (16, 16, 3)
        light = [picture.mean() > 125 for picture in pictures]
        np.testing.assert_array_equal(light, labels == 1)


def test_a_val_folder_is_held_out_whole(tmp_path):
    script, rng = load(OWN_IMAGES), np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        write_pictures(tmp_path / "pictures" / split, count, rng)
    source = script.read_folder(tmp_path / "pictures", 8, seed=0)
    assert source.class_names == tuple(CLASSES)
    assert np.bincount(source.training_labels).tolist() == [6, 6]
    assert np.bincount(source.held_out_labels).tolist() == [2, 2]
    light = [picture.mean() > 125 for picture in source.held_out]
    np.testing.assert_array_equal(light, source.held_out_labels == 1)
    seen = {picture.tobytes() for picture in source.training}
    assert not seen & {picture.tobytes() for picture in source.held_out}


def test_own_images_are_turned_as_the_weights_processor_says(tmp_path, monkeypatch):
    pictures, script = tmp_path / "pictures", load(OWN_IMAGES)
    exif, picture = Image.Exif(), Image.new("RGB", (16, 16), "black")
    exif[0x0112] = 3  # upside down
    picture.paste("white", (0, 0, 16, 8))
    for kind in CLASSES:
        (pictures / kind).mkdir(parents=True)
        for number in range(5):
            picture.save(pictures / kind / f"{number}.png", exif=exif)
    weights = keras_mae.MAEImageProcessor(8, exif_orientation=True)
    weights.save_pretrained(tmp_path)
    sources = []
    monkeypatch.setattr(
        script, "pretrain", lambda config, source, *_: sources.append(source) or 1 / 0
    )
    config = script.OwnImagesConfig(str(pictures), str(tmp_path / "run"), image_size=8)
    for model, top in ((None, 255), (str(tmp_path), 0)):
        with pytest.raises(ZeroDivisionError):
            script.main(dataclasses.replace(config, model=model))
        assert {image[0, 0, 0] for image in sources[-1].training} == {top}


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--folder=/no/pets"], "folder must be a folder of images"),
        (["--folder={pictures}/dark"], "must have a folder for each class"),
        (["--folder={one}"], "must have two or more classes"),
        (["--folder={broken}"], "0.png"),
        (["--image_size=20"], "image_size must be a multiple of 8. Received: 20"),
        (["--image_size=0"], "image_size"),
        (["--batch_size=99"], "batch_size must be in [1, 8]"),
        (["--batch_size=0"], "batch_size must be in [1, 8]"),
        (["--crop_scale=0"], "crop_scale must be in (0, 1]"),
        (["--pretrain_epochs=0"], "pretrain_epochs must be at least 1. Received: 0"),
        (["--epochs=0"], "epochs must be at least 1. Received: 0"),
        (["--labels_per_class=9"], "labels_per_class must be in [1, 4]"),
    ],
)
def test_wrong_flags_of_own_images_are_one_line_and_code_2(tmp_path, flags, message):
    rng = np.random.default_rng(0)
    folders = {
        name: write_pictures(tmp_path / name, 5, rng)
        for name in ("pictures", "one", "broken")
    }
    (folders["one"] / "light").rename(tmp_path / "light")
    (folders["broken"] / "dark" / "0.png").write_bytes(b"no picture")
    flags = [flag.format(**folders) for flag in flags]
    given = (f"--folder={folders['pictures']}", f"--output={tmp_path / 'run'}")
    small = ("--image_size=16", "--batch_size=4")
    error = refusal(OWN_IMAGES, *given, *small, *flags)
    assert message in error, error
    assert not (tmp_path / "run" / "pretraining.csv").exists()


def test_the_cells_run_as_a_notebook(painter, photo, tmp_path, monkeypatch):
    shown = []
    display = types.ModuleType("IPython.display")
    display.display = shown.append
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    arguments = {"image": photo, "model": painter, "out": tmp_path / "look.png"}
    flags = ", ".join(f"{name}={str(path)!r}" for name, path in arguments.items())
    text = (ROOT / VISUALIZE).read_text()
    edited = text.replace("main(VisualizeConfig())", f"main(VisualizeConfig({flags}))")
    assert edited != text
    scope = {"__name__": "__main__", "get_ipython": lambda: None}
    for cell in re.split(r"^(?=# %%)", edited, flags=re.MULTILINE):
        exec(cell, scope)
    assert [picture.width for picture in shown] == [4 * 160 + 3 * 4]
