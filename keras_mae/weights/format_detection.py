"""Detects a checkpoint's format, parts and sizes from its keys and shapes."""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from keras_mae.utils.text import shorten
from keras_mae.weights.checkpoint import (
    Checkpoint,
    LazyTensor,
    PortError,
    key_differences,
    raise_problems,
)
from keras_mae.weights.key_mapping import (
    Contents,
    Naming,
    block_root,
    port_rows,
    torch_shape,
)
from keras_mae.weights.naming_detection import find_naming, markers, without_inserted

# counts the batches that a running mean has seen; nothing is computed from it
COUNTER = "head.0.num_batches_tracked"
# keys that may stay unused: a plain ViT may have a pooler, an encoder the token that
# its pretraining put in place of patches, a model the statistics of its images, an
# averaged copy of PyTorch's or mmengine's the number of its updates
_UNUSED = re.compile(
    rf"{re.escape(COUNTER)}|(vit\.)?pooler\.dense\.(weight|bias)"
    r"|vit/pooler/dense/(kernel|bias):0|(.*\.)?mask_token|n_averaged|steps"
)
_STATISTICS = re.compile(r"(.*[._])?(mean|std)")
_MOST_CHANNELS = 64
_FLOATS = ("float32", "float16", "bfloat16", "float64")
# ours -> the variable whose key has it, the axis of PyTorch's, and the number of axes
_SIZES = {
    "hidden_dim": ("encoder.patch_embedding.cls_token", 2, 3),
    "num_channels": ("encoder.patch_embedding.projection.kernel", 1, 4),
    "positions": ("encoder.patch_embedding.positions.embeddings", 1, 3),
    "mlp_dim": ("encoder.blocks.0.mlp.fc1.kernel", 0, 2),
    "decoder_hidden_dim": ("decoder.mask_token", 2, 3),
    "decoder_mlp_dim": ("decoder.blocks.0.mlp.fc1.kernel", 0, 2),
    "num_classes": ("head.kernel", 0, 2),
}


class Description(NamedTuple):
    """What a checkpoint holds."""

    naming: Naming
    contents: Contents
    tensors: dict  # key, without wrappers' prefixes -> LazyTensor
    sizes: dict  # by our names; `positions` counts the CLS token
    evidence: dict  # our name -> the key whose shape gave it
    absent: frozenset  # keys of position tables that the source leaves to be computed
    left_out: tuple  # keys that MAE has no use for
    notes: tuple


def describe_checkpoint(checkpoint: Checkpoint) -> Description:
    """Detects how a checkpoint names its keys, its parts, and its sizes."""
    source = checkpoint.source
    naming, tensors, strangers, notes, prefix = find_naming(checkpoint.tensors, source)
    contents = _find_contents(tensors, naming)
    try:
        rows = port_rows(contents, naming)
    except ValueError as error:
        raise PortError(f"{source}: {error}") from error
    wanted = {key for row in rows for key in row.keys}
    absent = {row.keys[0] for row in rows if row.kind == "positions"} - tensors.keys()
    others = {
        without_inserted(key).removeprefix(prefix): kind
        for key, kind in checkpoint.others.items()
    }
    # a table that is there, but is no tensor, is not absent
    absent -= others.keys()
    left_out = set()
    for key, tensor in [*tensors.items(), *strangers.items()]:
        if key not in wanted and _may_stay(key, tensor, naming):
            left_out.add(key)
    used = {key: tensor for key, tensor in tensors.items() if key not in left_out}
    strangers = {key: t for key, t in strangers.items() if key not in left_out}
    problems = key_differences(wanted - absent, used) + key_differences((), strangers)
    problems += [
        f"{key} must be a tensor. Received: {others[key]}"
        for key in sorted(wanted & others.keys())
    ]
    problems += [
        f"dtype of {key}: expected floats, received {tensors[key].dtype}"
        for key in sorted(wanted & set(tensors))
        if tensors[key].dtype.name not in _FLOATS
    ]
    if problems and all(line.startswith("unused key") for line in problems):
        problems.append("ignore= leaves out keys that the model doesn't need")
    raise_problems(f"{source} ({naming.title}) doesn't fit", problems)
    sizes, evidence = _find_sizes(tensors, contents, rows)
    _check_extent(sizes, evidence, tensors, source)
    return Description(
        naming,
        contents,
        {key: tensors[key] for key in wanted - absent},
        sizes,
        evidence,
        frozenset(absent),
        tuple(sorted([*left_out, *checkpoint.ignored])),
        (*checkpoint.notes, *notes),
    )


def _may_stay(key, tensor, naming):
    """Whether nothing is lost where a key is not used."""
    if _STATISTICS.fullmatch(key):
        return math.prod(tensor.shape) <= _MOST_CHANNELS
    return bool(_UNUSED.fullmatch(key) or re.fullmatch(naming.unused or "(?!)", key))


def _find_contents(tensors, naming):
    def depth(side):
        start = re.escape(block_root(naming, side))
        number = re.compile(rf"{start}(\d+){re.escape(naming.separator)}")
        found = (number.match(key) for key in tensors)
        return len({match[1] for match in found if match})

    def keys_of(*parts):
        contents = Contents(0, 0, frozenset(parts), qkv_bias=False)
        return {key for row in port_rows(contents, naming) for key in row.keys}

    bare = keys_of()

    def has(part):
        try:
            return not tensors.keys().isdisjoint(keys_of(part) - bare)
        except ValueError:
            return False  # the library has no such part

    parts = ("norm", "head_norm", "head", "probe")
    # not by its mask token, which encoders may have
    decoder = {"decoder"} if markers(naming)[1] in tensors else set()
    parts = frozenset(part for part in parts if has(part)) | decoder
    if "probe" in parts:
        parts -= {"head"}
    return Contents(
        depth("encoder"),
        depth("decoder") if "decoder" in parts else None,
        parts,
        qkv_bias=markers(naming, "bias")[0] in tensors,
    )


def _find_sizes(tensors, contents, rows):
    rows = {row.path: row for row in rows}
    sizes, evidence = {}, {}
    for name, (path, axis, rank) in _SIZES.items():
        if path not in rows:
            continue
        key = rows[path].keys[0]
        if key not in tensors:
            continue  # a table of positions
        shape = tensors[key].shape
        if len(shape) != rank:
            raise PortError(
                f"{tensors[key].file}: {key} must have {rank} axes. "
                f"Received: {shorten(str(shape))}"
            )
        sizes[name], evidence[name] = torch_shape(rows[path], shape)[axis], key
    row = rows["encoder.patch_embedding.projection.kernel"]
    kernel = row.keys[0]
    for name, key in [*evidence.items(), ("patch_size", kernel)]:
        if 0 in tensors[key].shape or (name == "positions" and sizes[name] < 2):
            raise PortError(
                f"{tensors[key].file}: {key} is empty. Received: {tensors[key].shape}"
            )
    sizes["patch_size"] = torch_shape(row, tensors[kernel].shape)[2:]
    evidence["patch_size"] = kernel
    sizes["depth"], sizes["qkv_bias"] = contents.depth, contents.qkv_bias
    sizes["final_norm"] = "norm" in contents.parts
    if contents.decoder_depth is not None:
        sizes["decoder_depth"] = contents.decoder_depth
    return sizes, evidence


def count_values(tensors: Mapping[str, LazyTensor]) -> int:
    """Counts the numbers that tensors hold."""
    return sum(math.prod(tensor.shape) for tensor in tensors.values())


def count_parameters(sizes: Mapping[str, Any], prefix: str = "") -> int:
    """Counts, by and large, the parameters of an encoder, or by `"decoder_"` one."""
    width = sizes[f"{prefix}hidden_dim"]
    block = 4 * width**2 + 2 * width * sizes.get(f"{prefix}mlp_dim", 0)
    values = sizes["num_channels"] * math.prod(sizes["patch_size"])
    outside = (sizes.get("positions", 0) + values) * width
    return sizes[f"{prefix}depth"] * block + outside


def _check_extent(sizes, evidence, tensors, source):
    """Raises where shapes describe a model far larger than all tensors together."""
    # it would be built, maybe beyond the memory, before all shapes are compared
    wanted = count_parameters(sizes) + sizes.get("num_classes", 0) * sizes["hidden_dim"]
    if "decoder_depth" in sizes:
        wanted += count_parameters(sizes, "decoder_")
    held = count_values(tensors)
    if wanted > 2 * held:
        raise_problems(
            f"{source} has {held} parameters, but its shapes describe {wanted}",
            [
                f"{name} is {sizes[name]}, from {key} {tensors[key].shape}"
                for name, key in sorted(evidence.items())
            ],
        )
