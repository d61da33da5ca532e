"""What opening a source gives: named tensors, not read yet, and what is said."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np

from keras_mae.utils.typing import PathLike


class PortError(ValueError):
    """Weights can't be read, or keys and variables did not meet; sorted."""


def key_differences(
    wanted: Iterable[str], tensors: Mapping[str, "LazyTensor"]
) -> list[str]:
    """Lists the keys that are missing, then those left over, sorted.

    Args:
        wanted: Iterable of keys.
        tensors: Dict from key to `LazyTensor`.

    Returns:
        A list of lines.

    Example:

    ```python
    assert key_differences(["a"], {}) == ["missing key: a"]
    ```
    """
    wanted = set(wanted)
    missing = [f"missing key: {key}" for key in sorted(wanted - set(tensors))]
    left_over = sorted(set(tensors) - wanted)
    return missing + [f"unused key: {key} {tensors[key].shape}" for key in left_over]


def raise_problems(title: str, problems: Sequence[str]) -> None:
    """Raises one error that lists all problems, if there is any.

    Args:
        title: What doesn't fit.
        problems: List of lines.

    Raises:
        PortError: If the list is not empty.

    Example:

    ```python
    raise_problems("The weights don't fit", [])
    ```
    """
    if problems:
        raise PortError("\n  ".join([f"{title}:", *problems]))


class LazyTensor(NamedTuple):
    """A tensor of a file: its shape and type are known, its values wait to be read."""

    shape: tuple
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    file: str


@dataclasses.dataclass
class Checkpoint:
    """A source of weights, opened.

    Args:
        source: What the user named.
        tensors: Dict from foreign key to `LazyTensor`.
        container: `"safetensors"`, `"PyTorch pickle"` or `"state dict"`.
        file: Path of the file that holds the weights, or of the index of several.
        config: Dict, the `config.json` beside the weights, or `None`.
        config_file: Path of that file.
        args: Dict, the training arguments that the file keeps beside the weights.
    """

    source: str
    tensors: dict
    container: str
    file: str = ""
    config: dict | None = None
    config_file: str | None = None
    args: dict = dataclasses.field(default_factory=dict)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Wraps a dict of arrays, say a PyTorch model's `state_dict()`.

        Args:
            state: Dict from foreign key to array or tensor.

        Returns:
            A `Checkpoint`.

        Raises:
            PortError: If a value is no array.

        Example:

        ```python
        checkpoint = Checkpoint.from_state({"cls_token": np.zeros((1, 1, 8))})
        assert checkpoint.tensors["cls_token"].shape == (1, 1, 8)
        ```
        """
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
    """Turns an array, or a tensor of PyTorch, into an array."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        # NumPy doesn't know the type; nothing is lost
        value = value.float() if "bfloat16" in str(value.dtype) else value
    array = np.asarray(value)
    if array.dtype == object:
        raise PortError(f"{key} must be an array. Received: {type(value).__name__}")
    return array
