"""Draws an image and those that are similar to it, as one picture."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from .images import refuse_programs, to_pil

_TILE = 160  # pixels
_GAP = 8
_LINE = 16
_COLUMNS = 5


def draw_sheet(
    query: str | Path, found: Sequence[tuple[str, float]], folder: Path
) -> Image.Image:
    """Draws the query and each found `(path, score)`; unreadable images are grey."""
    tiles = [(Path(query), "query", Path(query).name)]
    tiles += [(folder / path, f"{score:.3f}", path) for path, score in found]
    columns = min(len(tiles), _COLUMNS)
    rows = -(-len(tiles) // columns)
    cell = (_TILE + _GAP, _TILE + 2 * _LINE + _GAP)
    size = (columns * cell[0] + _GAP, rows * cell[1] + _GAP)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for index, (path, title, name) in enumerate(tiles):
        row, column = divmod(index, columns)
        left, top = _GAP + column * cell[0], _GAP + row * cell[1]
        draw.text((left, top), title, fill="black", font=font)
        sheet.paste(_tile(path), (left, top + _LINE))
        name = _fit(name, draw, font)
        draw.text((left, top + _LINE + _TILE), name, fill="dimgrey", font=font)
    return sheet


def _tile(path):
    """Returns an image, fitted into a tile."""
    try:
        with Image.open(path) as image:
            refuse_programs(image)
            # a JPEG is decoded no larger than it must be
            image.draft("RGB", (2 * _TILE, 2 * _TILE))
            image = to_pil(ImageOps.exif_transpose(image))
    except Exception:  # each format's reader fails in its own ways
        return Image.new("RGB", (_TILE, _TILE), "lightgrey")
    # small images are shown in their pixels
    small = max(image.size) < _TILE
    resample = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
    image = ImageOps.contain(image.convert("RGB"), (_TILE, _TILE), resample)
    return ImageOps.pad(image, (_TILE, _TILE), color="white")


def _fit(name, draw, font):
    """Shortens a name at its front to the width of a tile."""
    if draw.textlength(name, font) <= _TILE:
        return name
    while name and draw.textlength(f"...{name}", font) > _TILE:
        name = name[1:]
    return f"...{name}"
