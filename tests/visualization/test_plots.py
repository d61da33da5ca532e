"""Plots: drawn without a display, and different for different data."""

import numpy as np
import pytest

from keras_mae.visualization import plots

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
