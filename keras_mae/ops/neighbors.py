"""Weighted k nearest neighbors on features, and accuracies of class scores."""

import numpy as np

# Wu et al. 2018, section 3.4, as DINO uses it
KNN_NEIGHBORS, KNN_TEMPERATURE = 20, 0.07


def knn_scores(
    features,
    labels,
    queries,
    num_classes,
    k=KNN_NEIGHBORS,
    temperature=KNN_TEMPERATURE,
):
    """Class scores `(M, num_classes)` of weighted k-NN (Wu et al. 2018, sec. 3.4)."""
    if k < 1 or temperature <= 0:
        raise ValueError(
            f"k and temperature must be positive. Received: {k} and {temperature}"
        )
    features, queries = _normalize(features), _normalize(queries)
    labels, k = np.asarray(labels), min(k, len(features))
    scores = np.zeros((len(queries), num_classes))
    # a gigabyte of similarities and indices at a time, at most
    size = max(1, min(1024, 2**26 // len(features)))
    for first in range(0, len(queries), size):
        similarities = queries[first : first + size] @ features.T  # (m, N)
        nearest = np.argpartition(-similarities, k - 1, axis=1)[:, :k]  # (m, k)
        near = np.take_along_axis(similarities, nearest, axis=1)
        # less the largest: exp must not overflow
        votes = np.exp((near - near.max(axis=1, keepdims=True)) / temperature)
        rows = np.arange(len(near))[:, None] + first
        np.add.at(scores, (rows, labels[nearest]), votes)
    return scores / scores.sum(axis=1, keepdims=True)


def _normalize(features):
    features = np.asarray(features, "float32")
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(norms, 1e-12)


def top_accuracies(scores, labels):
    """Returns top-1 and top-5 accuracy of class scores `(N, num_classes)`."""
    ranks = np.argsort(-np.asarray(scores), axis=1, kind="stable")[:, :5]
    hits = ranks == np.asarray(labels)[:, None]
    return float(hits[:, 0].mean()), float(hits.any(axis=1).mean())
