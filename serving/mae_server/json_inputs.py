"""Requests of TF Serving's REST API: JSON rows and columns to arrays."""

import base64
import binascii
import json

import numpy as np
import orjson
import tensorflow as tf

from mae_server import errors
from mae_server.errors import RequestError, invalid, type_name


def parse(body):
    """Parses a JSON object; bare `NaN` and `Infinity` are numbers."""
    if not body:
        raise invalid(errors.EMPTY_BODY)
    if _memory_of(body) > _MOST_MEMORY:
        raise invalid(errors.TOO_MANY_VALUES, limit=_MOST_MEMORY)
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        try:
            # slower, but reads NaN, and reports the position of an error
            document = json.loads(body.decode())
        except (ValueError, RecursionError) as error:
            raise invalid(errors.PARSE_ERROR, error=error) from error
    if not isinstance(document, dict):
        raise invalid(errors.NOT_AN_OBJECT, value=_text(document))
    return document


# bytes that a parsed document may take; 64 MiB of an image's floats take less
_MOST_MEMORY = 2**30
# what a value takes in the parser, as an object, and in a list; more in a dict's key,
# a list and a dict
_BYTES_OF = {b",": 80, b":": 72, b"[": 72, b"{": 240}


def _memory_of(body):
    """Estimates the bytes of memory that parsing takes, from above."""
    return sum(size * body.count(sign) for sign, size in _BYTES_OF.items())


def signature_name(document):
    """Returns the signature's name in a parsed body, `""` for the default one."""
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid(errors.SIGNATURE_NAME_NOT_A_STRING, value=_text(document))
    return name


def read_inputs(document, infos):
    """Converts `instances` (rows) or `inputs` (columns) to arrays, typed by `infos`."""
    if "instances" in document and "inputs" in document:
        raise invalid(errors.INPUTS_AND_INSTANCES, value=_text(document))
    dtypes = {name: tf.dtypes.as_dtype(info.dtype) for name, info in infos.items()}
    if "instances" in document:
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
    if not isinstance(rows, list):
        raise invalid(errors.INSTANCES_NOT_A_LIST, value=_text(rows))
    if not rows:
        raise invalid(errors.EMPTY_INSTANCES)
    named = _is_named(rows[0])
    if not named and len(dtypes) > 1:
        raise invalid(errors.PLAIN_INSTANCES)
    for index, row in enumerate(rows):
        if _is_named(row) != named:
            wanted, got = ("object", "list") if named else ("value/list", "object")
            raise invalid(errors.MIXED_INSTANCES, wanted=wanted, got=got, index=index)
        if named and set(row) != set(dtypes):
            raise invalid(
                errors.WRONG_KEYS,
                index=index,
                value=_text(row),
                names=",".join(sorted(dtypes)),
            )
    if named:
        columns = {name: [row[name] for row in rows] for name in dtypes}
    else:
        columns = {name: rows for name in dtypes}
    return {name: _stack(columns[name], name, dtypes[name], named) for name in dtypes}


def _stack(items, name, dtype, named):
    """Stacks the rows of an input, or raises with the index of the wrong row."""
    array = _convert_floats(items, dtype)
    if array is not None:
        return array
    arrays = []
    for index, item in enumerate(items):
        try:
            array = _to_array(item, dtype)
            if arrays and array.size != arrays[0].size:
                raise invalid(errors.WRONG_SIZE, wanted=arrays[0].size, got=array.size)
            if arrays and array.shape != arrays[0].shape:
                raise invalid(
                    errors.WRONG_SHAPE,
                    wanted=list(arrays[0].shape),
                    got=list(array.shape),
                )
        except RequestError as error:
            key = f" key: {name}" if named else ""
            raise invalid(
                errors.WRONG_INSTANCE, index=index, key=key, error=error
            ) from error
        arrays.append(array)
    return np.stack(arrays)


def _to_array(value, dtype):
    array = _convert_floats(value, dtype)
    if array is not None:
        return array
    shape, first = [], value
    while isinstance(first, list):
        shape.append(len(first))
        first = first[0] if first else None
        if len(shape) > _MAX_AXES:
            raise invalid(errors.TOO_MANY_AXES, level=_MAX_AXES)
    leaves = []
    _collect(value, 0, shape, dtype, leaves)
    kind = object if dtype == tf.string else dtype.as_numpy_dtype
    return np.array(leaves, kind).reshape(shape)


def _convert_floats(value, dtype):
    """Converts lists of floats at once; `None` if items must be checked one by one."""
    if not dtype.is_floating or not isinstance(value, list) or _holds_bool(value):
        return None
    try:
        array = np.array(value)
    except (ValueError, OverflowError):  # ragged, or too deep
        return None
    limit = float(dtype.max) if array.dtype.kind == "f" else 2**24 - 1
    if array.dtype.kind not in "fi" or not array.size:
        return None
    with np.errstate(invalid="ignore"):
        beyond = np.isfinite(array) & (np.abs(array) > limit)
    return None if beyond.any() else array.astype(dtype.as_numpy_dtype)


def _holds_bool(value):
    """Whether nested lists hold a bool, which NumPy would convert to a number."""
    if isinstance(value, list):
        if value and not isinstance(value[0], list):
            return bool in set(map(type, value))
        return any(map(_holds_bool, value))
    return isinstance(value, bool)


def _collect(value, level, shape, dtype, leaves):
    """Flattens nested lists of a shape into `leaves`."""
    if not isinstance(value, list):
        if level != len(shape):
            raise invalid(
                errors.LIST_TOO_SHALLOW,
                value=_text(value),
                level=level + 1,
                levels=len(shape),
            )
        leaves.append(_leaf(value, dtype))
        return
    if level >= len(shape):
        raise invalid(errors.LIST_TOO_DEEP, level=level, levels=len(shape))
    if len(value) != shape[level]:
        raise invalid(
            errors.WRONG_LIST_SIZE, got=len(value), level=level, wanted=shape[level]
        )
    for item in value:
        _collect(item, level + 1, shape, dtype, leaves)


def _leaf(value, dtype):
    if dtype == tf.string:
        if isinstance(value, dict):
            return from_base64(value)
        if not isinstance(value, str):
            raise _type_error(value, dtype)
        try:
            return value.encode()
        except UnicodeEncodeError as error:
            raise invalid(errors.LONE_SURROGATE, error=error) from error
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _type_error(value, dtype)
    if dtype.is_integer:
        if not isinstance(value, int) or not dtype.min <= value <= dtype.max:
            raise _type_error(value, dtype)
        return value
    whole = isinstance(value, int)
    if abs(value) > (2**24 - 1 if whole else float(dtype.max)) and abs(value) != np.inf:
        raise invalid(
            errors.LOSS_OF_PRECISION, value=_text(value), dtype=type_name(dtype)
        )
    return value


def from_base64(value):
    """Decodes `{"b64": "..."}` to bytes."""
    if set(value) != {"b64"} or not isinstance(value["b64"], str):
        raise invalid(errors.NOT_BASE64_DATA, value=_text(value))
    try:
        return base64.b64decode(value["b64"], validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid(errors.INVALID_BASE64) from error


def _is_named(value):
    return isinstance(value, dict) and set(value) != {"b64"}


# NumPy allows 64, signatures have far fewer
_MAX_AXES = 32
_KINDS = {
    type(None): "Null",
    dict: "Object",
    list: "Array",
    str: "String",
    int: "Number",
    float: "Number",
}


def _type_error(value, dtype):
    kind = str(value) if isinstance(value, bool) else _KINDS[type(value)]
    return invalid(
        errors.WRONG_JSON_TYPE, value=_text(value), got=kind, wanted=type_name(dtype)
    )


def _text(value, limit=200):
    """Formats JSON for a message, at most its beginning: it may be megabytes long."""
    text = ""
    for piece in _pieces(value, limit):
        text += piece
        if len(text) > limit:
            return f"{text[:limit]}..."
    return text


def _pieces(value, limit):
    """Yields the text of a JSON value piece by piece, long strings cut."""
    if isinstance(value, dict):
        yield "{"
        for index, (key, item) in enumerate(value.items()):
            yield f"{', ' if index else ''}{json.dumps(key[: limit + 1])}: "
            yield from _pieces(item, limit)
        yield "}"
    elif isinstance(value, list):
        yield "["
        for index, item in enumerate(value):
            yield ", " if index else ""
            yield from _pieces(item, limit)
        yield "]"
    else:
        yield json.dumps(value[: limit + 1] if isinstance(value, str) else value)
