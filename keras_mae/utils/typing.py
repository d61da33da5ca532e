"""Type aliases."""

import os
from collections.abc import Sequence
from typing import Any, TypeAlias

from numpy.typing import ArrayLike

__all__ = ["ArrayLike", "Grid", "Images", "Logs", "PathLike", "Size", "Tensor"]

# an array or tensor of the Keras backend, or NumPy's, also inside a graph
Tensor: TypeAlias = Any
# an image as path, bytes, PIL image or array, or a list of these
Images: TypeAlias = Any
PathLike: TypeAlias = str | os.PathLike[str]
# pixels: an int, or (height, width)
Size: TypeAlias = int | Sequence[int]
# patches: (rows, columns)
Grid: TypeAlias = tuple[int, int]
# metrics by name, which Keras hands to callbacks
Logs: TypeAlias = dict[str, Any] | None
