"""Comparisons that several tests make."""

import keras
import numpy as np


def assert_same_weights(model, other, tolerance=0.0):
    """Asserts that two models have the same weights, by default to the bit."""
    for ours, theirs in zip(model.weights, other.weights, strict=True):
        assert ours.dtype == theirs.dtype
        # float32 holds each bfloat16; older NumPy can't compare these
        one, two = (np.asarray(v.numpy(), "float32") for v in (ours, theirs))
        np.testing.assert_allclose(one, two, atol=tolerance, rtol=0)


def assert_goes_on_as_before(classifier, optimizer, images, file):
    """Asserts that a saved classifier trains on like the one that was not."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    classifier.compile(optimizer=optimizer, loss=loss)
    labels = np.array([0, 1, 2, 0])
    classifier.fit(images, labels, epochs=3, verbose=0)
    classifier.save(file)
    loaded = keras.models.load_model(file)
    assert type(loaded.optimizer) is type(optimizer)
    assert loaded.optimizer.get_config() == optimizer.get_config()
    for each in (classifier, loaded):
        each.fit(images, labels, verbose=0)
    # bits are TensorFlow's promise: others may round each model's step otherwise
    tolerance = 0.0 if keras.backend.backend() == "tensorflow" else 1e-5
    assert_same_weights(classifier, loaded, tolerance)
