"""Exports models as SavedModels for TF Serving: write, verify, rename into place."""

import functools
from collections.abc import Sequence
from pathlib import Path

import keras
import tensorflow as tf

from keras_mae.export.batching import write_batching
from keras_mae.export.image_decoding import DEFAULT_MAX_PIXELS
from keras_mae.export.signatures import PREDICT_METHOD
from keras_mae.export.task_signatures import build_signatures
from keras_mae.export.verification import verify_savedmodel
from keras_mae.export.version_folder import check_version, new_version
from keras_mae.export.warmup import check_warmup, write_warmup
from keras_mae.models.loading import without_lora
from keras_mae.models.mixins import casting_layers
from keras_mae.ops.cast_kernels import CastKernels, scope_of_values
from keras_mae.preprocessing.image_processor import MAEImageProcessor
from keras_mae.utils.typing import PathLike


def export_savedmodel(
    model: keras.Model,
    processor: MAEImageProcessor,
    path: PathLike,
    overwrite: bool = False,
    labels: Sequence[str] | None = None,
    top_k: int = 5,
    warmup_batch_sizes: Sequence[int] = (1, 8),
    max_pixels: int = DEFAULT_MAX_PIXELS,
    embedding: str | None = None,
    normalize_embedding: bool = True,
    batching: bool = False,
) -> None:
    """Exports a model as a SavedModel with signatures for TF Serving.

    It is written to a temporary folder, compared with the model and renamed: a failure
    leaves `path` unchanged. Replacing a version takes two renames; if the process is
    killed between them, the older version is left beside `path`, as `old-part-...`.

    Args:
        model: A `MAEPretrainer`, `MAEClassifier` or `MAEEncoder`. LoRA is merged into
            the kernels of a copy.
        processor: The `MAEImageProcessor` of its images.
        path: Path of the version folder, such as `models/mae/1`.
        overwrite: Whether to replace an existing version.
        labels: Sequence of str, the names of a classifier's classes; by default their
            numbers.
        top_k: Int, how many classes a classifier's `classify` returns.
        warmup_batch_sizes: Sequence of ints, the batch sizes of warm-up requests for
            each signature; empty for none.
        max_pixels: Int, how many pixels an encoded image may announce in its header:
            the SavedModel refuses larger ones before it decodes them, and sides of
            more than 65,535 pixels.
        embedding: `"mean"` of the patches' features, or `"cls"`, for `embed`; by
            default the mean. A classifier's is what its head takes.
        normalize_embedding: Whether embeddings have length 1, for similarities.
        batching: Whether to export only signatures that a server may batch, and the
            file `batching_params.pbtxt`, by which TF Serving does.

    Raises:
        ValueError: If the version exists and `overwrite` is false, is `2**63` or
            more, an argument doesn't fit the model, or the SavedModel's outputs differ
            from the model's.

    Example:

    ```python
    encoder = keras_mae.MAEEncoder.from_preset("mae_tiny", depth=1)
    processor = keras_mae.MAEImageProcessor(image_size=32)
    export_savedmodel(encoder, processor, "models/mae/1", warmup_batch_sizes=[1])
    predict = tf.saved_model.load("models/mae/1").signatures["serving_default"]
    picture = tf.io.encode_png(np.zeros((40, 50, 3), "uint8"))
    assert predict(image_bytes=picture[None])["features"].shape == (1, 65, 128)
    ```
    """
    path = Path(path)
    check_version(path, overwrite)
    check_warmup(warmup_batch_sizes)
    model = without_lora(model)
    options = (labels, top_k, max_pixels, embedding, normalize_embedding, batching)
    served = build_signatures(model, processor, *options)
    with new_version(path) as aside:
        _write(served, aside)
        if batching:
            write_batching(aside)
        write_warmup(aside, served.signatures(), warmup_batch_sizes, path.parent.name)
        verify_savedmodel(aside, served)


def _write(served, folder):
    """Writes the signatures; they share the weights."""
    signatures = served.signatures()
    share = functools.cache(functools.partial(tf.function, autograph=False))
    kernels = CastKernels()
    kernels.refresh(casting_layers(served.model))
    weights = [(one, kernels.replaced(one)) for one in served.model.weights]
    with scope_of_values(weights):
        traced = {key: signature.trace(share) for key, signature in signatures.items()}
    # a bare module: a Keras model would bring its own functions and weights along
    module = tf.Module()
    module.weights = [value for _, value in weights]
    module.resources = served.resources
    tf.saved_model.save(
        module, folder, signatures={"serving_default": traced[served.default], **traced}
    )
    # TensorFlow writes the method Predict for every signature
    updater = tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater(
        str(folder)
    )
    others = [key for key in signatures if signatures[key].method != PREDICT_METHOD]
    for key in others:
        updater.replace_method_name(key, signatures[key].method, tags="serve")
    if others:
        updater.save()
