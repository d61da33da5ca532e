"""The PyTorch models whose files are read: every class, every family, tiny."""

import functools

import numpy as np
import torch
from torch import nn
from transformers import (
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
)

from tests.parity.timm_import import import_timm

timm = import_timm()

# the proportions of base, large and huge/14: depth, heads by width, patch by image
FAMILIES = {
    "base": {"hidden_dim": 48, "depth": 3, "num_heads": 3, "patch": 4, "image": 16},
    "large": {"hidden_dim": 64, "depth": 6, "num_heads": 4, "patch": 4, "image": 16},
    "huge": {"hidden_dim": 80, "depth": 4, "num_heads": 4, "patch": 7, "image": 28},
}
DECODER = {"width": 32, "depth": 2, "num_heads": 4}
NUM_CLASSES = 5


def randomize(model, seed=0):
    """Fills every parameter and running statistic with random values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2, generator=generator)
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def huggingface_config(family, config_class=ViTMAEConfig, **extra):
    size = FAMILIES[family]
    return config_class(
        image_size=size["image"],
        patch_size=size["patch"],
        hidden_size=size["hidden_dim"],
        num_hidden_layers=size["depth"],
        num_attention_heads=size["num_heads"],
        intermediate_size=4 * size["hidden_dim"],
        attn_implementation="eager",
        **extra,
    )


def huggingface_model(family, model_class, **extra):
    """Builds one of transformers' classes with random weights."""
    if model_class is ViTForImageClassification:
        config = huggingface_config(family, ViTConfig, num_labels=NUM_CLASSES, **extra)
    else:
        config = huggingface_config(
            family,
            decoder_hidden_size=DECODER["width"],
            decoder_num_hidden_layers=DECODER["depth"],
            decoder_num_attention_heads=DECODER["num_heads"],
            decoder_intermediate_size=4 * DECODER["width"],
            **extra,
        )
    return randomize(model_class(config))


def timm_model(family, **extra):
    """Builds timm's Vision Transformer, as `vit_*.mae` are, with random weights."""
    size = FAMILIES[family]
    arguments = {
        "img_size": size["image"],
        "patch_size": size["patch"],
        "embed_dim": size["hidden_dim"],
        "depth": size["depth"],
        "num_heads": size["num_heads"],
        "num_classes": 0,
    }
    model = timm.create_model("vit_base_patch16_224.mae", **{**arguments, **extra})
    return randomize(model)


def linear_probe(family):
    """Builds timm's model with the head of the published linear probe."""
    model = timm_model(family)
    width = FAMILIES[family]["hidden_dim"]
    norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
    model.head = nn.Sequential(norm, nn.Linear(width, NUM_CLASSES))
    return randomize(model)


class FacebookMAE(nn.Module):
    """The pretraining model with facebook's parameter names, of timm's own layers.

    Written from the paper and the published files' keys and shapes.
    """

    def __init__(self, family, norm_pix_loss):
        super().__init__()
        size, width = FAMILIES[family], DECODER["width"]
        vision = timm.models.vision_transformer
        hidden_dim, self.patch = size["hidden_dim"], size["patch"]
        self.norm_pix_loss = norm_pix_loss
        self.patch_embed = vision.PatchEmbed(size["image"], self.patch, 3, hidden_dim)
        positions = 1 + self.patch_embed.num_patches
        self.cls_token = nn.Parameter(torch.zeros(1, 1, hidden_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, hidden_dim), False)
        self.blocks = self._blocks(size["depth"], hidden_dim, size["num_heads"])
        self.norm = nn.LayerNorm(hidden_dim, eps=1e-6)
        self.decoder_embed = nn.Linear(hidden_dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, positions, width), False)
        self.decoder_blocks = self._blocks(
            DECODER["depth"], width, DECODER["num_heads"]
        )
        self.decoder_norm = nn.LayerNorm(width, eps=1e-6)
        self.decoder_pred = nn.Linear(width, self.patch**2 * 3)

    @staticmethod
    def _blocks(depth, width, num_heads):
        block = timm.models.vision_transformer.Block
        options = {
            "qkv_bias": True,
            "norm_layer": functools.partial(nn.LayerNorm, eps=1e-6),
        }
        return nn.ModuleList([block(width, num_heads, **options) for _ in range(depth)])

    def forward(self, images, noise):
        """Returns loss and logits for channels-first images, a quarter visible."""
        positions = self.pos_embed
        x = self.patch_embed(images) + positions[:, 1:]  # (B, L, D)
        order = noise.argsort(dim=1, stable=True)
        restore = order.argsort(dim=1)
        keep = order[:, : x.shape[1] // 4, None]  # (B, K, 1)
        x = torch.take_along_dim(x, keep, dim=1)
        cls_token = (self.cls_token + positions[:, :1]).expand(len(x), -1, -1)
        x = torch.cat([cls_token, x], dim=1)
        for block in self.blocks:
            x = block(x)
        x = self.decoder_embed(self.norm(x))
        hidden = self.mask_token.expand(len(x), noise.shape[1] - keep.shape[1], -1)
        patches = torch.cat([x[:, 1:], hidden], dim=1)
        patches = torch.take_along_dim(patches, restore[..., None], dim=1)
        x = torch.cat([x[:, :1], patches], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        logits = self.decoder_pred(self.decoder_norm(x))[:, 1:]
        mask = (restore >= keep.shape[1]).float()
        errors = ((logits - self._targets(images)) ** 2).mean(-1)
        return (errors * mask).sum() / mask.sum(), logits

    def _targets(self, images):
        batch, _, height, width = images.shape
        p = self.patch
        x = images.reshape(batch, 3, height // p, p, width // p, p)
        x = x.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, p * p * 3)  # (B, L, P)
        if self.norm_pix_loss:
            x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-6) ** 0.5
        return x


def facebook_model(family, norm_pix_loss=False):
    """Builds facebook's pretraining model with random weights."""
    return randomize(FacebookMAE(family, norm_pix_loss))


def family_batch(family, batch=3, seed=1):
    """Draws images `(B, H, W, C)` and noise `(B, L)`, float32."""
    size = FAMILIES[family]
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((batch, size["image"], size["image"], 3))
    noise = rng.random((batch, (size["image"] // size["patch"]) ** 2))
    return images.astype("float32"), noise.astype("float32")
