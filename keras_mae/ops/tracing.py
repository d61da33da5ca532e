"""TensorFlow graphs in which equal layers and equal updates are traced once."""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_mae.ops.fusion import is_fusing, read, replaced
from keras_mae.utils.typing import Tensor

_CPU_GRAPH = contextvars.ContextVar("cpu_graph", default=False)


@contextlib.contextmanager
def cpu_graph(on: bool) -> Iterator[None]:
    """Says that a graph traced in the block is one of TensorFlow's for CPUs.

    XLA must not compile it whole: it inlines functions by itself, and compiles a step
    with functions in it again and again.

    Args:
        on: Bool.

    Example:

    ```python
    with cpu_graph(True):
        assert not is_cpu_graph()  # as nothing is traced
    ```
    """
    token = _CPU_GRAPH.set(on)
    try:
        yield
    finally:
        _CPU_GRAPH.reset(token)


def is_cpu_graph() -> bool:
    """Says whether this is called in a `cpu_graph` block while a graph is traced.

    Returns:
        Bool.

    Example:

    ```python
    assert not is_cpu_graph()
    ```
    """
    if not _CPU_GRAPH.get():
        return False
    import tensorflow as tf

    # run_eagerly=True, to look into a step
    return not tf.executing_eagerly()


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
    return replaced(function, _traced, is_cpu_graph)


def _traced(function):
    import tensorflow as tf

    return tf.function(function, autograph=False)


class EqualLayers:
    """Calls layers that were built alike, of which a `cpu_graph` traces one only.

    The others run the same graph on their own weights. Subclasses, layers with a `call`
    of their own, with parts of other libraries, with state, random numbers, adapters or
    quantized weights are traced each.

    Args:
        kind: The class of the layers.

    Example:

    ```python
    call = EqualLayers(keras.layers.Dense)
    layers = [keras.layers.Dense(4, activation="gelu") for _ in range(3)]
    x = keras.ops.ones((2, 4))
    for layer in layers:
        x = call(layer, x)
    ```
    """

    def __init__(self, kind: type[keras.Layer]) -> None:
        self._kind = kind
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
        if not (is_cpu_graph() and type(layer) is self._kind and _is_pure(layer)):
            return layer(x, **options)
        tensors = {k: v for k, v in options.items() if keras.ops.is_tensor(v)}
        fixed = {k: v for k, v in options.items() if k not in tensors}
        key = (*_key(layer), *sorted(fixed.items()))
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


def _is_pure(layer):
    """Says whether a layer is a function of configuration, weights and input alone."""
    return layer.built and all(
        type(part).__module__.startswith(("keras.", "keras_mae."))
        and "call" not in vars(part)
        # random seeds, and what a call assigns
        and len(part.variables) == len(part.weights)
        and not part._non_trainable_variables
        and not getattr(part, "lora_enabled", False)
        and not getattr(part, "quantization_mode", None)
        for part in layer._flatten_layers()
    )


def _key(layer):
    """Returns what tells layers apart that must be traced each."""
    parts = layer._flatten_layers()
    configs = (repr({**part.get_config(), "name": None}) for part in parts)
    weights = ((tuple(weight.shape), weight.dtype) for weight in layer.weights)
    return tuple(configs), tuple(weights)
