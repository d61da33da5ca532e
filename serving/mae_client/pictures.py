"""Draws reconstructions as a picture, one row per image."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .images import Images, as_list, to_pil

_TITLES = ("original", "masked", "reconstruction", "pasted")
_PANEL_WIDTH = 160  # minimum in pixels: smaller images are scaled by an integer
_GAP = 4
_TITLE_HEIGHT = 20


def draw(
    images: Images,
    reconstruction: np.ndarray,
    mask: np.ndarray,
    patch_size: np.ndarray,
) -> Image.Image:
    """Draws what `Reconstruction.save` saves, from the arrays of a `Reconstruction`."""
    count, height, width, channels = reconstruction.shape
    images = as_list(images)
    if len(images) != count or not count or channels not in (1, 3):
        raise ValueError(
            "images must be as many as the reconstructions, of 1 or 3 channels. "
            f"Received: {len(images)} images for reconstructions of shape "
            f"{reconstruction.shape}"
        )
    mode = "L" if channels == 1 else "RGB"
    bilinear = Image.Resampling.BILINEAR
    originals = [
        np.asarray(to_pil(image).convert(mode).resize((width, height), bilinear))
        for image in images
    ]
    stacked = np.stack(originals).reshape(reconstruction.shape)
    predicted = np.rint(np.clip(reconstruction, 0, 255)).astype("uint8")
    hidden = _to_pixels(mask, patch_size[0].tolist(), height, width)
    masked = np.where(hidden, np.uint8(127), stacked)
    pasted = np.where(hidden, predicted, stacked)
    return _draw_grid([stacked, masked, predicted, pasted])


def _to_pixels(mask, patch_size, height, width):
    """Expands a mask of patches to pixels."""
    count, length = mask.shape
    tall, wide = patch_size
    rows, columns = height // max(tall, 1), width // max(wide, 1)
    if (rows * tall, columns * wide, rows * columns) != (height, width, length):
        raise ValueError(
            f"An image of {height}x{width} pixels cannot have {length} patches of "
            f"{tall}x{wide}"
        )
    hidden = mask.reshape(count, rows, columns, 1) == 1
    return hidden.repeat(tall, axis=1).repeat(wide, axis=2)  # (B, H, W, 1)


def _draw_grid(panels):
    """Draws batches of uint8 images as the columns of one picture."""
    count, height, width, channels = panels[0].shape
    factor = -(-_PANEL_WIDTH // width)
    height, width = height * factor, width * factor
    size = (
        len(panels) * (width + _GAP) - _GAP,
        _TITLE_HEIGHT + count * (height + _GAP) - _GAP,
    )
    picture = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=12)
    for column, (panel, title) in enumerate(zip(panels, _TITLES, strict=True)):
        left = column * (width + _GAP)
        draw.text((left, 2), title, fill="black", font=font)
        for row, image in enumerate(panel):
            tile = Image.fromarray(image[..., 0] if channels == 1 else image)
            tile = tile.resize((width, height), Image.Resampling.NEAREST)
            picture.paste(tile, (left, _TITLE_HEIGHT + row * (height + _GAP)))
    return picture
