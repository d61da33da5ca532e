"""An opened checkpoint: tensors that are read lazily, and the config beside them."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from keras_mae.utils.text import shorten
from keras_mae.utils.typing import PathLike

_MOST_PROBLEMS = 80  # lines of an error


class PortError(ValueError):
    """Conversion of weights failed: unreadable, or their keys or shapes don't match.

    `from_pretrained` and `load_weights` raise it; it is a `ValueError`.

    Args:
        message: Str, what is wrong, with the keys and shapes.

    Example:

    ```python
    try:
        keras_mae.MAEEncoder.from_pretrained({"weight": np.zeros((2, 2), "float32")})
    except keras_mae.weights.PortError as error:
        print(error)
    ```
    """


def key_differences(
    wanted: Iterable[str], tensors: Mapping[str, "LazyTensor"]
) -> list[str]:
    """Lists the keys that are missing, then those left over, sorted."""
    wanted = set(wanted)
    missing = [f"missing key: {key}" for key in sorted(wanted - set(tensors))]
    left_over = sorted(set(tensors) - wanted)
    return missing + [f"unused key: {key} {tensors[key].shape}" for key in left_over]


def raise_problems(title: str, problems: Sequence[str]) -> None:
    """Raises one `PortError` that lists the problems, if there are any."""
    if not problems:
        return
    lines = [f"{title}:", *(shorten(line) for line in problems[:_MOST_PROBLEMS])]
    if len(problems) > _MOST_PROBLEMS:
        lines.append(f"and {len(problems) - _MOST_PROBLEMS} more")
    raise PortError("\n  ".join(lines))


class LazyTensor(NamedTuple):
    """A tensor of a file: shape and type are known, values are read on demand."""

    shape: tuple
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    file: str


def mapped_tensor(
    path: PathLike, shape: tuple, dtype: np.dtype, offset: int
) -> LazyTensor:
    """A tensor that lies in a file as it is in memory."""

    def read() -> np.ndarray:
        # mapped on reading, so that memory is freed one tensor at a time
        return np.memmap(path, dtype, "r", offset, shape or (1,)).reshape(shape)

    return LazyTensor(shape, dtype, read, str(path))


@dataclasses.dataclass
class Checkpoint:
    """An opened source of weights."""

    source: str  # what the user named
    tensors: dict[str, LazyTensor]
    container: str  # "safetensors", "PyTorch pickle", "HDF5" or "state dict"
    file: str = ""  # of the weights, or the index of several
    config: dict | None = None  # the config.json beside the weights
    config_file: str | None = None
    # the training arguments that facebook's files keep beside the weights
    args: dict = dataclasses.field(default_factory=dict)
    # keys of what is no tensor -> what it is
    others: dict = dataclasses.field(default_factory=dict)
    ignored: tuple = ()  # keys that the user leaves out
    notes: tuple = ()  # on what was assumed


# a hub id, the path of a folder or file, a dict of arrays, or one that is open
Weights: TypeAlias = PathLike | Mapping[str, Any] | Checkpoint


def wrap_arrays(content: Any, depth: int = 4) -> Any:
    """Puts a `LazyTensor` for each array or PyTorch tensor in nested dicts."""
    if isinstance(content, Mapping) and depth:
        return {key: wrap_arrays(item, depth - 1) for key, item in content.items()}
    if not hasattr(content, "shape") or not hasattr(content, "dtype"):
        return content
    try:
        if hasattr(content, "detach"):
            content = content.detach().cpu()
            # NumPy has no bfloat16; float32 holds all of it
            content = content.float() if "bfloat16" in str(content.dtype) else content
        array = np.asarray(content)
    # PyTorch's, of a tensor that is sparse, quantized, or without values
    except (NotImplementedError, RuntimeError, TypeError):
        return content
    if array.dtype == object:
        return content
    read = functools.partial(np.asarray, array)
    return LazyTensor(array.shape, array.dtype, read, "dict")
