"""Comparisons that several tests make."""

import keras
import numpy as np


def assert_same_weights(model, other, compiled_apart=False):
    """Asserts that two models have the same weights, to the bit.

    Steps that were `compiled_apart` may round otherwise on JAX, which compiles them.
    """
    exact = not compiled_apart or keras.backend.backend() != "jax"
    for ours, theirs in zip(model.weights, other.weights, strict=True):
        assert ours.dtype == theirs.dtype
        # float32 holds each bfloat16; older NumPy can't compare these
        one, two = (np.asarray(v.numpy(), "float32") for v in (ours, theirs))
        np.testing.assert_allclose(one, two, atol=0 if exact else 1e-6, rtol=0)
