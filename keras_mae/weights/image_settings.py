"""Reads how weights want their images, beside them on the hub or in a folder."""

from pathlib import Path
from typing import Any

from keras_mae.utils.text import shorten
from keras_mae.weights.checkpoint import PortError
from keras_mae.weights.hub import CONFIG_FILE, PROCESSOR_FILE, Location, read_json

# what timm does to images, where it does not resize them whole
_TIMM_CROPS = {
    "center": "resizes the shorter edge and crops the centre",
    "border": "resizes the longer edge and pads",
    "squash": "resizes the whole image and crops the centre",
}


def read_image_settings(location: Location) -> tuple[Path, dict[str, Any]]:
    """Reads `preprocessor_config.json`, or what timm's `config.json` says of images."""
    path = location.find(PROCESSOR_FILE)
    if path is not None:
        return path, read_json(path)
    place = location.find(CONFIG_FILE)
    if place is not None:
        config = read_json(place)
        card = config.get("pretrained_cfg") or config  # flat in older files
        if isinstance(card, dict) and "mean" in card:
            converted = _from_timm(card)
            _note_crop(place, card, converted["size"])
            return place, converted
    raise PortError(
        f"{location.source} has no {PROCESSOR_FILE}. Without one make the processor "
        "by its arguments: MAEImageProcessor(image_size, image_mean, image_std), "
        "with a mean and a deviation for each channel"
    )


def _from_timm(card):
    """Turns what timm says of images into the hub's configuration."""
    size = card.get("input_size") or [3, 224, 224]
    return {
        "size": size[1:] if isinstance(size, list) else None,
        "image_mean": card["mean"],
        "image_std": card.get("std"),
        "resample": card.get("interpolation") or "bicubic",
    }


def _note_crop(path, card, size):
    """Prints what timm does to images instead of resizing them whole."""
    # an absent value is timm's default
    part, mode = card.get("crop_pct") or 0.875, card.get("crop_mode") or "center"
    if mode == "squash" and part == 1:
        return
    how = _TIMM_CROPS.get(str(mode), _TIMM_CROPS["center"])
    size = "x".join(map(str, size or ()))
    print(
        f"{path}: timm {how} (crop_pct {shorten(str(part))}); here whole images are "
        f"resized to {shorten(size)}"
    )
