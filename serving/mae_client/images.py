"""Converts images of any kind to encoded bytes and to PIL images."""

import io
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, UnidentifiedImageError

# a path, encoded bytes, a PIL image, an array, or a list of these
Images: TypeAlias = Any


def as_list(images: Images) -> list:
    """Converts an image, a batch array or a sequence to a list."""
    if isinstance(images, (list, tuple)):
        return list(images)
    if hasattr(images, "__array__") and not isinstance(images, Image.Image):
        images = np.asarray(images)
        return list(images) if images.ndim == 4 else [images]
    return [images]


def encode(image: Images) -> bytes:
    """Returns an image as bytes that the server can decode."""
    image, name = _read(image)
    if isinstance(image, (bytes, bytearray)) and _is_decodable(bytes(image[:34])):
        return bytes(image)
    file = io.BytesIO()
    # of a file only what TensorFlow decodes has an orientation, as for the processor
    exif = image.info.get("exif") if isinstance(image, Image.Image) else None
    # the fastest level: a few percent larger than the default
    _to_pil(image, name).save(file, "PNG", compress_level=1, exif=exif)
    return file.getvalue()


def _is_decodable(head):
    """Whether TensorFlow decodes the format that these first bytes are of."""
    if head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")):
        return True
    if head.startswith(b"RIFF"):
        # of an animation TensorFlow reads the first frame only if it has alpha
        animated = head[12:16] == b"VP8X" and len(head) > 20 and head[20] & 2
        return head[8:12] == b"WEBP" and not animated
    # 24 bits, uncompressed: TensorFlow fails on other BMPs, or ignores their palette
    return head.startswith(b"BM") and head[28:34] == b"\x18\0\0\0\0\0"


def to_pil(image: Images) -> Image.Image:
    """Converts an image of any accepted kind to a PIL image, grey or RGB."""
    return _to_pil(*_read(image))


def _read(image):
    """Returns the bytes of a path, anything else as it is; and a name for errors."""
    if isinstance(image, (str, Path)):
        return Path(image).read_bytes(), image
    return image, "image"


def _to_pil(image, name):
    if isinstance(image, (bytes, bytearray)):
        image = _open(image, name)
    if not isinstance(image, Image.Image):
        image = _from_array(image)
    if image.mode.startswith("I;16"):
        # Pillow would clip 16-bit grey to 255 instead of scaling it
        image = Image.fromarray((np.asarray(image) // 257).astype("uint8"))
    elif image.mode in ("I", "F"):
        raise ValueError(
            "An image must have 8 or 16 bits per channel; pass others as arrays. "
            f"Received: mode {image.mode}"
        )
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _open(encoded, name):
    try:
        image = Image.open(io.BytesIO(encoded))
        refuse_programs(image)
        image.load()
    except Exception as error:  # each format's reader fails in its own ways
        # Pillow's text would be of an object in memory
        unknown = isinstance(error, UnidentifiedImageError)
        why = "no format that Pillow knows" if unknown else error
        raise ValueError(
            f"Cannot read {name}. Received: {len(encoded)} bytes: {why}"
        ) from error
    return image


def refuse_programs(image: Image.Image) -> None:
    """Raises `ValueError` of an opened image whose decoding would run a program."""
    if image.format == "EPS":
        raise ValueError("EPS is a program, which Ghostscript would run")


def _from_array(image):
    """Converts `(H, W)` or `(H, W, C)` integers or floats in [0, 1] to a PIL image."""
    image = np.asarray(image)
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
    shaped = image.ndim == 2 or (image.ndim == 3 and image.shape[-1] in (3, 4))
    if not shaped or not image.size or image.dtype.kind not in "uif":
        raise ValueError(
            "An image array must be (height, width) or (height, width, 1, 3 or 4) of "
            f"numbers. Received: shape {image.shape}, dtype {image.dtype}"
        )
    limit = 1 if image.dtype.kind == "f" else 255
    # written so that NaN fails as well
    if not (image.min() >= 0 and image.max() <= limit):
        raise ValueError(
            "An image array must hold integers in [0, 255] or floats in [0, 1]. "
            f"Received: {image.dtype} in [{image.min()}, {image.max()}]"
        )
    return Image.fromarray(np.rint(image * (255 // limit)).astype("uint8"))
