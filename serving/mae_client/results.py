"""Result types of `Client`, and how they are read from JSON."""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from .images import Images
from .pictures import draw

_DTYPES = {"float": "float32", "double": "float64", "half": "float16"}


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """Encoder features of images.

    Args:
        features: `(B, 1 + L, D)` float32 array, the class token first; `(B, D)` of a
            classifier.
    """

    features: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Embeddings:
    """Embeddings of images, a vector each.

    Args:
        embedding: `(B, D)` float32 array; how it was pooled, and whether its rows have
            the length 1, was chosen at export.
    """

    embedding: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Classification:
    """Most likely classes of images, best first.

    Args:
        class_ids: `(B, K)` int64 array.
        probabilities: `(B, K)` float32 array.
        labels: `(B, K)` array of strings.
    """

    class_ids: np.ndarray
    probabilities: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Reconstruction:
    """Reconstructed images.

    Args:
        reconstruction: `(B, H, W, C)` float32 array of grey levels in [0, 255].
        mask: `(B, L)` float32 array, 1 = masked, 0 = visible.
        loss: `(B,)` float32 array.
        patch_size: `(B, 2)` int32 array, height and width of a patch in pixels.
    """

    reconstruction: np.ndarray
    mask: np.ndarray
    loss: np.ndarray
    patch_size: np.ndarray

    def save(self, path: str | os.PathLike[str], images: Images) -> None:
        """Saves a picture: original, masked, reconstruction, pasted; a row per image.

        Originals are drawn as they are stored: of a model that turns images by their
        EXIF orientation (`"exif_orientation": true`), send and save them upright, by
        `PIL.ImageOps.exif_transpose`.

        Args:
            path: Path of the picture; its extension sets the format.
            images: The images that were sent, as for `Client.reconstruct`.

        Raises:
            ValueError: If `images` are not as many as the reconstructions, or these
                have other than 1 or 3 channels.

        Example:

        ```python
        with Client("localhost:8501") as client:
            client.reconstruct("cat.jpg", seed=7).save("cat.png", "cat.jpg")
        ```
        """
        draw(images, self.reconstruction, self.mask, self.patch_size).save(path)


@dataclasses.dataclass(frozen=True, eq=False)
class PngReconstruction:
    """Reconstructed images as PNG files, a fraction of the size of `Reconstruction`.

    Args:
        png_bytes: `(B,)` array of bytes, a PNG file of each image: the reconstruction
            with the visible patches over it, of the model's size. Empty where
            `pixels_u8` had another size.
        mask: `(B, L)` float32 array, 1 = masked, 0 = visible.
        loss: `(B,)` float32 array.
        patch_size: `(B, 2)` int32 array, height and width of a patch in pixels.
    """

    png_bytes: np.ndarray
    mask: np.ndarray
    loss: np.ndarray
    patch_size: np.ndarray


class Answer(NamedTuple):
    """Outputs of a request, and the version that answered, which REST does not say."""

    outputs: Mapping[str, np.ndarray]
    version: int | None = None


class VersionStatus(NamedTuple):
    """A version of a model; one that can be used has the state `"AVAILABLE"`."""

    version: int
    state: str
    error: str


class TensorInfo(NamedTuple):
    """Dtype and shape of an input or output; `None` is an unknown size or shape."""

    dtype: str
    shape: tuple | None


class Signature(NamedTuple):
    """Inputs and outputs of a signature: dicts from name to `TensorInfo`."""

    inputs: dict
    outputs: dict


def read_statuses(statuses: Iterable[Mapping[str, Any]]) -> list[VersionStatus]:
    """Reads ModelVersionStatus messages as JSON, in which zeros are left out."""
    return [
        VersionStatus(
            int(each.get("version", 0)),
            each.get("state", "UNKNOWN"),
            each.get("status", {}).get("error_message", ""),
        )
        for each in statuses
    ]


def read_signatures(table: Mapping[str, Any]) -> dict[str, Signature]:
    """Reads a SignatureDefMap as JSON, in which zeros are left out."""
    return {
        name: Signature(
            _tensor_infos(each.get("inputs", {})),
            _tensor_infos(each.get("outputs", {})),
        )
        for name, each in sorted(table.items())
        # TensorFlow's internal signatures
        if not name.startswith("__")
    }


def _tensor_infos(infos):
    result = {}
    for key, info in sorted(infos.items()):
        dtype = str(info.get("dtype", "DT_INVALID")).removeprefix("DT_").lower()
        shape = info.get("tensor_shape", {})
        sizes = [int(dim.get("size", 0)) for dim in shape.get("dim", [])]
        sizes = tuple(None if size < 0 else size for size in sizes)
        known = not shape.get("unknown_rank")
        result[key] = TensorInfo(_DTYPES.get(dtype, dtype), sizes if known else None)
    return result
