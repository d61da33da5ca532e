"""k-NN on features, and accuracies."""

import numpy as np
import pytest

from keras_mae.ops.neighbors import knn_scores, top_accuracies


def test_knn_votes_by_similarity():
    rng = np.random.default_rng(0)
    features, queries = rng.normal(size=(50, 8)), rng.normal(size=(9, 8))
    labels = rng.integers(0, 3, 50)
    scores = knn_scores(features, labels, queries, 3, k=7, temperature=0.2)
    for query, got in zip(queries, scores, strict=True):
        cosine = features @ query / np.linalg.norm(features, axis=1)
        cosine /= np.linalg.norm(query)
        votes = np.zeros(3)
        for index in np.argsort(-cosine)[:7]:
            votes[labels[index]] += np.exp(cosine[index] / 0.2)
        np.testing.assert_allclose(got, votes / votes.sum(), rtol=1e-4)


def test_knn_uses_all_of_few_features_and_ignores_scale():
    features = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    scores = knn_scores(features, [0, 1, 1], [[0.0, 9.0]], 4, k=20)
    assert scores.shape == (1, 4) and scores[0].argmax() == 1
    small = knn_scores(features * 1e-4, [0, 1, 1], [[0.0, 1e-5]], 4, k=20)
    np.testing.assert_allclose(small, scores, rtol=1e-4)


@pytest.mark.parametrize("options", [{"k": 0}, {"temperature": 0.0}])
def test_knn_settings_are_checked(options):
    with pytest.raises(ValueError, match="must be positive"):
        knn_scores(np.ones((2, 2)), [0, 1], np.ones((1, 2)), 2, **options)


def test_top_accuracies():
    scores = np.arange(8.0)[None].repeat(3, axis=0)
    assert top_accuracies(scores, [7, 3, 2]) == (1 / 3, 2 / 3)
