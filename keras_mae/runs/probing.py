"""What frozen features are worth: features kept once computed, and their neighbours."""

import hashlib
import os
import zipfile

import keras
import numpy as np

from keras_mae.utils.files import atomic_write

# Wu et al. 2018, section 3.4, as DINO uses it
NEIGHBOURS, TEMPERATURE = 20, 0.07


def extract_features(function, batches, steps):
    """Computes the features of labelled images.

    Args:
        function: Function of `(B, H, W, C)` images that returns `(B, D)` features, such
            as `classifier.pooled`.
        batches: Iterable of `(images, labels, weights)`, as `evaluation_pipeline`
            returns it; images of weight 0 are left out.
        steps: Int, how many batches.

    Returns:
        A tuple: `(N, D)` float32 features and `(N,)` int64 labels.

    Example:

    ```python
    batch = np.ones((2, 4, 4, 1)), np.eye(2), np.array([1.0, 0.0])
    features, labels = extract_features(lambda x: x[:, 0, :, 0], [batch], steps=1)
    assert features.shape == (1, 4) and list(labels) == [0]
    ```
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
    """Tells weights and settings from others.

    Args:
        weights: List of Keras variables.
        *settings: What else the features depend on, by their text.

    Returns:
        Str.

    Example:

    ```python
    encoder = keras_mae.MAEEncoder.from_preset("mae_tiny")
    one, two = (fingerprint(encoder.weights, name) for name in ("digits", "photos"))
    assert one != two
    ```
    """
    digest = hashlib.sha256(repr(settings).encode())
    for weight in weights:
        digest.update(
            np.ascontiguousarray(keras.ops.convert_to_numpy(weight)).tobytes()
        )
    return digest.hexdigest()


def cached(path, key, compute):
    """Reads arrays from a file that was made under the same key, or makes it.

    Args:
        path: Path of an `.npz` file in an existing folder.
        key: Str, as `fingerprint` returns it.
        compute: Function without arguments that returns a dict of arrays.

    Returns:
        A dict of arrays.

    Example:

    ```python
    first = cached("features.npz", "key", lambda: {"x": np.ones(2)})
    again = cached("features.npz", "key", lambda: 1 / 0)
    assert np.array_equal(first["x"], again["x"])
    ```
    """
    if os.path.exists(path):
        try:
            with open(path, "rb") as opened, np.load(opened) as file:
                if str(file["key"]) == key:
                    return {name: file[name] for name in file.files if name != "key"}
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            pass  # cut off, or another file: made anew
    arrays = compute()
    with atomic_write(path) as part, open(part, "wb") as file:
        np.savez(file, key=key, **arrays)
    return arrays


def knn_scores(
    features, labels, queries, num_classes, k=NEIGHBOURS, temperature=TEMPERATURE
):
    """Lets the nearest training features vote (Wu et al. 2018, section 3.4).

    Each of the `k` of highest cosine similarity `s` gives `exp(s / temperature)` votes
    to its class.

    Args:
        features: `(N, D)` float array, those with labels.
        labels: `(N,)` int array.
        queries: `(M, D)` float array.
        num_classes: Int.
        k: Int, the neighbours; at most `N` are asked.
        temperature: Float.

    Returns:
        `(M, num_classes)` float array of votes, which sum up to 1.

    Raises:
        ValueError: If `k` or `temperature` is not positive.

    Example:

    ```python
    features = np.array([[1.0, 0.0], [0.0, 1.0]])
    scores = knn_scores(features, np.array([0, 1]), np.array([[0.1, 2.0]]), 2)
    assert scores.argmax() == 1
    ```
    """
    if k < 1 or temperature <= 0:
        raise ValueError(
            f"k and temperature must be positive. Received: {k} and {temperature}"
        )
    features, queries = _unit(features), _unit(queries)
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


def _unit(features):
    features = np.asarray(features, "float32")
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(norms, 1e-12)


def top_accuracies(scores, labels):
    """Counts how often the class of the highest score, or of the five highest, is true.

    Args:
        scores: `(N, num_classes)` array.
        labels: `(N,)` int array.

    Returns:
        A tuple of floats, top-1 and top-5.

    Example:

    ```python
    assert top_accuracies(np.eye(6), [0, 1, 2, 3, 4, 0])[0] == 5 / 6
    ```
    """
    ranks = np.argsort(-np.asarray(scores), axis=1, kind="stable")[:, :5]
    hits = ranks == np.asarray(labels)[:, None]
    return float(hits[:, 0].mean()), float(hits.any(axis=1).mean())
