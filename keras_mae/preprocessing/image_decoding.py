"""Decode an image of any kind to a uint8 array."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from keras_mae.preprocessing.exif_orientation import (
    orientation_of_exif,
    orientation_of_file,
    upright,
)

# pixels of a file's side, the most that JPEG has: resizing needs memory for each
MOST_SIDE = 65_535


def decode_image(
    image: Any, num_channels: int, exif_orientation: bool = False
) -> np.ndarray:
    """Decodes a path, open file, bytes, PIL image or array to `(H, W, C)` uint8."""
    if hasattr(image, "read") and not isinstance(image, Image.Image):
        image = image.read()
    if isinstance(image, (str, Path, bytes, bytearray)):
        source, image = image, _open(image)
        if exif_orientation:
            image = upright(image, orientation_of_file(_read(source)))
    elif isinstance(image, Image.Image) and exif_orientation:
        image = upright(image, orientation_of_exif(image.info.get("exif", b"")))
    if not isinstance(image, Image.Image):
        image = _to_uint8_array(image)  # (H, W, C)
        if image.shape[-1] == num_channels:
            return image
        image = _array_to_pil(image, num_channels)
    return _pil_to_array(image, num_channels)


def _is_path(source):
    return isinstance(source, (str, Path))


def _read(source):
    return Path(source).read_bytes() if _is_path(source) else bytes(source)


def _open(source):
    """Opens a path or encoded bytes as a fully decoded PIL image."""
    encoded = not _is_path(source)
    name = f"{len(source)} bytes" if encoded else str(source)
    try:
        # closed here: Pillow keeps the file of an animation open
        with Image.open(io.BytesIO(source) if encoded else source) as image:
            if image.format == "EPS":
                raise ValueError("EPS is a program, which Ghostscript would run")
            if max(image.size) > MOST_SIDE:
                raise ValueError(
                    f"width and height must be at most {MOST_SIDE} pixels: {image.size}"
                )
            image.load()
    except Exception as error:  # each format's reader fails in its own ways
        raise ValueError(
            f"An image must be a readable picture. Received: {name}: {error}"
        ) from error
    return image


def _to_uint8_array(image):
    """Checks an array and returns it as `(H, W, C)` uint8."""
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.size == 0 or image.dtype.kind not in "uif":
        raise ValueError(
            "An image array must be (height, width) or (height, width, channels) of "
            f"numbers. Received: shape {image.shape}, dtype {image.dtype}"
        )
    limit = 1 if image.dtype.kind == "f" else 255
    # written so that NaN fails as well
    if not (image.min() >= 0 and image.max() <= limit):
        raise ValueError(
            "An image array must hold integers in [0, 255] or floats in [0, 1]. "
            f"Received: {image.dtype} in [{image.min()}, {image.max()}]"
        )
    return np.rint(image * (255 // limit)).astype("uint8")


def _array_to_pil(image, num_channels):
    """Turns a `(H, W, C)` uint8 array with 1, 3 or 4 channels into a PIL image."""
    if image.shape[-1] not in (1, 3, 4) or num_channels not in (1, 3):
        raise ValueError(
            f"An image must be (height, width, {num_channels}), channels last. "
            f"Received: shape {image.shape}"
        )
    return Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)


def _pil_to_array(image, num_channels):
    """Turns a PIL image of any mode into `(H, W, C)` uint8, grey or RGB."""
    if num_channels not in (1, 3):
        raise ValueError(
            "Only arrays can have other than one or three channels. "
            f"Received: an image for a model of {num_channels} channels"
        )
    if image.mode.startswith("I;16"):
        # Pillow would clip 16-bit grey to 255 instead of scaling it
        image = Image.fromarray((np.asarray(image) // 257).astype("uint8"))
    elif image.mode in ("I", "F"):
        raise ValueError(
            "An image must have 8 or 16 bits a channel; pass others as arrays. "
            f"Received: mode {image.mode}"
        )
    image = np.asarray(image.convert("L" if num_channels == 1 else "RGB"))
    return image.reshape(*image.shape[:2], num_channels)  # (H, W, C)
