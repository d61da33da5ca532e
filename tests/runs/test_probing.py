"""Probing: k-NN, the feature cache, accuracies."""

import numpy as np
import pytest

import keras_mae
from keras_mae.runs import probing


def test_knn_votes_by_similarity():
    rng = np.random.default_rng(0)
    features, queries = rng.normal(size=(50, 8)), rng.normal(size=(9, 8))
    labels = rng.integers(0, 3, 50)
    scores = probing.knn_scores(features, labels, queries, 3, k=7, temperature=0.2)
    for query, got in zip(queries, scores, strict=True):
        cosine = features @ query / np.linalg.norm(features, axis=1)
        cosine /= np.linalg.norm(query)
        votes = np.zeros(3)
        for index in np.argsort(-cosine)[:7]:
            votes[labels[index]] += np.exp(cosine[index] / 0.2)
        np.testing.assert_allclose(got, votes / votes.sum(), rtol=1e-4)


def test_knn_uses_all_of_few_features_and_ignores_scale():
    features = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    scores = probing.knn_scores(features, [0, 1, 1], [[0.0, 9.0]], 4, k=20)
    assert scores.shape == (1, 4) and scores[0].argmax() == 1
    small = probing.knn_scores(features * 1e-4, [0, 1, 1], [[0.0, 1e-5]], 4, k=20)
    np.testing.assert_allclose(small, scores, rtol=1e-4)


@pytest.mark.parametrize("options", [{"k": 0}, {"temperature": 0.0}])
def test_knn_settings_are_checked(options):
    with pytest.raises(ValueError, match="must be positive"):
        probing.knn_scores(np.ones((2, 2)), [0, 1], np.ones((1, 2)), 2, **options)


def test_top_accuracies():
    scores = np.arange(8.0)[None].repeat(3, axis=0)
    assert probing.top_accuracies(scores, [7, 3, 2]) == (1 / 3, 2 / 3)


def test_cached_features_are_computed_once_per_key(tmp_path):
    path = tmp_path / "features.npz"
    calls = []

    def compute():
        calls.append(1)
        return {"x": np.arange(3)}

    for _ in range(2):
        np.testing.assert_array_equal(
            probing.cached(path, "one", compute)["x"], [0, 1, 2]
        )
    assert len(calls) == 1
    probing.cached(path, "two", compute)
    assert len(calls) == 2
    path.write_bytes(path.read_bytes()[:50])
    probing.cached(path, "two", compute)
    assert len(calls) == 3


def test_fingerprint_depends_on_weights_and_settings():
    encoder = keras_mae.MAEEncoder.from_preset("mae_tiny")
    one = probing.fingerprint(encoder.weights, "digits")
    assert one == probing.fingerprint(encoder.weights, "digits")
    encoder.norm.beta.assign(encoder.norm.beta + 1)
    assert one != probing.fingerprint(encoder.weights, "digits")
