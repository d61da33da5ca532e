"""TensorFlow graphs in which equal layers and equal updates are traced once."""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_mae.fusion import is_fusing
from keras_mae.typing import Tensor

_CPU_GRAPH = contextvars.ContextVar("cpu_graph", default=False)


@contextlib.contextmanager
def cpu_graph(on: bool) -> Iterator[None]:
    """Says that what is called in the block becomes a TensorFlow graph for CPUs.

    XLA must not compile it whole: it inlines functions by itself, and compiles a step
    with functions in it again and again.

    Args:
        on: Bool.

    Example:

    ```python
    with cpu_graph(True):
        assert is_cpu_graph()
    ```
    """
    token = _CPU_GRAPH.set(on)
    try:
        yield
    finally:
        _CPU_GRAPH.reset(token)


def is_cpu_graph() -> bool:
    """Says whether `cpu_graph` is on where this is called.

    Returns:
        Bool.

    Example:

    ```python
    assert not is_cpu_graph()
    ```
    """
    return _CPU_GRAPH.get()


def read(variable: Any) -> Tensor:
    """Reads a variable into a tensor, on TensorFlow.

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

    # Keras's own gives TensorFlow's variable
    return tf.convert_to_tensor(keras.ops.convert_to_tensor(variable))


def traced_once(function: Callable) -> Callable:
    """Decorates a function of tensors to be traced once a signature in a `cpu_graph`.

    Tracing costs about a millisecond an operation, call by call; a graph's call of a
    function that was traced before is one operation. Values are the same.

    Args:
        function: Function of tensors, and of keyword arguments that can be hashed,
            without variables and randomness.

    Returns:
        A function of the same arguments.

    Example:

    ```python
    double = traced_once(lambda x: 2 * x)
    assert float(double(keras.ops.convert_to_tensor(3.0))) == 6.0
    ```
    """

    @functools.cache
    def traced(**options):
        import tensorflow as tf

        return tf.function(functools.partial(function, **options), autograph=False)

    @functools.wraps(function)
    def call(*tensors, **options):
        if not is_cpu_graph():
            return function(*tensors, **options)
        return traced(**options)(*map(read, tensors))

    return call


class EqualLayers:
    """Calls layers that were built alike, of which a `cpu_graph` traces one only.

    The others run the same graph on their own weights. Layers with random numbers,
    adapters or quantized weights are traced each.

    Example:

    ```python
    call = EqualLayers()
    layers = [keras.layers.Dense(4, activation="gelu") for _ in range(3)]
    x = keras.ops.ones((2, 4))
    for layer in layers:
        x = call(layer, x)
    ```
    """

    def __init__(self) -> None:
        self._traced: dict[Any, Callable] = {}

    def __call__(self, layer: keras.Layer, x: Tensor, **options: Any) -> Any:
        """Calls a layer.

        Args:
            layer: A `keras.Layer`.
            x: Its input, a tensor.
            **options: Its other arguments; tensors, or what can be hashed.

        Returns:
            What the layer returns.
        """
        if not is_cpu_graph() or not layer.built or _has_state(layer):
            return layer(x, **options)
        tensors = {k: v for k, v in options.items() if keras.ops.is_tensor(v)}
        fixed = {k: v for k, v in options.items() if k not in tensors}
        key = (*_kind(layer), *sorted(fixed.items()))
        if key not in self._traced:
            self._traced[key] = _trace(layer, fixed)
        return self._traced[key]([read(weight) for weight in layer.weights], x, tensors)


def _trace(layer, fixed):
    import tensorflow as tf

    attributes = {"_noinline": True} if is_fusing() else None

    @functools.partial(tf.function, autograph=False, experimental_attributes=attributes)
    def call(values, x, tensors):
        pairs = list(zip(layer.weights, values, strict=True))
        with keras.StatelessScope(state_mapping=pairs):
            return layer(x, **fixed, **tensors)

    return call


def _has_state(layer):
    """Says whether a layer is more than its configuration and weights."""
    parts = layer._flatten_layers()
    return len(layer.variables) != len(layer.weights) or any(
        getattr(part, "lora_enabled", False) or getattr(part, "quantization_mode", None)
        for part in parts
    )


def _kind(layer):
    """Returns what tells layers apart that must be traced each."""
    parts = ((type(part), part.dtype_policy.name) for part in layer._flatten_layers())
    weights = ((tuple(weight.shape), weight.dtype) for weight in layer.weights)
    config = {**layer.get_config(), "name": None}
    return tuple(parts), tuple(weights), repr(config)
