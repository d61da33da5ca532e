"""What lies between matrix products, in one pass over memory, where that pays."""

import contextlib
import contextvars
import functools

import keras

from keras_mae.utils.devices import has_accelerator

_LARGE = 10**7
_FUSING = contextvars.ContextVar("fusing", default=False)


def xla_pays():
    """Says what `jit_compile="auto"` means: XLA, except where it costs.

    On CPUs its first step is long with TensorFlow, and its gain small (in bfloat16 a
    loss). JAX has no other way to be fast; with PyTorch Keras leaves it to the user.

    Returns:
        Bool.

    Example:

    ```python
    jit_compile = xla_pays()
    ```
    """
    if keras.backend.backend() != "tensorflow":
        return keras.backend.backend() == "jax"
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


def plain_cpu(compiled):
    """Says whether a step is a plain TensorFlow graph for CPUs.

    Args:
        compiled: Whether XLA compiles the whole step.

    Returns:
        Bool.

    Example:

    ```python
    assert not plain_cpu(compiled=True)
    ```
    """
    return (
        not compiled
        and keras.backend.backend() == "tensorflow"
        and not has_accelerator()
    )


def fusing_pays(compiled, parameters):
    """Says whether `fused` functions should be fused in a training step.

    On CPUs TensorFlow's matrix products are those of oneDNN, which XLA's don't reach,
    while its other kernels each read and write the whole tensor. Only the latter are
    compiled by XLA then. On GPUs and TPUs the whole step is.

    Args:
        compiled: Whether XLA compiles the whole step.
        parameters: Int, the model's size: a small one's steps would take long to repay
            the seconds of compiling.

    Returns:
        Bool.

    Example:

    ```python
    assert not fusing_pays(compiled=True, parameters=10**8)
    ```
    """
    return parameters >= _LARGE and plain_cpu(compiled)


@contextlib.contextmanager
def fusing(on):
    """Switches fusing for the functions that are called in the block.

    Args:
        on: Bool.

    Example:

    ```python
    with fusing(True):
        assert fused(lambda x: x + 1)(keras.ops.ones(2)).shape == (2,)
    ```
    """
    token = _FUSING.set(on)
    try:
        yield
    finally:
        _FUSING.reset(token)


def is_fusing():
    """Says whether `fused` functions are fused where this is called.

    Returns:
        Bool.

    Example:

    ```python
    assert not is_fusing()
    ```
    """
    return _FUSING.get()


def fused(function):
    """Decorates a function of tensors so that it can be fused.

    Fused, its value is one compiled function and its gradient another, which computes
    anew what it needs from the inputs: nothing else is kept. Both are equal to those of
    the plain function but for rounding.

    Args:
        function: Function of tensors, and of keyword arguments that can be hashed,
            which returns a tensor or a tuple of tensors; without variables and
            randomness.

    Returns:
        A function of the same arguments.

    Example:

    ```python
    square = fused(lambda x: x * x)
    with fusing(True):
        assert float(square(keras.ops.convert_to_tensor(3.0))) == 9.0
    ```
    """
    return replaced(function, _with_gradient, is_fusing)


def replaced(function, make, applies):
    """Makes a function that calls another one in place of itself where that applies.

    Args:
        function: Function of tensors, and of keyword arguments that can be hashed.
        make: Function of a function of tensors that returns the other one; it is called
            once for each set of keyword arguments.
        applies: Function without arguments that says whether the other one is called.

    Returns:
        A function of the same arguments.

    Example:

    ```python
    double = replaced(lambda x: 2 * x, lambda f: lambda x: -f(x), applies=lambda: True)
    assert float(double(keras.ops.convert_to_tensor(3.0))) == -6.0
    ```
    """

    @functools.cache
    def other(**options):
        return make(functools.partial(function, **options))

    @functools.wraps(function)
    def call(*tensors, **options):
        if not applies():
            return function(*tensors, **options)
        return other(**options)(*map(read, tensors))

    return call


def read(variable):
    """Reads a variable into one of TensorFlow's tensors.

    Args:
        variable: A Keras variable, or a tensor.

    Returns:
        A `tf.Tensor`.

    Example:

    ```python
    assert read(keras.Variable([1.0])).shape == (1,)
    ```
    """
    import tensorflow as tf

    # Keras's own gives TensorFlow's variable, which a custom gradient must not see
    return tf.convert_to_tensor(keras.ops.convert_to_tensor(variable))


def _with_gradient(function):
    import tensorflow as tf

    forward = tf.function(function, jit_compile=True, autograph=False)

    @tf.function(jit_compile=True, autograph=False)
    def backward(tensors, upstream):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            outputs = function(*tensors)
        return tape.gradient(outputs, tensors, output_gradients=upstream)

    @tf.custom_gradient
    def compute(*tensors):
        outputs = forward(*tensors)

        def differentiate(*upstream):
            several = isinstance(outputs, (list, tuple))
            return backward(list(tensors), list(upstream) if several else upstream[0])

        return outputs, differentiate

    return compute
