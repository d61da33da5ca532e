"""Inputs of a request: one row per image."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .images import Images, as_list


def read_source(
    images: Images | None,
    pixels: ArrayLike | None = None,
    pixels_u8: ArrayLike | None = None,
) -> tuple[Any, str]:
    """Returns one item per image, and the name of the input."""
    given = [each is not None for each in (images, pixels, pixels_u8)]
    if sum(given) != 1:
        raise ValueError("Give either images or pixels or pixels_u8")
    if images is not None:
        return as_list(images), "image_bytes"
    if pixels is not None:
        return _read_pixels("pixels", np.asarray(pixels, "float32")), "pixels"
    levels = np.asarray(pixels_u8)
    if levels.dtype != np.uint8:
        raise ValueError(f"pixels_u8 must be of dtype uint8. Received: {levels.dtype}")
    return _read_pixels("pixels_u8", levels), "pixels_u8"


def _read_pixels(name, pixels):
    """Returns `(B, H, W, C)` pixels."""
    if pixels.ndim not in (3, 4):
        raise ValueError(
            f"{name} must be (height, width, channels) or (batch, height, width, "
            f"channels). Received: shape {pixels.shape}"
        )
    return pixels[None] if pixels.ndim == 3 else pixels


def as_objects(items: Sequence[bytes]) -> np.ndarray:
    """Makes an array of bytes of any lengths."""
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


def read_seeds(seed: ArrayLike, count: int) -> np.ndarray:
    """Returns an int64 seed per image: `seed + i` for an int."""
    seeds = np.asarray(seed)
    if seeds.size and not np.can_cast(seeds.dtype, np.int64):
        raise ValueError(
            f"seed must be an int or a sequence of ints. Received: {seed!r}"
        )
    if seeds.ndim == 0:
        seeds = seeds + np.arange(count)
    if seeds.shape != (count,):
        raise ValueError(
            f"seed must be an int, or one int for each of {count} images. Received: "
            f"shape {seeds.shape}"
        )
    return seeds.astype("int64")


def read_rows(name: str, value: ArrayLike, count: int) -> np.ndarray:
    """Returns a float32 row per image."""
    rows = np.asarray(value)
    if rows.dtype.kind not in "biuf" or rows.ndim not in (1, 2):
        raise ValueError(
            f"{name} must be a (B, L) or (L,) array of numbers. Received: shape "
            f"{rows.shape}, dtype {rows.dtype}"
        )
    if rows.ndim == 1:
        rows = np.broadcast_to(rows, (count, len(rows)))
    if len(rows) != count:
        raise ValueError(
            f"{name} must have a row for each of {count} images. Received: "
            f"{len(rows)} rows"
        )
    return rows.astype("float32")
