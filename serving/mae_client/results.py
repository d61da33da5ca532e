"""What a server answers, as types, and how they are read from JSON."""

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
    """What the encoder makes of images.

    Args:
        features: `(B, 1 + L, D)` float32 array, the class token first; of a
            classifier `(B, D)`.
    """

    features: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Classification:
    """The likeliest classes of images, best first.

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
    """What a pretrained model paints into the removed patches.

    Args:
        reconstruction: `(B, H, W, C)` float32 array of grey levels in [0, 255].
        mask: `(B, L)` float32 array, 1 = removed, 0 = visible.
        loss: `(B,)` float32 array.
        patch_size: `(B, 2)` int32 array, a patch's height and width in pixels, the
            same for each image.
    """

    reconstruction: np.ndarray
    mask: np.ndarray
    loss: np.ndarray
    patch_size: np.ndarray

    def save(self, path: str | os.PathLike[str], images: Images) -> None:
        """Draws a row an image: original, masked, reconstruction, pasted.

        Args:
            path: Path of the picture; its ending names the format.
            images: The pictures that were sent, as `Client.reconstruct` takes them.

        Raises:
            ValueError: If there are none, if they are not as many as the answers, or
                if the answers are no pictures cut into such patches.

        Example:

        ```python
        with Client("localhost:8501") as client:
            client.reconstruct("cat.jpg", seed=7).save("cat.png", "cat.jpg")
        ```
        """
        draw(images, self.reconstruction, self.mask, self.patch_size).save(path)


class VersionStatus(NamedTuple):
    """A version of a model: `state` is `"AVAILABLE"` where it answers."""

    version: int
    state: str
    error: str


class TensorInfo(NamedTuple):
    """An input or output: its type, and its sizes, where `None` is any size.

    `shape` itself is `None` where not even the number of axes is known.
    """

    dtype: str
    shape: tuple | None


class Signature(NamedTuple):
    """The inputs and outputs of a signature, dicts from name to `TensorInfo`."""

    inputs: dict
    outputs: dict


def read_statuses(statuses: Iterable[Mapping[str, Any]]) -> list[VersionStatus]:
    """Reads a list of ModelVersionStatus in JSON's form, which leaves zeros out."""
    return [
        VersionStatus(
            int(each.get("version", 0)),
            each.get("state", "UNKNOWN"),
            each.get("status", {}).get("error_message", ""),
        )
        for each in statuses
    ]


def read_signatures(table: Mapping[str, Any]) -> dict[str, Signature]:
    """Reads a SignatureDefMap in JSON's form, which leaves zeros out."""
    return {
        name: Signature(
            _tensor_infos(each.get("inputs", {})),
            _tensor_infos(each.get("outputs", {})),
        )
        for name, each in sorted(table.items())
        # TensorFlow's own, which nobody can ask
        if not name.startswith("__")
    }


def _tensor_infos(infos):
    result = {}
    for key, info in sorted(infos.items()):
        dtype = info.get("dtype", "DT_INVALID").removeprefix("DT_").lower()
        shape = info.get("tensor_shape", {})
        sizes = [int(dim.get("size", 0)) for dim in shape.get("dim", [])]
        sizes = tuple(None if size < 0 else size for size in sizes)
        known = not shape.get("unknown_rank")
        result[key] = TensorInfo(_DTYPES.get(dtype, dtype), sizes if known else None)
    return result
