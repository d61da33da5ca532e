"""The PyTorch side of the parity tests: a Hugging Face ViTMAE with random weights."""

import torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from keras_mae.ops.activations import gelu_tanh
from keras_mae.weights import load_weights
from tests.parity.small_model import build_keras

ACTIVATIONS = {"gelu_pytorch_tanh": gelu_tanh}


def build_pair(image_size, patch_size=4, num_channels=3, seed=0, **overrides):
    """Builds the same small model in PyTorch and in Keras, every parameter random.

    A freshly built PyTorch model has all-zero positions and tokens, to which a
    comparison would be blind.
    """
    height, width = image_size
    config = ViTMAEConfig(
        image_size=patch_size * 2,
        patch_size=patch_size,
        num_channels=num_channels,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=40,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=36,
        attn_implementation="eager",
        **overrides,
    )
    theirs = ViTMAEForPreTraining(config).eval()
    length = (height // patch_size) * (width // patch_size)
    _resize(theirs, image_size, length)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.3, generator=generator)
    ours = build_keras(
        image_size,
        patch_size,
        num_channels,
        activation=ACTIVATIONS.get(config.hidden_act, config.hidden_act),
        qkv_bias=config.qkv_bias,
        layer_norm_epsilon=config.layer_norm_eps,
        mask_ratio=config.mask_ratio,
        norm_pix_loss=config.norm_pix_loss,
    )
    load_weights(ours, theirs.state_dict())
    return theirs, ours


def _resize(model, image_size, length):
    """Lets the PyTorch model, which wants squares, take any image size."""
    embeddings = model.vit.embeddings
    embeddings.image_size = image_size
    for module, name in (
        (embeddings, "position_embeddings"),
        (model.decoder, "decoder_pos_embed"),
    ):
        width = getattr(module, name).shape[-1]
        table = torch.nn.Parameter(torch.zeros(1, 1 + length, width), False)
        setattr(module, name, table)
    patchify = type(model).patchify
    model.patchify = lambda pixels, **_: patchify(model, pixels, True)


def to_torch(images):
    """Turns channels-last images into PyTorch's channels-first."""
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
