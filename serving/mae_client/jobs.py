"""Splits a client call into batched requests, by number and bytes of images."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .errors import ServingError
from .images import Images, encode
from .inputs import as_objects, read_rows, read_seeds, read_source
from .results import (
    Answer,
    Classification,
    Embeddings,
    Features,
    PngReconstruction,
    Reconstruction,
)

# of a request as JSON: below the 32 MiB that config/nginx.conf lets through, and half
# of what a server accepts
_MAX_BYTES = 30 * 2**20
# bytes as base64, and float32 as JSON's digits, in units of their own size
_BASE64_GROWTH = 4 / 3
_DIGITS_GROWTH = 6


@dataclasses.dataclass(frozen=True)
class _Job:
    """A signature, its images, and further inputs of a row per image."""

    result_class: Any
    signature: str
    items: Sequence[Any]
    kind: str
    extras: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def full_signature(self) -> str:
        """The signature for this kind of input."""
        suffix = {"pixels": "_from_pixels", "pixels_u8": "_from_pixels_u8"}
        return self.signature + suffix.get(self.kind, "")

    @property
    def names(self) -> list[str]:
        """Names of the outputs."""
        return [field.name for field in dataclasses.fields(self.result_class)]

    def starts(self, batch_size: int) -> range:
        # an empty batch is sent too: only the server knows the result shapes
        return range(0, max(len(self.items), 1), batch_size)

    def parts(self, start: int, batch_size: int) -> list[dict[str, np.ndarray]]:
        """Inputs of the batch that begins at `start`: one request, or several."""
        rows = slice(start, start + batch_size)
        batch: Any = self.items[rows]
        if self.kind == "image_bytes":
            # encoded here, so that only batches being sent take memory
            batch = as_objects([encode(image) for image in batch])
        elif self.kind == "pixels_u8":
            batch = as_objects([pixels.tobytes() for pixels in batch])
        inputs = {name: value[rows] for name, value in self.extras.items()}
        inputs[self.kind] = batch
        return list(_cut(inputs, self.kind))

    def join(self, answers: Iterable[Answer]) -> Any:
        """Makes the result of the answers, in the order of the images."""
        answers = list(answers)
        known = (answer.version for answer in answers)
        versions = sorted({version for version in known if version is not None})
        if len(versions) > 1:
            raise ServingError(
                f"Versions {versions} of the model answered parts of the list: the "
                "server changed between them. Ask again, or for one version",
                "ABORTED",
            )
        try:
            joined = {
                name: np.concatenate([answer.outputs[name] for answer in answers])
                for name in self.names
            }
        except ValueError as error:
            raise ServingError(f"The answers don't fit: {error}", "INTERNAL") from error
        for name, rows in joined.items():
            if len(rows) != len(self.items):
                raise ServingError(
                    f"The answers have {len(rows)} rows of {name} for "
                    f"{len(self.items)} images",
                    "INTERNAL",
                )
        return self.result_class(**joined)


def _cut(
    inputs: Mapping[str, np.ndarray], kind: str
) -> Iterator[dict[str, np.ndarray]]:
    """Splits a batch that is too large for a request, between images."""
    sizes = [
        _BASE64_GROWTH * len(item)
        if isinstance(item, bytes)
        else _DIGITS_GROWTH * item.nbytes
        for item in inputs[kind]
    ]
    starts, total = [0], 0.0
    for index, size in enumerate(sizes):
        total += size
        if total > _MAX_BYTES and index > starts[-1]:
            starts.append(index)
            total = size
    for start, end in itertools.pairwise([*starts, len(sizes)]):
        yield {name: value[start:end] for name, value in inputs.items()}


Pixels = ArrayLike | None


def features(images: Images | None, pixels: Pixels, pixels_u8: Pixels) -> _Job:
    return _Job(Features, "features", *read_source(images, pixels, pixels_u8))


def embed(images: Images | None, pixels: Pixels, pixels_u8: Pixels) -> _Job:
    return _Job(Embeddings, "embed", *read_source(images, pixels, pixels_u8))


def classify(images: Images | None, pixels: Pixels, pixels_u8: Pixels) -> _Job:
    return _Job(Classification, "classify", *read_source(images, pixels, pixels_u8))


def reconstruct(
    images: Images | None,
    seed: int | Sequence[int] | None,
    mask: Pixels,
    noise: Pixels,
    pixels: Pixels,
    pixels_u8: Pixels,
) -> _Job:
    masking: dict[str, Any] = {"seed": seed, "mask": mask, "noise": noise}
    masking = {name: value for name, value in masking.items() if value is not None}
    if len(masking) > 1:
        raise ValueError(f"Give only one of {' and '.join(masking)}")
    ((name, value),) = (masking or {"seed": 0}).items()
    signature = "reconstruct" if name == "seed" else f"reconstruct_with_{name}"
    items, kind = read_source(images, pixels, pixels_u8)
    if name == "seed":
        rows = read_seeds(value, len(items))
    else:
        rows = read_rows(name, value, len(items))
    return _Job(Reconstruction, signature, items, kind, {name: rows})


def reconstruct_png(
    images: Images | None,
    seed: int | Sequence[int] | None,
    pixels: Pixels,
    pixels_u8: Pixels,
) -> _Job:
    items, kind = read_source(images, pixels, pixels_u8)
    seeds = read_seeds(0 if seed is None else seed, len(items))
    signature = "reconstruct_png_bytes"
    return _Job(PngReconstruction, signature, items, kind, {"seed": seeds})
