"""LayerNorm, attention and bias with gradients that read each tensor once.

TensorFlow's own gradients of these are chains of small kernels, which keep and pass
over many copies of their inputs. Here what lies between matrix products is compiled
into one pass, forward and backward, and sums over an axis are products with ones, which
vectorize. Values and gradients differ from the plain ones by rounding.
"""

import functools

import keras
import tensorflow as tf

_compiled = functools.partial(tf.function, jit_compile=True, autograph=False)


def _row_means(x):
    width = x.shape[-1]
    return tf.matmul(x, tf.fill((width, 1), 1.0 / width))  # (R, 1)


def _column_sums(x):
    ones = tf.ones((1, tf.shape(x)[0]), x.dtype)
    return tf.matmul(ones, x)[0]  # (D,), added up in float32


@functools.cache
def _layer_norm_kernels(epsilon):
    @_compiled
    def forward(x, gamma, beta):
        rows = tf.cast(x, "float32")
        mean = _row_means(rows)
        centred = rows - mean
        scale = tf.math.rsqrt(_row_means(centred * centred) + epsilon)
        return tf.cast(centred * scale * gamma + beta, x.dtype), mean, scale

    @_compiled
    def backward(x, gamma, mean, scale, upstream):
        normalized = (tf.cast(x, "float32") - mean) * scale
        upstream = tf.cast(upstream, "float32")
        inner = upstream * gamma
        shared = _row_means(inner) + normalized * _row_means(inner * normalized)
        gradient = tf.cast(scale * (inner - shared), x.dtype)
        return (
            gradient,
            tf.reduce_sum(upstream * normalized, 0),
            tf.reduce_sum(upstream, 0),
        )

    return forward, backward


def layer_norm(x, gamma, beta, epsilon):
    """Normalizes the last axis (Ba et al. 2016, eq. 4), in float32.

    Args:
        x: `(..., D)` float tensor.
        gamma: `(D,)` float32 tensor.
        beta: `(D,)` float32 tensor.
        epsilon: Float.

    Returns:
        Tensor like `x`.

    Example:

    ```python
    y = layer_norm(tf.constant([[1.0, 3.0]]), tf.ones(2), tf.zeros(2), epsilon=0.0)
    np.testing.assert_allclose(y, [[-1.0, 1.0]], atol=1e-6)
    ```
    """
    forward, backward = _layer_norm_kernels(epsilon)

    @tf.custom_gradient
    def compute(rows, gamma, beta):
        y, mean, scale = forward(rows, gamma, beta)
        return y, lambda upstream: backward(rows, gamma, mean, scale, upstream)

    rows = tf.reshape(x, (-1, x.shape[-1]))  # (R, D)
    return tf.reshape(compute(rows, gamma, beta), tf.shape(x))  # (..., D)


@_compiled
def _add(x, bias):
    return x + bias


@tf.custom_gradient
def add_bias(x, bias):
    """Adds a bias to rows.

    Args:
        x: `(R, D)` float tensor.
        bias: `(D,)` tensor of the same dtype.

    Returns:
        Tensor like `x`.

    Example:

    ```python
    assert add_bias(tf.zeros((1, 2)), tf.constant([1.0, 2.0]))[0, 1] == 2.0
    ```
    """
    return _add(x, bias), lambda upstream: (upstream, _column_sums(upstream))


@functools.cache
def _softmax_is_wide():
    """Finds out whether a softmax of bfloat16 runs in float32, as oneDNN's does."""
    with tf.init_scope():
        scores = tf.cast(tf.linspace(-4.0, 4.0, 512), "bfloat16")
        wide = tf.nn.softmax(tf.cast(scores, "float32"))
        same = tf.nn.softmax(scores) == tf.cast(wide, "bfloat16")
        return bool(tf.reduce_all(same))


@_compiled
def _score_gradient(attention, upstream, output, output_upstream):
    """Differentiates the softmax: its sum over keys is one over the outputs' width."""
    output, output_upstream, attention32, upstream = (
        tf.cast(x, "float32") for x in (output, output_upstream, attention, upstream)
    )
    shared = tf.reduce_sum(output * output_upstream, -1, keepdims=True)
    return tf.cast(attention32 * (upstream - shared), attention.dtype)


@tf.custom_gradient
def attend(query, key, value):
    """Computes `softmax(query key^T) value`, the softmax in float32.

    Its gradient is that of FlashAttention (Dao et al. 2022, appendix B.2): nothing but
    the probabilities and the outputs is kept, in the tensors' own dtype.

    Args:
        query: `(B, heads, Q, head_dim)` tensor, scaled.
        key: `(B, heads, N, head_dim)` tensor.
        value: `(B, heads, N, head_dim)` tensor.

    Returns:
        Tensor like `query`.

    Example:

    ```python
    x = tf.ones((1, 1, 2, 4))
    np.testing.assert_allclose(attend(x, x, x), x)
    ```
    """
    scores = tf.matmul(query, key, transpose_b=True)
    if not _softmax_is_wide():
        scores = tf.cast(scores, "float32")
    attention = tf.cast(tf.nn.softmax(scores), query.dtype)  # (B, heads, Q, N)
    output = tf.matmul(attention, value)  # (B, heads, Q, head_dim)

    def differentiate(upstream):
        inner = tf.matmul(upstream, value, transpose_b=True)
        inner = _score_gradient(attention, inner, output, upstream)
        return (
            tf.matmul(inner, key),
            tf.matmul(inner, query, transpose_a=True),
            tf.matmul(attention, upstream, transpose_a=True),
        )

    return output, differentiate


def adamw_in_place(places, gradient, rate, betas, powers, epsilon, decay):
    """Updates a weight and its moments by AdamW, where they stand.

    TensorFlow's kernel adds epsilon before it corrects the second moment's bias; scaled
    by that correction, epsilon has the effect that it has in PyTorch (Loshchilov and
    Hutter 2019, algorithm 2).

    Args:
        places: The weight and its two moments, float32 variables of
            TensorFlow or Keras.
        gradient: Tensor.
        rate: Float32 scalar, the learning rate.
        betas: Pair of float32 scalars.
        powers: The betas to the power of the number of the update, 1 at the first one;
            pair of float32 scalars.
        epsilon: Float32 scalar, epsilon times `sqrt(1 - powers[1])`.
        decay: Float, the decoupled weight decay.

    Example:

    ```python
    places = [tf.Variable([x]) for x in (1.0, 0.0, 0.0)]
    betas = 0.9, 0.95
    adamw_in_place(places, tf.constant([2.0]), 0.1, betas, betas, 1e-9, decay=0.0)
    np.testing.assert_allclose(places[0], [0.9], atol=1e-6)
    ```
    """
    weight, *moments = (
        place.value if isinstance(place, keras.Variable) else place for place in places
    )
    if decay:
        # not earlier: each product is as large as the weight
        with tf.control_dependencies([gradient]):
            weight.assign_sub(weight * (rate * decay))
    tf.raw_ops.ResourceApplyAdam(
        var=weight.handle,
        m=moments[0].handle,
        v=moments[1].handle,
        beta1_power=powers[0],
        beta2_power=powers[1],
        lr=rate,
        beta1=betas[0],
        beta2=betas[1],
        epsilon=epsilon,
        grad=tf.cast(gradient, "float32"),
    )
