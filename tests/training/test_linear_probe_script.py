"""training/linear_probe.py on digits: methods, cached features, crops, pictures."""

import re

import keras
import numpy as np
import pytest
from PIL import Image

import keras_mae
from keras_mae.models.loading import find_labels
from keras_mae.utils.flags import parse_flags
from tests import pictures
from tests.scripts import load, refusal, run
from tests.training.test_finetune_script import pretrained  # noqa: F401, a fixture

SCRIPT = "training/linear_probe.py"

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


def ask(*flags):
    script = load(SCRIPT)
    return script.main(parse_flags(script.ProbeConfig, "", list(flags)))


@pytest.fixture(scope="module")
def probed(pretrained, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("probe")
    flags = (f"--model={pretrained}", f"--output={folder}", "--epochs=20",
             "--warmup_epochs=2")  # fmt: skip
    return folder, flags, ask(*flags)


@pytest.mark.slow
def test_linear_head_learns_and_is_saved_with_the_encoder(probed, capsys):
    folder, _, accuracy = probed
    assert accuracy > 0.5  # of ten classes, on random features
    for name in ("confusion.png", "features-pca.png", "features-tsne.png"):
        assert (folder / name).exists()
    classifier = keras.models.load_model(folder / "model.keras")
    assert classifier.batch_norm is not None and not classifier.encoder.trainable
    assert find_labels(folder, 10) == tuple("0123456789")
    # what it wrote itself it may replace
    load(SCRIPT).check_output(folder)
    tune = load("training/finetune.py")
    argv = [f"--model={folder}", "--eval", f"--output={folder / 'eval'}"]
    results = tune.main(parse_flags(tune.FinetuneConfig, "", argv))
    assert results["top1"] == pytest.approx(accuracy, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["knn", "logistic"])
def test_other_methods_reuse_cached_features(probed, method, monkeypatch):
    _, flags, _ = probed
    monkeypatch.setattr(
        "keras_mae.models.features.extract_features",
        lambda *_: pytest.fail("computed again"),
    )
    assert ask(*flags, f"--method={method}", "--no-pictures") > 0.5


@pytest.mark.slow
def test_probes_take_fewer_images_than_a_batch(pretrained, tmp_path):  # noqa: F811
    flags = f"--model={pretrained}", f"--output={tmp_path}", "--batch_size=2000"
    for method, least in (("knn", 0.5), ("linear", 0.3)):
        assert ask(*flags, f"--method={method}", "--no-pictures") > least


@pytest.mark.slow
def test_features_are_those_of_few_images_once(pretrained, tmp_path):  # noqa: F811
    flags = (f"--model={pretrained}", f"--output={tmp_path}", "--labels_per_class=2",
             "--no-pictures", "--epochs=20", "--warmup_epochs=2")  # fmt: skip
    ask(*flags, "--method=knn")
    with np.load(tmp_path / "features.npz") as features:
        assert np.bincount(features["training_labels"]).tolist() == [2] * 10
        assert len(features["training_features"]) == 20
    # as many updates as with all labels: two of twenty images would not do
    assert ask(*flags) > 0.2


def test_the_frozen_encoder_drops_nothing_of_what_it_was_trained_with(
    make_model, images, tmp_path
):
    rates = {"drop_path_rate": 0.5, "dropout_rate": 0.1, "attention_dropout_rate": 0.1}
    make_model(**rates).save(tmp_path / "model.keras")
    script = load(SCRIPT)
    flags = [f"--model={tmp_path}", f"--output={tmp_path}"]
    config = parse_flags(script.ProbeConfig, "", flags)
    config = script.apply_recipe(config, script.LINEAR_PROBING).resolved()
    model = script.build_model(script.ClassifierTraining(config))
    data = images[..., :1], keras.ops.one_hot([0, 1, 2, 3], 10)
    losses = [model.training_loss(**model.training_inputs(data))[0] for _ in range(2)]
    assert float(losses[0]) == float(losses[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe", [pytest.param("small", marks=pytest.mark.nightly), "base"]
)
def test_features_are_of_whole_images(recipe, tmp_path, monkeypatch):
    """The border decides the class; center crops leave it out."""
    for split in ("train", "val"):
        pictures.write_bordered(tmp_path / "data" / split, range(4))
    script, seen = load(SCRIPT), []

    def keep(predict, batches, steps):
        images, labels, _ = zip(*batches.take(steps), strict=True)
        seen.extend(batch.numpy() for batch in images)
        return np.ones((4, 2)), np.concatenate(labels).argmax(axis=-1)

    monkeypatch.setattr(script, "extract_features", keep)
    flags = [f"--dataset=folder:{tmp_path / 'data'}", f"--output={tmp_path / 'out'}",
             "--method=knn", "--no-pictures", "--batch_size=4"]  # fmt: skip
    flags.append(f"--recipe={recipe}")
    script.main(parse_flags(script.ProbeConfig, "", flags))
    assert len(seen) == 2
    for images in seen:
        levels = keras_mae.MAEImageProcessor(32).denormalize(images)
        assert np.abs(levels[:, 0].mean(axis=(1, 2)) - 127.5).min() > 60


@pytest.mark.slow
def test_gradients_on_features_are_clipped(probed, tmp_path):
    folder, flags, _ = probed
    ask(*flags, "--clip_norm=1e-9", "--no-pictures", f"--output={tmp_path}")
    free, clipped = (
        np.abs(keras.models.load_model(path / "model.keras").head.bias.numpy()).max()
        for path in (folder, tmp_path)
    )
    assert clipped < 1e-6 < 1e-3 < free


def test_two_images_are_not_drawn_in_a_plane(tmp_path, capsys):
    features = {"held_out_features": np.eye(2, 4), "held_out_labels": np.arange(2)}
    load(SCRIPT).draw(tmp_path, features, np.eye(2), ["cat", "dog"])
    assert [path.name for path in tmp_path.iterdir()] == ["confusion.png"]
    assert "at least 3 held-out images. Received: 2" in capsys.readouterr().out


@pytest.mark.nightly
def test_linear_probing_with_crops_trains_through_the_encoder(probed, tmp_path):
    _, flags, _ = probed
    output = tmp_path / "run"
    # the last of two flags of a name counts; replicas need a process of their own
    finished = run(
        SCRIPT,
        *(*flags, f"--output={output}", "--crop_scale=0.5", "--epochs=2"),
        *("--warmup_epochs=1", "--blr=1", "--strategy=mirrored"),
    )
    assert finished.returncode == 0, finished.stderr
    assert (output / "best.keras").exists()
    assert re.search(r"^1,", (output / "history.csv").read_text(), re.MULTILINE)
    trained = keras.models.load_model(output / "model.keras")
    assert not trained.encoder.trainable
    np.testing.assert_array_equal(trained.head_norm.gamma, np.ones(48))
    assert np.abs(trained.batch_norm.moving_mean.numpy()).max() > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags, message",
    [
        (["--method=guess"], "invalid choice"),
        (["--recipe=giant"], "recipe must be one of base, large, huge, small"),
        (["--recipe=base"], "batch_size must be in [1, 1437]"),
        (["--k=0", "--method=knn"], "k and temperature must be positive"),
        (["--weight_decay=-1"], "weight_decay must be at least 0"),
        (["--method=knn", "--wandb=x"], "for a head that is trained on images"),
    ],
)
def test_bad_input_is_one_line_and_code_2(tmp_path, flags, message):
    assert message in refusal(SCRIPT, f"--output={tmp_path}", *flags)


@pytest.mark.slow
def test_training_run_is_not_overwritten(probed, tmp_path):
    _, flags, _ = probed
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-000000009.keras").touch()
    with pytest.raises(ValueError, match="holds a training run"):
        ask(*flags, f"--output={tmp_path}")
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.keras").touch()
    with pytest.raises(ValueError, match="another model: choose another --output"):
        ask(*flags, f"--output={other}")
    assert [path.name for path in other.iterdir()] == ["model.keras"]


@pytest.mark.nightly
def test_cached_features_depend_on_the_data(tmp_path, capsys):
    def write(name, brightness):
        for split, count in (("train", 6), ("val", 2)):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = np.full((32, 32, 3), brightness + index, "uint8")
                Image.fromarray(pixels).save(folder / f"{index}.png")

    def labels(*flags):
        ask(f"--dataset=folder:{tmp_path / 'data'}", f"--output={tmp_path / 'out'}",
            "--method=knn", "--k=1", "--batch_size=4", "--no-pictures",
            *flags)  # fmt: skip
        with np.load(tmp_path / "out" / "features.npz") as file:
            return sorted(file["held_out_labels"]), str(file["key"])

    write("cat", 30)
    write("dog", 200)
    found, key = labels()
    assert found == [0, 0, 1, 1]
    assert labels() == (found, key)
    assert labels("--precision=mixed_bfloat16") != (found, key)
    write("ant", 100)  # the first in the alphabet
    assert labels()[0] == [0, 0, 1, 1, 2, 2]
    assert "6 held-out images" in capsys.readouterr().out


@pytest.mark.nightly
def test_cached_features_depend_on_the_head_norm(probed, tmp_path):
    folder, flags, _ = probed
    model = keras.models.load_model(folder / "model.keras")
    keys = []
    for shift in range(2):
        model.head_norm.beta.assign(model.head_norm.beta + shift)
        path = tmp_path / f"{shift}.keras"
        model.save(path)
        ask(*flags, f"--model={path}", "--method=knn", "--no-pictures",
            f"--output={tmp_path / 'out'}")  # fmt: skip
        with np.load(tmp_path / "out" / "features.npz") as file:
            keys.append(str(file["key"]))
    assert keys[0] != keys[1]
