"""Classify, Regress and MultiInference: what they ask of signatures and outputs.

As tensorflow_serving/servables/tensorflow/classifier.cc, regressor.cc and
multi_inference.cc do, for servers without --enable_signature_method_name_check.
"""

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2

from mae_server import errors
from mae_server.errors import RequestError, invalid
from mae_server.tensor_protos import dtype_of

DEFAULT_SIGNATURE = "serving_default"
CLASSIFY, REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"
_INPUTS, _CLASSES, _SCORES, _REGRESSED = "inputs", "classes", "scores", "outputs"


def outputs_of(method, signature):
    """Returns the outputs that a method computes; raises if it is for another one."""
    if method == CLASSIFY:
        return _outputs_to_classify(signature)
    if method == REGRESS:
        return _outputs_to_regress(signature)
    raise RequestError("UNIMPLEMENTED", f"Unsupported signature method_name: {method}")


def read(method, outputs, count):
    """Returns `(label, score)` rows of Classify, or the values of Regress."""
    if method == CLASSIFY:
        return _classes(outputs.get(_CLASSES), outputs.get(_SCORES), count)
    return _values(outputs[_REGRESSED], count)


def _outputs_to_classify(signature):
    if len(signature.inputs) != 1:
        raise invalid(errors.NOT_ONE_INPUT)
    if len(signature.outputs) not in (1, 2):
        raise invalid(errors.NOT_TWO_OUTPUTS, got=len(signature.outputs))
    if _INPUTS not in signature.inputs:
        raise invalid(errors.NO_CLASSIFICATION_INPUTS, signature=str(signature))
    names = [name for name in (_CLASSES, _SCORES) if name in signature.outputs]
    if not names:
        raise invalid(errors.NO_CLASSES_OR_SCORES, signature=str(signature))
    return names


def _outputs_to_regress(signature):
    if len(signature.inputs) != 1:
        raise invalid(errors.NOT_ONE_INPUT)
    if len(signature.outputs) != 1:
        raise invalid(errors.NOT_ONE_OUTPUT)
    if _INPUTS not in signature.inputs:
        raise invalid(errors.NO_REGRESSION_INPUTS, signature=str(signature))
    if _REGRESSED not in signature.outputs:
        raise invalid(errors.NO_REGRESSION_OUTPUTS, signature=str(signature))
    return [_REGRESSED]


def _classes(classes, scores, count):
    for name, array, dtype in (
        ("classes", classes, tf.string),
        ("scores", scores, tf.float32),
    ):
        if array is not None:
            _check_classes(name, np.asarray(array), dtype, count)
    both = classes is not None and scores is not None
    if both and classes.shape[1] != scores.shape[1]:
        raise invalid(
            errors.CLASSES_AND_SCORES, got=classes.shape[1], other=scores.shape[1]
        )
    shape = (scores if classes is None else classes).shape
    # a field that isn't set
    labels = np.full(shape, b"", object) if classes is None else classes
    scores = np.zeros(shape, "float32") if scores is None else scores
    return [
        [
            (label.decode(errors="replace"), score)
            for label, score in zip(*row, strict=True)
        ]
        for row in zip(labels, scores, strict=True)
    ]


def _check_classes(name, array, dtype, count):
    if array.ndim != 2:
        raise invalid(errors.NOT_BATCH_OF_CLASSES, shape=_shape(array))
    if dtype_of(array) != dtype:
        wanted = types_pb2.DataType.Name(dtype.as_datatype_enum)
        raise invalid(
            errors.CLASSES_DTYPE, name=name, wanted=wanted, got=_type_name(array)
        )
    if len(array) != count:
        raise invalid(errors.CLASSES_COUNT, name=name, wanted=count, got=len(array))


def _values(array, count):
    array = np.asarray(array)
    if array.ndim != 1 and not (array.ndim == 2 and array.shape[1] == 1):
        raise invalid(errors.NOT_BATCH_OF_VALUES, shape=_shape(array))
    if len(array) != count:
        raise invalid(errors.VALUES_COUNT, wanted=count, got=len(array))
    if dtype_of(array) != tf.float32:
        raise invalid(errors.VALUES_DTYPE, got=_type_name(array))
    return list(array.ravel())


def _type_name(array):
    return types_pb2.DataType.Name(dtype_of(array).as_datatype_enum)


def _shape(array):
    return f"[{','.join(map(str, array.shape))}]"
