"""Fused LayerNorm, attention, bias and AdamW for TensorFlow on CPUs.

TensorFlow's own gradients are chains of small kernels, which keep many copies of their
inputs. Here XLA compiles what is between the matrix products into one pass, forward and
backward, and sums over an axis are products with ones, which vectorize. Values and
gradients differ from the plain ones by rounding.
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
    """Normalizes the last axis (Ba et al. 2016, eq. 4), in float32."""
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
    """Adds a bias `(D,)` to rows `(R, D)`."""
    return _add(x, bias), lambda upstream: (upstream, _column_sums(upstream))


@functools.cache
def _softmax_runs_in_float32():
    """Whether a softmax of bfloat16 runs in float32, as oneDNN's does."""
    with tf.init_scope():
        scores = tf.cast(tf.linspace(-4.0, 4.0, 512), "bfloat16")
        wide = tf.nn.softmax(tf.cast(scores, "float32"))
        same = tf.nn.softmax(scores) == tf.cast(wide, "bfloat16")
        return bool(tf.reduce_all(same))


@_compiled
def _score_gradient(attention, upstream, output, output_upstream):
    """Differentiates softmax: its sum over keys is one over the output's width."""
    output, output_upstream, attention32, upstream = (
        tf.cast(x, "float32") for x in (output, output_upstream, attention, upstream)
    )
    shared = tf.reduce_sum(output * output_upstream, -1, keepdims=True)
    return tf.cast(attention32 * (upstream - shared), attention.dtype)


@tf.custom_gradient
def attend(query, key, value):
    """Computes `softmax(query key^T) value`, the softmax in float32.

    Query, already scaled, key and value are `(B, heads, N, head_dim)`. The gradient is
    that of FlashAttention (Dao et al. 2022, appendix B.2): it keeps the probabilities
    and the output alone, in the tensors' own dtype.
    """
    scores = tf.matmul(query, key, transpose_b=True)
    if not _softmax_runs_in_float32():
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


def adamw_in_place(variables, gradient, rate, betas, powers, epsilon, decay):
    """Updates a weight and its two moments by AdamW, in TensorFlow's fused kernel.

    The kernel adds epsilon before it corrects the second moment's bias: `epsilon` is
    PyTorch's times `sqrt(1 - powers[1])` (Loshchilov and Hutter 2019, algorithm 2), and
    `powers` are the betas to the power of the update's number, from 1.
    """
    weight, *moments = (
        one.value if isinstance(one, keras.Variable) else one for one in variables
    )
    if decay:
        # as late as possible: each product is as large as the weight
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
