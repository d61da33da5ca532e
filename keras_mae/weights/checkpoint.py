"""What opening a source gives: named tensors, not read yet, and what is said."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class PortError(ValueError):
    """Weights can't be read, or keys and variables did not meet; sorted."""


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
        config: Dict, the `config.json` beside the weights, or `None`.
        config_file: Path of that file.
        args: Dict, the training arguments that the file keeps beside the weights.
    """

    source: str
    tensors: dict
    container: str
    config: dict | None = None
    config_file: str | None = None
    args: dict = dataclasses.field(default_factory=dict)

    @classmethod
    def from_state(cls, state):
        """Wraps a dict of arrays, say a PyTorch model's `state_dict()`.

        Args:
            state: Dict from foreign key to array or CPU tensor.

        Returns:
            A `Checkpoint`.

        Example:

        ```python
        checkpoint = Checkpoint.from_state({"cls_token": np.zeros((1, 1, 8))})
        assert checkpoint.tensors["cls_token"].shape == (1, 1, 8)
        ```
        """
        arrays = {key: np.asarray(value) for key, value in state.items()}
        tensors = {
            key: LazyTensor(array.shape, array.dtype, lambda array=array: array, "dict")
            for key, array in arrays.items()
        }
        return cls("state dict", tensors, "state dict")
