"""Compares a model with what PyTorch computes from the same weights."""

import numpy as np

from keras_mae.models import MAEClassifier
from keras_mae.pretrainer import MAEPretrainer
from keras_mae.weights import cards
from keras_mae.weights.formats import describe
from keras_mae.weights.port import contents_of, holder, sizes_of

_TOLERANCE = 1e-4


def compare_with_torch(model, checkpoint):
    """Runs the model, and PyTorch on the checkpoint, with the same images and mask.

    Hugging Face's files run in transformers' own classes. Those of facebook and timm,
    whose classes need more than PyTorch, run in the few functions below, which read
    them by their own names.

    Args:
        model: A `MAEPretrainer`, `MAEEncoder` or `MAEClassifier`.
        checkpoint: The `Checkpoint` that it was read from or written to.

    Returns:
        Float, the largest difference of logits (an encoder's tokens), relative to the
        largest value.

    Raises:
        ValueError: If PyTorch or transformers is not installed, or the outputs differ
            by more than 1e-4.
    """
    try:
        import torch
    except ImportError as error:
        raise ValueError("--check needs PyTorch: pip install torch") from error
    description = describe(checkpoint)
    encoder = holder(model).encoder
    rng = np.random.default_rng(0)
    shape = (2, *encoder.image_size, encoder.num_channels)
    images = rng.standard_normal(shape).astype("float32")
    noise = rng.random((2, encoder.num_patches)).astype("float32")
    state = {
        key: torch.tensor(np.asarray(tensor.read(), "float32"))
        for key, tensor in description.tensors.items()
    }
    run = _huggingface if description.naming.family == "huggingface" else _facebook
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        theirs = run(model, state, checkpoint, pixels, torch.from_numpy(noise)).numpy()
    if isinstance(model, MAEPretrainer):
        ours = model(images, noise=noise)["logits"]
    else:
        ours = model(images)
    difference = np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()
    # written so that NaN fails as well
    if not difference <= _TOLERANCE:
        raise ValueError(
            f"The outputs differ from PyTorch's by {difference:.1e} of their scale"
        )
    return float(difference)


def _huggingface(model, state, checkpoint, images, noise):
    try:
        import transformers
    except ImportError as error:
        raise ValueError("--check needs transformers for this format") from error
    config = dict(checkpoint.config or {})
    if "model_type" not in config:
        config = cards.to_huggingface(model)
    config["attn_implementation"] = "eager"
    if isinstance(model, MAEClassifier):
        kind, config_class = "ViTForImageClassification", transformers.ViTConfig
    else:
        decoder = isinstance(model, MAEPretrainer)
        kind = "ViTMAEForPreTraining" if decoder else "ViTMAEModel"
        config_class = transformers.ViTMAEConfig
        # an encoder sees every patch, in raster order
        config["mask_ratio"] = model.mask_ratio if decoder else 0.0
        noise = noise if decoder else noise.sort(dim=1).values
    theirs = getattr(transformers, kind).from_pretrained(
        None, config=config_class(**config), state_dict=state
    )
    if isinstance(model, MAEClassifier):
        return theirs.eval()(images).logits
    outputs = theirs.eval()(images, noise=noise)
    return outputs.logits if decoder else outputs.last_hidden_state


def _facebook(model, state, checkpoint, images, noise):
    import torch
    from torch.nn import functional

    sizes, parts = sizes_of(model), contents_of(model).parts
    epsilon = sizes["layer_norm_epsilon"]

    def linear(x, name):
        return functional.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(x, name):
        weights = state[f"{name}.weight"], state[f"{name}.bias"]
        return functional.layer_norm(x, x.shape[-1:], *weights, epsilon)

    def block(x, name, heads):
        batch, length, width = x.shape
        qkv = linear(norm(x, f"{name}.norm1"), f"{name}.attn.qkv")
        qkv = qkv.reshape(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(*qkv)  # (B, heads, N, head_dim)
        y = y.transpose(1, 2).reshape(batch, length, width)  # (B, N, D)
        x = x + linear(y, f"{name}.attn.proj")
        y = functional.gelu(linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1"))
        return x + linear(y, f"{name}.mlp.fc2")

    kernel, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    x = functional.conv2d(images, kernel, bias, stride=kernel.shape[2:])
    x = x.flatten(2).transpose(1, 2) + state["pos_embed"][:, 1:]  # (B, L, D)
    restore = torch.argsort(torch.argsort(noise, dim=1, stable=True), dim=1)
    visible = x.shape[1]
    if "decoder" in parts:
        visible = int(visible * (1 - model.mask_ratio))
        keep = torch.argsort(restore, dim=1)[:, :visible, None]
        x = torch.take_along_dim(x, keep, dim=1)  # (B, K, D)
    first = (state["cls_token"] + state["pos_embed"][:, :1]).expand(len(x), -1, -1)
    x = torch.cat([first, x], dim=1)  # (B, 1 + K, D)
    for index in range(sizes["depth"]):
        x = block(x, f"blocks.{index}", sizes["num_heads"])
    if "norm" in parts:
        x = norm(x, "norm")
    if "decoder" in parts:
        x = linear(x, "decoder_embed")
        hidden = state["mask_token"].expand(len(x), noise.shape[1] - visible, -1)
        x = torch.cat([x, hidden], dim=1)  # (B, 1 + L, D)
        order = torch.cat([torch.zeros_like(restore[:, :1]), restore + 1], dim=1)
        x = torch.take_along_dim(x, order[..., None], dim=1)
        x = x + state["decoder_pos_embed"]
        for index in range(sizes["decoder_depth"]):
            x = block(x, f"decoder_blocks.{index}", sizes["decoder_num_heads"])
        return linear(norm(x, "decoder_norm"), "decoder_pred")[:, 1:]
    if not parts & {"head", "probe"}:
        return x
    x = norm(x[:, 1:].mean(dim=1), "fc_norm") if "head_norm" in parts else x[:, 0]
    if "probe" not in parts:
        return linear(x, "head")
    mean, variance = state["head.0.running_mean"], state["head.0.running_var"]
    return linear(functional.batch_norm(x, mean, variance, eps=1e-6), "head.1")
