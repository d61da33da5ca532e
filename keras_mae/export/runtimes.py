"""Exports models for other runtimes: OpenVINO and LiteRT, from pixels to numbers."""

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_mae.export.signatures import PIXELS, ModelSignatures
from keras_mae.export.task_signatures import build_signatures
from keras_mae.export.verification import compare_outputs, draw_images
from keras_mae.export.version_folder import check_version, new_version
from keras_mae.models import MAEClassifier
from keras_mae.models.loading import without_lora
from keras_mae.preprocessing.image_processor import MAEImageProcessor
from keras_mae.utils.class_names import write_labels
from keras_mae.utils.typing import PathLike

FORMATS = ("openvino", "litert")
_LITERT_FILE = "model.tflite"
# a batch of each is compared with the model's
_BATCH_SIZES = (1, 3, 8)


def export_runtime(
    model: keras.Model,
    processor: MAEImageProcessor,
    path: PathLike,
    format: str,
    overwrite: bool = False,
    labels: list[str] | None = None,
    embedding: str | None = None,
    normalize_embedding: bool = True,
) -> None:
    """Exports a model for OpenVINO or LiteRT.

    `path` becomes a folder of the converted functions, which take `pixels`
    `(B, H, W, C)` as an image processor returns them: `encode` returns `features` and
    `embedding`; a pretrainer's `reconstruct` takes `noise` `(B, L)` as well and returns
    `reconstruction`, `mask`, `loss` and `patch_size`; a classifier's `classify` returns
    `probabilities` `(B, N)`. OpenVINO has a file for each, LiteRT a signature in
    `model.tflite`. Beside them are `preprocessor_config.json` and a classifier's
    `labels.txt`.

    Like a SavedModel, the folder is loaded and compared with the model before it is
    renamed to `path`.

    Args:
        model: A `MAEPretrainer`, `MAEClassifier` or `MAEEncoder` that computes in
            float32.
        processor: The `MAEImageProcessor` of its images.
        path: Path of the folder.
        format: `"openvino"` or `"litert"`; it needs `keras-mae[openvino]` or
            `keras-mae[litert]`.
        overwrite: Whether to replace an existing folder.
        labels: List of str, the names of a classifier's classes.
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
    _check_installed(format)
    path = Path(path)
    check_version(path, overwrite)
    model = without_lora(model)
    if model.compute_dtype != "float32":
        raise ValueError(
            "Other runtimes take models that compute in float32. "
            f"Received: {model.compute_dtype}"
        )
    options = {"embedding": embedding, "normalize_embedding": normalize_embedding}
    served = build_signatures(model, processor, labels, **options)
    write = {"openvino": _write_openvino, "litert": _write_litert}[format]
    with new_version(path) as aside:
        write(aside, _traced(served))
        processor.save_pretrained(aside)
        if isinstance(model, MAEClassifier):
            write_labels(aside, labels or map(str, range(model.num_classes)))
        verify_runtime(aside, served)


def load_runtime(path: PathLike) -> dict[str, Callable[..., dict[str, np.ndarray]]]:
    """Loads what `export_runtime` wrote, to run on a CPU in float32.

    Args:
        path: Path of the folder.

    Returns:
        A dict from name to function, which takes arrays by name and returns a dict of
        arrays.

    Raises:
        ValueError: If the folder has no converted model.
    """
    path = Path(path)
    if (path / _LITERT_FILE).is_file():
        return _load_litert(path / _LITERT_FILE)
    files = sorted(path.glob("*.xml"))
    if not files:
        raise ValueError(f"{path} must have {_LITERT_FILE} or .xml files of OpenVINO")
    return {file.stem: _load_openvino(file) for file in files}


def verify_runtime(path: PathLike, served: ModelSignatures) -> None:
    """Loads a converted model and compares its outputs with the Keras model's.

    Args:
        path: Path of the folder.
        served: What `build_signatures` returns for the Keras model.

    Raises:
        ValueError: If a function is missing, or an output differs by more than
            rounding.
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


def _check_installed(format):
    """Raises if a runtime is not installed."""
    module = {"openvino": "openvino", "litert": "ai_edge_litert"}[format]
    if importlib.util.find_spec(module) is None:
        raise ValueError(
            f"{format} is not installed: pip install 'keras-mae[{format}]'"
        )


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


def _write_openvino(folder, traced):
    import openvino

    for name, function in traced.items():
        converted = openvino.convert_model(function)
        openvino.save_model(converted, folder / f"{name}.xml", compress_to_fp16=False)


def _load_openvino(file):
    import openvino

    # some CPUs would compute in bfloat16 by default
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(file, "CPU", options)

    def run(**inputs):
        found = compiled(inputs)
        return {output.any_name: found[output] for output in compiled.outputs}

    return run


def _write_litert(folder, traced):
    module = tf.Module()
    # weights of the functions, which share them
    module.captured = [list(function.variables) for function in traced.values()]
    with tempfile.TemporaryDirectory() as saved:
        tf.saved_model.save(module, saved, signatures=traced)
        convert = tf.lite.TFLiteConverter.from_saved_model
        try:
            content = convert(saved, signature_keys=list(traced)).convert()
        except Exception as error:  # of the converter's own kinds
            text = str(error).splitlines()[0]
            raise ValueError(f"LiteRT can't convert this model: {text}") from error
    (folder / _LITERT_FILE).write_bytes(content)


def _load_litert(file):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(file))
    names = interpreter.get_signature_list()
    return {name: interpreter.get_signature_runner(name) for name in names}
