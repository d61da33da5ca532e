"""Matplotlib plots: confusion matrix, PCA and t-SNE, accuracies, costs, history."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from keras_mae.utils.typing import ArrayLike

METHODS = ("pca", "tsne")
# ends of the names that logs have for accuracies
ACCURACIES = ("accuracy", "top1", "top5")
# of t-SNE, whose time grows faster than the number of points
MOST_POINTS = 3000
# sides of a confusion matrix, in inches, and classes whose names can be read on it
_MOST_INCHES, _MOST_NAMES = 24.0, 150


def plot_confusion_matrix(
    labels: ArrayLike, predicted: ArrayLike, class_names: Sequence[str]
) -> Image.Image:
    """Draws a confusion matrix, in shares of the true class."""
    metrics, pyplot = _import_plotting()
    side = min(max(4.0, 0.45 * len(class_names)), _MOST_INCHES)
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
    if len(class_names) > _MOST_NAMES:
        axes.set(xticks=[], yticks=[])
    return _to_pil(figure)


def plot_features(
    features: ArrayLike,
    labels: ArrayLike,
    class_names: Sequence[str],
    method: str = "pca",
) -> Image.Image:
    """Draws features `(N, D)` by PCA or t-SNE as points, coloured by class."""
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}. Received: {method!r}")
    _, pyplot = _import_plotting()
    features, labels = np.asarray(features, "float32"), np.asarray(labels)
    title = {"pca": "PCA", "tsne": "t-SNE"}[method]
    if method == "tsne" and len(features) > MOST_POINTS:
        title += f" of {MOST_POINTS:,} of {len(features):,}"
        rng = np.random.default_rng(0)
        chosen = rng.choice(len(features), MOST_POINTS, replace=False)
        features, labels = features[chosen], labels[chosen]
    if method == "pca":
        from sklearn.decomposition import PCA

        points = PCA(2, random_state=0).fit_transform(features)
    else:
        from sklearn.manifold import TSNE

        perplexity = min(30, (len(features) - 1) / 3)
        points = TSNE(perplexity=perplexity, random_state=0).fit_transform(features)
    figure, axes = pyplot.subplots(figsize=(5, 5))
    colours = pyplot.get_cmap("tab20" if len(class_names) > 10 else "tab10")
    for number, name in enumerate(class_names):
        x, y = points[labels == number].T
        axes.scatter(x, y, s=6, color=colours(number % colours.N), label=name)
    axes.set(xticks=[], yticks=[], title=title)
    if len(class_names) <= 20:
        axes.legend(markerscale=2, fontsize=7)
    return _to_pil(figure)


def plot_accuracies(
    names: Sequence[str], curves: Mapping[tuple[str, str], Sequence[Sequence[float]]]
) -> Image.Image:
    """Draws accuracies by the number of labels, a panel a method."""
    _, pyplot = _import_plotting()
    methods = list(dict.fromkeys(method for method, _ in curves))
    size = 3.2 * len(methods), 3.0
    figure, panels = pyplot.subplots(
        1, len(methods), figsize=size, sharey=True, squeeze=False
    )
    for method, axes in zip(methods, panels[0], strict=True):
        # a list for each name, of which mean and deviation are drawn
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
    return _to_pil(figure)


def plot_scaling(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> Image.Image:
    """Draws time and peak memory of a step, a column for each thing that grows."""
    _, pyplot = _import_plotting()
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
    return _to_pil(figure)


def plot_history(
    epochs: Sequence[int], columns: Mapping[str, Sequence[float]]
) -> Image.Image:
    """Draws a run's losses and accuracies by epoch; NaN where nothing was logged."""
    _, pyplot = _import_plotting()
    panels: dict[str, list[str]] = {}
    for name in columns:
        kind = "accuracy" if name.endswith(ACCURACIES) else name.removeprefix("val_")
        panels.setdefault(kind, []).append(name)
    size = 4.2 * len(panels), 2.6
    figure, drawn = pyplot.subplots(1, len(panels), figsize=size, squeeze=False)
    for (kind, names), axes in zip(panels.items(), drawn[0], strict=True):
        for name in names:
            values = np.asarray(columns[name], float)
            there = np.isfinite(values)
            marker = "o" if there.sum() < 30 else None
            axes.plot(
                np.asarray(epochs)[there], values[there], marker=marker, label=name
            )
        axes.set(xlabel="epoch", title=kind.replace("_", " "))
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    figure.tight_layout()
    return _to_pil(figure)


def check_can_plot() -> None:
    """Raises where packages are missing, before work that ends in a plot."""
    try:
        _import_plotting()
    except ValueError as error:
        raise ValueError(f"{error}, or give --no-pictures") from error


def _import_plotting():
    """Imports scikit-learn's metrics and `pyplot`, or says how to install them."""
    try:
        import matplotlib
        from sklearn import metrics

        matplotlib.use("Agg")  # no display
        from matplotlib import pyplot
    except ImportError as error:
        raise ValueError(
            "Plots need scikit-learn and matplotlib: pip install 'keras-mae[demo]'"
        ) from error
    return metrics, pyplot


def _to_pil(figure):
    file = io.BytesIO()
    figure.savefig(file, dpi=110, bbox_inches="tight")
    figure.clear()
    from matplotlib import pyplot

    pyplot.close(figure)
    return Image.open(file).convert("RGB")
