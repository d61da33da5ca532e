"""Worker process of benchmark.py: transformers' ViTMAE on PyTorch.

Run: python training/benchmark.py --against=huggingface, which starts this script. It
imports neither Keras nor TensorFlow, so that its peak memory is PyTorch's.
"""

import argparse
import contextlib
import importlib.util
import os
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
import torch
import transformers
from transformers import (
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTMAEModel,
)


def load(path):
    """Loads one file of keras_mae: the package itself would import Keras."""
    package = Path(importlib.util.find_spec("keras_mae").origin).parent
    spec = importlib.util.spec_from_file_location(Path(path).stem, package / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PRESETS = load("presets.py").PRESETS
paired_runs = load("profiling/paired_runs.py")


def parse():
    """Parses the flags that benchmark.py passes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mode", required=True)
    parser.add_argument("--batch_size", type=int, required=True)
    parser.add_argument("--precision", required=True)
    parser.add_argument("--mask_ratio", type=float, required=True)
    parser.add_argument("--compile", action="store_true")
    for name in PRESETS["mae_base"]:
        parser.add_argument(f"--{name}", type=int, required=True)
    return parser.parse_args()


def build(options):
    """Builds the model of a mode, with random weights."""
    sizes = {
        "image_size": options.image_size,
        "patch_size": options.patch_size,
        "hidden_size": options.hidden_dim,
        "num_hidden_layers": options.depth,
        "num_attention_heads": options.num_heads,
        "intermediate_size": options.mlp_dim,
        "attn_implementation": "sdpa",
    }
    if options.mode == "finetune-step":
        return ViTForImageClassification(ViTConfig(num_labels=1000, **sizes))
    sizes |= {
        "decoder_hidden_size": options.decoder_hidden_dim,
        "decoder_num_hidden_layers": options.decoder_depth,
        "decoder_num_attention_heads": options.decoder_num_heads,
        "decoder_intermediate_size": options.decoder_mlp_dim,
        "mask_ratio": 0.0 if options.mode == "encode" else options.mask_ratio,
        "norm_pix_loss": True,
    }
    kind = ViTMAEModel if options.mode == "encode" else ViTMAEForPreTraining
    return kind(ViTMAEConfig(**sizes))


def make_step(options, device):
    """Returns a function that runs one step and waits for its result."""
    torch.manual_seed(0)
    model = build(options).to(device)
    size = options.image_size
    images = torch.randn(options.batch_size, 3, size, size, device=device)
    inputs = {"pixel_values": images}
    if options.mode == "finetune-step":
        inputs["labels"] = torch.arange(options.batch_size, device=device) % 1000
    training = options.mode.endswith("-step")
    model.train(training)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=1e-4,
        betas=(0.9, 0.95),
        weight_decay=0.05,
        fused=True,  # the default of transformers' Trainer
    )
    run = torch.compile(model) if options.compile else model
    autocast = contextlib.nullcontext()
    if options.precision != "float32":
        autocast = torch.autocast(device, torch.bfloat16)

    def step():
        if not training:
            with torch.no_grad(), autocast:
                run(**inputs)
        else:
            with autocast:
                loss = run(**inputs).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def main():
    """Runs steps on request."""
    options = parse()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    about = {
        "library": "transformers" + ", torch.compile" * options.compile,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "float32_matmul_precision": paired_runs.use_tf32(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "threads": torch.get_num_threads(),
    }
    paired_runs.serve_steps(make_step(options, device), about, "torch")


if __name__ == "__main__":
    main()
