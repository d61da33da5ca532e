"""Pictures of what a classifier does, and of what a training step costs."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from keras_mae.utils.typing import ArrayLike

METHODS = ("pca", "tsne")


def confusion_picture(
    labels: ArrayLike, predicted: ArrayLike, class_names: Sequence[str]
) -> Image.Image:
    """Draws which class is taken for which, as shares of the true class.

    Args:
        labels: `(N,)` ints, the true classes.
        predicted: `(N,)` ints.
        class_names: Sequence of str.

    Returns:
        A PIL image.

    Raises:
        ValueError: If scikit-learn or matplotlib is missing.

    Example:

    ```python
    picture = confusion_picture([0, 0, 1], [0, 1, 1], ("cat", "dog"))
    assert picture.mode == "RGB"
    ```
    """
    metrics, pyplot = _require()
    side = max(4.0, 0.45 * len(class_names))
    figure, axes = pyplot.subplots(figsize=(side, side))
    metrics.ConfusionMatrixDisplay.from_predictions(
        labels,
        predicted,
        labels=range(len(class_names)),
        display_labels=class_names,
        normalize="true",
        include_values=len(class_names) <= 20,
        values_format=".2f",
        xticks_rotation="vertical",
        cmap="Blues",
        colorbar=False,
        text_kw={"fontsize": 7},
        ax=axes,
    )
    return _as_picture(figure)


def feature_picture(
    features: ArrayLike,
    labels: ArrayLike,
    class_names: Sequence[str],
    method: str = "pca",
    seed: int = 0,
) -> Image.Image:
    """Draws features in a plane, a point an image, coloured by class.

    Args:
        features: `(N, D)` float array.
        labels: `(N,)` int array.
        class_names: Sequence of str.
        method: `"pca"`, the plane of the largest variance, or `"tsne"` (van der Maaten
            and Hinton 2008), which keeps neighbours together.
        seed: Int, t-SNE's.

    Returns:
        A PIL image.

    Raises:
        ValueError: If the method is unknown, or scikit-learn or matplotlib is missing.

    Example:

    ```python
    features = np.random.default_rng(0).normal(size=(20, 8))
    picture = feature_picture(features, np.arange(20) % 2, ("cat", "dog"))
    ```
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}. Received: {method!r}")
    _, pyplot = _require()
    features, labels = np.asarray(features, "float32"), np.asarray(labels)
    if method == "pca":
        from sklearn.decomposition import PCA

        points = PCA(2, random_state=seed).fit_transform(features)
    else:
        from sklearn.manifold import TSNE

        perplexity = min(30, (len(features) - 1) / 3)
        points = TSNE(perplexity=perplexity, random_state=seed).fit_transform(features)
    figure, axes = pyplot.subplots(figsize=(5, 5))
    colours = pyplot.get_cmap("tab20" if len(class_names) > 10 else "tab10")
    for number, name in enumerate(class_names):
        x, y = points[labels == number].T
        axes.scatter(x, y, s=6, color=colours(number % colours.N), label=name)
    axes.set(xticks=[], yticks=[], title={"pca": "PCA", "tsne": "t-SNE"}[method])
    if len(class_names) <= 20:
        axes.legend(markerscale=2, fontsize=7)
    return _as_picture(figure)


def accuracy_picture(
    names: Sequence[str], curves: Mapping[tuple[str, str], Sequence[Sequence[float]]]
) -> Image.Image:
    """Draws accuracies by the number of labels, with deviations, a panel a method.

    Args:
        names: List of str, the numbers of labels.
        curves: Dict from `(method, features)` to lists of accuracies, one list a name.

    Returns:
        A PIL image.

    Raises:
        ValueError: If scikit-learn or matplotlib is missing.

    Example:

    ```python
    curves = {("k-NN", "pixels"): [[0.5, 0.6], [0.7, 0.8]]}
    picture = accuracy_picture(["1", "all"], curves)
    ```
    """
    _, pyplot = _require()
    methods = list(dict.fromkeys(method for method, _ in curves))
    size = 3.2 * len(methods), 3.0
    figure, panels = pyplot.subplots(
        1, len(methods), figsize=size, sharey=True, squeeze=False
    )
    for method, axes in zip(methods, panels[0], strict=True):
        for (theirs, features), values in curves.items():
            if theirs == method:
                means = [100 * np.mean(value) for value in values]
                deviations = [100 * np.std(value) for value in values]
                axes.errorbar(
                    names, means, deviations, marker="o", capsize=3, label=features
                )
        axes.set(title=method, xlabel="labels a class")
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    panels[0][0].set_ylabel("held-out accuracy, %")
    return _as_picture(figure)


def growth_picture(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> Image.Image:
    """Draws time and memory of a step, a column for each thing that grows.

    Args:
        rows: Dict from the name of what grows to its points: dicts that hold a value
            under that name, `seconds`, and `peak_memory` in bytes.

    Returns:
        A PIL image.

    Raises:
        ValueError: If scikit-learn or matplotlib is missing.

    Example:

    ```python
    points = [{"depth": n, "seconds": 0.1 * n, "peak_memory": 2**30} for n in (1, 2)]
    picture = growth_picture({"depth": points})
    ```
    """
    _, pyplot = _require()
    size = 2.6 * len(rows), 4.6
    figure, panels = pyplot.subplots(2, len(rows), figsize=size, squeeze=False)
    for (name, points), (above, below) in zip(rows.items(), panels.T, strict=True):
        values = [point[name] for point in points]
        above.plot(values, [point["seconds"] for point in points], marker="o")
        below.plot(values, [p["peak_memory"] / 2**30 for p in points], marker="o")
        below.set_xlabel(name.replace("_", " "))
        for axes in (above, below):
            axes.set_ylim(bottom=0)
            axes.set_xticks(values)
            axes.grid(alpha=0.3)
    panels[0][0].set_ylabel("seconds a step")
    panels[1][0].set_ylabel("peak memory, GiB")
    figure.tight_layout()
    return _as_picture(figure)


def _require():
    """Imports scikit-learn's metrics and matplotlib, or says what to install."""
    try:
        import matplotlib
        from sklearn import metrics

        matplotlib.use("Agg")  # no screen
        from matplotlib import pyplot
    except ImportError as error:
        raise ValueError(
            "Pictures of classes need scikit-learn and matplotlib: "
            "pip install 'keras-mae[demo]'"
        ) from error
    return metrics, pyplot


def _as_picture(figure):
    file = io.BytesIO()
    figure.savefig(file, dpi=110, bbox_inches="tight")
    figure.clear()
    from matplotlib import pyplot

    pyplot.close(figure)
    return Image.open(file).convert("RGB")
