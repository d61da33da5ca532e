"""Exports models for OpenVINO, LiteRT and ONNX Runtime, from pixels to numbers."""

from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_mae.export.runtime_formats import FORMATS, check_installed
from keras_mae.export.signatures import PIXELS, ModelSignatures
from keras_mae.export.task_signatures import build_signatures
from keras_mae.export.verification import compare_outputs, draw_images
from keras_mae.export.version_folder import check_version, new_version
from keras_mae.layers.adapted import is_quantized
from keras_mae.models import MAEClassifier
from keras_mae.models.loading import without_lora
from keras_mae.preprocessing.image_processor import MAEImageProcessor
from keras_mae.utils.devices import check_tensorflow_backend
from keras_mae.utils.labels_file import write_labels
from keras_mae.utils.typing import PathLike

# a batch of each is compared with the model's
_BATCH_SIZES = (1, 3, 8)


def export_runtime(
    model: keras.Model,
    processor: MAEImageProcessor,
    path: PathLike,
    format: str,
    overwrite: bool = False,
    labels: Sequence[str] | None = None,
    embedding: str | None = None,
    normalize_embedding: bool = True,
) -> None:
    """Exports a model for OpenVINO, LiteRT or ONNX Runtime.

    `path` becomes a folder of the converted functions, which take `pixels`
    `(B, H, W, C)` as an image processor returns them: `encode` returns `features` and
    `embedding`; a pretrainer's `reconstruct` takes `noise` `(B, L)` as well and returns
    `reconstruction`, `mask`, `loss` and `patch_size`; a classifier's `classify` returns
    `probabilities` `(B, N)`. OpenVINO and ONNX have a file for each, LiteRT a signature
    in `model.tflite`. Beside them are `preprocessor_config.json` and a classifier's
    `labels.txt`.

    Like a SavedModel, the folder is loaded and compared with the model before it is
    renamed to `path`.

    Args:
        model: A `MAEPretrainer`, `MAEClassifier` or `MAEEncoder` that computes in
            float32 and is not quantized.
        processor: The `MAEImageProcessor` of its images.
        path: Path of the folder.
        format: `"openvino"`, `"litert"` or `"onnx"`; it needs `keras-mae[openvino]`
            and so on.
        overwrite: Whether to replace an existing folder.
        labels: Sequence of str, the names of a classifier's classes.
        embedding: As of `export_savedmodel`.
        normalize_embedding: As of `export_savedmodel`.

    Raises:
        ValueError: If the folder exists and `overwrite` is false, the runtime is not
            installed, an argument doesn't fit the model, the model can't be converted,
            or outputs differ.

    Example:

    ```python
    encoder = keras_mae.MAEEncoder.from_preset("mae_tiny", depth=1)
    processor = keras_mae.MAEImageProcessor(image_size=32)
    export_runtime(encoder, processor, "models/mae/1-openvino", "openvino")
    encode = load_runtime("models/mae/1-openvino")["encode"]
    outputs = encode(pixels=processor(np.zeros((2, 32, 32, 3), "uint8")))
    assert outputs["embedding"].shape == (2, 128)
    ```
    """
    if format not in FORMATS:
        raise ValueError(
            f"format must be one of {', '.join(FORMATS)}. Received: {format!r}"
        )
    check_tensorflow_backend("An export")  # before anything is installed for it
    check_installed(format)
    path = Path(path)
    check_version(path, overwrite)
    model = without_lora(model)
    if model.compute_dtype != "float32" or is_quantized(model):
        # of quantized layers one runtime has no operation, another other results
        received = "quantized layers" if is_quantized(model) else model.compute_dtype
        raise ValueError(
            f"Other runtimes take models that compute in float32. Received: {received}"
        )
    served = build_signatures(
        model,
        processor,
        labels,
        embedding=embedding,
        normalize_embedding=normalize_embedding,
    )
    with new_version(path) as aside:
        FORMATS[format].write(aside, _traced(served))
        processor.save_pretrained(aside)
        if isinstance(model, MAEClassifier):
            write_labels(aside, labels or [*map(str, range(model.num_classes))])
        verify_runtime(aside, served)


def load_runtime(path: PathLike) -> dict[str, Callable[..., dict[str, np.ndarray]]]:
    """Loads what `export_runtime` wrote, to run on a CPU in float32.

    Args:
        path: Path of the folder.

    Returns:
        A dict from name to function, which takes arrays by name, of at least one image,
        and returns a dict of arrays; other names or shapes are a `ValueError`.

    Raises:
        ValueError: If the folder has no converted model.

    Example:

    ```python
    encoder = keras_mae.MAEEncoder.from_preset("mae_tiny", depth=1)
    processor = keras_mae.MAEImageProcessor(image_size=32)
    export_runtime(encoder, processor, "models/mae/1-litert", "litert")
    encode = load_runtime("models/mae/1-litert")["encode"]
    assert encode(pixels=np.zeros((2, 32, 32, 3), "float32"))["features"].shape[0] == 2
    ```
    """
    for format in FORMATS.values():
        files = sorted(Path(path).glob(format.pattern))
        if files:
            return format.load(files)
    patterns = ", ".join(format.pattern for format in FORMATS.values())
    raise ValueError(f"{path} must have a file of {patterns}")


def verify_runtime(path: PathLike, served: ModelSignatures) -> None:
    """Loads a converted model and compares its outputs with the Keras model's.

    Args:
        path: Path of the folder.
        served: What `build_signatures` returns for the Keras model.

    Raises:
        ValueError: If a function is missing, or an output differs by more than
            rounding.

    Example:

    ```python
    encoder = keras_mae.MAEEncoder.from_preset("mae_tiny", depth=1)
    processor = keras_mae.MAEImageProcessor(image_size=32)
    export_runtime(encoder, processor, "models/mae/1-onnx", "onnx")
    verify_runtime("models/mae/1-onnx", build_signatures(encoder, processor))
    ```
    """
    loaded = load_runtime(path)
    wanted = served.computations()
    if set(loaded) != set(wanted):
        raise ValueError(
            f"{path} must have the functions {', '.join(sorted(wanted))}. "
            f"Received: {', '.join(sorted(loaded))}"
        )
    images = draw_images(served)
    images = [images[index % len(images)] for index in range(max(_BATCH_SIZES))]
    rng = np.random.default_rng(0)
    noise = rng.random((len(images), served.encoder.num_patches), "float32")
    arrays = {PIXELS: np.asarray(served.processor(images)), "noise": noise}
    for name, (function, names) in wanted.items():
        for size in _BATCH_SIZES:
            inputs = {key: arrays[key][:size] for key in names}
            # eagerly, without a graph
            expected = function(**{key: tf.constant(inputs[key]) for key in inputs})
            compare_outputs(name, loaded[name](**inputs), expected, 1e-4)


def _traced(served):
    """Returns a dict from name to concrete function."""
    row = (None, served.encoder.num_patches)
    shapes = {PIXELS: (None, *served.shape), "noise": row}
    traced = {}
    for name, (function, names) in served.computations().items():
        specs = {key: tf.TensorSpec(shapes[key], tf.float32, key) for key in names}
        function = tf.function(function, autograph=False)
        traced[name] = function.get_concrete_function(**specs)
    return traced
