"""What a training step costs: FLOPs, memory, and the share of a device's peak."""

import time

import numpy as np
from keras import ops

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
    """Counts a forward pass of all blocks of a stack over one image."""
    width, mlp = stack.hidden_dim, stack.get_config()["mlp_dim"]
    projections = 8 * tokens * width**2 + 4 * tokens * width * mlp
    return len(stack.blocks) * (projections + 4 * tokens**2 * width)


def _stacks(model):
    """Pairs encoder and decoder with the tokens that they see of an image."""
    encoder = getattr(model, "encoder", model)
    patches = encoder.num_patches
    if not hasattr(model, "decoder"):
        return [(encoder, 1 + patches)]
    visible = int(patches * (1 - model.mask_ratio))
    return [(model.encoder, 1 + visible), (model.decoder, 1 + patches)]


def flops_per_image(model):
    """Counts the floating-point operations of a training step, for each image.

    Matrix products only, two for each multiplication and addition; the backward pass
    takes twice the forward pass, as where all is trained. What rematerialization
    computes anew is not counted.

    Args:
        model: A `MAEPretrainer`, `MAEClassifier` or `MAEEncoder`.

    Returns:
        Float.

    Example:

    ```python
    model = keras_mae.MAEPretrainer.from_preset("mae_tiny")
    assert 1e8 < flops_per_image(model) < 1e9
    ```
    """
    stacks = _stacks(model)
    encoder = stacks[0][0]
    ends = 2 * (stacks[0][1] - 1) * encoder.patch_dim * encoder.hidden_dim
    for decoder, tokens in stacks[1:]:
        ends += 2 * stacks[0][1] * encoder.hidden_dim * decoder.hidden_dim
        ends += 2 * tokens * decoder.hidden_dim * decoder.patch_dim
    return 3.0 * (ends + sum(_block_flops(*stack) for stack in stacks))


def estimate_memory(model, images):
    """Estimates the memory of a training step: weights, AdamW, gradient, activations.

    Activations are what XLA keeps of a block: six tensors of its width, two of its
    MLP's, two of attention; with rematerialization its input, and one whole block.

    Args:
        model: A `MAEPretrainer` or `MAEClassifier`.
        images: Int, how many a replica works through at once.

    Returns:
        Int, bytes.

    Example:

    ```python
    model = keras_mae.MAEPretrainer.from_preset("mae_tiny")
    assert estimate_memory(model, images=2) < estimate_memory(model, images=4)
    ```
    """
    variables = model.trainable_variables
    # the weight, its gradient and two moments
    total = sum(4 * int(np.prod(v.shape)) * _item_size(v.dtype) for v in variables)
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
    """Finds the FLOP/s that the devices of a strategy could do at most.

    Known GPUs and TPUs are looked up. Of others, and of CPUs, it is the rate of a large
    matrix product, measured here.

    Args:
        strategy: A `tf.distribute.Strategy`.
        precision: Name of the dtype policy.
        accelerator: The type of the TPU, such as `"v5litepod-16"`.

    Returns:
        Float, over all replicas.

    Example:

    ```python
    import tensorflow as tf

    assert peak_flops(tf.distribute.get_strategy(), "float32") > 1e9
    ```
    """
    import tensorflow as tf

    replicas = strategy.num_replicas_in_sync
    if accelerator in _TPU_PEAKS or (accelerator or "").split("-")[0] in _TPU_PEAKS:
        return replicas * _TPU_PEAKS[accelerator.split("-")[0]]
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "")
        for part, peaks in _GPU_PEAKS.items():
            if part in name.replace("-", " ").split():
                return replicas * peaks[precision == "float32"]
        return replicas * measured_flops(precision)
    # logical devices share the CPU; workers don't
    several = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    return (len(read_tf_config()[0]) if several else 1) * measured_flops(precision)


def measured_flops(precision, size=2048, repeats=5):
    """Measures the best of several products of square matrices.

    Args:
        precision: Name of a dtype policy.
        size: Int, their rows.
        repeats: Int.

    Returns:
        Float, FLOP/s.

    Example:

    ```python
    assert measured_flops("float32", size=64) > 0
    ```
    """
    dtype = "float32" if precision == "float32" else "bfloat16"
    # of mean 1 by row: powers stay finite
    values = np.random.default_rng(0).uniform(0, 2 / size, (size, size))
    matrix = ops.cast(values, dtype)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        float(ops.matmul(matrix, matrix)[0, 0])  # waits for the result
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)
