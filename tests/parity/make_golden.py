"""Writes golden.npz: what PyTorch computes, for machines without it.

Run from the project's folder: python -m tests.parity.make_golden
"""

from pathlib import Path

import numpy as np
import torch

from tests.parity.reference import build_pair, to_torch
from tests.parity.small_model import random_batch

PATH = Path(__file__).with_name("golden.npz")
CASE = {"image_size": (8, 12), "patch_size": 4, "num_channels": 3}


def record(norm_pix_loss):
    """Returns the reference's outputs and gradients, then its weights and inputs."""
    theirs, _ = build_pair(**CASE, mask_ratio=0.5, norm_pix_loss=norm_pix_loss)
    images, noise = random_batch(*CASE.values())
    outputs = theirs(to_torch(images), noise=torch.from_numpy(noise))
    outputs.loss.backward()
    results = {
        f"output/{name}": getattr(outputs, name).detach().numpy()
        for name in ("loss", "logits", "mask", "ids_restore")
    }
    inputs = {"images": images, "noise": noise}
    for name, parameter in theirs.named_parameters():
        inputs[f"weight/{name}"] = parameter.detach().numpy()
        if parameter.requires_grad:
            results[f"gradient/{name}"] = parameter.grad.numpy()
    return results, inputs


if __name__ == "__main__":
    pixels, inputs = record(norm_pix_loss=False)
    normalized, _ = record(norm_pix_loss=True)
    arrays = {f"pixels/{key}": value for key, value in pixels.items()}
    arrays.update({f"normalized/{key}": value for key, value in normalized.items()})
    np.savez_compressed(PATH, **arrays, **inputs)
    print(f"{PATH}: {PATH.stat().st_size / 1024:.0f} KiB")
