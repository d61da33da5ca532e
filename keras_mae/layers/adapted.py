"""Quantization and LoRA of dense layers, as configuration and back."""

from typing import Any

import keras


def quantization(layer: keras.Layer) -> dict[str, Any] | None:
    """Returns the serialized configuration that a layer was quantized by, if it was."""
    config = getattr(layer, "quantization_config", None)
    if config is None or layer.quantization_mode is None:
        return None
    return keras.saving.serialize_keras_object(config)


def quantize(layer: keras.Layer, serialized: dict[str, Any]) -> None:
    """Quantizes a layer, or has it built so; does nothing where it is quantized."""
    if layer.quantization_mode is not None:
        return
    config: Any = keras.saving.deserialize_keras_object(serialized)
    if layer.built:
        layer.quantize(config=config)
        return
    mode = config.mode
    if mode == "int4":
        mode = f"int4/{config.block_size or -1}"
    layer.quantization_config = config
    layer.dtype_policy = f"{mode}_from_{layer.dtype_policy.name}"


def lora(layer: keras.Layer) -> list[float] | None:
    """Returns the rank and alpha of a layer's LoRA, if it has one."""
    rank = getattr(layer, "lora_rank", None)
    return [rank, layer.lora_alpha] if rank else None


def enable_lora(layer: keras.Layer, rank: int, alpha: float) -> None:
    """Enables LoRA, or has it built so; does nothing where it is enabled."""
    if lora(layer):
        return
    if layer.built:
        layer.enable_lora(rank, lora_alpha=alpha)
    else:
        layer.lora_rank, layer.lora_alpha = rank, alpha


def is_quantized(model: keras.Model) -> bool:
    """Whether a layer of the model is quantized."""
    return any(layer.quantization_mode for layer in model._flatten_layers())


def has_lora(model: keras.Model) -> bool:
    """Whether a layer of the model has LoRA's matrices."""
    parts = model._flatten_layers()
    return any(getattr(layer, "lora_enabled", False) for layer in parts)
