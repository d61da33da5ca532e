"""A loaded SavedModel: its signatures, and the session that runs them."""

from pathlib import Path
from typing import NamedTuple

import tensorflow as tf

from mae_server import errors, splitting, warmup
from mae_server.batching import Batcher, BatchingOptions
from mae_server.errors import LoadError, RequestError, invalid, type_name
from mae_server.tensor_protos import dtype_of

# silences a deprecation of the only loader whose memory can be freed
tf.get_logger().setLevel("ERROR")


class LoadOptions(NamedTuple):
    """How SavedModels are loaded; threads are TensorFlow's choice where they are 0."""

    tags: tuple = ("serve",)
    warm_up: bool = True
    warm_up_repeats: int = 1
    intra_op_threads: int = 0
    inter_op_threads: int = 0
    batching: BatchingOptions | None = None


LOAD_DEFAULTS = LoadOptions()


class Bundle:
    """A SavedModel in a session of its own, which frees its memory when closed."""

    def __init__(self, path, options=LOAD_DEFAULTS):
        path = Path(path)
        threads = tf.compat.v1.ConfigProto(
            intra_op_parallelism_threads=options.intra_op_threads,
            inter_op_parallelism_threads=options.inter_op_threads,
        )
        self._session = tf.compat.v1.Session(graph=tf.Graph(), config=threads)
        self._batcher = None
        try:
            with self._session.graph.as_default():
                # TF Serving's loader; TensorFlow 2's never frees a model
                meta_graph = tf.compat.v1.saved_model.load(
                    self._session, list(options.tags), str(path)
                )
            self.signatures = dict(meta_graph.signature_def)
            if options.batching is not None:
                parameters = options.batching.of_model(path)
                self._batcher = parameters and Batcher(self._run, parameters)
            if options.warm_up:
                warmup.warm_up(self, path / warmup.PATH, options.warm_up_repeats)
        except Exception as error:  # a broken graph fails in any way
            self.close()
            raise _load_error(path, options.tags, error) from error

    def run(self, signature_name, inputs, outputs, call):
        """Runs a signature on arrays by name; computes all outputs if none is named."""
        signature = self.signatures[signature_name]
        check_names(signature.inputs, inputs)
        for index, (name, info) in enumerate(sorted(signature.inputs.items())):
            _check_fits(index, name, inputs[name], info)
        wanted = outputs or sorted(signature.outputs)
        for name in wanted:
            if ":" not in signature.outputs[name].name:  # __saved_model_init_op
                raise invalid(errors.NOT_A_TENSOR, name=signature.outputs[name].name)
        fetches = {name: signature.outputs[name].name for name in wanted}
        parts = []
        for part in splitting.split(inputs, call.check):
            call.check()
            feeds = {signature.inputs[name].name: part[name] for name in part}
            if self._batcher is None:
                parts.append(self._run(fetches, feeds, call.seconds_left()))
            else:
                parts.append(self._batcher.run(fetches, feeds, call))
        return splitting.join(parts)

    def _run(self, fetches, feeds, seconds):
        milliseconds = 0 if seconds is None else max(int(1000 * seconds), 1)
        options = tf.compat.v1.RunOptions(timeout_in_ms=milliseconds)
        try:
            return self._session.run(fetches, feeds, options)
        except tf.errors.OpError as error:
            raise RequestError.from_tensorflow(error) from error

    def close(self):
        """Frees the memory; no request may be running."""
        self._session.close()


def _load_error(path, tags, error):
    """Gives a failed load the code and message of TF Serving's loader."""
    if isinstance(error.__cause__, RequestError):  # of a warm-up request
        return LoadError(error.__cause__.code, str(error))
    if isinstance(error, tf.errors.OpError):
        found = RequestError.from_tensorflow(error)
        return LoadError(found.code, _first_line(str(found), error))
    # tensorflow/cc/saved_model/reader.cc
    file = next(iter(path.glob("saved_model.pb*")), None)
    if file is None:
        text = (
            "Could not find SavedModel .pb or .pbtxt at supplied export directory "
            f"path: {path}. Check that the directory exists and that you have the "
            "right permissions for accessing it."
        )
        return LoadError("NOT_FOUND", text)
    if isinstance(error, OSError):
        return LoadError("DATA_LOSS", f"Can't parse {file} as binary proto")
    if isinstance(error, RuntimeError):
        text = (
            f"Could not find meta graph def matching supplied tags: {{ "
            f"{' '.join(tags)} }}. To inspect available tag-sets in the SavedModel, "
            "please use the SavedModel CLI: `saved_model_cli`"
        )
        return LoadError("NOT_FOUND", text)
    return LoadError("INVALID_ARGUMENT", _first_line(str(error), error))


def _first_line(text, error):
    """Returns the first line of a text, the error's type where there is none."""
    return next(iter(text.splitlines()), type(error).__name__)


def check_names(wanted, given):
    """Raises unless a request gives the inputs of a signature, and no others."""
    if set(wanted) == set(given):
        return
    if len(wanted) == len(given):
        name = min(set(wanted) - set(given))
        got = ",".join(sorted(given))
        raise invalid(errors.MISSING_INPUT, name=name, feed=wanted[name].name, got=got)
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


def _check_fits(index, name, array, info):
    """Checks an input's type and shape against the signature's."""
    wanted = tf.dtypes.as_dtype(info.dtype)
    given = dtype_of(array)
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
