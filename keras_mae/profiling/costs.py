"""FLOPs and memory of a training step, and the peak FLOP/s of devices, for MFU."""

import itertools
import math
import time
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from keras_mae.layers.masking import num_visible
from keras_mae.optimizers.averaging import averaging_optimizer
from keras_mae.utils.devices import gpus_in_use
from keras_mae.utils.distribution import read_tf_config

GIB = 2**30
# dense FLOP/s of a device, by a part of its name: bfloat16, and float32 (as TF32)
_GPU_PEAKS = {
    "H100": (989e12, 495e12),
    "H200": (989e12, 495e12),
    "A100": (312e12, 156e12),
    "L40S": (362e12, 183e12),
    "L4": (121e12, 60e12),
}
# a TPU multiplies in bfloat16, whatever the dtype
_TPU_PEAKS = {
    "v4": 275e12,
    "v5litepod": 197e12,
    "v5p": 459e12,
    "v6e": 918e12,
}
# where JAX's name of a device has another than that behind "TPU"
_TPU_KINDS = {
    "TPU v5 lite": "v5litepod",
    "TPU v5e": "v5litepod",
    "TPU v5": "v5p",
    "TPU v6 lite": "v6e",
}


class _Part(NamedTuple):
    """A layer that multiplies tokens by kernels, and the FLOPs of attention in it."""

    layer: keras.Layer
    tokens: int
    kernel_size: int
    attention: int = 0

    @property
    def forward(self):
        return 2 * self.tokens * self.kernel_size + self.attention

    def is_frozen(self):
        return not self.layer.trainable_variables


def _stacks(model):
    """Pairs encoder and decoder with their tokens per image."""
    encoder = getattr(model, "encoder", model)
    patches = encoder.num_patches
    if not hasattr(model, "decoder"):
        return [(encoder, 1 + patches)]
    visible = num_visible(patches, model.mask_ratio)
    return [(model.encoder, 1 + visible), (model.decoder, 1 + patches)]


def _stack_parts(stack, tokens):
    """Yields the blocks and the norm of a stack, as `_Part`."""
    width = stack.hidden_dim
    for block in stack.blocks:
        kernels = 4 * width**2 + 2 * width * block.mlp_dim
        yield _Part(block, tokens, kernels, attention=4 * tokens**2 * width)
    yield _Part(stack.norm, tokens, 0)


def _parts(model):
    """Yields what an image passes in turn, as `_Part`."""
    (encoder, tokens), *decoders = _stacks(model)
    width = encoder.hidden_dim
    yield _Part(encoder.patch_embedding, tokens - 1, encoder.patch_dim * width)
    yield from _stack_parts(encoder, tokens)
    for decoder, all_tokens in decoders:
        yield _Part(decoder.embed, tokens, width * decoder.hidden_dim)
        yield from _stack_parts(decoder, all_tokens)
        kernel = decoder.hidden_dim * decoder.patch_dim
        yield _Part(decoder.pred, all_tokens, kernel)


def _backward_parts(model):
    """Lists the parts that the backward pass reaches: from the first trained one on."""
    return list(itertools.dropwhile(_Part.is_frozen, _parts(model)))


def forward_flops(model):
    """FLOPs of a forward pass per image: matrix products only."""
    return float(sum(part.forward for part in _parts(model)))


def flops_per_image(model):
    """FLOPs of a training step per image: matrix products, backward = 2 x forward."""
    # as MFU is defined: what rematerialization repeats is not counted
    total = forward_flops(model)
    for part in _backward_parts(model):
        # the gradients of its input, and of both factors of attention's products
        total += part.forward + part.attention
        weights = part.layer.trainable_variables
        trained = sum(math.prod(one.shape) for one in weights if len(one.shape) == 2)
        total += 2 * part.tokens * trained
    return total


def estimate_memory(model, images):
    """Bytes of a training step of `images` a replica: weights, AdamW, activations."""
    trained = model.trainable_variables
    # the weight, its gradient and two moments; averages are float32
    total = 4 * _bytes(trained) + _bytes(model.non_trainable_variables)
    if averaging_optimizer(model) is not None:
        total += 4 * sum(math.prod(weight.shape) for weight in trained)
    reached = {id(part.layer) for part in _backward_parts(model)}
    for stack, tokens in _stacks(model):
        config = stack.get_config()
        # what XLA keeps of a block
        block = tokens * (6 * stack.hidden_dim + 2 * config["mlp_dim"])
        block += 2 * config["num_heads"] * tokens**2
        blocks = sum(id(one) in reached for one in stack.blocks)
        # blocks below the first trained layer keep nothing: there is one at a time
        kept = max(1, blocks) * block
        if stack.rematerialize:
            kept = blocks * tokens * stack.hidden_dim + block
        total += images * kept * _item_size(model.compute_dtype)
    return total


def _bytes(weights):
    return sum(math.prod(one.shape) * _item_size(one.dtype) for one in weights)


def _item_size(dtype):
    return {"float32": 4, "int8": 1}.get(dtype, 2)


def peak_flops(strategy, precision, accelerator=None):
    """Peak FLOP/s of all replicas: looked up for known GPUs and TPUs, else measured."""
    if keras.backend.backend() == "jax":
        return _peak_flops_on_jax(precision)
    import tensorflow as tf

    replicas = strategy.num_replicas_in_sync
    # of a type such as "v5litepod-16"
    generation = (accelerator or "").split("-")[0]
    if generation in _TPU_PEAKS:
        return replicas * _TPU_PEAKS[generation]
    gpus = gpus_in_use(strategy)
    if gpus:
        name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "")
        return replicas * _gpu_peak(name, precision)
    # logical devices share the CPU; workers don't
    several = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    with tf.device("/cpu:0"):  # also of a machine with a GPU
        return (len(read_tf_config()[0]) if several else 1) * measured_flops(precision)


def _peak_flops_on_jax(precision):
    """Peak FLOP/s over the devices of the `keras.distribution`."""
    import jax

    if jax.default_backend() == "cpu":
        return measured_flops(precision)  # logical devices share the CPU
    distribution = keras.distribution.distribution()
    devices = distribution.device_mesh.devices.size if distribution else 1
    kind = jax.devices()[0].device_kind
    generation = _TPU_KINDS.get(kind, kind.removeprefix("TPU "))
    return devices * (_TPU_PEAKS.get(generation) or _gpu_peak(kind, precision))


def _gpu_peak(name, precision):
    """Peak FLOP/s of a device: looked up by its name, else measured."""
    for part, peaks in _GPU_PEAKS.items():
        if part in name.replace("-", " ").split():
            return peaks[precision == "float32"]
    return measured_flops(precision)


def measured_flops(precision):
    """FLOP/s of a large matrix product, the best of five."""
    size = 2048
    dtype = "float32" if precision == "float32" else "bfloat16"
    # rows sum to about 1: products stay finite
    values = np.random.default_rng(0).uniform(0, 2 / size, (size, size))
    matrix = ops.cast(values, dtype)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        float(ops.matmul(matrix, matrix)[0, 0])  # waits for the result
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)
