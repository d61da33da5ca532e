"""Copies variables from and to state dicts: every key used, every variable filled."""

import functools
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_mae.layers.adapted import has_lora, is_quantized
from keras_mae.ops.positions import resize_positions
from keras_mae.utils.typing import ArrayLike, Grid
from keras_mae.weights.checkpoint import LazyTensor, key_differences, raise_problems
from keras_mae.weights.key_mapping import (
    HUGGINGFACE,
    Contents,
    Naming,
    Row,
    from_source,
    port_rows,
    to_source,
)

# the parts of a model that have variables
_PARTS = ("encoder", "decoder", "head_norm", "batch_norm", "head")
# part of a file -> the parts of a model that it fills
_PARTS_OF = {
    "decoder": ("decoder",),
    "head_norm": ("head_norm",),
    "head": ("head",),
    "probe": ("batch_norm", "head"),
}


class SizeChange(NamedTuple):
    """How a source's sizes are brought to the model's."""

    old_grid: Grid  # (rows, columns) of the source's positions
    new_grid: Grid
    antialias: bool  # in resizing positions
    old_channels: int
    new_channels: int
    merge: str  # "sum" or "mean" of patch kernels over channels


def encoder_of(model: keras.Model) -> Any:
    """Returns a model's encoder, or the model if it is one."""
    return getattr(model, "encoder", model)


def _owner(model):
    """Returns something with an `encoder`: the model, or a wrapper of an encoder."""
    return model if hasattr(model, "encoder") else types.SimpleNamespace(encoder=model)


def check_plain_weights(model: keras.Model, name: str) -> None:
    """Raises where a model is of another class, quantized, or has LoRA."""
    if not hasattr(model, "port_report"):
        raise ValueError(
            f"{name} needs a MAEPretrainer, MAEEncoder or MAEClassifier. "
            f"Received: {type(model).__name__}"
        )
    if is_quantized(model) or has_lora(model):
        kind = "a quantized model" if is_quantized(model) else "a model with LoRA"
        raise ValueError(
            f"{name} needs float weights by themselves: before quantize(), and after "
            f"merge_lora(); save() writes a model as it is. Received: {kind}"
        )


def find_variable(model: keras.Model, path: str) -> keras.Variable:
    """Follows a dotted path from a model to one of its variables."""

    def step(node, part):
        return node[int(part)] if part.isdigit() else getattr(node, part)

    return functools.reduce(step, path.split("."), _owner(model))


def contents_of(model: keras.Model) -> Contents:
    """Returns the parts of a model."""
    owner = _owner(model)
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
    """Returns a model's settings in the flat form of `PRESETS`."""
    owner = _owner(model)
    sizes = owner.encoder.get_config()
    if hasattr(owner, "decoder"):
        decoder = owner.decoder.get_config()
        sizes.update({f"decoder_{name}": value for name, value in decoder.items()})
        sizes["mask_ratio"] = model.mask_ratio
        sizes["norm_pix_loss"] = model.norm_pix_loss
    return {name: value for name, value in sizes.items() if not name.endswith("name")}


def _parameters(model):
    """Lists the variables that the outputs depend on."""
    owner = _owner(model)
    unused = []
    if "norm" not in contents_of(model).parts:
        unused = [id(weight) for weight in owner.encoder.norm.weights]
    parts = [getattr(owner, name, None) for name in _PARTS]
    weights = [weight for part in parts if part for weight in part.weights]
    return [weight for weight in weights if id(weight) not in unused]


def _source_shape(kind, shape, change):
    """Returns a variable's shape in the source, in our layout."""
    if kind == "positions":
        return (1, 1 + change.old_grid[0] * change.old_grid[1], shape[-1])
    # the axis of a patch's values
    axis = {"patch_kernel": 0, "pixel_kernel": 1, "pixel_bias": 0}.get(kind)
    if axis is None:
        return shape
    values = shape[axis] // change.new_channels * change.old_channels
    return (*shape[:axis], values, *shape[axis + 1 :])


def _adapt(kind, value, change):
    """Brings a value, in our layout, from the source's sizes to the model's."""
    if kind == "positions" and change.old_grid != change.new_grid:
        table = resize_positions(
            value[0], change.old_grid, change.new_grid, change.antialias
        )
        return ops.convert_to_numpy(table)[None]  # (1, 1 + L, D)
    if change.old_channels == change.new_channels:
        return value
    value = ops.convert_to_numpy(value).astype("float32")
    old, new = change.old_channels, change.new_channels
    if kind == "patch_kernel":
        kernels = value.reshape(-1, old, value.shape[-1])  # (p * p, C, D)
        merged = kernels.mean(axis=1, keepdims=True)
        if change.merge == "sum":
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
    change: SizeChange,
    fresh: Iterable[str] = (),
    progress: Callable[[int], object] | None = None,
    source: str = "The source",
) -> None:
    """Fills a model's variables, after all keys and shapes were checked."""
    problems = key_differences([key for row in rows for key in row.keys], tensors)
    problems += _unfilled(model, rows, fresh)
    problems += _wrong_shapes(model, tensors, rows, change)
    raise_problems(f"{source} doesn't fit the model", problems)
    for done, row in enumerate(rows, 1):
        value = from_source(row, [tensors[key].read() for key in row.keys])
        find_variable(model, row.path).assign(_adapt(row.kind, value, change))
        if progress:
            progress(done)


def _unfilled(model, rows, fresh):
    """Lists the variables that are neither in a row nor in a fresh part."""
    kept = [getattr(model, name) for part in fresh for name in _PARTS_OF[part]]
    filled = {id(weight) for layer in kept for weight in layer.weights}
    filled |= {id(find_variable(model, row.path)) for row in rows}
    return [
        f"unfilled variable: {variable.path} {tuple(variable.shape)}"
        for variable in _parameters(model)
        if id(variable) not in filled
    ]


def copy_weights(model: keras.Model, source: keras.Model) -> None:
    """Fills a model from one of another image size or number of channels."""
    have, want = contents_of(source), contents_of(model)
    old, new = encoder_of(source), encoder_of(model)
    change = SizeChange(
        old_grid=old.grid,
        new_grid=new.grid,
        antialias=False,
        old_channels=old.num_channels,
        new_channels=new.num_channels,
        merge="sum",
    )
    # parts that one of them lacks are left alone
    shared = want._replace(parts=have.parts & want.parts)
    for row in port_rows(shared, HUGGINGFACE):
        value = ops.convert_to_numpy(find_variable(source, row.path))
        find_variable(model, row.path).assign(_adapt(row.kind, value, change))


def _wrong_shapes(model, tensors, rows, change):
    """Lists the tensors whose shapes don't match their variables."""
    patch_size, problems = encoder_of(model).patch_size, []
    for row in rows:
        shape = tuple(find_variable(model, row.path).shape)
        blank = np.broadcast_to(np.float32(0), _source_shape(row.kind, shape, change))
        wanted = to_source(row, blank, patch_size)
        for key, array in zip(row.keys, wanted, strict=True):
            if key in tensors and tensors[key].shape != array.shape:
                problems.append(
                    f"shape of {key}: expected {array.shape} for {row.path}, "
                    f"received {tensors[key].shape} in {tensors[key].file}"
                )
    return problems


def export_weights(
    model: keras.Model,
    naming: Naming = HUGGINGFACE,
    values: Mapping[str, ArrayLike] | None = None,
) -> dict[str, np.ndarray]:
    """Exports a model's variables as a state dict of another library.

    Args:
        model: A `MAEPretrainer`, `MAEEncoder` or `MAEClassifier`.
        naming: The `Naming` of the keys; by default those on the Hugging Face hub.
        values: Dict from path to array, exported instead of the variables' values
            (say, their gradients); missing paths are left out.

    Returns:
        Dict from foreign key to contiguous NumPy array.

    Raises:
        ValueError: If the library has no name for a part of the model, or the model is
            quantized or has LoRA.

    Example:

    ```python
    model = keras_mae.MAEPretrainer.from_preset("mae_tiny")
    state = export_weights(model)
    assert state["vit.embeddings.cls_token"].shape == (1, 1, 128)
    ```
    """
    if values is None:
        check_plain_weights(model, "export_weights")
    state: dict[str, np.ndarray] = {}
    for row in port_rows(contents_of(model), naming):
        if values is None:
            value = ops.convert_to_numpy(find_variable(model, row.path))
        elif row.path in values:
            value = np.asarray(values[row.path])
        else:
            continue
        arrays = to_source(row, value, encoder_of(model).patch_size)
        # in C order: some writers ignore strides
        arrays = [np.ascontiguousarray(array) for array in arrays]
        state.update(zip(row.keys, arrays, strict=True))
    return state
