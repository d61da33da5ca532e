"""Trace identical layers and functions once in TensorFlow graphs on CPUs."""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_mae.ops.cast_kernels import layer_weight, scope_of_values
from keras_mae.ops.fusion import fusion_enabled, to_tf_tensor
from keras_mae.utils.typing import Tensor

_CPU_GRAPH = contextvars.ContextVar("cpu_graph", default=False)


@contextlib.contextmanager
def cpu_graph_scope(enabled: bool) -> Iterator[None]:
    """Marks the graphs traced in the block as TensorFlow's own, on CPUs."""
    # XLA would inline their functions, and compile the step again and again
    token = _CPU_GRAPH.set(enabled)
    try:
        yield
    finally:
        _CPU_GRAPH.reset(token)


def in_cpu_graph() -> bool:
    """Whether a graph is being traced in an enabled `cpu_graph_scope`."""
    if not _CPU_GRAPH.get():
        return False
    import tensorflow as tf

    # with run_eagerly=True nothing is traced
    return not tf.executing_eagerly()


def traced_once(function: Callable) -> Callable:
    """Traces a pure function of tensors once for each signature in a CPU graph."""
    # tracing takes about a millisecond an operation

    @functools.cache
    def traced(**options):
        import tensorflow as tf

        return tf.function(functools.partial(function, **options), autograph=False)

    @functools.wraps(function)
    def call(*tensors, **options):
        if not in_cpu_graph():
            return function(*tensors, **options)
        return traced(**options)(*map(to_tf_tensor, tensors))

    return call


class LayerTraceCache:
    """Calls layers of one class, and in a CPU graph traces equal ones only once."""

    def __init__(self, layer_class: type[keras.Layer]) -> None:
        self._layer_class = layer_class
        self._traced: dict[Any, Callable] = {}

    def __call__(self, layer: keras.Layer, x: Tensor, **options: Any) -> Any:
        """Calls a layer; options are tensors, or hashable."""
        if not (
            in_cpu_graph() and type(layer) is self._layer_class and _is_pure(layer)
        ):
            return layer(x, **options)
        tensors = {k: v for k, v in options.items() if keras.ops.is_tensor(v)}
        fixed = {k: v for k, v in options.items() if k not in tensors}
        key = (*_key(layer), *sorted(fixed.items()))
        if key not in self._traced:
            self._traced[key] = _trace(layer, fixed)
        weights = [layer_weight(weight) for weight in layer.weights]
        return self._traced[key](weights, x, tensors)


def _trace(layer, fixed):
    import tensorflow as tf

    attributes = {"_noinline": True} if fusion_enabled() else None

    @functools.partial(tf.function, autograph=False, experimental_attributes=attributes)
    def call(values, x, tensors):
        with scope_of_values(zip(layer.weights, values, strict=True)):
            return layer(x, **fixed, **tensors)

    return call


def _is_pure(layer):
    """Whether a layer depends on its configuration, weights and input alone."""
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
    """What layers must have in common to share a trace."""
    parts = layer._flatten_layers()
    configs = (repr({**part.get_config(), "name": None}) for part in parts)
    weights = ((tuple(weight.shape), weight.dtype) for weight in layer.weights)
    return tuple(configs), tuple(weights)
