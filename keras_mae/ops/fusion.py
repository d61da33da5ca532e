"""XLA-fused element-wise ops for CPU training, and when XLA compiles a whole step.

On CPUs TensorFlow's matrix products are oneDNN's, which XLA's don't reach, while its
other kernels each read and write the whole tensor. So only what is between the matrix
products is compiled by XLA there; on GPUs and TPUs the whole step is.
"""

import contextlib
import contextvars

import keras

from keras_mae.utils.devices import gpus_in_use, has_accelerator

# the steps of smaller models would take long to repay the seconds of compiling
_MIN_PARAMETERS = 10**7
_FUSION = contextvars.ContextVar("fusion", default=False)


def auto_jit_compile():
    """Resolves `jit_compile="auto"`: XLA on GPUs and with JAX."""
    if keras.backend.backend() != "tensorflow":
        return keras.backend.backend() == "jax"
    # on CPUs the first step would be long, and the gain small
    return bool(gpus_in_use())


def runs_as_cpu_graph(compiled):
    """Whether a step that XLA compiles whole or not is a TensorFlow graph on CPUs."""
    return (
        not compiled
        and keras.backend.backend() == "tensorflow"
        and not has_accelerator()
    )


def should_fuse(compiled, parameters):
    """Whether to fuse ops in a step of a model with so many parameters."""
    return parameters >= _MIN_PARAMETERS and runs_as_cpu_graph(compiled)


@contextlib.contextmanager
def fusion_scope(enabled):
    """Switches fusion for the transformer blocks that are called in the block."""
    token = _FUSION.set(enabled)
    try:
        yield
    finally:
        _FUSION.reset(token)


def fusion_enabled():
    """Whether this is called in an enabled `fusion_scope`."""
    return _FUSION.get()


def to_tf_tensor(variable):
    """Converts a Keras variable or tensor to a `tf.Tensor`."""
    import tensorflow as tf

    # Keras's own gives TensorFlow's variable, which a custom gradient must not see
    return tf.convert_to_tensor(keras.ops.convert_to_tensor(variable))
