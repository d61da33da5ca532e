"""XLA-fused transformer block for TensorFlow on CPUs (norm, bias, GELU, softmax).

The products are oneDNN's. XLA compiles what is between two of them into one pass,
forward and backward, and sums over a row are products with ones, which vectorize.
For the gradient the block keeps its input, the middle of its residual stream, queries,
keys and values, attention's output and the MLP's hidden layer: norms, activations and
attention's probabilities are computed again. Values and gradients differ from the plain
block's by rounding.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from keras_mae.ops.fusion import to_tf_tensor
from keras_mae.utils.typing import Tensor

_compiled = functools.partial(tf.function, jit_compile=True, autograph=False)


class BlockOptions(NamedTuple):
    """What a block is beside its weights."""

    num_heads: int
    epsilon: float
    activation: Callable
    dtype: str  # of the products
    first_query: int = 0


def fused_block(
    x: Tensor,
    weights: Mapping[str, Any],
    options: BlockOptions,
    factors: Tensor | None = None,
) -> Tensor:
    """Computes a pre-norm transformer block, as `TransformerBlock` describes."""
    # `gamma1`, `beta1` (float32), `qkv`, `proj`, ..., and `qkv_bias`, ..., if any
    tensors = {name: to_tf_tensor(value) for name, value in weights.items()}
    scales = (None, None)  # of attention and of the MLP, (B, 1, 1) each
    if factors is not None:
        scales = tf.unstack(tf.cast(factors, x.dtype)[:, :, None, None], axis=1)

    # by position: a custom gradient knows no dicts
    @tf.custom_gradient
    def compute(x, *values):
        given = dict(zip(tensors, values, strict=True))
        output, kept = _forward(x, given, scales, options)

        def differentiate(upstream):
            gradient, by_name = _backward(upstream, given, scales, options, kept)
            return gradient, *(by_name[name] for name in tensors)

        return output, differentiate

    return compute(x, *tensors.values())


class _Kept(NamedTuple):
    """What the gradient needs of the forward pass; statistics are `(B * N, 1)`."""

    x: Tensor  # (B, N, D)
    mean1: Tensor
    scale1: Tensor
    query: Tensor  # (B, heads, Q, head_dim), scaled
    key: Tensor  # (B, heads, N, head_dim)
    value: Tensor
    attended: Tensor  # (B, Q, D)
    middle: Tensor  # (B, Q, D), after the first residual connection
    mean2: Tensor
    scale2: Tensor
    hidden: Tensor  # (B * Q, mlp_dim), without bias


def _forward(x, weights, scales, options):
    first, dtype = options.first_query, options.dtype
    normed, mean1, scale1 = _norm(
        x, weights["gamma1"], weights["beta1"], options.epsilon, dtype
    )
    length, width = tf.shape(x)[1], x.shape[-1]
    heads = options.num_heads
    qkv = tf.reshape(
        tf.matmul(normed, weights["qkv"]), (-1, length, 3, heads, width // heads)
    )  # (B, N, 3, heads, head_dim)
    query, key, value = _split_heads(qkv, weights.get("qkv_bias"))
    if first:
        query = query[:, :, first:]  # (B, heads, Q, head_dim)
    attended = tf.matmul(_probabilities(query, key), value)
    attended = tf.reshape(
        tf.transpose(attended, (0, 2, 1, 3)), (-1, length - first, width)
    )  # (B, Q, D)
    branch = tf.matmul(_rows(attended), weights["proj"])
    middle, normed, mean2, scale2 = _add_branch_and_norm(
        x[:, first:] if first else x,
        tf.reshape(branch, tf.shape(attended)),
        weights.get("proj_bias"),
        scales[0],
        weights["gamma2"],
        weights["beta2"],
        options.epsilon,
        dtype,
    )
    hidden = tf.matmul(normed, weights["fc1"])
    active = _activate(hidden, weights.get("fc1_bias"), options.activation)
    branch = tf.matmul(active, weights["fc2"])
    output = _add_branch(
        middle,
        tf.reshape(branch, tf.shape(attended)),
        weights.get("fc2_bias"),
        scales[1],
    )
    kept = (x, mean1, scale1, query, key, value, attended, middle, mean2, scale2)
    return output, _Kept(*kept, hidden)


def _backward(upstream, weights, scales, options, kept):
    """Returns the gradient of the input, and a dict of those of the weights."""
    found = {}
    branch = _branch_gradient(upstream, scales[1], options.dtype)
    active = _input_gradient(branch, weights["fc2"])
    active, hidden = _activate_again(
        kept.hidden, weights.get("fc1_bias"), active, options.activation
    )
    found["fc1_bias"] = _column_sums(hidden)
    found["fc2"] = tf.matmul(active, branch, transpose_a=True)
    found["fc2_bias"] = _column_sums(branch)
    norm = weights["gamma2"], weights["beta2"]
    normed = _norm_again(kept.middle, *norm, kept.mean2, kept.scale2, options.dtype)
    found["fc1"] = tf.matmul(normed, hidden, transpose_a=True)
    middle, found["gamma2"], found["beta2"] = _norm_gradient(
        *(kept.middle, weights["gamma2"], kept.mean2, kept.scale2),
        _input_gradient(hidden, weights["fc1"]),
        upstream,
    )
    branch = _branch_gradient(middle, scales[0], options.dtype)
    found["proj"] = tf.matmul(_rows(kept.attended), branch, transpose_a=True)
    found["proj_bias"] = _column_sums(branch)
    attended = _input_gradient(branch, weights["proj"])
    qkv, found["qkv_bias"] = _attention_gradient(attended, options, kept)
    norm = weights["gamma1"], weights["beta1"]
    normed = _norm_again(kept.x, *norm, kept.mean1, kept.scale1, options.dtype)
    found["qkv"] = tf.matmul(normed, qkv, transpose_a=True)
    if options.first_query:
        middle = tf.pad(middle, ((0, 0), (options.first_query, 0), (0, 0)))
    gradient, found["gamma1"], found["beta1"] = _norm_gradient(
        *(kept.x, weights["gamma1"], kept.mean1, kept.scale1),
        _input_gradient(qkv, weights["qkv"]),
        middle,
    )
    return gradient, found


def _attention_gradient(upstream, options, kept):
    """Gradient of qkv and its bias (FlashAttention, Dao et al. 2022, appendix B.2)."""
    batch, _, length, head_dim = tf.unstack(tf.shape(kept.query))
    by_head = (batch, length, options.num_heads, head_dim)
    output = tf.reshape(kept.attended, by_head)
    upstream = tf.reshape(upstream, by_head)  # (B, Q, heads, head_dim)
    shared = _shared_score_gradient(output, upstream)
    upstream = tf.transpose(upstream, (0, 2, 1, 3))  # (B, heads, Q, head_dim)
    attention = _probabilities(kept.query, kept.key)
    value = tf.matmul(attention, upstream, transpose_a=True)
    scores = tf.matmul(upstream, kept.value, transpose_b=True)
    scores = _score_gradient(attention, scores, shared)
    query = tf.matmul(scores, kept.key)
    if options.first_query:
        query = tf.pad(query, ((0, 0), (0, 0), (options.first_query, 0), (0, 0)))
    key = tf.matmul(scores, kept.query, transpose_a=True)
    qkv = _merge_heads(query, key, value)
    return qkv, _column_sums(qkv)


@_compiled
def _transposed(kernel):
    return tf.transpose(kernel)


def _input_gradient(upstream, kernel):
    """Returns the gradient of a dense layer's input."""
    if kernel.dtype != tf.float32:
        return tf.matmul(upstream, kernel, transpose_b=True)
    # oneDNN's float32 product takes a quarter longer where it reads a transposed kernel
    return tf.matmul(upstream, _transposed(kernel))


def _rows(x):
    return tf.reshape(x, (-1, x.shape[-1]))  # (R, D)


def _row_means(x):
    width = x.shape[-1]
    return tf.matmul(x, tf.fill((width, 1), 1.0 / width))  # (R, 1)


@_compiled
def _column_sums(x):
    # no product with ones: those of bfloat16 are slow in XLA
    return tf.cast(tf.reduce_sum(tf.cast(x, "float32"), 0), x.dtype)  # (D,)


def _normalize(x, gamma, beta, epsilon, dtype):
    """Normalizes rows in float32 (Ba et al. 2016, eq. 4): `(R, D)`, means, scales."""
    rows = tf.cast(_rows(x), "float32")
    mean = _row_means(rows)
    centred = rows - mean
    scale = tf.math.rsqrt(_row_means(centred * centred) + epsilon)
    return tf.cast(centred * scale * gamma + beta, dtype), mean, scale


_norm = _compiled(_normalize)


@_compiled
def _norm_again(x, gamma, beta, mean, scale, dtype):
    centred = tf.cast(_rows(x), "float32") - mean
    return tf.cast(centred * scale * gamma + beta, dtype)


@_compiled
def _norm_gradient(x, gamma, mean, scale, upstream, residual):
    """Adds a norm's gradient to that of the connection around it."""
    normalized = (tf.cast(_rows(x), "float32") - mean) * scale
    upstream = tf.cast(upstream, "float32")
    inner = upstream * gamma
    shared = _row_means(inner) + normalized * _row_means(inner * normalized)
    gradient = tf.reshape(scale * (inner - shared), tf.shape(x))
    return (
        residual + tf.cast(gradient, x.dtype),
        tf.reduce_sum(upstream * normalized, 0),
        tf.reduce_sum(upstream, 0),
    )


@_compiled
def _split_heads(qkv, bias):
    """Turns `(B, N, 3, heads, head_dim)` into scaled queries, keys, and values."""
    wide = tf.cast(qkv, "float32")  # XLA casts in each operation of bfloat16
    if bias is not None:
        wide += tf.reshape(tf.cast(bias, "float32"), qkv.shape[2:])
    query, key, value = tf.unstack(tf.transpose(wide, (2, 0, 3, 1, 4)))
    query *= qkv.shape[-1] ** -0.5
    # (B, heads, N, head_dim) each
    return tuple(tf.cast(each, qkv.dtype) for each in (query, key, value))


def _merge_heads(query, key, value):
    """Turns the gradients of `_split_heads` into that of its rows."""
    query *= query.shape[-1] ** -0.5
    # XLA's transpose of this kind is half as fast
    qkv = tf.transpose(tf.stack([query, key, value]), (1, 3, 0, 2, 4))
    return tf.reshape(qkv, (-1, math.prod(qkv.shape[2:])))  # (B * N, 3 * D)


@functools.cache
def _softmax_runs_in_float32():
    """Whether a softmax of bfloat16 runs in float32, as oneDNN's does."""
    with tf.init_scope():
        scores = tf.cast(tf.linspace(-4.0, 4.0, 512), "bfloat16")
        wide = tf.nn.softmax(tf.cast(scores, "float32"))
        same = tf.nn.softmax(scores) == tf.cast(wide, "bfloat16")
        return bool(tf.reduce_all(same))


def _probabilities(query, key):
    scores = tf.matmul(query, key, transpose_b=True)
    if scores.dtype != tf.bfloat16 or not _softmax_runs_in_float32():
        scores = tf.cast(scores, "float32")
    return tf.cast(tf.nn.softmax(scores), query.dtype)  # (B, heads, Q, N)


@_compiled
def _shared_score_gradient(output, upstream):
    """Sums softmax's gradient over the keys, by a sum over the output's width."""
    product = tf.cast(output, "float32") * tf.cast(upstream, "float32")
    return tf.transpose(tf.reduce_sum(product, -1), (0, 2, 1))[..., None]


@_compiled
def _score_gradient(attention, upstream, shared):
    wide = tf.cast(attention, "float32")
    return tf.cast(wide * (tf.cast(upstream, "float32") - shared), attention.dtype)


def _add(x, branch, bias, factor):
    if bias is not None:
        branch += bias
    branch = tf.cast(branch, x.dtype)
    return x + (branch if factor is None else branch * factor)


_add_branch = _compiled(_add)


@_compiled
def _add_branch_and_norm(x, branch, bias, factor, *norm):
    total = _add(x, branch, bias, factor)
    return total, *_normalize(total, *norm)


@_compiled
def _scale_branch(upstream, factor, dtype):
    return tf.cast(_rows(upstream * factor), dtype)


def _branch_gradient(upstream, factor, dtype):
    """Returns the gradient of a branch's rows, `(R, D)`."""
    if factor is not None:
        return _scale_branch(upstream, factor, dtype)
    return tf.cast(_rows(upstream), dtype)


def _active(hidden, bias, activation):
    wide = tf.cast(hidden, "float32")  # XLA casts in each operation of bfloat16
    if bias is not None:
        wide += tf.cast(bias, "float32")
    return activation(wide)


@_compiled
def _activate(hidden, bias, activation):
    return tf.cast(_active(hidden, bias, activation), hidden.dtype)


@_compiled
def _activate_again(hidden, bias, upstream, activation):
    """Returns the activation, and the gradient before it."""
    wide = tf.cast(hidden, "float32")
    with tf.GradientTape() as tape:
        tape.watch(wide)
        active = _active(wide, bias, activation)
    gradient = tape.gradient(active, wide, tf.cast(upstream, "float32"))
    return tf.cast(active, hidden.dtype), tf.cast(gradient, hidden.dtype)
