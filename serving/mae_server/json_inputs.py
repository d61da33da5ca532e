"""Requests of TF Serving's REST API: JSON rows and columns to arrays.

As the readers of tensorflow_serving/util/json_tensor.cc have it, with
`absl::Base64Unescape`.
"""

import base64

import numpy as np
import tensorflow as tf

from mae_server import errors
from mae_server.errors import RequestError, invalid, shortened, type_name
from mae_server.json_documents import kind_of, text_of


def signature_name(document):
    """Returns the signature's name in a parsed body, `""` for the default one."""
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid(errors.SIGNATURE_NAME_NOT_A_STRING, value=text_of(document))
    return name


def read_inputs(document, infos, most_rows=None):
    """Converts `instances` (rows) or `inputs` (columns) to arrays, typed by `infos`."""
    if not infos:
        name = document.get("signature_name") or "DEFAULT"
        raise invalid(errors.NO_INPUTS_IN_SIGNATURE, name=name)
    dtypes = {name: tf.dtypes.as_dtype(info.dtype) for name, info in infos.items()}
    if "instances" in document and "inputs" in document:
        raise invalid(errors.INPUTS_AND_INSTANCES, value=text_of(document))
    if "instances" in document:
        if not isinstance(document["instances"], list):
            raise invalid(errors.INSTANCES_NOT_A_LIST, value=text_of(document))
        if not document["instances"]:
            raise invalid(errors.EMPTY_INSTANCES, value=text_of(document))
        # before they are read one by one
        errors.check_batch_size(len(document["instances"]), most_rows)
        return _from_rows(document["instances"], dtypes)
    if "inputs" in document:
        return _from_columns(document["inputs"], dtypes)
    raise invalid(errors.NO_INPUTS_OR_INSTANCES)


def _from_columns(inputs, dtypes):
    if _is_named(inputs):
        for name in sorted(dtypes):
            if name not in inputs:
                raise invalid(errors.MISSING_NAMED_INPUT, name=name)
        return {name: _to_array(inputs[name], dtypes[name]) for name in dtypes}
    if len(dtypes) > 1:
        raise invalid(errors.PLAIN_INPUTS)
    return {name: _to_array(inputs, dtype) for name, dtype in dtypes.items()}


def _from_rows(rows, dtypes):
    if not isinstance(rows[0], dict) and len(dtypes) > 1:
        raise invalid(errors.PLAIN_INSTANCES)
    named = _is_named(rows[0])
    for index, row in enumerate(rows):
        _check_row(index, row, named, dtypes)
    if named:
        columns = {name: [row[name] for row in rows] for name in dtypes}
    else:
        columns = {min(dtypes): rows}
    return {n: _stack(items, n, dtypes[n], named) for n, items in columns.items()}


def _check_row(index, row, named, dtypes):
    """Checks that a row has the first one's kind, and each input."""
    if _is_named(row) != named:
        wanted, got = ("object", "list") if named else ("value/list", "object")
        raise invalid(errors.MIXED_INSTANCES, wanted=wanted, got=got, index=index)
    if not named:
        return
    for name in row:
        if name not in dtypes:
            key = f" key: {shortened(name)}"
            error = errors.NO_SUCH_INPUT.format(name=shortened(name))
            raise invalid(errors.WRONG_INSTANCE, index=index, key=key, error=error)
    if len(row) < len(dtypes):
        names = ",".join(sorted(dtypes))
        raise invalid(errors.WRONG_KEYS, index=index, value=text_of(row), names=names)


def _stack(items, name, dtype, named):
    """Stacks the rows of an input, or raises with the index of the wrong row."""
    array = _convert_at_once(items, dtype)
    if array is not None:
        return array
    arrays = []
    for index, item in enumerate(items):
        try:
            array = _to_array(item, dtype)
            if arrays and array.size != arrays[0].size:
                raise invalid(errors.WRONG_SIZE, wanted=arrays[0].size, got=array.size)
            if arrays and array.shape != arrays[0].shape:
                wanted, got = (
                    f"[{','.join(map(str, shape))}]"
                    for shape in (arrays[0].shape, array.shape)
                )
                raise invalid(errors.WRONG_SHAPE, wanted=wanted, got=got)
        except RequestError as error:
            key = f" key: {name}" if named else ""
            text = f"{error.code}: {error}"
            raise invalid(
                errors.WRONG_INSTANCE, index=index, key=key, error=text
            ) from error
        arrays.append(array)
    return np.stack(arrays)


def _to_array(value, dtype):
    array = _convert_at_once(value, dtype)
    if array is not None:
        return array
    shape, first = [], value
    while isinstance(first, list):
        shape.append(len(first))
        first = first[0] if first else None
        if len(shape) > _MAX_AXES:
            raise invalid(errors.TOO_MANY_AXES, level=_MAX_AXES)
    leaves = []
    _collect(value, 0, shape, _reader(dtype), leaves)
    if dtype == tf.string:
        return np.array(leaves, object).reshape(shape)
    return _cast(np.array(leaves, _WIDE[dtype]), dtype).reshape(shape)


def _convert_at_once(value, dtype):
    """Converts lists of numbers; `None` if items must be checked one by one."""
    kinds = _KINDS.get(dtype)
    if kinds is None or not isinstance(value, list) or not _hold_only(kinds, value):
        return None
    try:
        array = np.array(value)
    except (ValueError, OverflowError):  # ragged, or too deep
        return None
    if array.dtype.kind not in "bfiu" or not array.size:
        return None
    if dtype in _BOUNDS:
        least, most = _BOUNDS[dtype]
        # int64 and uint64 together are float64
        if array.dtype.kind == "f" or array.min() < least or array.max() > most:
            return None
    return _cast(array.astype(_WIDE[dtype]), dtype)


def _cast(array, dtype):
    with np.errstate(over="ignore"):  # beyond float32 is infinity
        return array.astype(dtype.as_numpy_dtype)


def _hold_only(kinds, value):
    """Whether nested lists hold only items of some types."""
    # NumPy would convert others, and make every text as long as the longest one
    found = set(map(type, value))
    if found == {list}:
        return all(_hold_only(kinds, item) for item in value)
    return found <= kinds


def _collect(value, level, shape, read, leaves):
    """Flattens nested lists of a shape into `leaves`, each by `read`."""
    if not isinstance(value, list):
        if level != len(shape):
            raise invalid(
                errors.LIST_TOO_SHALLOW,
                value=text_of(value),
                level=level + 1,
                levels=len(shape),
            )
        leaves.append(read(value))
        return
    if level >= len(shape):
        raise invalid(errors.LIST_TOO_DEEP, level=level, levels=len(shape))
    if len(value) != shape[level]:
        raise invalid(
            errors.WRONG_LIST_SIZE, got=len(value), level=level, wanted=shape[level]
        )
    for item in value:
        _collect(item, level + 1, shape, read, leaves)


def _reader(dtype):
    """Returns a function that checks and converts a value for a type of tensors."""
    if dtype == tf.string:
        return _read_bytes
    kinds, bounds = _KINDS.get(dtype), _BOUNDS.get(dtype)

    def read(value):
        if isinstance(value, dict):
            raise _type_error(value, dtype)
        if kinds is None:
            raise errors.unimplemented(
                errors.NO_CONVERSION, value=text_of(value), dtype=type_name(dtype)
            )
        fits = type(value) in kinds
        if not fits or (bounds and not bounds[0] <= value <= bounds[1]):
            raise _type_error(value, dtype)
        return value

    return read


def _read_bytes(value):
    if isinstance(value, dict):
        return from_base64(value)
    if not isinstance(value, str):
        raise _type_error(value, tf.string)
    return to_bytes(value)


def to_bytes(text):
    """Encodes a string of a parsed document as it was sent."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise invalid(errors.LONE_SURROGATE) from error


def from_base64(value):
    """Decodes `{"b64": "..."}` to bytes."""
    if not is_base64(value):
        raise invalid(errors.NOT_BASE64_DATA, value=text_of(value))
    try:
        return _unescape(value["b64"])
    except ValueError as error:
        raise invalid(errors.INVALID_BASE64) from error


def _unescape(text):
    """Decodes base64 that may have white space, and no padding or dots for it."""
    packed = text.encode("ascii").translate(None, b" \t\n\v\f\r")
    digits = packed.rstrip(b"=.")
    padding = -len(digits) % 4
    if padding == 3 or len(packed) - len(digits) not in (0, padding):
        raise ValueError("wrong padding")
    return base64.b64decode(digits + padding * b"=", validate=True)


def is_base64(value):
    """Whether a JSON value is an object that stands for bytes."""
    return (
        isinstance(value, dict)
        and set(value) == {"b64"}
        and isinstance(value["b64"], str)
    )


def _is_named(value):
    return isinstance(value, dict) and not is_base64(value)


# NumPy allows 64, signatures have far fewer
_MAX_AXES = 32
_FLOATS = (tf.float32, tf.float64)
# bounds of the integers that are read for a type of tensors
_BOUNDS = {
    # what doesn't fit into the smaller ones wraps around
    **dict.fromkeys((tf.int32, tf.int16, tf.int8, tf.uint8), (-(2**31), 2**31 - 1)),
    tf.uint32: (0, 2**32 - 1),
    tf.int64: (-(2**63), 2**63 - 1),
    tf.uint64: (0, 2**64 - 1),
}
# types of JSON's values that are read for them
_KINDS = {
    tf.bool: {bool},
    **{key: {int, float} for key in _FLOATS},
    **{key: {int} for key in _BOUNDS},
}
# types of NumPy that hold them before they wrap around
_WIDE = {
    tf.bool: "bool",
    **dict.fromkeys(_FLOATS, "float64"),
    **{
        dtype: "uint64" if least == 0 else "int64"
        for dtype, (least, _) in _BOUNDS.items()
    },
}


def _type_error(value, dtype):
    kind = kind_of(value)
    return invalid(
        errors.WRONG_JSON_TYPE, value=text_of(value), got=kind, wanted=type_name(dtype)
    )
