"""Models, encoders and class names from a run, a `.keras` file or published weights."""

import os
from pathlib import Path

import keras
import numpy as np

from keras_mae.layers.adapted import has_lora, is_quantized
from keras_mae.models import MAEClassifier, MAEEncoder, MAEPretrainer
from keras_mae.models.decoder import MAEDecoder
from keras_mae.ops.patches import as_pair
from keras_mae.preprocessing.image_processor import MAEImageProcessor
from keras_mae.preprocessing.pretrained_processor import find_processor
from keras_mae.presets import PRESETS, SHARED, preset_sizes
from keras_mae.utils.labels_file import LABELS_FILE, read_labels
from keras_mae.weights.checkpoint_reader import open_checkpoint
from keras_mae.weights.config_readers import class_names, read_settings
from keras_mae.weights.format_detection import describe_checkpoint
from keras_mae.weights.state_dict import copy_weights, sizes_of

# a copy is trained whole, whatever was frozen
_UNFROZEN = {"trainable": True, "trainable_blocks": None, "frozen": ()}
_DECODER_SIZES = [name for name in PRESETS["mae_base"] if name.startswith("decoder_")]


def load_run(source):
    """Loads the model of a run's folder or `.keras` file, and its image processor."""
    path = model_file(source)
    processor = MAEImageProcessor.from_pretrained(path)
    return load_keras(path), processor


def model_file(source):
    """Finds the `.keras` file that a run's folder or a path means."""
    path = Path(os.path.expanduser(source))
    path = path if path.suffix == ".keras" else path / "model.keras"
    if not path.is_file():
        raise ValueError(
            "source must be the folder of a run or a .keras file. "
            f"Received: {path}, which does not exist"
        )
    return path


def load_keras(path):
    """Loads a `.keras` file without compiling, or raises `ValueError`."""
    try:
        model = keras.models.load_model(path, compile=False)
    except Exception as error:  # a broken archive fails in many ways
        raise ValueError(f"{path} is not a readable model: {error}") from error
    if not isinstance(getattr(model, "encoder", model), MAEEncoder):
        raise ValueError(
            f"{path} must hold a MAEEncoder or a model around one. "
            f"Received: {type(model).__name__}"
        )
    return model


def load_model(source):
    """Loads the model that a source holds, and its `MAEImageProcessor` or `None`."""
    if is_run(source):
        path = model_file(source)
        return load_keras(path), find_processor(path)
    checkpoint = open_checkpoint(source)
    model = _from_pretrained(model_class(checkpoint), checkpoint)
    return model, find_processor(source)


def _from_pretrained(model_class, checkpoint, **options):
    """Loads a model, and prints what was assumed, left out or resized."""
    model = model_class.from_pretrained(checkpoint, **options)
    print(model.port_report)
    return model


def model_class(checkpoint):
    """Returns the class of the model that a checkpoint holds."""
    parts = describe_checkpoint(checkpoint).contents.parts
    if "decoder" in parts:
        return MAEPretrainer
    return MAEClassifier if parts & {"head", "probe"} else MAEEncoder


def with_precision(model, precision):
    """Builds a model with the same weights under another dtype policy."""
    if is_quantized(model):
        raise ValueError(
            "A quantized model keeps the precision that it was quantized in. "
            f"Received: precision={precision}"
        )
    policy = keras.dtype_policies.serialize(keras.dtype_policies.get(precision))
    copy = type(model).from_config(_with_policy(model.get_config(), policy))
    for new, old in zip(copy.weights, model.weights, strict=True):
        new.assign(keras.ops.cast(old, new.dtype))
    return copy


def _with_policy(config, policy):
    """Replaces the dtype policy of a configuration and of all layers in it."""
    if isinstance(config, dict):
        return {
            key: policy if key == "dtype" else _with_policy(value, policy)
            for key, value in config.items()
        }
    return config


def is_run(source):
    """Whether a name is a run's folder or a `.keras` file, not foreign weights."""
    path = Path(os.path.expanduser(source))
    return path.suffix == ".keras" or (path / "model.keras").is_file()


def without_lora(model):
    """Returns a copy with LoRA merged into the kernels; the model itself without."""
    if not has_lora(model):
        return model
    copy = type(model).from_config(model.get_config())
    copy.set_weights(model.get_weights())
    copy.merge_lora()
    return copy


def _to_train(model):
    """Returns a model without LoRA; raises if its weights can't be trained."""
    if is_quantized(model):
        raise ValueError(
            "Quantized weights can't be trained: train first, then quantize. "
            f"Received: a quantized {type(model).__name__}"
        )
    return without_lora(model)


def copy_encoder(encoder, **changes):
    """Builds an encoder with another's weights, LoRA merged, and other settings."""
    encoder = _to_train(encoder)
    copy = MAEEncoder.from_config({**encoder.get_config(), **changes, **_UNFROZEN})
    # resizes positions, and sums kernels of patches over channels
    copy_weights(copy, encoder)
    return copy


def load_pretrainer(source, preset=None, patch_size=None, **changes):
    """Loads a `MAEPretrainer` to train on, from a run, file or published weights.

    `changes` are `image_size`, `num_channels`, `mask_ratio`, `mask_sampling`,
    `norm_pix_loss`, `rematerialize`, `residual_dtype`, `dtype` and `seed`. A source
    without a decoder gets a fresh one.
    """
    if is_run(source):
        model = load_keras(model_file(source))
        sizes, stated = sizes_of(model), {}
    else:
        model = None
        checkpoint = open_checkpoint(source)
        description = describe_checkpoint(checkpoint)
        sizes, stated = description.sizes, read_settings(checkpoint, description)
    # `preset` and `patch_size` are only checked
    _check_same_sizes(source, sizes, preset, patch_size)
    _note_channels(source, sizes, changes)
    if "decoder_depth" not in sizes:
        decoder = _fresh_decoder_sizes(sizes, stated)
        # the sources' values, if any, are a decoder's that isn't there
        masks = {"mask_ratio": 0.75, "mask_sampling": "random"}
        changes = {**masks, "norm_pix_loss": True, **decoder, **changes}
        print(
            f"{source} has no decoder: a fresh one of {decoder['decoder_depth']} "
            f"blocks, {decoder['decoder_hidden_dim']} wide, is trained"
        )
    if model is None:
        return _from_pretrained(
            MAEPretrainer, checkpoint, allow_missing_decoder=True, **changes
        )
    if not (sizes["final_norm"] or isinstance(model, MAEPretrainer)):
        print(f"{source} has no final norm: a fresh one is trained")
    return _copy_pretrainer(model, **changes)


def _check_same_sizes(source, sizes, preset, patch_size):
    """Raises if a preset or patch size is not the source's."""
    if patch_size is not None:
        own = as_pair(sizes["patch_size"], "patch_size")
        if as_pair(patch_size, "patch_size") != own:
            raise ValueError(
                f"patch_size must be that of the weights in {source}, {own}. "
                f"Received: {patch_size}"
            )
    wanted = {} if preset is None else preset_sizes(preset)
    names = set(wanted) & set(sizes) - {"image_size", "patch_size"}
    differing = [
        f"{name}={sizes[name]} (not {wanted[name]})"
        for name in sorted(names)
        if sizes[name] != wanted[name]
    ]
    if differing:
        raise ValueError(
            f"{source} brings its own sizes: leave the preset out. Received: "
            f"preset={preset}, but {', '.join(differing)}"
        )


def _note_channels(source, sizes, changes):
    """Prints that the weights are for another number of channels, if they are."""
    own, wanted = sizes.get("num_channels"), changes.get("num_channels")
    if None not in (own, wanted) and own != wanted:
        print(
            f"{source} is for images of {own} channel(s), these have {wanted}: its "
            "patch kernels are summed and shared out"
        )


def _fresh_decoder_sizes(sizes, stated):
    """Chooses sizes of a decoder for an encoder that has none."""
    encoder = ("hidden_dim", "depth", "mlp_dim")
    for preset in PRESETS.values():
        if all(sizes.get(name) == preset[name] for name in encoder):
            return {name: preset[name] for name in _DECODER_SIZES}
    paper = PRESETS["mae_base"]
    return {name: stated.get(name, paper[name]) for name in _DECODER_SIZES}


def _copy_pretrainer(model, **changes):
    """Builds a pretrainer with a model's weights and some other settings."""
    model = _to_train(model)
    old = getattr(model, "encoder", model)
    own = isinstance(model, MAEPretrainer)
    shared = {name: changes[name] for name in SHARED if name in changes}
    names = ("image_size", "num_channels", "seed")
    config = {name: changes[name] for name in names if name in changes} | shared
    if not own:
        # as pretraining has them, whatever fine-tuning did
        config |= {"drop_path_rate": 0.0, "train_positions": False}
        config["final_norm"] = True
    encoder = MAEEncoder.from_config({**old.get_config(), **config, **_UNFROZEN})
    fitting = {
        "grid": encoder.grid,
        "patch_dim": encoder.patch_dim,
        "latent_dim": encoder.hidden_dim,
    }
    if own:
        decoder = model.decoder.get_config() | {"trainable": True, "frozen": ()}
    else:
        decoder = {name: old.get_config()[name] for name in SHARED}
        decoder |= {n.removeprefix("decoder_"): changes[n] for n in _DECODER_SIZES}
    decoder = MAEDecoder.from_config({**decoder, **fitting, **shared})
    settings = {
        name: changes.get(name, getattr(model, name, None))
        for name in ("mask_ratio", "norm_pix_loss", "mask_sampling")
    }
    copy = MAEPretrainer(encoder, decoder, dtype=encoder.dtype_policy, **settings)
    copy_weights(copy, model if own else old)
    return copy


def load_classifier(
    source, num_classes, pooling="mean", head=None, keep_head=True, **changes
):
    """Puts a classifier around the encoder of a run, file or published weights."""
    # `head` has arguments of the classifier, `changes` those of the encoder
    options = {"pooling": pooling, "batch_norm": False, **(head or {})}
    if not is_run(source):
        checkpoint = open_checkpoint(source)
        _note_channels(source, describe_checkpoint(checkpoint).sizes, changes)
        return _from_pretrained(
            MAEClassifier, checkpoint, num_classes=num_classes, **options, **changes
        )
    model = load_keras(model_file(source))
    _note_channels(source, sizes_of(model), changes)
    encoder = copy_encoder(getattr(model, "encoder", model), **changes)
    classifier = MAEClassifier(
        encoder, num_classes, dtype=encoder.dtype_policy, **options
    )
    # a head is trained on one way of pooling
    if isinstance(model, MAEClassifier) and model.pooling == pooling:
        _keep_head(model, classifier, keep_head)
    return classifier


def _keep_head(old, new, same_classes):
    """Copies a head, and what its features go through, as far as it fits."""
    if new.head_norm is not None:
        new.head_norm.set_weights(old.head_norm.get_weights())
    if old.num_classes != new.num_classes or not same_classes:
        return
    if new.batch_norm is None:
        new.head.set_weights(_without_batch_norm(old))
    elif old.batch_norm is not None:
        new.batch_norm.set_weights(old.batch_norm.get_weights())
        new.head.set_weights(old.head.get_weights())


def _without_batch_norm(classifier):
    """Returns a head's kernel and bias, with the statistics before it inside them."""
    kernel, bias = classifier.head.get_weights()  # (D, K), (K,)
    norm = classifier.batch_norm
    if norm is None:
        return kernel, bias
    mean, variance = (np.float64(value) for value in norm.get_weights())
    kernel = kernel / np.sqrt(variance + norm.epsilon)[:, None]
    return kernel, bias - mean @ kernel


def local_folder(source):
    """Returns the folder of a run, `.keras` file or weights; `None` for a hub id."""
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        return path
    return path.parent if path.is_file() else None


def find_labels(source, num_classes):
    """Finds class names: in `labels.txt` beside a model, else in its configuration."""
    folder = local_folder(source)
    if folder is not None and (folder / LABELS_FILE).is_file():
        return read_labels(folder / LABELS_FILE, num_classes)
    if is_run(source):
        return None
    return class_names(open_checkpoint(source).config, num_classes)
