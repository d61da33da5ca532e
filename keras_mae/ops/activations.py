"""GELU, exact and by its tanh approximation."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_mae.utils.typing import Tensor


@keras.saving.register_keras_serializable(package="keras_mae")
def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by its tanh approximation (Hendrycks and Gimpel 2016, section 2)."""
    return keras.activations.gelu(x, approximate=True)


@keras.saving.register_keras_serializable(package="keras_mae")
def gelu(x: Tensor) -> Tensor:
    """The exact GELU (Hendrycks and Gimpel 2016, section 2), by erf as PyTorch."""
    if keras.backend.backend() == "torch":
        return keras.activations.gelu(x)
    # Keras's is made of erfc, which takes two to four times as long on CPUs
    wide = ops.cast(x, keras.backend.result_type(x.dtype, "float32"))
    active = 0.5 * wide * (1.0 + ops.erf(wide * 0.5**0.5))
    return ops.cast(active, x.dtype)


def fast_activation(activation: Any) -> Callable:
    """Returns the fastest function that computes an activation of Keras."""
    return gelu if activation is keras.activations.gelu else activation
