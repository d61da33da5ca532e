"""Copies weights by table, exactly: every key used, every variable filled."""

import functools
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_mae.ops.positions import resize_positions
from keras_mae.utils.typing import ArrayLike, Grid
from keras_mae.weights.checkpoint import LazyTensor, key_differences, raise_problems
from keras_mae.weights.key_tables import (
    HUGGINGFACE,
    TRANSFORMS,
    Contents,
    Naming,
    Row,
    port_rows,
)

# the parts of a model whose variables are ported
_PARTS = ("encoder", "decoder", "head_norm", "batch_norm", "head")
# what a part of a file fills in a model
_PARTS_OF = {
    "decoder": ("decoder",),
    "head_norm": ("head_norm",),
    "head": ("head",),
    "probe": ("batch_norm", "head"),
}


class Fit(NamedTuple):
    """How a source's sizes become the model's.

    Args:
        old_grid: Pair `(rows, columns)` of the source's positions.
        new_grid: The same for the model.
        antialias: Whether positions are resized with antialiasing.
        old_channels: Int, the source's channels.
        new_channels: Int, the model's.
        merge: `"sum"` or `"mean"`, what becomes of patch kernels.
    """

    old_grid: Grid
    new_grid: Grid
    antialias: bool
    old_channels: int
    new_channels: int
    merge: str


def holder(model: keras.Model) -> Any:
    """Returns something with an `encoder`: the model, or a wrap around an encoder."""
    return model if hasattr(model, "encoder") else types.SimpleNamespace(encoder=model)


def find_variable(model: keras.Model, path: str) -> keras.Variable:
    """Follows a dotted path from a model to one of its variables.

    Args:
        model: A Keras model of this package.
        path: Attribute names and list indices joined by dots, from a model with an
            `encoder`.

    Returns:
        A `keras.Variable`.

    Example:

    ```python
    model = keras_mae.MAEPretrainer.from_preset("mae_tiny")
    kernel = find_variable(model, "encoder.blocks.0.mlp.fc1.kernel")
    ```
    """

    def step(node, part):
        return node[int(part)] if part.isdigit() else getattr(node, part)

    return functools.reduce(step, path.split("."), holder(model))


def contents_of(model: keras.Model) -> Contents:
    """Says what a model consists of.

    Args:
        model: A `MAEPretrainer`, `MAEEncoder` or `MAEClassifier`.

    Returns:
        A `Contents`.

    Example:

    ```python
    model = keras_mae.MAEPretrainer.from_preset("mae_tiny")
    assert contents_of(model).decoder_depth == 2
    ```
    """
    owner = holder(model)
    decoder = getattr(owner, "decoder", None)
    parts = {
        "norm": owner.encoder.final_norm and not getattr(owner, "head_norm", None),
        "decoder": decoder,
        "head_norm": getattr(owner, "head_norm", None),
        "head": hasattr(owner, "head") and not owner.batch_norm,
        "probe": getattr(owner, "batch_norm", None),
    }
    return Contents(
        len(owner.encoder.blocks),
        len(decoder.blocks) if decoder else None,
        frozenset(part for part, there in parts.items() if there),
        owner.encoder.get_config()["qkv_bias"],
    )


def sizes_of(model: keras.Model) -> dict[str, Any]:
    """Collects a model's settings in the flat form of `PRESETS`.

    Args:
        model: A `MAEPretrainer`, `MAEEncoder` or `MAEClassifier`.

    Returns:
        A dict by our names, the decoder's with the prefix `decoder_`.

    Example:

    ```python
    model = keras_mae.MAEPretrainer.from_preset("mae_tiny")
    assert sizes_of(model)["decoder_num_heads"] == 4
    ```
    """
    owner = holder(model)
    sizes = owner.encoder.get_config()
    if hasattr(owner, "decoder"):
        decoder = owner.decoder.get_config()
        sizes.update({f"decoder_{name}": value for name, value in decoder.items()})
        sizes["mask_ratio"] = model.mask_ratio
        sizes["norm_pix_loss"] = model.norm_pix_loss
    return {name: value for name, value in sizes.items() if not name.endswith("name")}


def _parameters(model):
    """Lists the variables that the outputs depend on, by their paths."""
    owner = holder(model)
    unused = []
    if "norm" not in contents_of(model).parts:
        unused = [id(weight) for weight in owner.encoder.norm.weights]
    parts = [getattr(owner, name, None) for name in _PARTS]
    weights = [weight for part in parts if part for weight in part.weights]
    return [weight for weight in weights if id(weight) not in unused]


def _source_shape(kind, shape, fit):
    """Says of which shape, in our layout, a variable is in the source."""
    if kind == "positions":
        return (1, 1 + fit.old_grid[0] * fit.old_grid[1], shape[-1])
    # which axis holds the values of a patch
    axis = {"patch_kernel": 0, "pixel_kernel": 1, "pixel_bias": 0}.get(kind)
    if axis is None:
        return shape
    values = shape[axis] // fit.new_channels * fit.old_channels
    return (*shape[:axis], values, *shape[axis + 1 :])


def _adapt(kind, value, fit):
    """Brings a value, in our layout, from the source's sizes to the model's."""
    if kind == "positions" and fit.old_grid != fit.new_grid:
        table = resize_positions(value[0], fit.old_grid, fit.new_grid, fit.antialias)
        return ops.convert_to_numpy(table)[None]  # (1, 1 + L, D)
    if fit.old_channels == fit.new_channels:
        return value
    value = ops.convert_to_numpy(value).astype("float32")
    old, new = fit.old_channels, fit.new_channels
    if kind == "patch_kernel":
        kernels = value.reshape(-1, old, value.shape[-1])  # (p * p, C, D)
        merged = kernels.mean(axis=1, keepdims=True)
        if fit.merge == "sum":
            merged = merged * (old / new)
        return merged.repeat(new, axis=1).reshape(-1, value.shape[-1])  # (P, D)
    if kind in ("pixel_kernel", "pixel_bias"):
        pixels = value.reshape(*value.shape[:-1], -1, old)  # (..., p * p, C)
        merged = pixels.mean(axis=-1, keepdims=True).repeat(new, axis=-1)
        return merged.reshape(*value.shape[:-1], -1)  # (..., P)
    return value


def import_weights(
    model: keras.Model,
    tensors: Mapping[str, LazyTensor],
    rows: Sequence[Row],
    fit: Fit,
    fresh: Iterable[str] = (),
    progress: Callable[[int], object] | None = None,
    source: str = "The source",
) -> None:
    """Fills a model's variables; checks everything before it changes anything.

    Args:
        model: The model to fill.
        tensors: Dict from foreign key to `LazyTensor`, each of which has a use.
        rows: List of `Row` for what is to be filled.
        fit: A `Fit`.
        fresh: Names of parts that keep the values they have.
        progress: Function called with the number of rows done.
        source: What an error calls the source.

    Raises:
        PortError: If a key is missing, left over, or of another shape, or a variable
            is not filled.
    """
    problems = key_differences([key for row in rows for key in row.keys], tensors)
    problems += _unfilled(model, rows, fresh)
    problems += _wrong_shapes(model, tensors, rows, fit)
    raise_problems(f"{source} doesn't fit the model", problems)
    for done, row in enumerate(rows, 1):
        value = TRANSFORMS[row.kind][0]([tensors[key].read() for key in row.keys])
        find_variable(model, row.path).assign(_adapt(row.kind, value, fit))
        if progress:
            progress(done)


def _unfilled(model, rows, fresh):
    """Lists the variables that neither a row nor a fresh part accounts for."""
    kept = [getattr(model, name) for part in fresh for name in _PARTS_OF[part]]
    filled = {id(weight) for layer in kept for weight in layer.weights}
    filled |= {id(find_variable(model, row.path)) for row in rows}
    return [
        f"unfilled variable: {variable.path} {tuple(variable.shape)}"
        for variable in _parameters(model)
        if id(variable) not in filled
    ]


def _wrong_shapes(model, tensors, rows, fit):
    """Lists the tensors that are not of the shape that their row needs."""
    patch_size, problems = holder(model).encoder.patch_size, []
    for row in rows:
        shape = tuple(find_variable(model, row.path).shape)
        blank = np.broadcast_to(np.float32(0), _source_shape(row.kind, shape, fit))
        wanted = TRANSFORMS[row.kind][1](blank, len(row.keys), patch_size)
        for key, array in zip(row.keys, wanted, strict=True):
            if key in tensors and tensors[key].shape != array.shape:
                problems.append(
                    f"shape of {key}: wanted {array.shape} for {row.path}, "
                    f"received {tensors[key].shape} in {tensors[key].file}"
                )
    return problems


def export_weights(
    model: keras.Model,
    naming: Naming = HUGGINGFACE,
    values: Mapping[str, ArrayLike] | None = None,
) -> dict[str, np.ndarray]:
    """Turns a model's variables into a foreign state dict.

    Args:
        model: A `MAEPretrainer`, `MAEEncoder` or `MAEClassifier`.
        naming: The `Naming` of the keys; by default the hub's.
        values: Dict from path to array, instead of the variables' own values (say,
            their gradients); a path that is missing is left out.

    Returns:
        Dict from foreign key to contiguous NumPy array.

    Raises:
        ValueError: If the library has no name for a part of the model.

    Example:

    ```python
    model = keras_mae.MAEPretrainer.from_preset("mae_tiny")
    state = export_weights(model)
    assert state["vit.embeddings.cls_token"].shape == (1, 1, 128)
    ```
    """
    state: dict[str, np.ndarray] = {}
    for row in port_rows(contents_of(model), naming):
        if values is None:
            value = ops.convert_to_numpy(find_variable(model, row.path))
        elif row.path in values:
            value = np.asarray(values[row.path])
        else:
            continue
        patch_size = holder(model).encoder.patch_size
        arrays = TRANSFORMS[row.kind][1](value, len(row.keys), patch_size)
        # rows in order: some writers take the memory as it lies
        arrays = [np.ascontiguousarray(array) for array in arrays]
        state.update(zip(row.keys, arrays, strict=True))
    return state
