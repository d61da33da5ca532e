"""Probing: the feature cache."""

import sys

import numpy as np
import pytest

import keras_mae
from keras_mae.models.fingerprint import fingerprint
from keras_mae.runs import probing


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


def test_logistic_regression_names_the_extra_that_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ValueError, match=r"pip install 'keras-mae\[demo\]'"):
        probing.fit_logistic_regression(np.eye(2), [0, 1])


def test_fingerprint_depends_on_weights_and_settings():
    encoder = keras_mae.MAEEncoder.from_preset("mae_tiny")
    one = fingerprint(encoder.weights, "digits")
    assert one == fingerprint(encoder.weights, "digits")
    encoder.norm.beta.assign(encoder.norm.beta + 1)
    assert one != fingerprint(encoder.weights, "digits")
