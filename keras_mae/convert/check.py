"""`--check`: compares a model's outputs with PyTorch's from the same weights."""

import keras
import numpy as np

from keras_mae.layers.masking import num_visible
from keras_mae.models import MAEClassifier
from keras_mae.models.pretrainer import MAEPretrainer
from keras_mae.presets import PROBE_EPSILON
from keras_mae.weights import config_writers
from keras_mae.weights.checkpoint import Checkpoint
from keras_mae.weights.format_detection import describe_checkpoint
from keras_mae.weights.key_mapping import FACEBOOK, HUGGINGFACE, port_rows, torch_array
from keras_mae.weights.state_dict import (
    contents_of,
    encoder_of,
    export_weights,
    sizes_of,
)

_TOLERANCE = 1e-4


def compare_with_torch(model: keras.Model, checkpoint: Checkpoint) -> float:
    """Returns the largest difference of outputs, relative to the largest output."""
    try:
        import torch
    except ImportError as error:
        raise ValueError("--check needs PyTorch: pip install torch") from error
    description = describe_checkpoint(checkpoint)
    if isinstance(model, MAEPretrainer) and "decoder" not in description.contents.parts:
        model = model.encoder  # all that the file holds
    images, noise = _draw_inputs(encoder_of(model))
    arrays = _torch_arrays(model, description)
    state = {key: torch.tensor(array) for key, array in arrays.items()}
    # the classes of other families need more than PyTorch
    run = _huggingface if description.naming.family == "huggingface" else _facebook
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        theirs = run(model, state, checkpoint, pixels, torch.from_numpy(noise)).numpy()
    if isinstance(model, MAEPretrainer):
        ours = model(images, noise=noise)["logits"]
    else:
        ours = model(images)
    ours = keras.ops.convert_to_numpy(ours)
    difference = np.abs(ours - theirs).max() / np.abs(theirs).max()
    # not `>`: NaN has to fail as well
    if not difference <= _TOLERANCE:
        raise ValueError(
            f"The outputs differ from PyTorch's by {difference:.1e}, relative to the "
            f"largest one; the tolerance is {_TOLERANCE}"
        )
    return float(difference)


def _torch_arrays(model, description):
    """Reads the file's tensors by the keys, and in the layout, of a PyTorch library."""
    contents, naming = contents_of(model), description.naming
    named = FACEBOOK
    if naming.family == "huggingface":
        named = HUGGINGFACE if naming.layout == "tensorflow" else naming
    # position tables that a file lacks are computed
    own = export_weights(model, named) if description.absent else {}
    arrays = {}
    for row, wanted in zip(
        port_rows(contents, naming), port_rows(contents, named), strict=True
    ):
        for key, theirs in zip(row.keys, wanted.keys, strict=True):
            if key in description.absent:
                arrays[theirs] = own[theirs]
            else:
                array = np.asarray(description.tensors[key].read(), "float32")
                arrays[theirs] = torch_array(row, array)
    return arrays


def _draw_inputs(encoder):
    """Draws two images `(B, H, W, C)` and noise `(B, L)`."""
    rng = np.random.default_rng(0)
    shape = (2, *encoder.image_size, encoder.num_channels)
    images, noise = rng.standard_normal(shape), rng.random((2, encoder.num_patches))
    return images.astype("float32"), noise.astype("float32")


def _huggingface(model, state, checkpoint, images, noise):
    try:
        import transformers
    except ImportError as error:
        raise ValueError("--check needs transformers for this format") from error
    config = dict(checkpoint.config or {})
    if "model_type" not in config:
        config = config_writers.to_huggingface(model)
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
    forward = _FacebookForward(model, state)
    parts = contents_of(model).parts
    if "decoder" in parts:
        return forward.reconstruct(images, noise, model.mask_ratio)
    tokens = forward.encode(forward.embed(images))
    return forward.classify(tokens) if parts & {"head", "probe"} else tokens


class _FacebookForward:
    """The forward pass in PyTorch, from a state dict of facebook's keys."""

    def __init__(self, model, state):
        self.state = state
        self.sizes, self.parts = sizes_of(model), contents_of(model).parts

    def _linear(self, x, name):
        from torch.nn import functional

        bias = self.state.get(f"{name}.bias")  # query, key and value may have none
        return functional.linear(x, self.state[f"{name}.weight"], bias)

    def _norm(self, x, name):
        from torch.nn import functional

        weights = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        part = "decoder_" if name.startswith("decoder_") else ""
        epsilon = self.sizes[f"{part}layer_norm_epsilon"]
        return functional.layer_norm(x, x.shape[-1:], *weights, epsilon)

    def _block(self, x, name, heads):
        from torch.nn import functional

        batch, length, width = x.shape
        qkv = self._linear(self._norm(x, f"{name}.norm1"), f"{name}.attn.qkv")
        qkv = qkv.reshape(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(*qkv)  # (B, heads, N, head_dim)
        y = y.transpose(1, 2).reshape(batch, length, width)  # (B, N, D)
        x = x + self._linear(y, f"{name}.attn.proj")
        y = self._linear(self._norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")
        return x + self._linear(functional.gelu(y), f"{name}.mlp.fc2")

    def embed(self, images):
        """Returns the patches with their positions, `(B, L, D)`."""
        from torch.nn import functional

        kernel = self.state["patch_embed.proj.weight"]
        bias = self.state["patch_embed.proj.bias"]
        x = functional.conv2d(images, kernel, bias, stride=kernel.shape[2:])
        return x.flatten(2).transpose(1, 2) + self.state["pos_embed"][:, 1:]

    def encode(self, patches):
        """Runs the encoder on some patches, `(B, K, D)` to `(B, 1 + K, D)`."""
        import torch

        first = self.state["cls_token"] + self.state["pos_embed"][:, :1]
        x = torch.cat([first.expand(len(patches), -1, -1), patches], dim=1)
        for index in range(self.sizes["depth"]):
            x = self._block(x, f"blocks.{index}", self.sizes["num_heads"])
        return self._norm(x, "norm") if "norm" in self.parts else x

    def reconstruct(self, images, noise, mask_ratio):
        """Predicts every patch from the visible ones, `(B, L, P)`."""
        import torch

        patches = self.embed(images)
        visible = num_visible(patches.shape[1], mask_ratio)
        order = torch.argsort(noise, dim=1, stable=True)
        keep = order[:, :visible, None]
        x = self.encode(torch.take_along_dim(patches, keep, dim=1))
        x = self._linear(x, "decoder_embed")
        removed = noise.shape[1] - visible
        hidden = self.state["mask_token"].expand(len(x), removed, -1)
        shuffled = torch.cat([x[:, 1:], hidden], dim=1)
        restore = torch.argsort(order, dim=1)[..., None]
        patches = torch.take_along_dim(shuffled, restore, dim=1)  # (B, L, D)
        x = torch.cat([x[:, :1], patches], dim=1) + self.state["decoder_pos_embed"]
        for index in range(self.sizes["decoder_depth"]):
            heads = self.sizes["decoder_num_heads"]
            x = self._block(x, f"decoder_blocks.{index}", heads)
        return self._linear(self._norm(x, "decoder_norm"), "decoder_pred")[:, 1:]

    def classify(self, tokens):
        """Returns the logits of an encoder's tokens, `(B, num_classes)`."""
        x = tokens[:, 0]  # (B, D)
        if "head_norm" in self.parts:
            x = self._norm(tokens[:, 1:].mean(dim=1), "fc_norm")
        if "probe" not in self.parts:
            return self._linear(x, "head")
        mean, variance = (self.state[f"head.0.running_{n}"] for n in ("mean", "var"))
        return self._linear((x - mean) / (variance + PROBE_EPSILON).sqrt(), "head.1")
