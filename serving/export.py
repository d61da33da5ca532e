"""Export a model as a SavedModel for TF Serving.

Run: python serving/export.py --model=run --out=models/mae --version=1

--model is a run or .keras file of a pretrainer, classifier or encoder, or published
weights: a hub id, a folder, a .pth or .safetensors file. Writes the SavedModel
`OUT/VERSION` with these signatures, `B` images each:

    serving_default, features   image_bytes (B,)          -> features
    reconstruct                 image_bytes, seed (B,)    -> reconstruction, mask, loss,
                                                             patch_size
    reconstruct_with_mask       image_bytes, mask (B, L)  -> the same
    reconstruct_with_noise      image_bytes, noise (B, L) -> the same
    classify                    image_bytes (B,)          -> class_ids, probabilities,
                                                             labels, (B, K) each
    classify_examples           inputs (B,)               -> classes, scores,
                                                             (B, N) each

Every model has the first; a pretrainer has `reconstruct` and what follows it, a
classifier `classify` and what follows it. Each but the last is there as
`NAME_from_pixels` as well, with `pixels` (B, H, W, C) in the place of `image_bytes`;
models of other than 1 or 3 channels have only these.

`image_bytes` are encoded pictures (PNG, JPEG, WebP, BMP of 8 bits or more, GIF's first
frame), `pixels` what `MAEImageProcessor` returns: the graph decodes, resizes and
normalizes to the same bits; only CMYK may be a grey level off. `features` are the
encoder's tokens (B, 1 + L, D), of a classifier what its head sees (B, D).
`reconstruction` is in grey levels 0 to 255, `mask` is 1 where a patch was removed, of
`noise` the smallest stay, `loss` is one number an image, `patch_size` (B, 2) a patch's
height and width. `classify_examples` answers TF Serving's Classify API: `inputs` are
serialized `tf.train.Example`s with `image/encoded`.

It is written aside, loaded again, compared with the Keras model, and then renamed
into place: a failed export changes nothing.
"""

import keras_mae  # first: it imports TensorFlow quietly

# isort: split
import dataclasses
from pathlib import Path

from keras_mae.export import export_savedmodel, find_labels, read_labels
from keras_mae.models.loading import load_model, with_precision
from keras_mae.preprocessing.pretrained_processor import default_processor
from keras_mae.utils.flags import flag, run_script


@dataclasses.dataclass
class ExportConfig:
    """The flags of this script."""

    model: str = flag("a run, .keras, hub id, folder, .pth or .safetensors")
    out: str = flag("folder of the served model", "models/mae")
    version: int = flag("the SavedModel's number, a folder in --out", 1)
    overwrite: bool = flag("replace this version if it exists", False)
    precision: str | None = flag(
        "dtype policy; default: the model's own",
        None,
        ("float32", "mixed_bfloat16", "bfloat16"),
    )
    labels: str | None = flag("file of class names, one a line; default: found", None)
    top_k: int = flag("classes that classify names", 5)
    warmup_batch_sizes: str = flag("of requests at loading; '' for none", "1,8")


def main(config):
    """Exports a model."""
    if config.version < 1:
        raise ValueError(f"version must be at least 1. Received: {config.version}")
    batch_sizes = parse_batch_sizes(config.warmup_batch_sizes)
    path = Path(config.out, str(config.version))
    model, processor = load_model(config.model)
    processor = processor or default_processor(config.model, model)
    if config.precision is not None:
        model = with_precision(model, config.precision)
    export_savedmodel(
        model,
        processor,
        path,
        config.overwrite,
        labels=choose_labels(config, model),
        top_k=config.top_k,
        warmup_batch_sizes=batch_sizes,
    )
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    print(f"The SavedModel lies in {path} ({size / 1e6:.1f} MB)")


def parse_batch_sizes(text):
    """Reads ints between commas or spaces."""
    try:
        return [int(word) for word in text.replace(",", " ").split()]
    except ValueError as error:
        raise ValueError(
            f"warmup_batch_sizes must be ints, as in 1,8. Received: {text!r}"
        ) from error


def choose_labels(config, model):
    """Finds a classifier's class names: as told, else beside the model."""
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
