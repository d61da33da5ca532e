"""Computing twice instead of remembering: less memory for more arithmetic."""

import keras

from keras_mae.ops.fusion import fusing, is_fusing


def rematerialized(function):
    """Wraps a function of one tensor so that only its input is kept for the gradient.

    `keras.remat` does so too on other backends. On TensorFlow it ties the second
    computation to the gradient by a comparison of a boolean with itself, which the TPU
    compiler folds away: it finds both computations equal, and keeps the first. Here
    the tie is a comparison whose outcome no compiler knows.

    Args:
        function: Function of a tensor that returns a tensor; it may use variables, but
            no randomness.

    Returns:
        A function of the same value and gradient.

    Example:

    ```python
    layer = keras.layers.Dense(4, activation="gelu")
    x = np.ones((2, 4), "float32")
    wanted = layer(x)
    np.testing.assert_array_equal(rematerialized(layer)(keras.ops.array(x)), wanted)
    ```
    """
    if keras.backend.backend() != "tensorflow":
        return keras.remat(function)
    import tensorflow as tf

    # the gradient is computed after the block in which this is called
    on = is_fusing()

    @tf.custom_gradient
    def compute(x):
        def differentiate(upstream, variables=None):
            again = x + _zero_after(upstream, x.dtype)
            with tf.GradientTape() as tape, fusing(on):
                tape.watch(again)
                y = function(again)
            sources = [again, *(variables or [])]
            first, *rest = tape.gradient(y, sources, output_gradients=upstream)
            return (first, rest) if variables else first

        return function(x), differentiate

    return compute


def _zero_after(tensor, dtype):
    """Makes a zero that is only known once a tensor is."""
    import tensorflow as tf

    first = tf.cast(tf.reshape(tensor, [-1])[0], "float32")
    # false for every number and for NaN
    return tf.cast(first > float("inf"), dtype)
