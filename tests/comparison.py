"""Comparisons that several tests make."""

import numpy as np


def assert_same_weights(one, two):
    """Asserts that two models have the same weights, to the bit."""
    for ours, theirs in zip(one.weights, two.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
