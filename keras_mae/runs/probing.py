"""Probing of frozen features: k-NN, logistic regression, and a feature cache."""

import hashlib
import os
import zipfile

import keras
import numpy as np

from keras_mae.utils.files import atomic_write

# Wu et al. 2018, section 3.4, as DINO uses it
KNN_NEIGHBORS, KNN_TEMPERATURE = 20, 0.07


def mean_features(encoder, images, batch_size):
    """Returns the mean patch token of each image, `(N, D)`."""
    tokens = encoder.predict(images, batch_size=batch_size, verbose=0)
    return tokens[:, 1:].mean(axis=1)


def extract_features(function, batches, steps):
    """Computes features `(N, D)` and class ids `(N,)` of `steps` evaluation batches.

    `function` maps images to features; images of weight 0 are padding, and left out.
    """
    features, labels = [], []
    batches = iter(batches)
    for _ in range(steps):
        images, one_hot, weights = next(batches)
        real = np.asarray(weights) > 0
        value = keras.ops.convert_to_numpy(function(images)).astype("float32")
        features.append(value[real])
        labels.append(np.asarray(one_hot).argmax(axis=-1)[real])
    return np.concatenate(features), np.concatenate(labels)


def fingerprint(weights, *settings):
    """Hashes weights, and what else the features depend on."""
    digest = hashlib.sha256(repr(settings).encode())
    for weight in weights:
        digest.update(
            np.ascontiguousarray(keras.ops.convert_to_numpy(weight)).tobytes()
        )
    return digest.hexdigest()


def cached(path, key, compute):
    """Reads a dict of arrays from an `.npz` of the same key, or computes and saves."""
    if os.path.exists(path):
        try:
            with open(path, "rb") as opened, np.load(opened) as file:
                if str(file["key"]) == key:
                    return {name: file[name] for name in file.files if name != "key"}
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            pass  # truncated, or another file: computed again
    arrays = compute()
    with atomic_write(path) as part, open(part, "wb") as file:
        np.savez(file, key=key, **arrays)
    return arrays


def knn_scores(
    features,
    labels,
    queries,
    num_classes,
    k=KNN_NEIGHBORS,
    temperature=KNN_TEMPERATURE,
):
    """Returns class scores `(M, num_classes)` of a weighted k-NN; rows sum up to 1.

    Each of the `k` features of highest cosine similarity `s` votes for its class with
    weight `exp(s / temperature)` (Wu et al. 2018, section 3.4).
    """
    if k < 1 or temperature <= 0:
        raise ValueError(
            f"k and temperature must be positive. Received: {k} and {temperature}"
        )
    features, queries = _normalize(features), _normalize(queries)
    labels, k = np.asarray(labels), min(k, len(features))
    scores = np.zeros((len(queries), num_classes))
    for first in range(0, len(queries), 1024):
        similarities = queries[first : first + 1024] @ features.T  # (m, N)
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


def fit_logistic_regression(features, labels, c=0.1):
    """Fits scikit-learn's logistic regression on standardized features.

    The default `c`, the inverse of the L2 penalty, suits 128 features and few labels.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    regression = LogisticRegression(C=c, max_iter=2000)
    return make_pipeline(StandardScaler(), regression).fit(features, labels)


def top_accuracies(scores, labels):
    """Returns top-1 and top-5 accuracy of class scores `(N, num_classes)`."""
    ranks = np.argsort(-np.asarray(scores), axis=1, kind="stable")[:, :5]
    hits = ranks == np.asarray(labels)[:, None]
    return float(hits[:, 0].mean()), float(hits.any(axis=1).mean())
