"""Gradients on whatever backend runs, for tests that compare them."""

import keras

from tests.contract_files import array


def gradients(function, variables):
    """Differentiates a function by variables.

    Args:
        function: Function without arguments that returns a scalar tensor, or a pair of
            it and whatever else the test wants.
        variables: List of variables.

    Returns:
        A tuple: what the function returned, and a list of arrays.
    """
    backend = keras.backend.backend()
    returned, values = globals()[f"_by_{backend}"](function, variables)
    return returned, [array(value) for value in values]


def _scalar(returned):
    return returned[0] if isinstance(returned, tuple) else returned


def _by_tensorflow(function, variables):
    import tensorflow as tf

    with tf.GradientTape() as tape:
        returned = function()
    return returned, tape.gradient(
        _scalar(returned), [variable.value for variable in variables]
    )


def _by_jax(function, variables):
    import jax

    def compute(values):
        pairs = list(zip(variables, values, strict=True))
        with keras.StatelessScope(state_mapping=pairs):
            returned = function()
        return _scalar(returned), returned

    differentiate = jax.jit(jax.grad(compute, has_aux=True))
    values, returned = differentiate([variable.value for variable in variables])
    return returned, values


def _by_torch(function, variables):
    import torch

    returned = function()
    values = [variable.value for variable in variables]
    return returned, torch.autograd.grad(_scalar(returned), values)
