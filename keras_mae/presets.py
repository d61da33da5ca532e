"""The sizes, as plain data: what `from_preset` builds."""

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

# what an override may name beside a preset's own keys
_SHARED = (
    "activation",
    "dropout_rate",
    "attention_dropout_rate",
    "qkv_bias",
    "layer_norm_epsilon",
    "kernel_initializer",
    "initializer_range",
    "dtype",
)
_ENCODER = ("num_channels", "seed")
_PRETRAINER = ("mask_ratio", "norm_pix_loss")
_PREFIX = "decoder_"


def _resolve(preset, overrides, extra=(), decoder=True):
    """Merges a preset with overrides, or raises on a name that neither knows."""
    if preset not in PRESETS:
        raise ValueError(
            f"preset must be one of {', '.join(PRESETS)}. Received: {preset!r}"
        )
    config = {
        key: value
        for key, value in PRESETS[preset].items()
        if decoder or not key.startswith(_PREFIX)
    }
    known = {*config, *_SHARED, *_ENCODER, *extra}
    unknown = sorted(set(overrides) - known)
    if unknown:
        raise ValueError(
            f"Overrides must be among {', '.join(sorted(known))}. "
            f"Received: {', '.join(unknown)}"
        )
    return {**config, **overrides}


def encoder_config(preset, overrides):
    """Returns the constructor arguments of a preset's encoder.

    Args:
        preset: A name in `PRESETS`.
        overrides: Dict of arguments that replace the preset's.

    Returns:
        A dict for `MAEEncoder(**config)`.

    Raises:
        ValueError: If the preset or an override is unknown.

    Example:

    ```python
    assert encoder_config("mae_huge", {})["patch_size"] == 14
    ```
    """
    return _resolve(preset, overrides, decoder=False)


def pretrainer_config(preset, overrides):
    """Returns the constructor arguments of a preset's encoder, decoder and pretrainer.

    Args:
        preset: A name in `PRESETS`.
        overrides: Dict of arguments that replace the preset's: the encoder's by their
            names, the decoder's sizes with the prefix `decoder_`, `mask_ratio` and
            `norm_pix_loss`. Activation, dropouts, bias, epsilon and initializers
            count for encoder and decoder alike.

    Returns:
        A tuple of three dicts. The decoder's lacks `grid`, `patch_dim` and
        `latent_dim`, which follow from the encoder.

    Raises:
        ValueError: If the preset or an override is unknown.

    Example:

    ```python
    encoder, decoder, pretrainer = pretrainer_config("mae_base", {"mask_ratio": 0.5})
    assert decoder["hidden_dim"] == 512 and pretrainer == {"mask_ratio": 0.5}
    ```
    """
    config = _resolve(preset, overrides, extra=_PRETRAINER)
    pretrainer = {key: config.pop(key) for key in _PRETRAINER if key in config}
    decoder = {
        key.removeprefix(_PREFIX): config.pop(key)
        for key in list(config)
        if key.startswith(_PREFIX)
    }
    decoder.update({key: config[key] for key in _SHARED if key in config})
    return config, decoder, pretrainer
