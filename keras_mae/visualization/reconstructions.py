"""Draw original, masked and reconstructed images side by side; kinds of masks."""

from collections.abc import Sequence

import numpy as np
from keras import ops
from PIL import Image, ImageDraw, ImageFont

from keras_mae.layers.masking import RandomMasking
from keras_mae.models.pretrainer import MAEPretrainer
from keras_mae.ops.patches import grid_shape, patchify, unpatchify
from keras_mae.preprocessing.image_processor import MAEImageProcessor
from keras_mae.utils.typing import Size, Tensor

_TITLES = ("original", "masked", "reconstruction", "reconstruction + visible")
_NORMALIZED_CAPTION = (
    "Patches were predicted normalized and are shown with the mean and deviation of "
    "the original patches."
)
_GAP = 4
_TEXT_HEIGHT = 20


def draw_reconstructions(
    model: MAEPretrainer,
    processor: MAEImageProcessor,
    images: Tensor,
    seed: int | None = None,
    mask: Tensor | None = None,
    interpolate: bool = False,
    panel_size: int = 160,
) -> Image.Image:
    """Draws a model's reconstructions, a row for each image.

    Args:
        model: A `MAEPretrainer`.
        processor: The `MAEImageProcessor` that made `images`.
        images: `(B, H, W, C)` float tensor with one or three channels.
        seed: Int, the seed of the masks.
        mask: `(B, L)` tensor, 1 = removed, 0 = visible, instead of a drawn one.
        interpolate: Whether to accept images of another size than the model's.
        panel_size: Int, the least width of a panel in pixels: smaller images are
            enlarged by a whole factor.

    Returns:
        A `PIL.Image` with four panels a row, titles above and a caption below. With
        `norm_pix_loss` the caption says that the originals' statistics were used.

    Raises:
        ValueError: If images have other than one or three channels, or `reconstruct`
            rejects them.

    Example:

    ```python
    model = keras_mae.MAEPretrainer.from_preset("mae_tiny")
    processor = keras_mae.MAEImageProcessor(image_size=32)
    images = processor(np.random.rand(32, 32, 3))
    picture = draw_reconstructions(model, processor, images, seed=0)
    ```
    """
    outputs = model.reconstruct(images, seed=seed, mask=mask, interpolate=interpolate)
    outputs = {name: ops.convert_to_numpy(value) for name, value in outputs.items()}
    names = ("masked", "reconstruction", "pasted")
    panels = [images, *(outputs[name] for name in names)]
    removed = float(np.mean(outputs["mask"]))
    loss = float(np.mean(outputs["loss"]))
    caption = f"{removed:.0%} of the patches removed; loss {loss:.4f}."
    if model.norm_pix_loss:
        caption = f"{caption} {_NORMALIZED_CAPTION}"
    panels = [processor.to_uint8(panel) for panel in panels]
    return draw_panels(panels, _TITLES, caption, panel_size)


def draw_masks(
    processor: MAEImageProcessor,
    images: Tensor,
    patch_size: Size,
    choices: Sequence[tuple[str, float]],
    seed: int = 0,
    panel_size: int = 160,
) -> Image.Image:
    """Draws what is left visible of images by several kinds of masks.

    Args:
        processor: The `MAEImageProcessor` that made `images`.
        images: `(B, H, W, C)` float tensor with one or three channels.
        patch_size: Int or pair `(height, width)`, in pixels.
        choices: Pairs `(mask_sampling, mask_ratio)`, a column for each.
        seed: Int, the seed of the masks.
        panel_size: Int, the least width of a panel in pixels.

    Returns:
        A `PIL.Image` with the original and the masked images, titles above. Removed
        patches have the processor's mean.

    Raises:
        ValueError: If images have other than one or three channels, or a mask can't be
            drawn, as by `keras_mae.layers.RandomMasking`.

    Example:

    ```python
    processor = keras_mae.MAEImageProcessor(image_size=32)
    images = processor(np.random.rand(32, 32, 3))
    choices = [("random", 0.75), ("block", 0.5), ("grid", 0.75)]
    picture = draw_masks(processor, images, patch_size=4, choices=choices)
    ```
    """
    size = tuple(images.shape[1:3])
    patches = patchify(ops.cast(images, "float32"), patch_size)  # (B, L, P)
    panels, masking = [images], RandomMasking()
    for mask_sampling, mask_ratio in choices:
        chosen = masking(
            patches,
            mask_ratio=mask_ratio,
            seed=seed,
            mask_sampling=mask_sampling,
            grid=grid_shape(size, patch_size),
        )
        visible = patches * (1 - chosen["mask"][..., None])  # (B, L, P)
        panels.append(unpatchify(visible, patch_size, size))
    panels = [processor.to_uint8(ops.convert_to_numpy(panel)) for panel in panels]
    titles = [f"{name} {ratio:.0%}" for name, ratio in choices]
    return draw_panels(panels, ["original", *titles], "", panel_size)


def draw_panels(
    panels: Sequence[np.ndarray],
    titles: Sequence[str],
    caption: str,
    panel_size: int = 160,
) -> Image.Image:
    """Draws batches of uint8 images as columns of an RGB image, with a caption."""
    count, height, width, channels = panels[0].shape
    if channels not in (1, 3) or not count:
        raise ValueError(
            "A picture needs at least one image of one or three channels. "
            f"Received: images.shape={panels[0].shape}"
        )
    factor = max(1, -(-panel_size // width))
    height, width = height * factor, width * factor
    font = ImageFont.load_default(size=12)
    total = len(panels) * (width + _GAP) - _GAP
    lines = _wrap(caption, font, total)
    bottom = _TEXT_HEIGHT + count * (height + _GAP)
    picture = Image.new("RGB", (total, bottom + _TEXT_HEIGHT * len(lines)), "white")
    draw = ImageDraw.Draw(picture)
    for column, (panel, title) in enumerate(zip(panels, titles, strict=True)):
        left = column * (width + _GAP)
        draw.text((left, 2), title, fill="black", font=font)
        for row, image in enumerate(panel):
            tile = Image.fromarray(image.squeeze(-1) if channels == 1 else image)
            tile = tile.convert("RGB").resize((width, height), Image.Resampling.NEAREST)
            picture.paste(tile, (left, _TEXT_HEIGHT + row * (height + _GAP)))
    for index, line in enumerate(lines):
        draw.text((0, bottom + index * _TEXT_HEIGHT), line, fill="black", font=font)
    return picture


def _wrap(text, font, width):
    """Breaks a text into lines no wider than `width` pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
