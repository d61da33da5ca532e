"""FLOPs and memory of a training step, and the peak FLOP/s of devices, for MFU."""

import time

import keras
import numpy as np
from keras import ops

from keras_mae.layers.masking import num_visible
from keras_mae.optimizers.averaging import averaging_optimizer
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


def _block_flops(stack, tokens):
    """FLOPs of a forward pass of all blocks over one image."""
    width, mlp = stack.hidden_dim, stack.get_config()["mlp_dim"]
    projections = 8 * tokens * width**2 + 4 * tokens * width * mlp
    return len(stack.blocks) * (projections + 4 * tokens**2 * width)


def _stacks(model):
    """Pairs encoder and decoder with their tokens per image."""
    encoder = getattr(model, "encoder", model)
    patches = encoder.num_patches
    if not hasattr(model, "decoder"):
        return [(encoder, 1 + patches)]
    visible = num_visible(patches, model.mask_ratio)
    return [(model.encoder, 1 + visible), (model.decoder, 1 + patches)]


def flops_per_image(model):
    """FLOPs of a training step per image: matrix products only, backward = 2 x forward.

    What rematerialization computes again is not counted, as MFU asks for.
    """
    stacks = _stacks(model)
    encoder = stacks[0][0]
    ends = 2 * (stacks[0][1] - 1) * encoder.patch_dim * encoder.hidden_dim
    for decoder, tokens in stacks[1:]:
        ends += 2 * stacks[0][1] * encoder.hidden_dim * decoder.hidden_dim
        ends += 2 * tokens * decoder.hidden_dim * decoder.patch_dim
    return 3.0 * (ends + sum(_block_flops(*stack) for stack in stacks))


def estimate_memory(model, images):
    """Bytes of a training step of `images` a replica: weights, AdamW, activations.

    Activations are what XLA keeps of a block: six tensors of its width, two of its
    MLP's, two of attention; with rematerialization its input, and one whole block.
    """
    variables = model.trainable_variables
    sizes = [int(np.prod(variable.shape)) for variable in variables]
    # the weight, its gradient and two moments; averages are float32
    total = sum(
        4 * size * _item_size(variable.dtype)
        for size, variable in zip(sizes, variables, strict=True)
    )
    if averaging_optimizer(model) is not None:
        total += 4 * sum(sizes)
    for stack, tokens in _stacks(model):
        config = stack.get_config()
        block = tokens * (6 * stack.hidden_dim + 2 * config["mlp_dim"])
        block += 2 * config["num_heads"] * tokens**2
        kept = len(stack.blocks) * block
        if stack.rematerialize:
            kept = len(stack.blocks) * tokens * stack.hidden_dim + block
        total += images * kept * _item_size(model.compute_dtype)
    return total


def _item_size(dtype):
    return 4 if dtype == "float32" else 2


def peak_flops(strategy, precision, accelerator=None):
    """Peak FLOP/s over all replicas: looked up for known GPUs and TPUs, else measured.

    `accelerator` is the TPU's type, such as `"v5litepod-16"`.
    """
    if keras.backend.backend() == "jax":
        return _peak_flops_on_jax(precision)
    import tensorflow as tf

    replicas = strategy.num_replicas_in_sync
    generation = (accelerator or "").split("-")[0]
    if generation in _TPU_PEAKS:
        return replicas * _TPU_PEAKS[generation]
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "")
        return replicas * _gpu_peak(name, precision)
    # logical devices share the CPU; workers don't
    several = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    return (len(read_tf_config()[0]) if several else 1) * measured_flops(precision)


def _peak_flops_on_jax(precision):
    """Peak FLOP/s over the devices of the `keras.distribution`."""
    import jax

    if jax.default_backend() == "cpu":
        return measured_flops(precision)  # logical devices share the CPU
    distribution = keras.distribution.distribution()
    devices = distribution.device_mesh.devices.size if distribution else 1
    return devices * _gpu_peak(jax.devices()[0].device_kind, precision)


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
