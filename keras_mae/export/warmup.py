"""Warm-up requests, which TF Serving runs when it loads a SavedModel."""

from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_mae.data.tfrecord import image_example
from keras_mae.export.signatures import PACKED, PIXELS, Signature
from keras_mae.export.task_signatures import CLASSIFY_METHOD

# where TF Serving looks, and its limit
WARMUP_PATH = Path("assets.extra", "tf_serving_warmup_requests")
MOST_RECORDS = 1000


def sample_inputs(signature: Signature, batch_size: int) -> dict[str, np.ndarray]:
    """Makes valid inputs of a signature.

    Args:
        signature: A value of `build_signatures(...).signatures()`.
        batch_size: Int.

    Returns:
        A dict from input name to array; strings have dtype object.

    Example:

    ```python
    from keras_mae.export import build_signatures

    model = keras_mae.MAEPretrainer.from_preset("mae_tiny")
    served = build_signatures(model, keras_mae.MAEImageProcessor(image_size=32))
    inputs = sample_inputs(served.signatures()["reconstruct_with_mask"], 2)
    assert inputs["image_bytes"].shape == (2,) and inputs["mask"].shape == (2, 64)
    ```
    """
    return {
        spec.name: _sample(signature, spec, batch_size) for spec in signature.inputs
    }


def _sample(signature, spec, batch_size):
    if spec.name == PACKED:
        # np.full would take zeros off its end
        return np.array([bytes(signature.row_bytes)] * batch_size, object)
    if spec.dtype == tf.string:
        picture = np.arange(8 * 8 * 3, dtype="uint8").reshape(8, 8, 3)
        encoded = tf.io.encode_png(picture).numpy()
        if spec.name == "inputs":
            encoded = image_example(encoded)
        return np.full(batch_size, encoded, object)
    shape = (batch_size, *spec.shape[1:])
    if spec.name == PIXELS:
        return np.zeros(shape, "float32")
    # all rows alike: noise from 0 to 1, a mask of every second patch
    row = np.arange(shape[-1])
    row = {"seed": row, "mask": row % 2, "noise": row / len(row)}[spec.name]
    return np.broadcast_to(row, shape).astype(spec.dtype.as_numpy_dtype)


def write_warmup(folder, signatures, batch_sizes, name="mae"):
    """Writes a request for each signature and batch size into a SavedModel."""
    check_warmup(batch_sizes, len(signatures))
    if not batch_sizes:
        return
    path = Path(folder, WARMUP_PATH)
    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = {signature.images.name for signature in signatures.values()}
    main = kinds - {PIXELS, PACKED} or kinds & {PIXELS} or kinds
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature_name, signature in signatures.items():
            # the others differ in what is read, at any size
            is_main = signature.images.name in main
            for batch_size in batch_sizes if is_main else [min(batch_sizes)]:
                inputs = sample_inputs(signature, batch_size)
                make = _predict_log
                if signature.method == CLASSIFY_METHOD:
                    make = _classify_log
                log, request = make(inputs)
                request.model_spec.name = name
                request.model_spec.signature_name = signature_name
                writer.write(log.SerializeToString())


def check_warmup(batch_sizes, num_signatures=1):
    """Raises if warm-up requests of these batch sizes can't be written."""
    if any(batch_size < 1 for batch_size in batch_sizes):
        raise ValueError(
            f"warmup_batch_sizes must be at least 1. Received: {list(batch_sizes)}"
        )
    count = num_signatures * len(batch_sizes)
    if count > MOST_RECORDS:
        raise ValueError(
            f"TF Serving takes {MOST_RECORDS} warm-up requests: pass fewer "
            f"warmup_batch_sizes. Received: {len(batch_sizes)} for each of "
            f"{num_signatures} signatures"
        )
    if batch_sizes:
        _messages()


def _predict_log(inputs):
    log = _messages().PredictionLog()
    request = log.predict_log.request
    for name, values in inputs.items():
        request.inputs[name].CopyFrom(_tensor_proto(values))
    return log, request


def _classify_log(inputs):
    log = _messages().PredictionLog()
    request = log.classify_log.request
    for example in inputs["inputs"]:
        request.input.example_list.examples.add().ParseFromString(example)
    return log, request


def _tensor_proto(values):
    """Makes a `TensorProto`, a compact one of values that are all alike."""
    if (values != values.ravel()[:1]).any():
        return tf.make_tensor_proto(values)
    proto = tf.make_tensor_proto(values.ravel()[:1])
    proto.tensor_shape.CopyFrom(tf.TensorShape(values.shape).as_proto())
    return proto


def _messages():
    try:
        from tensorflow_serving.apis import prediction_log_pb2
    except ImportError as error:
        raise ValueError(
            "Warm-up requests need tensorflow-serving-api: pip install "
            "'keras-mae[serve]', or export without warmup_batch_sizes"
        ) from error
    return prediction_log_pb2
