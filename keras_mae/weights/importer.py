"""From a source of PyTorch weights to a model: study it, build, fill, report."""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import keras

from keras_mae.ops.patches import grid_shape
from keras_mae.presets import PRESETS
from keras_mae.weights import config_readers
from keras_mae.weights.checkpoint import Checkpoint, PortError, Weights
from keras_mae.weights.formats import Description, describe
from keras_mae.weights.key_tables import port_rows
from keras_mae.weights.port import (
    Fit,
    contents_of,
    holder,
    import_weights,
    sizes_of,
)
from keras_mae.weights.reader import open_checkpoint
from keras_mae.weights.report import PortReport

_Model = TypeVar("_Model", bound=keras.Model)
_READING = ("revision", "token", "cache_dir", "local_files_only")
_RESIZES = (None, "torch", "timm")
_MERGES = ("sum", "mean")
# a head is made for each task, so a model may keep its own
_HEADS = frozenset({"head_norm", "head", "probe"})
_DECODER_FILES = (
    "Files with one: mae_pretrain_vit_*_full.pth (normalized pixels) and "
    "mae_visualize_vit_*.pth (pixels) of facebookresearch/mae, and Hugging Face's "
    "ViTMAEForPreTraining, such as facebook/vit-mae-base (pixels). "
    "allow_missing_decoder=True draws a fresh one"
)


class _Study(NamedTuple):
    """A source, what its keys and shapes tell, and what is told beside them."""

    checkpoint: Checkpoint
    description: Description
    told: dict

    @property
    def is_timm(self):
        """Whether the keys and a configuration say that timm wrote the source."""
        facebook = self.description.naming.family == "facebook"
        return facebook and config_readers.is_timm(self.checkpoint.config)

    @property
    def format(self):
        """What the report calls the format."""
        naming = self.description.naming
        if naming.family == "facebook":
            return "timm" if self.is_timm else "facebook"
        return naming.title

    @property
    def target(self):
        """What the source's decoder predicts, if it has one and something tells."""
        if "decoder" not in self.description.contents.parts:
            return None
        normalized = self.told.get("norm_pix_loss")
        return {True: "normalized pixels", False: "pixels"}.get(normalized)

    @property
    def title(self):
        """What an error calls the source."""
        return f"{self.checkpoint.source} ({self.format})"

    def image_size(self, wanted):
        """The image size of the source's positions, `wanted` where nothing tells it."""
        sizes = {**self.told, **self.description.sizes}
        return config_readers.find_image_size(sizes, wanted, self.checkpoint.source)


class _Options(NamedTuple):
    """How to fill a model; see `Pretrained.from_pretrained`."""

    allow_missing_decoder: bool = False
    position_resize: str | None = None
    channel_merge: str = "sum"
    progress: bool = False

    def check(self):
        """Raises on a value that is none of the choices."""
        for name, choices in (
            ("position_resize", _RESIZES),
            ("channel_merge", _MERGES),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} must be one of {', '.join(map(str, choices))}. "
                    f"Received: {getattr(self, name)!r}"
                )


def _study(cls, source, options):
    """Opens a source and finds out what it is, before any model is built."""
    reading = {name: options.pop(name) for name in _READING if name in options}
    options = _Options(**options)
    options.check()
    checkpoint = open_checkpoint(source, **reading)
    description = describe(checkpoint)
    told = config_readers.told_sizes(checkpoint, description)
    study = _Study(checkpoint, description, told)
    decoder = "decoder" in description.contents.parts
    paints = getattr(cls, "has_decoder", False)
    if paints and not (decoder or options.allow_missing_decoder):
        raise PortError(f"{study.title} has no decoder. {_DECODER_FILES}")
    return study, options


def build_pretrained(
    cls: type[_Model], source: Weights, overrides: Mapping[str, Any], **options: Any
) -> _Model:
    """Builds a model around the weights of a source.

    Args:
        cls: `MAEPretrainer`, `MAEEncoder` or `MAEClassifier`.
        source: A hub id, the path of a folder or file, or a dict of arrays.
        overrides: Dict of constructor arguments that differ from the source's.
        **options: The other arguments of `Pretrained.from_pretrained`.

    Returns:
        The model, whose `port_report` says what was done.

    Raises:
        PortError: If the source can't be read, or doesn't fit.
        ValueError: If an argument is wrong.

    Example:

    ```python
    one = keras_mae.MAEPretrainer.from_preset("mae_tiny")
    state = keras_mae.weights.export_weights(one)
    two = build_pretrained(keras_mae.MAEEncoder, state, {})
    ```
    """
    study, options = _study(cls, source, options)
    sizes, notes = _complete_sizes(cls, study, overrides)
    try:
        model = cls.from_sizes(sizes, overrides)
    except ValueError as error:
        # a number of the source's that no layer takes, or one of the user's
        raise ValueError(f"{study.title}: {error}") from error
    image_size = sizes["image_size"]
    model.port_report = _fill(model, study, image_size, options, notes)
    return model


def load_weights(model: keras.Model, source: Weights, **options: Any) -> PortReport:
    """Fills a model that is there; where the source doesn't fit, it stays as it was.

    Args:
        model: A `MAEPretrainer`, `MAEEncoder` or `MAEClassifier`.
        source: A hub id, the path of a folder or file, or a dict of arrays (say,
            `torch_model.state_dict()`).
        **options: The other arguments of `Pretrained.from_pretrained`;
            `allow_missing_decoder` keeps the decoder that the model has.

    Returns:
        A `PortReport`.

    Raises:
        PortError: If the source can't be read, or doesn't fit.
        ValueError: If an argument is wrong.

    Example:

    ```python
    one = keras_mae.MAEPretrainer.from_preset("mae_tiny")
    two = keras_mae.MAEPretrainer.from_preset("mae_tiny")
    report = load_weights(two, keras_mae.weights.export_weights(one))
    ```
    """
    study, options = _study(type(model), source, options)
    sizes = sizes_of(model)
    for name in ("num_heads", "decoder_num_heads"):
        told = study.told.get(name)
        if name in sizes and told not in (None, sizes[name]):
            raise PortError(
                f"{study.title}: {name} must be the model's, {sizes[name]}. "
                f"Received: {told}"
            )
    return _fill(model, study, study.image_size(sizes["image_size"]), options)


def _complete_sizes(cls, study, overrides):
    """Puts together what the constructor needs, and notes what was concluded."""
    parts = study.description.contents.parts
    sizes = {**study.told, **study.description.sizes}
    if "decoder" not in parts:
        # the paper's, for a fresh one, unless a configuration tells it
        paper = PRESETS["mae_base"]
        sizes = {**{k: v for k, v in paper.items() if "decoder_" in k}, **sizes}
    sizes["image_size"] = study.image_size(overrides.get("image_size"))
    notes = []
    for prefix in ("", "decoder_") if cls.has_decoder else ("",):
        name = f"{prefix}num_heads"
        if name not in sizes and name not in overrides:
            sizes[name], preset = config_readers.preset_like(sizes, prefix)
            if preset is None:
                raise PortError(
                    f"{study.title}: shapes can't tell {name}; state it, as in "
                    f"from_pretrained(source, {name}=12)"
                )
            notes.append(f"{name} is {sizes[name]}, as {preset} has at these sizes")
    if cls.has_head:
        mean = "head_norm" in parts or not parts & _HEADS
        sizes["pooling"] = overrides.get("pooling", "mean" if mean else "cls")
        sizes["batch_norm"] = "probe" in parts
        # a mean has a norm of its own instead
        sizes["final_norm"] &= sizes["pooling"] == "cls"
    return sizes, notes


def _fill(model, study, image_size, options, notes=()):
    """Fills the model from a studied source, and reports."""
    description = study.description
    have, naming = description.contents, description.naming
    want, shared = _match_parts(model, study)
    fresh = want.parts - shared
    kept = port_rows(have._replace(parts=shared), naming)
    tensors = {key: description.tensors[key] for row in kept for key in row.keys}
    resize = options.position_resize or ("timm" if study.is_timm else "torch")
    encoder = holder(model).encoder
    fit = Fit(
        old_grid=grid_shape(image_size, description.sizes["patch_size"]),
        new_grid=encoder.grid,
        antialias=resize == "timm",
        old_channels=description.sizes["num_channels"],
        new_channels=encoder.num_channels,
        merge=options.channel_merge,
    )
    rows = port_rows(want._replace(parts=shared), naming)
    bar = keras.utils.Progbar(len(rows), unit_name="variable")
    progress = bar.update if options.progress else None
    import_weights(model, tensors, rows, fit, fresh, progress, study.title)
    return PortReport(
        place=study.checkpoint.source,
        format=f"{study.format}, {study.checkpoint.container}",
        filled=len(tensors),
        target=study.target,
        left_out=tuple(sorted(set(description.tensors) - set(tensors))),
        fresh=tuple(sorted(fresh)),
        resized=_resized(fit, resize, shared),
        notes=(*notes, *_differences(model, study, tensors)),
    )


def _match_parts(model, study):
    """Says what the model consists of, and which of these parts the source fills."""
    have, want = study.description.contents.parts, contents_of(model)
    parts = want.parts
    if holder(model).encoder.final_norm:
        # also where a mean leaves it unused: the encoder is good for more
        parts |= have & {"norm"}
    shared = have & parts
    classes = study.description.sizes.get("num_classes")
    if (have ^ parts) & {"head_norm"}:
        shared -= _HEADS  # a head is trained on one way of pooling
    elif (have ^ parts) & _HEADS or classes != getattr(model, "num_classes", classes):
        shared -= {"head", "probe"}
    if "norm" in parts - shared:
        raise PortError(
            f"{study.title} has no final norm: it was fine-tuned with mean pooling. "
            "MAEClassifier reads it, or an encoder with final_norm=False"
        )
    return want._replace(parts=parts), shared


def _resized(fit, resize, shared):
    sentences = []
    if fit.old_grid != fit.new_grid:
        old, new = ("x".join(map(str, grid)) for grid in (fit.old_grid, fit.new_grid))
        sides = "encoder and decoder" if "decoder" in shared else "encoder"
        sentences.append(f"positions of {sides} {old} -> {new}, bicubic as {resize}'s")
    if fit.old_channels != fit.new_channels:
        sentences.append(
            f"channels {fit.old_channels} -> {fit.new_channels}, patch kernels by "
            f"{fit.merge}"
        )
    return tuple(sentences)


def _differences(model, study, tensors):
    """Sentences on settings that differ from the source's, and on its types."""
    sizes = sizes_of(model)
    ignored = {"image_size", "patch_size", "num_channels"}
    sentences = []
    if "decoder" not in study.description.contents.parts:
        ignored |= {"mask_ratio", "norm_pix_loss"}
    elif study.target is None and "norm_pix_loss" in sizes:
        sentences.append(
            "the source doesn't tell whether the pixels were normalized; norm_pix_loss "
            f"is {sizes['norm_pix_loss']}"
        )
    sentences += [
        f"{name} is {sizes[name]}; the source says {value}"
        for name, value in sorted(study.told.items())
        if name in sizes and name not in ignored and sizes[name] != value
    ]
    types = {tensor.dtype.name for tensor in tensors.values()} - {"float32"}
    return [*sentences, *(f"some tensors are stored as {t}" for t in sorted(types))]
