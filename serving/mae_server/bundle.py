"""A loaded SavedModel: its signatures, and the session that runs them."""

from pathlib import Path

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from mae_server import errors
from mae_server.errors import RequestError, invalid, type_name

CLASSIFY_METHOD = tf.saved_model.CLASSIFY_METHOD_NAME
# silences a deprecation of the only loader whose memory can be freed
tf.get_logger().setLevel("ERROR")
_WARM_UP = "assets.extra/tf_serving_warmup_requests"


class Bundle:
    """A SavedModel in a session of its own, which frees its memory when closed."""

    def __init__(self, path):
        path = Path(path)
        self._session = tf.compat.v1.Session(graph=tf.Graph())
        try:
            with self._session.graph.as_default():
                # TF Serving's loader; TensorFlow 2's never frees a model
                meta_graph = tf.compat.v1.saved_model.load(
                    self._session, ["serve"], str(path)
                )
            self.signatures = {
                name: signature
                for name, signature in meta_graph.signature_def.items()
                if name != "__saved_model_init_op"
            }
            self._warm_up(path / _WARM_UP)
        except (OSError, RuntimeError, ValueError, tf.errors.OpError) as error:
            self.close()
            text = getattr(error, "message", str(error)).splitlines()[0]
            raise ValueError(f"Cannot load SavedModel {path}: {text}") from error

    def run(self, signature_name, inputs, outputs=()):
        """Runs a signature on arrays by name; computes all outputs by default."""
        signature = self.signatures[signature_name]
        _check_names(signature.inputs, inputs)
        feeds = {
            signature.inputs[name].name: _fitting(index, name, inputs[name], info)
            for index, (name, info) in enumerate(sorted(signature.inputs.items()))
        }
        wanted = outputs or sorted(signature.outputs)
        fetches = {name: signature.outputs[name].name for name in wanted}
        try:
            return self._session.run(fetches, feeds)
        except tf.errors.OpError as error:
            raise RequestError.from_tensorflow(error) from error

    def close(self):
        """Frees the memory; no request may be running."""
        self._session.close()

    def _warm_up(self, path):
        """Runs the recorded requests, so that no user waits for the first one."""
        if not path.exists():
            return
        from tensorflow_serving.apis import prediction_log_pb2

        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            try:
                self._replay(prediction_log_pb2.PredictionLog.FromString(record))
            except (RequestError, KeyError, DecodeError) as error:
                raise ValueError(f"warm-up request failed: {error}") from error

    def _replay(self, log):
        if log.HasField("classify_log"):
            request = log.classify_log.request
            examples = request.input.example_list.examples
            encoded = [example.SerializeToString() for example in examples]
            inputs = {"inputs": np.array(encoded, object)}
        else:
            request = log.predict_log.request
            inputs = {
                name: tf.make_ndarray(value) for name, value in request.inputs.items()
            }
        self.run(request.model_spec.signature_name or "serving_default", inputs)


def _check_names(wanted, given):
    if set(wanted) == set(given):
        return
    extra = ",".join(sorted(set(given) - set(wanted)))
    missing = ",".join(sorted(set(wanted) - set(given)))
    raise invalid(
        errors.WRONG_INPUTS,
        got_count=len(given),
        wanted_count=len(wanted),
        got=",".join(sorted(given)),
        wanted=",".join(sorted(wanted)),
        extra=extra,
        missing=missing,
    )


def _fitting(index, name, array, info):
    """Checks an input's type and shape against the signature's."""
    wanted = tf.dtypes.as_dtype(info.dtype)
    given = tf.dtypes.as_dtype("string" if array.dtype.kind in "OSU" else array.dtype)
    if wanted != given:
        raise invalid(
            errors.WRONG_TENSOR_DTYPE,
            index=index,
            wanted=type_name(wanted),
            got=type_name(given),
        )
    shape = tf.TensorShape(info.tensor_shape)
    if not shape.is_compatible_with(array.shape):
        sizes = ",".join("?" if size is None else str(size) for size in shape)
        raise invalid(
            errors.WRONG_TENSOR_SHAPE,
            name=name,
            got=",".join(map(str, array.shape)),
            wanted=sizes,
        )
    return array
