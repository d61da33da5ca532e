"""Train this package's model and transformers' from the same weights; compare losses.

Run: python training/compare_losses.py --preset=mae_base --steps=20

Both draw the same batches of random images and the same masks, and update by AdamW with
weight decay for matrices alone. It prints the losses of each step; the exit code is 1
if a difference is larger than --tolerance, relative to the loss. It runs on any backend
of Keras (KERAS_BACKEND), on CPUs and GPUs; on a GPU, float32 differs by more where
products are TF32: for JAX set JAX_DEFAULT_MATMUL_PRECISION=highest.
"""

import keras_mae  # first: it imports TensorFlow quietly

# isort: split
import contextlib
import dataclasses
import sys
import tempfile

import keras
import numpy as np

from keras_mae.presets import preset_sizes
from keras_mae.utils.flags import check_at_least, flag, run_script

LEARNING_RATE = 1e-4


@dataclasses.dataclass
class CompareLossesConfig:
    """Flags of this script."""

    preset: str = flag("model size, as for pretrain.py", "mae_base")
    batch_size: int = flag("images per step", 16)
    steps: int = flag("updates", 20)
    precision: str = flag(
        "Keras dtype policy; autocast on the other side",
        "float32",
        ("float32", "mixed_bfloat16"),
    )
    tolerance: float | None = flag(
        "largest relative difference of two losses; default: 5e-6 in float32, which "
        "a position table in the wrong order exceeds, else 1e-3",
        None,
    )


class GivenNoise(keras_mae.MAEPretrainer):
    """A pretrainer whose batches bring their noise along."""

    def training_inputs(self, data):
        images, noise = data
        return {"images": images, "noise": noise}


def draw_batches(config, sizes):
    """Yields images, channels last, and the noise of their masks."""
    rng = np.random.default_rng(0)
    size = sizes["image_size"]
    patches = (size // sizes["patch_size"]) ** 2
    for _ in range(config.steps):
        images = rng.standard_normal((config.batch_size, size, size, 3), "float32")
        yield images, rng.random((config.batch_size, patches), "float32")


def make_theirs(sizes):
    """Makes transformers' model with random weights, none of them all zeros."""
    import torch
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    torch.manual_seed(0)
    names = {
        "image_size": "image_size",
        "patch_size": "patch_size",
        "hidden_size": "hidden_dim",
        "num_hidden_layers": "depth",
        "num_attention_heads": "num_heads",
        "intermediate_size": "mlp_dim",
        "decoder_hidden_size": "decoder_hidden_dim",
        "decoder_num_hidden_layers": "decoder_depth",
        "decoder_num_attention_heads": "decoder_num_heads",
        "decoder_intermediate_size": "decoder_mlp_dim",
    }
    options = {theirs: sizes[ours] for theirs, ours in names.items()}
    model = ViTMAEForPreTraining(ViTMAEConfig(norm_pix_loss=True, **options))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not weight.any():  # equal positions would hide a wrong order
                weight.normal_(std=0.5 if "pos" in name else 0.02)
    return model


def train_theirs(config, sizes, folder):
    """Saves transformers' initial weights to a folder, then returns its losses."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = make_theirs(sizes)
    model.save_pretrained(folder)
    model.to(device).train()
    weights = [one for one in model.parameters() if one.requires_grad]
    groups = [
        {"params": [one for one in weights if one.ndim <= 1], "weight_decay": 0.0},
        {"params": [one for one in weights if one.ndim > 1], "weight_decay": 0.05},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95))
    autocast = contextlib.nullcontext()
    if config.precision != "float32":
        autocast = torch.autocast(device, torch.bfloat16)
    # the patches' convolution would be TF32 on a GPU
    torch.backends.cudnn.allow_tf32 = False
    losses = []
    for images, noise in draw_batches(config, sizes):
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2)).to(device)
        with autocast:
            loss = model(pixels, noise=torch.from_numpy(noise).to(device)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def train_ours(config, sizes, folder):
    """Returns the losses of this package's model from the weights in a folder."""
    model = GivenNoise.from_pretrained(folder, dtype=config.precision)
    model.compile(optimizer=keras_mae.pretraining_optimizer(LEARNING_RATE))
    losses = []
    for images, noise in draw_batches(config, sizes):
        history = model.fit(images, noise, batch_size=len(images), verbose=0)
        losses.append(history.history["loss"][0])
    return losses


def main(config):
    """Trains both, and compares."""
    check_at_least(config, 1, "batch_size", "steps")
    sizes = preset_sizes(config.preset)
    with tempfile.TemporaryDirectory() as folder:
        theirs = train_theirs(config, sizes, folder)
        ours = train_ours(config, sizes, folder)
    for step, pair in enumerate(zip(ours, theirs, strict=True), 1):
        print("step {:3}: keras_mae {:.6f}, transformers {:.6f}".format(step, *pair))
    worst = float(np.max(np.abs(np.subtract(ours, theirs)) / np.abs(theirs)))
    print(
        f"{config.preset}, {config.precision}, Keras on {keras.backend.backend()}: "
        f"largest relative difference {worst:.1e}"
    )
    tolerance = config.tolerance
    if tolerance is None:
        tolerance = 5e-6 if config.precision == "float32" else 1e-3
    if not worst <= tolerance:
        sys.exit(1)


if __name__ == "__main__":
    run_script(main, CompareLossesConfig, __doc__)
