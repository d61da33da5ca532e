"""Model size presets of `from_preset`: tiny, small, base, large, huge."""

from collections.abc import Mapping
from typing import Any

_VIT_DECODER = {
    "decoder_hidden_dim": 512,
    "decoder_depth": 8,
    "decoder_num_heads": 16,
    "decoder_mlp_dim": 2048,
}

# base, large and huge are the paper's (section 4, table 1); tiny and small are ours
PRESETS = {
    "mae_tiny": {
        "image_size": 32,
        "patch_size": 4,
        "hidden_dim": 128,
        "depth": 4,
        "num_heads": 4,
        "mlp_dim": 512,
        "decoder_hidden_dim": 64,
        "decoder_depth": 2,
        "decoder_num_heads": 4,
        "decoder_mlp_dim": 256,
    },
    "mae_small": {
        "image_size": 224,
        "patch_size": 16,
        "hidden_dim": 384,
        "depth": 12,
        "num_heads": 6,
        "mlp_dim": 1536,
        "decoder_hidden_dim": 256,
        "decoder_depth": 4,
        "decoder_num_heads": 8,
        "decoder_mlp_dim": 1024,
    },
    "mae_base": {
        "image_size": 224,
        "patch_size": 16,
        "hidden_dim": 768,
        "depth": 12,
        "num_heads": 12,
        "mlp_dim": 3072,
        **_VIT_DECODER,
    },
    "mae_large": {
        "image_size": 224,
        "patch_size": 16,
        "hidden_dim": 1024,
        "depth": 24,
        "num_heads": 16,
        "mlp_dim": 4096,
        **_VIT_DECODER,
    },
    "mae_huge": {
        "image_size": 224,
        "patch_size": 14,
        "hidden_dim": 1280,
        "depth": 32,
        "num_heads": 16,
        "mlp_dim": 5120,
        **_VIT_DECODER,
    },
}

# overrides of `from_preset` beside a preset's own keys: encoder's and decoder's
SHARED = (
    "activation",
    "dropout_rate",
    "attention_dropout_rate",
    "qkv_bias",
    "layer_norm_epsilon",
    "kernel_initializer",
    "initializer_range",
    "rematerialize",
    "residual_dtype",
    "dtype",
)
_ENCODER = (
    "num_channels",
    "seed",
    "final_norm",
    "drop_path_rate",
    "train_positions",
)
_PRETRAINER = ("mask_ratio", "norm_pix_loss", "mask_sampling")
CLASSIFIER = (
    "num_classes",
    "pooling",
    "batch_norm",
    "head_dropout_rate",
    "head_range",
)
_PREFIX = "decoder_"
# of the batch norm in front of a probe's head, as published
PROBE_EPSILON = 1e-6


def preset_sizes(preset: str) -> dict[str, int]:
    """Returns the sizes of a preset, or raises `ValueError`."""
    if preset not in PRESETS:
        raise ValueError(
            f"preset must be one of {', '.join(PRESETS)}, or a folder written by "
            f"save_to_preset (other weights: from_pretrained). Received: {preset!r}"
        )
    return dict(PRESETS[preset])


def _resolve(sizes, overrides, extra=(), decoder=False):
    """Merges sizes with overrides; raises `ValueError` on an unknown override."""
    known = {*SHARED, *_ENCODER, *extra}
    known |= {name for name in PRESETS["mae_base"] if decoder or _PREFIX not in name}
    unknown = sorted(set(overrides) - known)
    if unknown:
        raise ValueError(
            f"Overrides must be among {', '.join(sorted(known))}. "
            f"Received: {', '.join(unknown)}"
        )
    config = {name: value for name, value in sizes.items() if name in known}
    return {**config, **overrides}


def encoder_config(
    sizes: Mapping[str, Any], overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the arguments of `MAEEncoder`; ignores sizes of a decoder."""
    return _resolve(sizes, overrides)


def classifier_config(
    sizes: Mapping[str, Any], overrides: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the arguments of `MAEEncoder`, and those of `MAEClassifier`."""
    config = _resolve(sizes, overrides, extra=CLASSIFIER)
    head = {name: config.pop(name) for name in CLASSIFIER if name in config}
    return config, head


def check_num_classes(head: Mapping[str, Any]) -> None:
    """Raises where the arguments of a fresh head don't say its classes."""
    if head.get("num_classes") is None:
        raise ValueError(
            "num_classes must be given where there is no published head. Received: None"
        )


def pretrainer_config(
    sizes: Mapping[str, Any], overrides: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Returns the arguments of encoder, decoder and `MAEPretrainer`."""
    extra = (*_PRETRAINER, f"{_PREFIX}layer_norm_epsilon")
    config = _resolve(sizes, overrides, extra=extra, decoder=True)
    pretrainer = {key: config.pop(key) for key in _PRETRAINER if key in config}
    decoder = {
        key.removeprefix(_PREFIX): config.pop(key)
        for key in list(config)
        if key.startswith(_PREFIX)
    }
    shared = {key: config[key] for key in SHARED if key in config}
    return config, {**shared, **decoder}, pretrainer
