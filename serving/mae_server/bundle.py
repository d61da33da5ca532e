"""A loaded SavedModel: its signatures, and a session that runs them."""

from pathlib import Path

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from mae_server.errors import RequestError, invalid, type_name

CLASSIFY_METHOD = tf.saved_model.CLASSIFY_METHOD_NAME
# it calls TF Serving's own loader deprecated, and names none that frees memory
tf.get_logger().setLevel("ERROR")
_WARM_UP = "assets.extra/tf_serving_warmup_requests"


class Bundle:
    """A SavedModel in a session of its own, which frees its memory when closed.

    Args:
        path: Path of the SavedModel's folder.

    Raises:
        ValueError: If the SavedModel can't be read, or a warm-up request fails.

    Example:

    ```python
    module = tf.Module()
    x = tf.TensorSpec((None,), tf.float32, "x")
    double = tf.function(lambda x: {"y": 2 * x}).get_concrete_function(x)
    tf.saved_model.save(module, "double", signatures={"serving_default": double})
    bundle = Bundle("double")
    assert bundle.run("serving_default", {"x": np.ones(2, "float32")})["y"][1] == 2
    bundle.close()
    ```
    """

    def __init__(self, path):
        path = Path(path)
        self._session = tf.compat.v1.Session(graph=tf.Graph())
        try:
            with self._session.graph.as_default():
                # the loader of TF Serving; TensorFlow 2's keeps all models for ever
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
            raise ValueError(f"{path} is no servable SavedModel: {text}") from error

    def run(self, signature_name, inputs, outputs=()):
        """Runs a signature.

        Args:
            signature_name: Str, a key of `signatures`.
            inputs: Dict from input name to array.
            outputs: Names of the outputs to compute; all by default.

        Returns:
            Dict from output name to array.

        Raises:
            RequestError: If the inputs don't fit, or the graph refuses them.
        """
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
        """Frees the memory; what runs must have ended."""
        self._session.close()

    def _warm_up(self, path):
        """Answers the recorded requests, so that no user waits for the first."""
        if not path.exists():
            return
        from tensorflow_serving.apis import prediction_log_pb2

        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            try:
                self._replay(prediction_log_pb2.PredictionLog.FromString(record))
            except (RequestError, KeyError, DecodeError) as error:
                raise ValueError(f"a warm-up request failed: {error}") from error

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
        f"input size does not match signature: {len(given)}!={len(wanted)} "
        f"len({{{','.join(sorted(given))}}}) != len({{{','.join(sorted(wanted))}}}). "
        f"Sent extra: {{{extra}}}. Missing but required: {{{missing}}}."
    )


def _fitting(index, name, array, info):
    """Checks an input's type and shape against the signature's."""
    wanted = tf.dtypes.as_dtype(info.dtype)
    given = tf.dtypes.as_dtype("string" if array.dtype.kind in "OSU" else array.dtype)
    if wanted != given:
        raise invalid(
            f"Expects arg[{index}] to be {type_name(wanted)} but {type_name(given)} is "
            "provided"
        )
    shape = tf.TensorShape(info.tensor_shape)
    if not shape.is_compatible_with(array.shape):
        sizes = ",".join("?" if size is None else str(size) for size in shape)
        raise invalid(
            f"Shape of tensor {name} [{','.join(map(str, array.shape))}] is not "
            f"compatible with expected shape [{sizes}]."
        )
    return array
