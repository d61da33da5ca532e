"""`from_pretrained` and `load_weights`: open a source, build a model, fill it."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import keras
import numpy as np

from keras_mae.ops.patches import grid_shape
from keras_mae.ops.positions import sincos_positions
from keras_mae.presets import PRESETS, PROBE_EPSILON
from keras_mae.utils.typing import Size
from keras_mae.weights import config_readers
from keras_mae.weights.checkpoint import (
    Checkpoint,
    LazyTensor,
    PortError,
    Weights,
)
from keras_mae.weights.checkpoint_reader import open_checkpoint
from keras_mae.weights.format_detection import Description, describe_checkpoint
from keras_mae.weights.key_mapping import FACEBOOK, port_rows
from keras_mae.weights.report import PortReport
from keras_mae.weights.state_dict import (
    SizeChange,
    check_plain_weights,
    contents_of,
    encoder_of,
    import_weights,
    sizes_of,
)

_Model = TypeVar("_Model", bound=keras.Model)
_READING = (
    *("filename", "subfolder", "state_key", "ignore"),
    *("revision", "token", "cache_dir", "local_files_only"),
)
_RESIZES = (None, "torch", "timm")
_MERGES = ("sum", "mean")
# heads differ from task to task, so a model may keep its own
_HEADS = frozenset({"head_norm", "head", "probe"})
_DECODER_FILES = (
    "Files with one: mae_pretrain_vit_*_full.pth (normalized pixels) and "
    "mae_visualize_vit_*.pth (pixels) of facebookresearch/mae, and Hugging Face's "
    "ViTMAEForPreTraining, such as facebook/vit-mae-base (pixels). "
    "allow_missing_decoder=True draws a fresh one"
)


class _Source(NamedTuple):
    """An opened source of weights."""

    checkpoint: Checkpoint
    description: Description
    settings: dict  # from what stands beside the weights
    image_size_stated: Size | None  # of the positions, by the user

    @property
    def is_timm(self):
        """Whether keys and config.json are timm's."""
        facebook = self.description.naming == FACEBOOK
        return facebook and config_readers.is_timm(self.checkpoint.config)

    @property
    def format(self):
        naming = self.description.naming
        if naming == FACEBOOK:
            return "timm" if self.is_timm else "facebook"
        return naming.title

    @property
    def target(self):
        """What the source's decoder predicts, if it is known."""
        if "decoder" not in self.description.contents.parts:
            return None
        normalized = self.settings.get("norm_pix_loss")
        return {True: "normalized pixels", False: "pixels"}.get(normalized)

    @property
    def title(self):
        """The source's name in errors."""
        return f"{self.checkpoint.source} ({self.format})"

    def image_size(self, wanted):
        """The image size of the source's positions, and notes on what is assumed."""
        sizes = {**self.settings, **self.description.sizes}
        size, note = config_readers.find_image_size(
            sizes, wanted, self.checkpoint.source, self.image_size_stated
        )
        return size, [note] if note else []


class _Options(NamedTuple):
    """How to fill a model; see `Pretrained.from_pretrained`."""

    allow_missing_decoder: bool = False
    source_image_size: Size | None = None
    position_resize: str | None = None
    channel_merge: str = "sum"
    progress: bool = False

    def check(self):
        """Raises on an unknown choice."""
        for name, choices in (
            ("position_resize", _RESIZES),
            ("channel_merge", _MERGES),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} must be one of {', '.join(map(str, choices))}. "
                    f"Received: {getattr(self, name)!r}"
                )


def _open_source(cls, source, options):
    """Opens a source and detects its format, before any model is built."""
    reading = {name: options.pop(name) for name in _READING if name in options}
    options = _Options(**options)
    options.check()
    checkpoint = open_checkpoint(source, **reading)
    description = describe_checkpoint(checkpoint)
    settings = config_readers.read_settings(checkpoint, description)
    opened = _Source(checkpoint, description, settings, options.source_image_size)
    decoder = "decoder" in description.contents.parts
    needed = getattr(cls, "has_decoder", False)
    if needed and not (decoder or options.allow_missing_decoder):
        raise PortError(f"{opened.title} has no decoder. {_DECODER_FILES}")
    return opened, options


def build_pretrained(
    cls: type[_Model], source: Weights, overrides: Mapping[str, Any], **options: Any
) -> _Model:
    """See `Pretrained.from_pretrained`."""
    opened, options = _open_source(cls, source, options)
    sizes, notes = _complete_sizes(cls, opened, overrides)
    try:
        model = cls.from_sizes(sizes, overrides)
    except ValueError as error:
        # a value that no layer takes, of the source's or the user's
        raise ValueError(f"{opened.title}: {error}") from error
    image_size = sizes["image_size"]
    model.port_report = _fill(model, opened, image_size, options, notes)
    if cls.has_head:
        config = opened.checkpoint.config
        model.class_names = config_readers.class_names(config, model.num_classes)
    return model


def load_weights(model: keras.Model, source: Weights, **options: Any) -> PortReport:
    """Loads weights into an existing model; if they don't fit, it stays unchanged.

    Args:
        model: A `MAEPretrainer`, `MAEEncoder` or `MAEClassifier`.
        source: A hub id, the path of a folder or file, or a dict of arrays (say,
            `torch_model.state_dict()`).
        **options: The arguments of `Pretrained.from_pretrained` from
            `allow_missing_decoder`, which keeps the decoder that the model has, to
            `local_files_only`; not those of settings, such as `image_size`.

    Returns:
        A `PortReport`.

    Raises:
        PortError: If the source can't be read, or doesn't fit.
        ValueError: If an argument is wrong, or the model is quantized or has LoRA.

    Example:

    ```python
    one = keras_mae.MAEPretrainer.from_preset("mae_tiny")
    two = keras_mae.MAEPretrainer.from_preset("mae_tiny")
    report = load_weights(two, keras_mae.weights.export_weights(one))
    ```
    """
    check_plain_weights(model, "load_weights")
    taken = (*_READING, *_Options._fields)
    unknown = sorted(set(options) - set(taken))
    if unknown:
        raise ValueError(
            f"load_weights takes {', '.join(taken)}; a model that is there keeps its "
            f"settings. Received: {', '.join(unknown)}"
        )
    opened, options = _open_source(type(model), source, options)
    sizes = sizes_of(model)
    for name in ("num_heads", "decoder_num_heads"):
        heads = opened.settings.get(name)
        if name in sizes and heads not in (None, sizes[name]):
            raise PortError(
                f"{opened.title}: {name} must be the model's, {sizes[name]}. "
                f"Received: {heads}"
            )
    image_size, notes = opened.image_size(sizes["image_size"])
    return _fill(model, opened, image_size, options, notes)


def _complete_sizes(cls, source, overrides):
    """Collects what the constructor needs, and notes on what was inferred."""
    parts = source.description.contents.parts
    sizes = {**source.settings, **source.description.sizes}
    if "decoder" not in parts:
        # a fresh one has the paper's sizes, unless a configuration has others
        paper = PRESETS["mae_base"]
        sizes = {**{k: v for k, v in paper.items() if "decoder_" in k}, **sizes}
    sizes["image_size"], notes = source.image_size(overrides.get("image_size"))
    notes += _infer_heads(cls, source, sizes, overrides)
    if cls.has_head:
        mean = "head_norm" in parts or not parts & _HEADS
        own = {"pooling": "mean" if mean else "cls"}
        own["num_classes"] = sizes.get("num_classes")
        sizes["pooling"] = overrides.get("pooling", own["pooling"])
        # a batch norm belongs to the head behind it
        kept = all(overrides.get(name, own[name]) == own[name] for name in own)
        sizes["batch_norm"] = kept and "probe" in parts
        # a mean has a norm of its own instead
        sizes["final_norm"] &= sizes["pooling"] == "cls"
    return sizes, notes


def _infer_heads(cls, source, sizes, overrides):
    """Adds the heads that a preset of the same sizes has; returns notes on them."""
    notes, unknown = [], []
    for prefix in ("", "decoder_") if cls.has_decoder else ("",):
        name = f"{prefix}num_heads"
        if name in sizes or name in overrides:
            continue
        sizes[name], preset = config_readers.num_heads_of_preset(sizes, prefix)
        notes.append(f"{name} is {sizes[name]}, as {preset} has at these sizes")
        if preset is None:
            unknown.append(name)
    if unknown:
        example = ", ".join(f"{name}=12" for name in unknown)
        raise PortError(
            f"{source.title}: {' and '.join(unknown)} can't be inferred from shapes; "
            f"pass them, as in from_pretrained(source, {example}). For the scripts "
            "convert the file first: keras-mae-convert has flags of these names"
        )
    return notes


def _fill(model, source, image_size, options, notes=()):
    """Fills the model from an opened source, and reports."""
    description = source.description
    merges = (
        "head" in contents_of(model).parts and "probe" in description.contents.parts
    )
    if merges:
        description = _without_statistics(description)
        source = source._replace(description=description)
    have, naming = description.contents, description.naming
    want, shared = _match_parts(model, source)
    fresh = want.parts - shared
    kept = port_rows(have._replace(parts=shared), naming)
    tensors = {
        key: description.tensors[key]
        for row in kept
        for key in row.keys
        if key not in description.absent
    }
    resize = options.position_resize or ("timm" if source.is_timm else "torch")
    encoder = encoder_of(model)
    change = SizeChange(
        old_grid=grid_shape(image_size, description.sizes["patch_size"]),
        new_grid=encoder.grid,
        antialias=resize == "timm",
        old_channels=description.sizes["num_channels"],
        new_channels=encoder.num_channels,
        merge=options.channel_merge,
    )
    rows = port_rows(want._replace(parts=shared), naming)
    computed = _sincos_tables(rows, description, change.old_grid)
    bar = keras.utils.Progbar(len(rows), unit_name="variable")
    progress = bar.update if options.progress else None
    import_weights(
        model, tensors | computed, rows, change, fresh, progress, source.title
    )
    return PortReport(
        place=source.checkpoint.source,
        format=f"{source.format}, {source.checkpoint.container}",
        filled=len(tensors),
        target=source.target,
        left_out=tuple(
            sorted({*description.tensors, *description.left_out} - set(tensors))
        ),
        fresh=tuple(sorted(fresh)),
        resized=_resized(change, resize, shared),
        notes=(
            *description.notes,
            *config_readers.assumptions(source.checkpoint, description),
            *["batch statistics are put into the head"] * (merges and "head" in shared),
            *(f"{key} is absent, and computed: sin-cos" for key in sorted(computed)),
            *notes,
            *_differences(model, source, tensors),
        ),
    )


def _without_statistics(description):
    """Puts a probe's batch statistics into its head, whose answers stay the same."""
    parts = description.contents.parts - {"probe"} | {"head"}
    contents = description.contents._replace(parts=parts)
    tensors = dict(description.tensors)
    mean, variance, kernel, bias = (
        tensors.pop(row.keys[0])
        for row in port_rows(description.contents, description.naming)
        if row.path.startswith(("batch_norm.", "head."))
    )
    for tensor in (mean, variance):
        if tensor.shape != (description.sizes["hidden_dim"],):
            raise PortError(
                f"{tensor.file}: batch statistics must be as wide as the encoder, "
                f"{description.sizes['hidden_dim']}. Received: {tensor.shape}"
            )

    def scaled():
        deviation = np.sqrt(variance.read().astype("float64") + PROBE_EPSILON)
        return kernel.read() / deviation  # (K, D)

    def shifted():
        return bias.read() - scaled() @ mean.read()  # (K,)

    rows = {row.path: row.keys[0] for row in port_rows(contents, description.naming)}
    tensors[rows["head.kernel"]] = kernel._replace(read=scaled)
    tensors[rows["head.bias"]] = bias._replace(read=shifted)
    return description._replace(contents=contents, tensors=tensors)


def _sincos_tables(rows, description, grid):
    """Returns the position tables that the source leaves to be computed, by key."""
    tables = {}
    for row in rows:
        if row.kind == "positions" and row.keys[0] in description.absent:
            side = "decoder_" if row.path.startswith("decoder.") else ""
            width = description.sizes[f"{side}hidden_dim"]
            table = sincos_positions(width, grid)[None]  # (1, 1 + L, D)
            tables[row.keys[0]] = LazyTensor(
                table.shape,
                table.dtype,
                functools.partial(np.asarray, table),
                "sin-cos",
            )
    return tables


def _match_parts(model, source):
    """Returns the model's parts, and which of them the source fills."""
    have, want = source.description.contents.parts, contents_of(model)
    parts = want.parts
    if encoder_of(model).final_norm:
        # also where mean pooling leaves it unused: the encoder may be used without
        parts |= have & {"norm"}
    shared = have & parts
    classes = source.description.sizes.get("num_classes")
    if (have ^ parts) & {"head_norm"}:
        shared -= _HEADS  # a head is trained on one way of pooling
    elif (have ^ parts) & _HEADS or classes != getattr(model, "num_classes", classes):
        shared -= {"head", "probe"}
    if "norm" in parts - shared:
        raise PortError(
            f"{source.title} has no final norm: it was fine-tuned with mean pooling. "
            "MAEClassifier reads it, or an encoder with final_norm=False"
        )
    return want._replace(parts=parts), shared


def _resized(change, resize, shared):
    sentences = []
    if change.old_grid != change.new_grid:
        old, new = ("x".join(map(str, grid)) for grid in change[:2])
        sides = "encoder and decoder" if "decoder" in shared else "encoder"
        sentences.append(f"positions of {sides} {old} -> {new}, bicubic as {resize}'s")
    if change.old_channels != change.new_channels:
        sentences.append(
            f"channels {change.old_channels} -> {change.new_channels}, patch kernels "
            f"by {change.merge}"
        )
    return tuple(sentences)


def _differences(model, source, tensors):
    """Sentences on settings that differ from the source's, and on its types."""
    sizes = sizes_of(model)
    ignored = {"image_size", "patch_size", "num_channels"}
    sentences = []
    if "decoder" not in source.description.contents.parts:
        ignored |= {"mask_ratio", "norm_pix_loss"}
    elif source.target is None and "norm_pix_loss" in sizes:
        sentences.append(
            "the source doesn't say whether pixels were normalized; norm_pix_loss is "
            f"{sizes['norm_pix_loss']}"
        )
    sentences += [
        f"{name} is {sizes[name]}; the source says {value}"
        for name, value in sorted(source.settings.items())
        if name in sizes and name not in ignored and sizes[name] != value
    ]
    types = {tensor.dtype.name for tensor in tensors.values()} - {"float32"}
    return [*sentences, *(f"some tensors are stored as {t}" for t in sorted(types))]
