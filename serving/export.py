"""Export a model as a SavedModel for TF Serving.

Run: python serving/export.py --model=runs/pretrain --out=models/mae --version=1

--model is a run or .keras file of a pretrainer, classifier or encoder, or published
weights: a hub id, checkpoint folder, .pth or .safetensors file. Writes the SavedModel
`OUT/VERSION` with these signatures, for `B` images:

    serving_default, features   image_bytes (B,)          -> features
    embed                       image_bytes (B,)          -> embedding (B, D)
    reconstruct                 image_bytes, seed (B,)    -> reconstruction, mask, loss,
                                                             patch_size
    reconstruct_with_mask       image_bytes, mask (B, L)  -> the same
    reconstruct_with_noise      image_bytes, noise (B, L) -> the same
    reconstruct_png_bytes       image_bytes, seed (B,)    -> png_bytes, mask, loss,
                                                             patch_size
    classify                    image_bytes (B,)          -> class_ids, probabilities,
                                                             labels, (B, K) each
    classify_examples           inputs (B,)               -> classes, scores,
                                                             (B, N) each

Every model has `features` and `embed`, a pretrainer also the `reconstruct` signatures,
a classifier the `classify` ones. Each but the last also exists as `NAME_from_pixels`,
with `pixels` (B, H, W, C) instead of `image_bytes`, and as `NAME_from_pixels_u8`, with
`pixels_u8` (B,). Models with other than 1 or 3 channels have only these, without PNG.

`image_bytes` are PNG, JPEG, WebP, BMP (8 bits or more) or GIF files (first frame). The
graph decodes, resizes and normalizes them exactly as `MAEImageProcessor` does (CMYK
within one grey level); `pixels` are what `MAEImageProcessor` returns. A row of
`pixels_u8` has the H * W * C bytes of an image of the model's size, rows first; a row
of another length has NaN for answers. `features` are the encoder's tokens
(B, 1 + L, D), or a classifier's pooled features (B, D). `embedding` pools them, by
--embedding, to length 1. `reconstruction` has grey levels 0 to 255, `png_bytes` the
reconstruction with the visible patches pasted over it; `mask` is 1 where a patch is
masked; patches of the largest `noise` are masked; `loss` is per image; `patch_size`
(B, 2) is height and width. `classify_examples` is for TF Serving's Classify API:
`inputs` are serialized `tf.train.Example`s with `image/encoded`.

An image whose header announces more than --max_pixels, or a side of more than 65,535
pixels, is an error, undecoded.

--batching leaves the signatures of which no request can fail another one's in a batch:
those of `pixels_u8` but for masks and noise, `serving_default` among them.

--format=openvino, litert or onnx converts functions of pixels for other runtimes.

The export is written to a temporary folder, loaded, compared with the Keras model and
then renamed: a failed export changes nothing.
"""

import keras_mae  # first: it imports TensorFlow quietly

# isort: split
import dataclasses
from pathlib import Path

from keras_mae.export import (
    DEFAULT_MAX_PIXELS,
    export_runtime,
    export_savedmodel,
    read_labels,
)
from keras_mae.export.runtime_formats import FORMATS
from keras_mae.export.signatures import EMBEDDINGS
from keras_mae.models.loading import find_labels, load_model, with_precision
from keras_mae.preprocessing.pretrained_processor import default_processor
from keras_mae.utils.flags import check_at_least, flag, parse_ints, run_script


@dataclasses.dataclass
class ExportConfig:
    """Flags of this script."""

    model: str = flag(
        "model to export: run folder, .keras file, hub id, checkpoint folder, .pth, "
        ".safetensors or tf_model.h5"
    )
    out: str = flag("folder of the model's versions", "models/mae")
    version: int = flag("version number, the SavedModel's folder in --out", 1)
    format: str = flag(
        "savedmodel, or a folder OUT/VERSION-FORMAT for another runtime",
        "savedmodel",
        ("savedmodel", *FORMATS),
    )
    overwrite: bool = flag("replace this version if it exists", False)
    precision: str | None = flag(
        "Keras dtype policy; default: the model's",
        None,
        ("float32", "mixed_bfloat16", "bfloat16"),
    )
    quantize: str | None = flag(
        "quantize the dense layers: a smaller file, on CPUs slower; default: as the "
        "model is",
        None,
        ("int8", "int4"),
    )
    labels: str | None = flag(
        "text file of class names, one per line; default: labels.txt or config.json "
        "beside the model",
        None,
    )
    top_k: int = flag("number of classes that classify returns", 5)
    embedding: str | None = flag(
        "how embed pools a pretrainer's or encoder's features; default: mean",
        None,
        EMBEDDINGS,
    )
    normalize_embedding: bool = flag("scale embeddings to length 1", True)
    batching: bool = flag(
        "export only signatures where one bad image cannot fail a batch, and write "
        "batching_params.pbtxt",
        False,
    )
    warmup_batch_sizes: str = flag(
        "batch sizes of warmup requests, separated by commas; '': no warmup", "1,8"
    )
    max_pixels: int = flag(
        "most pixels that an image may announce: the model refuses larger ones before "
        "it decodes them",
        DEFAULT_MAX_PIXELS,
    )


def main(config):
    """Exports a model."""
    check_at_least(config, 1, "version", "max_pixels")
    batch_sizes = []
    if config.warmup_batch_sizes:
        batch_sizes = parse_ints("warmup_batch_sizes", config.warmup_batch_sizes)
    check_format(config)
    name = str(config.version)
    if config.format != "savedmodel":
        # no number: a server of SavedModels leaves it alone
        name = f"{name}-{config.format}"
    path = Path(config.out, name)
    if path.exists() and not config.overwrite:
        raise ValueError(f"{path} already exists: --overwrite replaces it")
    model, processor = load_model(config.model)
    check_model(config, model)
    processor = processor or default_processor(config.model, model)
    if config.precision is not None:
        model = with_precision(model, config.precision)
    if config.quantize is not None:
        model.merge_lora()
        model.quantize(config.quantize)
    options = {
        "overwrite": config.overwrite,
        "labels": choose_labels(config, model),
        "embedding": config.embedding,
        "normalize_embedding": config.normalize_embedding,
    }
    if config.format == "savedmodel":
        export_savedmodel(
            model,
            processor,
            path,
            top_k=config.top_k,
            warmup_batch_sizes=batch_sizes,
            max_pixels=config.max_pixels,
            batching=config.batching,
            **options,
        )
    else:
        export_runtime(model, processor, path, config.format, **options)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    kind = "SavedModel" if config.format == "savedmodel" else config.format
    print(f"{kind} written to {path} ({size / 1e6:.1f} MB)")


def check_format(config):
    """Raises where a flag is given that what is exported has no place for."""
    if config.batching and _is_given(config, "max_pixels"):
        raise ValueError(
            "--max_pixels can't be given with --batching, whose signatures take no "
            f"image files. Received: {config.max_pixels}"
        )
    if config.format == "savedmodel":
        return
    for name in ("batching", "top_k", "max_pixels", "warmup_batch_sizes"):
        if _is_given(config, name):
            raise ValueError(
                f"--{name} needs --format=savedmodel. Received: {config.format}"
            )


def check_model(config, model):
    """Raises where a flag is given that none of the model's signatures reads."""
    if _is_given(config, "top_k") and not isinstance(model, keras_mae.MAEClassifier):
        raise ValueError(
            f"--top_k needs a MAEClassifier. Received: a {type(model).__name__}"
        )
    if _is_given(config, "max_pixels"):
        channels = getattr(model, "encoder", model).num_channels
        if channels not in (1, 3):
            raise ValueError(
                "--max_pixels needs a model of 1 or 3 channels: others take no image "
                f"files. Received: a model of {channels} channels"
            )


def _is_given(config, name):
    return getattr(config, name) != getattr(ExportConfig, name)


def choose_labels(config, model):
    """Reads a classifier's class names, from --labels or beside the model."""
    if config.labels is not None:
        return read_labels(config.labels, getattr(model, "num_classes", None))
    if not isinstance(model, keras_mae.MAEClassifier):
        return None
    return find_labels(config.model, model.num_classes)


def cli():
    """Runs the command line."""
    run_script(main, ExportConfig, __doc__)


if __name__ == "__main__":
    cli()
