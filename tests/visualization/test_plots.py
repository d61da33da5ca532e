"""Plots: drawn without a display, and different for different data."""

import numpy as np
import pytest
from PIL import Image

from keras_mae.visualization import plots
from tests.scripts import load, refusal

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


@pytest.mark.slow
def test_plots_are_drawn_for_few_and_many_classes():
    rng = np.random.default_rng(0)
    for classes in (3, 40):
        names = [f"class {number}" for number in range(classes)]
        labels = np.arange(120) % classes
        right = plots.plot_confusion_matrix(labels, labels, names)
        wrong = plots.plot_confusion_matrix(labels, labels[::-1], names)
        assert right.mode == "RGB" and right.tobytes() != wrong.tobytes()
        features = rng.normal(size=(120, 6)) + 5 * (labels == 1)[:, None]
        assert plots.plot_features(features, labels, names).size[0] > 200
    assert plots.plot_features(features[:9], labels[:9], names, "tsne").size[0] > 200
    with pytest.raises(ValueError, match=r"method must be one of .*'umap'"):
        plots.plot_features(features, labels, names, "umap")


@pytest.mark.slow
def test_a_thousand_classes_fit_in_a_picture():
    labels = np.arange(1000)
    names = [f"class {number}" for number in labels]
    picture = plots.plot_confusion_matrix(labels, labels, names)
    assert 1500 < max(picture.size) < 3000


def test_tsne_draws_some_of_many_points(monkeypatch):
    from sklearn.manifold import TSNE

    seen = []
    monkeypatch.setattr(plots, "MOST_POINTS", 20)
    monkeypatch.setattr(
        TSNE, "fit_transform", lambda self, x: seen.append(x.shape) or x[:, :2]
    )
    features = np.random.default_rng(0).normal(size=(50, 6))
    plots.plot_features(features, np.arange(50) % 2, ["a", "b"], "tsne")
    assert seen == [(20, 6)]


def test_scaling_has_a_column_a_name():
    def points(name, seconds):
        rows = zip((1, 2, 4), seconds, strict=True)
        return [{name: x, "seconds": y, "peak_memory": 2**30} for x, y in rows]

    one = plots.plot_scaling({"depth": points("depth", (1, 2, 3))})
    two = plots.plot_scaling(
        {"depth": points("depth", (1, 2, 3)), "replicas": points("replicas", (3, 2, 1))}
    )
    assert two.size[0] > 1.5 * one.size[0]
    other = plots.plot_scaling({"depth": points("depth", (3, 2, 1))})
    assert one.tobytes() != other.tobytes()


def test_a_history_has_a_panel_for_losses_and_one_for_accuracies():
    losses = {"loss": [3.0, 2.0, 1.0], "val_loss": [3.0, 2.5, 2.0]}
    probed = {"probe_knn_accuracy": [0.5, float("nan"), 0.75]}
    one = plots.plot_history([1, 2, 3], losses)
    two = plots.plot_history([1, 2, 3], losses | probed)
    assert two.size[0] > 1.5 * one.size[0]
    # an epoch without a value is passed over
    without = plots.plot_history([1, 3], {"probe_knn_accuracy": [0.5, 0.75]})
    assert plots.plot_history([1, 2, 3], probed).tobytes() == without.tobytes()
    tuned = {name: [0.5] for name in ("top1", "top5", "val_top1", "val_top5")}
    assert plots.plot_history([1], tuned).size[0] < 1.5 * one.size[0]
    choose = load("training/plot_history.py").choose
    assert choose({**tuned, "learning_rate": [0.1]}, None) == tuned


def test_the_script_plots_a_run(tmp_path):
    script = "training/plot_history.py"
    (tmp_path / "history.csv").write_text(
        "epoch,loss,probe_knn_accuracy,val_loss\n0,2.0,0.5,2.5\n1,1.0,,NA\n"
    )
    config = {"run": str(tmp_path), "out": str(tmp_path / "plots" / "history.png")}
    module = load(script)
    module.main(module.PlotConfig(**config))
    with Image.open(config["out"]) as picture:
        width = picture.size[0]
    module.main(module.PlotConfig(**config, columns="loss"))
    with Image.open(config["out"]) as picture:
        assert picture.size[0] < width
    assert "must be among loss, probe" in refusal(
        script, f"--run={tmp_path}", "--columns=top1"
    )
    assert "a folder with a history.csv" in refusal(script, "--run=none")
