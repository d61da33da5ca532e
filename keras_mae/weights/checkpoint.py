"""An opened checkpoint: tensors that are read lazily, and the config beside them."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np

from keras_mae.utils.typing import PathLike

# in an error: lines, and characters of a line
_MOST_PROBLEMS = 500
_LONGEST = 200


class PortError(ValueError):
    """Weights can't be read, or their keys and shapes don't match the model.

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


def shorten(text: str) -> str:
    """Cuts a text of a file's, such as a key, to the length of a line or two."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


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

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Wraps a dict of arrays, say a PyTorch model's `state_dict()`."""
        arrays = {str(key): _as_array(key, value) for key, value in state.items()}
        tensors = {
            key: LazyTensor(
                array.shape, array.dtype, functools.partial(np.asarray, array), "dict"
            )
            for key, array in arrays.items()
        }
        return cls("state dict", tensors, "state dict")


# a hub id, the path of a folder or file, a dict of arrays, or one that is open
Weights: TypeAlias = PathLike | Mapping[str, Any] | Checkpoint


def _as_array(key, value):
    """Converts an array or a PyTorch tensor to NumPy."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        # NumPy has no bfloat16; float32 holds all of it
        value = value.float() if "bfloat16" in str(value.dtype) else value
    array = np.asarray(value)
    if array.dtype == object:
        raise PortError(f"{key} must be an array. Received: {type(value).__name__}")
    return array
