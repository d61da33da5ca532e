"""State dict keys of other libraries, mapped to our variables.

Three tables name the parts of a Vision Transformer, here and in the other libraries.
From them `port_rows` lists the variables of a model: the one at `path` holds what the
source stores under `keys`, converted by the transform called `kind`.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_mae.utils.typing import Grid


class Row(NamedTuple):
    """A variable's path, the keys it is stored under, and the kind of transform."""

    path: str
    keys: tuple
    kind: str
    axes: tuple = ()  # of the source, in PyTorch's order; none where they are in it


class Naming(NamedTuple):
    """How a library names its keys."""

    title: str  # in reports
    family: str  # the column of `_OUTSIDE`: "facebook" (timm too), "huggingface", ...
    leaves: str  # the column of `_BLOCK`: names inside a block
    blocks: str  # before the number of an encoder block
    decoder_blocks: str
    prefix: str = ""  # before every key of the encoder
    decoder_prefix: str = ""  # before those of the decoder
    number: str = "."  # between `blocks` and the number of an encoder block
    # "torch": keys such as "a.b.weight", kernels (out, in); "tensorflow": Keras's
    # names as paths, "a/b/kernel:0", kernels (in, out)
    layout: str = "torch"
    unused: str = ""  # keys that MAE has no use for, as a regular expression
    settings: tuple = ()  # pairs of our names and values that the library fixes
    renamed: tuple = ()  # pairs of names in `_OUTSIDE` and those used instead
    mark: str = ""  # a key that tells it from another with the same blocks

    @property
    def separator(self) -> str:
        """What stands between the parts of a key."""
        return "/" if self.layout == "tensorflow" else "."


FACEBOOK = Naming("facebook/timm", "facebook", "facebook", "blocks", "decoder_blocks")
# the names of 4.x: those of the hub, which transformers writes to this day
HUGGINGFACE = Naming(
    title="Hugging Face, hub keys (4.x)",
    family="huggingface",
    leaves="huggingface_4",
    blocks="encoder.layer",
    decoder_blocks="decoder.decoder_layers",
    prefix="vit.",
)
# what transformers 5.23 writes for a decoder's blocks, in place of the hub's name
HUGGINGFACE_SAVED = HUGGINGFACE._replace(
    title="Hugging Face, as 5.x saves", decoder_blocks="decoder.decoder_encoder.layer"
)
HUGGINGFACE_STATE = HUGGINGFACE._replace(
    title="Hugging Face, state dict of 5.x", leaves="huggingface_5", blocks="layers"
)
# an encoder by itself has no prefix
_BARE = [
    naming._replace(prefix="", title=f"{naming.title}, bare model")
    for naming in (HUGGINGFACE, HUGGINGFACE_STATE)
]
# transformers' TensorFlow classes: tf_model.h5, and safetensors of the format "tf"
HUGGINGFACE_TENSORFLOW = Naming(
    title="Hugging Face, TensorFlow",
    family="huggingface",
    leaves="huggingface_4",
    blocks="encoder/layer_",
    decoder_blocks="decoder/decoder_layers",
    prefix="vit/",
    number="._",
    layout="tensorflow",
)
MMPRETRAIN = Naming(
    title="mmpretrain",
    family="mmpretrain",
    leaves="mmpretrain",
    blocks="layers",
    decoder_blocks="decoder_blocks",
    prefix="backbone.",
    decoder_prefix="neck.",
)
# fine-tuned by mmselfsup 0.x
MMSELFSUP = MMPRETRAIN._replace(
    title="mmselfsup 0.x",
    renamed=(("backbone.ln2", "backbone.fc_norm"), ("head.fc", "head.head")),
    mark="head.head.weight",
)
# an encoder by itself
SAPIENS = MMPRETRAIN._replace(title="mmpretrain, bare model (Sapiens)", prefix="")
SOLO_LEARN = FACEBOOK._replace(
    title="solo-learn",
    prefix="backbone.",
    decoder_prefix="decoder.",
    unused=r"classifier\..*",
    settings=(("decoder_layer_norm_epsilon", 1e-5),),
)
LIGHTLY = FACEBOOK._replace(
    title="lightly", prefix="backbone.vit.", decoder_prefix="decoder."
)
# of several that fit, the first with a decoder is taken, or the first
NAMINGS = (
    FACEBOOK,
    HUGGINGFACE,
    HUGGINGFACE_SAVED,
    HUGGINGFACE_STATE,
    *_BARE,
    HUGGINGFACE_TENSORFLOW,
    MMSELFSUP,
    MMPRETRAIN,
    SAPIENS,
    SOLO_LEARN,
    LIGHTLY,
)

# inside a block. kind, ours, then a column for each way of naming; braces list several
_BLOCK_COLUMNS = ("facebook", "huggingface_4", "huggingface_5", "mmpretrain")
_BLOCK = (
    ("norm", "norm1", "norm1", "layernorm_before", "layernorm_before", "ln1"),
    (
        "qkv",
        "attention.qkv",
        "attn.qkv",
        "attention.attention.{query,key,value}",
        "attention.{q_proj,k_proj,v_proj}",
        "attn.qkv",
    ),
    (
        "dense",
        "attention.proj",
        "attn.proj",
        "attention.output.dense",
        "attention.o_proj",
        "attn.proj",
    ),
    ("norm", "norm2", "norm2", "layernorm_after", "layernorm_after", "ln2"),
    (
        "dense",
        "mlp.fc1",
        "mlp.fc1",
        "intermediate.dense",
        "mlp.fc1",
        "ffn.layers.0.0",
    ),
    ("dense", "mlp.fc2", "mlp.fc2", "output.dense", "mlp.fc2", "ffn.layers.1"),
)

# outside the blocks. part, kind, ours, then a column for each family
_OUTSIDE_COLUMNS = ("facebook", "huggingface", "mmpretrain")
_EMBEDDING = "encoder.patch_embedding"
_OUTSIDE = (
    (
        "encoder",
        "same",
        f"{_EMBEDDING}.cls_token",
        "cls_token",
        "embeddings.cls_token",
        "cls_token",
    ),
    (
        "encoder",
        "positions",
        f"{_EMBEDDING}.positions.embeddings",
        "pos_embed",
        "embeddings.position_embeddings",
        "pos_embed",
    ),
    (
        "encoder",
        "patch",
        f"{_EMBEDDING}.projection",
        "patch_embed.proj",
        "embeddings.patch_embeddings.projection",
        "patch_embed.projection",
    ),
    ("norm", "norm", "encoder.norm", "norm", "layernorm", "ln1"),
    (
        "decoder",
        "dense",
        "decoder.embed",
        "decoder_embed",
        "decoder.decoder_embed",
        "decoder_embed",
    ),
    (
        "decoder",
        "same",
        "decoder.mask_token",
        "mask_token",
        "decoder.mask_token",
        "mask_token",
    ),
    (
        "decoder",
        "positions",
        "decoder.positions.embeddings",
        "decoder_pos_embed",
        "decoder.decoder_pos_embed",
        "decoder_pos_embed",
    ),
    (
        "decoder",
        "norm",
        "decoder.norm",
        "decoder_norm",
        "decoder.decoder_norm",
        "ln1",
    ),
    (
        "decoder",
        "pixels",
        "decoder.pred",
        "decoder_pred",
        "decoder.decoder_pred",
        "decoder_pred",
    ),
    ("head_norm", "norm", "head_norm", "fc_norm", None, "backbone.ln2"),
    ("head", "dense", "head", "head", "classifier", "head.fc"),
    ("probe", "statistics", "batch_norm", "head.0", None, None),
    ("probe", "dense", "head", "head.1", None, None),
)

# variables of a kind of layer: our name, the foreign one, the transform
_BIAS = (".bias", ".bias", "same")
_VARIABLES = {
    "same": [("", "", "same")],
    "positions": [("", "", "positions")],
    "dense": [(".kernel", ".weight", "kernel"), _BIAS],
    "qkv": [(".kernel", ".weight", "kernel"), (".bias", ".bias", "fused_bias")],
    "norm": [(".gamma", ".weight", "same"), (".beta", ".bias", "same")],
    "patch": [(".kernel", ".weight", "patch_kernel"), _BIAS],
    "pixels": [
        (".kernel", ".weight", "pixel_kernel"),
        (".bias", ".bias", "pixel_bias"),
    ],
    "statistics": [
        (".moving_mean", ".running_mean", "same"),
        (".moving_variance", ".running_var", "same"),
    ],
}

# kinds whose axes Keras has in another order than PyTorch, where that order finds them
_TENSORFLOW_AXES = {
    "kernel": (1, 0),
    "pixel_kernel": (1, 0),
    "patch_kernel": (3, 2, 0, 1),
}


def _patch_kernel_to_source(kernel, count, patch_size):
    kernel = kernel.reshape(*patch_size, -1, kernel.shape[-1])  # (p_h, p_w, C, D)
    return [kernel.transpose(3, 2, 0, 1)]  # (D, C, p_h, p_w)


_SAME = (lambda arrays: arrays[0], lambda x, count, patch_size: [x])
_KERNEL = (
    # by the backend, whose transposed copy is three times as fast as NumPy's
    lambda arrays: ops.transpose(ops.concatenate(arrays) if arrays[1:] else arrays[0]),
    lambda x, count, patch_size: np.split(x.T, count),
)
# kind -> (PyTorch's arrays -> our array or tensor,
#          (our array, number of source arrays, patch size) -> PyTorch's arrays)
_TRANSFORMS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "same": _SAME,
    "positions": _SAME,
    "pixel_bias": _SAME,
    "kernel": _KERNEL,
    "pixel_kernel": _KERNEL,
    "fused_bias": (np.concatenate, lambda x, count, patch_size: np.split(x, count)),
    "patch_kernel": (
        lambda arrays: arrays[0].transpose(2, 3, 1, 0).reshape(-1, arrays[0].shape[0]),
        _patch_kernel_to_source,
    ),
}


def torch_shape(row: Row, shape: Sequence[int]) -> tuple[int, ...]:
    """Puts the axes of a source's shape in PyTorch's order."""
    return tuple(shape[axis] for axis in row.axes or range(len(shape)))


def torch_array(row: Row, array: np.ndarray) -> np.ndarray:
    """Puts the axes of a source's array in PyTorch's order."""
    return array.transpose(row.axes) if row.axes else array


def from_source(row: Row, arrays: Sequence[np.ndarray]) -> Any:
    """Converts a row's arrays, as the source has them, to our array or tensor."""
    return _TRANSFORMS[row.kind][0]([torch_array(row, array) for array in arrays])


def to_source(row: Row, value: np.ndarray, patch_size: Grid) -> list[np.ndarray]:
    """Converts our array to the source's, one for each of the row's keys."""
    arrays = _TRANSFORMS[row.kind][1](value, len(row.keys), patch_size)
    if row.axes:
        arrays = [array.transpose(np.argsort(row.axes)) for array in arrays]
    return arrays


class Contents(NamedTuple):
    """The parts of a model or a file."""

    depth: int
    decoder_depth: int | None  # None without a decoder
    # "norm" (the encoder's final one), "decoder", "head_norm", "head" and "probe" (a
    # head behind batch statistics)
    parts: frozenset
    qkv_bias: bool


def _expand(name):
    """Turns `a.{b,c}` into `["a.b", "a.c"]`."""
    match = re.fullmatch(r"(.*)\{(.*)\}", name)
    if match is None:
        return [name]
    return [match[1] + choice for choice in match[2].split(",")]


def _layer_rows(kind, path, names, naming):
    for ours, theirs, transform in _VARIABLES[kind]:
        axes = ()
        if naming.layout == "tensorflow":
            theirs = ours.replace(".", "/") + ":0"
            axes = _TENSORFLOW_AXES.get(transform, ())
        keys = tuple(name + theirs for name in names)
        yield Row(path + ours, keys, transform, axes)


def block_root(naming: Naming, side: str) -> str:
    """Returns what stands before the number in keys of encoder or decoder blocks."""
    if side == "encoder":
        return naming.prefix + naming.blocks + naming.number
    return f"{naming.decoder_prefix}{naming.decoder_blocks}."


def _block_rows(path, root, naming, qkv_bias):
    column = 2 + _BLOCK_COLUMNS.index(naming.leaves)
    for entry in _BLOCK:
        leaves = _expand(entry[column].replace(".", naming.separator))
        names = [f"{root}{naming.separator}{leaf}" for leaf in leaves]
        for row in _layer_rows(entry[0], f"{path}.{entry[1]}", names, naming):
            if qkv_bias or row.kind != "fused_bias":
                yield row


_PREFIXES: dict[str, Callable[[Naming], str]] = {
    "encoder": lambda naming: naming.prefix,
    "decoder": lambda naming: naming.decoder_prefix,
}


def port_rows(contents: Contents, naming: Naming) -> list[Row]:
    """Lists the rows of all variables; paths start at a model with an `encoder`."""
    rows: list[Row] = []
    column = 3 + _OUTSIDE_COLUMNS.index(naming.family)
    for entry in _OUTSIDE:
        part, kind, path, name = *entry[:3], entry[column]
        if part != "encoder" and part not in contents.parts:
            continue
        if name is None:
            raise ValueError(f"The {naming.family} format has no name for {path}")
        prefix = _PREFIXES.get(path.partition(".")[0], lambda naming: "")(naming)
        name = dict(naming.renamed).get(name, name)
        name = prefix + name.replace(".", naming.separator)
        rows += _layer_rows(kind, path, [name], naming)
    sides = [("encoder", contents.depth)]
    if "decoder" in contents.parts and contents.decoder_depth:
        sides.append(("decoder", contents.decoder_depth))
    for side, depth in sides:
        root = block_root(naming, side)
        for index in range(depth):
            path = f"{side}.blocks.{index}"
            rows += _block_rows(path, f"{root}{index}", naming, contents.qkv_bias)
    return rows
