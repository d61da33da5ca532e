"""Similar images: an index of embeddings of a folder, and its ranking."""

import dataclasses
import os
import stat
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np

from .client import Client
from .errors import ServingError

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
)
SIGNATURE = "embed"
IndexArrays: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray]
# images in hand at a time: no more is read before their embeddings are there
_WINDOW = 64


@dataclasses.dataclass(frozen=True, eq=False)
class ImageIndex:
    """Embeddings of the images of a folder."""

    paths: np.ndarray  # (N,) strings, relative to the folder, with `/`
    embeddings: np.ndarray  # (N, D) float32
    # (N, 2) int64: bytes of a file, and its last change in nanoseconds
    stamps: np.ndarray
    model: str
    version: int
    folder: str  # relative to the file that the index is in
    signature: str = SIGNATURE  # that made the embeddings

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a `.npz` file; an older one is replaced once the new is whole."""
        part = _part(path)
        try:
            with open(part, "wb") as file:
                np.savez(file, **vars(self))
            os.replace(part, path)
        finally:
            Path(part).unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "ImageIndex":
        """Reads what `save` wrote; `ValueError` if it is none of an index."""
        names = [field.name for field in dataclasses.fields(cls)]
        try:
            with np.load(path) as file:
                values = {name: file[name] for name in names}
            index = cls(
                **values
                | {name: str(values[name]) for name in ("model", "folder", "signature")}
                | {"version": int(values["version"])}
            )
            index._check_arrays()
        except OSError:
            raise
        except Exception as error:  # NumPy's and zipfile's have no common kind
            raise ValueError(f"{path} is not an index file: {error}") from error
        return index

    def _check_arrays(self) -> None:
        count, width = self.embeddings.shape
        shapes = (self.paths.shape, self.stamps.shape)
        if shapes != ((count,), (count, 2)):
            raise ValueError("its arrays differ in length")
        kinds = self.paths.dtype.kind, self.embeddings.dtype, self.stamps.dtype
        if kinds != ("U", np.float32, np.int64):
            raise ValueError(f"its arrays are of other dtypes: {kinds}")
        if not width or not np.isfinite(self.embeddings).all():
            raise ValueError("its embeddings are not finite")

    def check(self, path: str | os.PathLike[str], model: str, version: int) -> None:
        """Raises ValueError if another model would be asked than made the index."""
        asked = f"{model} {version}"
        if (self._made, self.signature) != (asked, SIGNATURE):
            raise self._refusal(path, asked)

    def check_embeddings(
        self,
        path: str | os.PathLike[str],
        client: Client,
        folder: Path,
        embedding: np.ndarray,
    ) -> None:
        """Raises `ValueError` if another model has the same name and version now."""
        fits = embedding.shape == self.embeddings.shape[1:]
        paths, stamps = self.paths.tolist(), self.stamps.tolist()
        there = (n for n in range(len(paths)) if _has(folder / paths[n], stamps[n]))
        # an image that the folder still has is asked for again
        row = next(there, None) if fits else None
        if row is not None:
            fits = _agrees(client, folder, paths[row], self.embeddings[row])
        if not fits:
            raise self._refusal(path, f"another {self._made}")

    @property
    def _made(self) -> str:
        return f"{self.model} {self.version}"

    def _refusal(self, path, asked):
        return ValueError(
            f"{path} holds embeddings of model {self._made}, by {self.signature}; the "
            f"server answers as {asked}. Ask for that version, or make the index again"
        )

    def rank(
        self, embedding: np.ndarray, top: int, without: str | None = None
    ) -> list[tuple[str, float]]:
        """Returns `(path, cosine similarity)` of the `top` most similar images."""
        if embedding.shape != self.embeddings.shape[1:]:
            raise ValueError(
                f"The index has embeddings of shape {self.embeddings.shape[1:]}. "
                f"Received: {embedding.shape}"
            )
        lengths = np.linalg.norm(self.embeddings, axis=1) * np.linalg.norm(embedding)
        scores = self.embeddings @ embedding / np.maximum(lengths, 1e-12)  # (N,)
        order = (int(i) for i in np.argsort(-scores, kind="stable"))
        found = [
            (str(self.paths[i]), float(scores[i]))
            for i in order
            if self.paths[i] != without
        ]
        return found[:top]


def _part(path):
    return f"{os.fspath(path)}.part"


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raises `OSError` where `ImageIndex.save` could not write."""
    part = Path(_part(path))
    part.touch()
    part.unlink()


def index_folder(
    client: Client,
    folder: str | os.PathLike[str],
    known: ImageIndex | None = None,
    skipped: Callable[[str, Exception], object] = lambda path, error: None,
    unfinished: Callable[[IndexArrays], object] = lambda arrays: None,
) -> IndexArrays:
    """Embeds the images below a folder; returns paths, embeddings and stamps."""
    signatures = client.metadata()
    if SIGNATURE not in signatures:
        how = (
            " without --batching" if f"{SIGNATURE}_from_pixels_u8" in signatures else ""
        )
        raise ServingError(
            f"The model has no signature {SIGNATURE}; export it again{how}", "NOT_FOUND"
        )
    files = dict(_image_files(Path(folder), skipped))
    vectors: dict[str, np.ndarray] = {}
    if known is not None:
        vectors = _kept(client, Path(folder), known, files)
    new = [path for path in files if path not in vectors]
    kept = len(vectors)
    try:
        for start in range(0, len(new), _WINDOW):
            batch = new[start : start + _WINDOW]
            vectors.update(_embed(client, Path(folder), batch, skipped))
    except BaseException:  # Ctrl-C among them
        if len(vectors) > kept:
            # saves what is there before the error
            unfinished(_to_arrays(vectors, files))
        raise
    return _to_arrays(vectors, files)


def _kept(client, folder, known, files):
    """Returns known embeddings of unchanged files; none if another model made them."""
    rows = zip(
        known.paths.tolist(), known.stamps.tolist(), known.embeddings, strict=True
    )
    kept = {
        path: vector for path, stamp, vector in rows if files.get(path) == tuple(stamp)
    }
    if not kept:
        return kept
    # a name and a version may have been given to another model since
    path, vector = next(iter(kept.items()))
    return kept if _agrees(client, folder, path, vector) else {}


def _agrees(client, folder, path, known):
    """Whether a model embeds a file as is known, but for half precision."""
    found = dict(_embed(client, folder, [path], lambda *_: None)).get(path)
    if found is None or found.shape != known.shape:
        return False
    lengths = np.linalg.norm(found) * np.linalg.norm(known)
    return np.array_equal(found, known) or bool(found @ known > 0.99 * lengths)


def _to_arrays(vectors, files):
    paths = sorted(vectors)
    return (
        np.array(paths, dtype=str),
        np.stack([vectors[path] for path in paths]) if paths else np.zeros((0, 0)),
        np.array([files[path] for path in paths], "int64").reshape(-1, 2),
    )


def _image_files(folder, skipped):
    """Yields the relative path and the stamp of each file with an image's suffix."""
    if not folder.is_dir():
        raise NotADirectoryError(f"There is no folder {folder}")

    def unreadable(error):
        skipped(os.path.relpath(error.filename, folder), error)

    for root, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(root, name)
            if name.startswith(".") or path.suffix.lower() not in SUFFIXES:
                continue
            relative = path.relative_to(folder).as_posix()
            try:
                relative.encode()
                stamp = _stamp(path)
            except (OSError, ValueError) as error:
                skipped(relative, error)
                continue
            yield relative, stamp


def _stamp(path):
    """Returns a file's size and the time of its last change, in nanoseconds."""
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        # reading a pipe or a device would never end
        raise ValueError("not a regular file")
    return about.st_size, about.st_mtime_ns


def _has(path, stamp):
    """Whether a file is there, unchanged."""
    try:
        return _stamp(path) == tuple(stamp)
    except (OSError, ValueError):
        return False


def _embed(client, folder, paths, skipped):
    """Yields paths and embeddings; halves a batch that holds what is no image."""
    try:
        with warnings.catch_warnings():
            # of Pillow about odd files: they are skipped, or they are fine
            warnings.simplefilter("ignore")
            vectors = client.embed([folder / path for path in paths]).embedding
    except (ValueError, OSError, ServingError) as error:
        if isinstance(error, ServingError) and not _is_of_images(error):
            raise
        if len(paths) == 1:
            skipped(paths[0], error)
            return
        middle = len(paths) // 2
        for half in (paths[:middle], paths[middle:]):
            yield from _embed(client, folder, half, skipped)
        return
    for path, vector in zip(paths, vectors, strict=True):
        if np.isfinite(vector).all():
            yield path, vector
        else:
            skipped(path, ValueError("its embedding is not finite"))


def _is_of_images(error):
    """Whether a server refused a request for its images, or for their size."""
    # with retry_after it has too much to do
    too_large = error.code == "RESOURCE_EXHAUSTED" and error.retry_after is None
    return too_large or error.code == "INVALID_ARGUMENT"
