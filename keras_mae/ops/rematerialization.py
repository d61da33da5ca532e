"""Gradient checkpointing (rematerialization) of transformer blocks."""

import keras

from keras_mae.ops.fusion import fusion_enabled, fusion_scope


def rematerialized(function):
    """Gradient checkpointing of a function of one tensor, without randomness."""
    if keras.backend.backend() != "tensorflow":
        return keras.remat(function)
    # keras.remat's comparison is folded away by the TPU compiler, which then keeps all
    import tensorflow as tf

    # the gradient is computed outside of this call's scope
    enabled = fusion_enabled()

    @tf.custom_gradient
    def compute(x):
        def differentiate(upstream, variables=None):
            again = x + _zero_after(upstream, x.dtype)
            with tf.GradientTape() as tape, fusion_scope(enabled):
                tape.watch(again)
                y = function(again)
            sources = [again, *(variables or [])]
            first, *rest = tape.gradient(y, sources, output_gradients=upstream)
            return (first, rest) if variables else first

        return function(x), differentiate

    return compute


def _zero_after(tensor, dtype):
    """Returns a zero that is only known once a tensor is."""
    import tensorflow as tf

    first = tf.cast(tf.reshape(tensor, [-1])[0], "float32")
    # false for every number and for NaN
    return tf.cast(first > float("inf"), dtype)
