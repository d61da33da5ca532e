"""Kernels in the compute dtype, cast once for inference over many batches."""

import contextlib
import contextvars
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras

from keras_mae.ops.fusion import to_tf_tensor
from keras_mae.utils.typing import Tensor

_COPIES: contextvars.ContextVar[Mapping[int, Any]] = contextvars.ContextVar(
    "copies", default=types.MappingProxyType({})
)


class CastKernels:
    """Copies of kernels in another dtype, for TensorFlow graphs on one device."""

    def __init__(self) -> None:
        self._pairs: dict[int, tuple[keras.Variable, Any]] = {}

    def refresh(self, layers: Sequence[keras.layers.Dense]) -> bool:
        """Casts kernels anew; returns whether copies of others were dropped."""
        import tensorflow as tf

        before = self._pairs
        kept = {id(layer.kernel) for layer in layers}
        self._pairs = {key: pair for key, pair in before.items() if key in kept}
        for layer in layers:
            kernel, dtype = layer.kernel, layer.compute_dtype
            if isinstance(kernel.value, tf.distribute.DistributedValues):
                continue
            if id(kernel) not in self._pairs:
                copy = tf.Variable(tf.cast(kernel.value, dtype), trainable=False)
                self._pairs[id(kernel)] = kernel, copy
            else:
                copy = self._pairs[id(kernel)][1]
                # graphs that were traced with the copy go on using it
                copy.assign(tf.cast(kernel.value, dtype))
        return not kept.issuperset(before)

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Makes `layer_weight` return the copies, in graphs traced in the block."""
        copies = {key: copy for key, (_, copy) in self._pairs.items()}
        token = _COPIES.set(copies)
        try:
            yield
        finally:
            _COPIES.reset(token)

    def replaced(self, variable: keras.Variable) -> Any:
        """Returns the copy of a kernel, and the TensorFlow variable of any other."""
        return self._pairs.get(id(variable), (None, variable.value))[1]


def scope_of_values(pairs: Iterable[tuple[keras.Variable, Any]]) -> Any:
    """Returns a scope in which variables have these values, of any dtype."""
    scope = keras.StatelessScope()
    for pair in pairs:
        # a `state_mapping` would cast to the variable's dtype
        scope.add_update(pair)
    return scope


def layer_weight(variable: keras.Variable) -> Tensor:
    """Returns a weight's value, or its copy in a `CastKernels.scope`."""
    copy = _COPIES.get().get(id(variable))
    return to_tf_tensor(variable) if copy is None else copy.read_value()
