"""Which foreign keys fill which of our variables, and how arrays are turned.

A row says: the variable at `path` (dotted from the `MAEPretrainer`) holds what the
source stores under `keys`, turned by the transform called `kind`. `TRANSFORMS` holds a
pair for each kind: source arrays to ours, and ours to source arrays.
"""

from typing import NamedTuple

import numpy as np


class Row(NamedTuple):
    """One variable: where it lies, the keys it comes from, how it is turned."""

    path: str
    keys: tuple
    kind: str


def _patch_kernel_to_source(kernel, model):
    height, width = model.encoder.patch_size
    kernel = kernel.reshape(height, width, -1, kernel.shape[-1])  # (p_h, p_w, C, D)
    return [kernel.transpose(3, 2, 0, 1)]  # (D, C, p_h, p_w)


# kind -> (source arrays -> our array, (our array, model) -> source arrays)
TRANSFORMS = {
    "same": (lambda arrays: arrays[0], lambda x, model: [x]),
    "dense": (lambda arrays: arrays[0].T, lambda x, model: [x.T]),
    "patch_kernel": (
        lambda arrays: arrays[0].transpose(2, 3, 1, 0).reshape(-1, arrays[0].shape[0]),
        _patch_kernel_to_source,
    ),
    "qkv_kernel": (
        lambda arrays: np.concatenate(arrays).T,
        lambda x, model: np.split(x.T, 3),
    ),
    "qkv_bias": (np.concatenate, lambda x, model: np.split(x, 3)),
}


def _dense(path, key):
    return [
        Row(f"{path}.kernel", (f"{key}.weight",), "dense"),
        Row(f"{path}.bias", (f"{key}.bias",), "same"),
    ]


def _norm(path, key):
    return [
        Row(f"{path}.gamma", (f"{key}.weight",), "same"),
        Row(f"{path}.beta", (f"{key}.bias",), "same"),
    ]


def _huggingface_block(path, key, use_bias):
    qkv = [f"{key}.attention.{name}_proj" for name in "qkv"]
    kernels = tuple(f"{name}.weight" for name in qkv)
    rows = [Row(f"{path}.attention.qkv.kernel", kernels, "qkv_kernel")]
    if use_bias:
        biases = tuple(f"{name}.bias" for name in qkv)
        rows.append(Row(f"{path}.attention.qkv.bias", biases, "qkv_bias"))
    return [
        *rows,
        *_dense(f"{path}.attention.proj", f"{key}.attention.o_proj"),
        *_norm(f"{path}.norm1", f"{key}.layernorm_before"),
        *_norm(f"{path}.norm2", f"{key}.layernorm_after"),
        *_dense(f"{path}.mlp.fc1", f"{key}.mlp.fc1"),
        *_dense(f"{path}.mlp.fc2", f"{key}.mlp.fc2"),
    ]


def huggingface_rows(model):
    """Lists the rows for a Hugging Face `ViTMAEForPreTraining` state dict (5.x names).

    Args:
        model: A `MAEPretrainer`.

    Returns:
        A list of `Row`.

    Example:

    ```python
    model = keras_mae.MAEPretrainer.from_preset("mae_tiny")
    row = keras_mae.weights.huggingface_rows(model)[0]
    assert row.keys == ("vit.embeddings.cls_token",)
    ```
    """
    embedding = "encoder.patch_embedding"
    foreign = "vit.embeddings"
    kernel = (f"{foreign}.patch_embeddings.projection.weight",)
    bias = (f"{foreign}.patch_embeddings.projection.bias",)
    positions = (f"{foreign}.position_embeddings",)
    rows = [
        Row(f"{embedding}.cls_token", (f"{foreign}.cls_token",), "same"),
        Row(f"{embedding}.positions.embeddings", positions, "same"),
        Row(f"{embedding}.projection.kernel", kernel, "patch_kernel"),
        Row(f"{embedding}.projection.bias", bias, "same"),
        *_norm("encoder.norm", "vit.layernorm"),
        *_dense("decoder.embed", "decoder.decoder_embed"),
        Row("decoder.mask_token", ("decoder.mask_token",), "same"),
        Row("decoder.positions.embeddings", ("decoder.decoder_pos_embed",), "same"),
        *_norm("decoder.norm", "decoder.decoder_norm"),
        *_dense("decoder.pred", "decoder.decoder_pred"),
    ]
    for side, key in (("encoder", "vit.layers"), ("decoder", "decoder.decoder_layers")):
        for index, block in enumerate(getattr(model, side).blocks):
            use_bias = block.attention.use_bias
            path = f"{side}.blocks.{index}"
            rows += _huggingface_block(path, f"{key}.{index}", use_bias)
    return rows
