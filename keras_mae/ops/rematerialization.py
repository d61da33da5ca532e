"""Gradient checkpointing (rematerialization) of transformer blocks."""

import keras

from keras_mae.ops.fusion import fusion_enabled, fusion_scope


def rematerialized(function):
    """Wraps a function of one tensor to keep only its input for the backward pass.

    `keras.remat` does so on other backends. On TensorFlow it ties the second
    computation to the gradient by a comparison that the TPU compiler folds away; it
    then finds both computations equal, and keeps what the first one made. Here no
    compiler knows the outcome of the comparison. The function may use variables, but no
    randomness.
    """
    if keras.backend.backend() != "tensorflow":
        return keras.remat(function)
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
