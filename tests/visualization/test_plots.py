"""Pictures: drawn without a screen, and told apart."""

import numpy as np
import pytest

from keras_mae.visualization import plots

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


@pytest.mark.slow
def test_pictures_are_drawn_for_few_and_many_classes():
    rng = np.random.default_rng(0)
    for classes in (3, 40):
        names = [f"class {number}" for number in range(classes)]
        labels = np.arange(120) % classes
        right = plots.confusion_picture(labels, labels, names)
        wrong = plots.confusion_picture(labels, labels[::-1], names)
        assert right.mode == "RGB" and right.tobytes() != wrong.tobytes()
        features = rng.normal(size=(120, 6)) + 5 * (labels == 1)[:, None]
        assert plots.feature_picture(features, labels, names).size[0] > 200
    assert plots.feature_picture(features[:9], labels[:9], names, "tsne").size[0] > 200
    with pytest.raises(ValueError, match=r"method must be one of .*'umap'"):
        plots.feature_picture(features, labels, names, "umap")


def test_growth_is_drawn_by_its_names():
    def points(name, seconds):
        rows = zip((1, 2, 4), seconds, strict=True)
        return [{name: x, "seconds": y, "peak_memory": 2**30} for x, y in rows]

    one = plots.growth_picture({"depth": points("depth", (1, 2, 3))})
    two = plots.growth_picture(
        {"depth": points("depth", (1, 2, 3)), "replicas": points("replicas", (3, 2, 1))}
    )
    assert two.size[0] > 1.5 * one.size[0]
    other = plots.growth_picture({"depth": points("depth", (3, 2, 1))})
    assert one.tobytes() != other.tobytes()
