"""Requests of TF Serving's REST API: JSON rows and columns to arrays."""

import base64
import binascii
import json

import numpy as np
import orjson
import tensorflow as tf

from mae_server.errors import RequestError, invalid, type_name


def parse(body):
    """Parses a JSON object; bare `NaN` and `Infinity` are numbers."""
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        try:
            # slower, but reads NaN, and reports the position of an error
            document = json.loads(body.decode())
        except (ValueError, RecursionError) as error:
            raise invalid(f"JSON Parse error: {error}") from error
    if not isinstance(document, dict):
        raise invalid(f"JSON Value: {_text(document)} Is not object")
    return document


def signature_name(document):
    """Returns the signature's name in a parsed body, `""` for the default one."""
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid(
            f"JSON Value: {_text(document)} not formatted correctly. 'signature_name' "
            "key must be a string value."
        )
    return name


def read_inputs(document, infos):
    """Converts `instances` (rows) or `inputs` (columns) to arrays, typed by `infos`."""
    if "instances" in document and "inputs" in document:
        raise invalid(
            f"JSON Value: {_text(document)} Not formatted correctly expecting only one "
            "of 'inputs' or 'instances' keys to exist"
        )
    dtypes = {name: tf.dtypes.as_dtype(info.dtype) for name, info in infos.items()}
    if "instances" in document:
        return _from_rows(document["instances"], dtypes)
    if "inputs" in document:
        return _from_columns(document["inputs"], dtypes)
    raise invalid("Missing 'inputs' or 'instances' key")


def _from_columns(inputs, dtypes):
    if _is_named(inputs):
        for name in sorted(dtypes):
            if name not in inputs:
                raise invalid(f"Missing named input: {name} in 'inputs' object.")
        return {name: _to_array(inputs[name], dtypes[name]) for name in dtypes}
    if len(dtypes) > 1:
        raise invalid(
            "inputs is a plain value/list, but expecting an object as multiple input "
            "tensors required as per tensorinfo_map"
        )
    return {name: _to_array(inputs, dtype) for name, dtype in dtypes.items()}


def _from_rows(rows, dtypes):
    if not isinstance(rows, list):
        raise invalid(
            f"JSON Value: {_text(rows)} Excepting 'instances' to be an list/array"
        )
    if not rows:
        raise invalid("JSON Value: [] No values in 'instances' array")
    named = _is_named(rows[0])
    if not named and len(dtypes) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple "
            "input tensors required as per tensorinfo_map"
        )
    for index, row in enumerate(rows):
        if _is_named(row) != named:
            wanted, got = ("object", "list") if named else ("value/list", "object")
            raise invalid(
                f"Expecting {wanted} but got {got} at item {index} of input list"
            )
        if named and set(row) != set(dtypes):
            raise invalid(
                f"Failed to process element: {index} of 'instances' list. JSON object: "
                f"{_text(row)} keys must be equal to: {','.join(sorted(dtypes))}"
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
                raise invalid(
                    f"Expecting tensor size: {arrays[0].size} but got: {array.size}"
                )
            if arrays and array.shape != arrays[0].shape:
                raise invalid(
                    f"Expecting shape {list(arrays[0].shape)} but got: "
                    f"{list(array.shape)}"
                )
        except RequestError as error:
            key = f" key: {name}" if named else ""
            raise invalid(
                f"Failed to process element: {index}{key} of 'instances' list. Error: "
                f"INVALID_ARGUMENT: {error}"
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
            raise invalid(f"Encountered list at unexpected level: {_MAX_AXES}")
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
                f"JSON Value: {_text(value)} found at incorrect level: {level + 1} in "
                f"the JSON DOM. Expected at level: {len(shape)}"
            )
        leaves.append(_leaf(value, dtype))
        return
    if level >= len(shape):
        raise invalid(
            f"Encountered list at unexpected level: {level} expected < {len(shape)}"
        )
    if len(value) != shape[level]:
        raise invalid(
            f"Encountered list at unexpected size: {len(value)} at level: {level} "
            f"expected size: {shape[level]}"
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
            raise invalid(f"JSON Parse error: a lone surrogate: {error}") from error
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _type_error(value, dtype)
    if dtype.is_integer:
        if not isinstance(value, int) or not dtype.min <= value <= dtype.max:
            raise _type_error(value, dtype)
        return value
    whole = isinstance(value, int)
    if abs(value) > (2**24 - 1 if whole else float(dtype.max)) and abs(value) != np.inf:
        raise invalid(
            f"Cannot convert JSON value: {_text(value)} to {type_name(dtype)} without "
            "loss of precision."
        )
    return value


def from_base64(value):
    """Decodes `{"b64": "..."}` to bytes."""
    if set(value) != {"b64"} or not isinstance(value["b64"], str):
        raise invalid(
            f"JSON Value: {_text(value)} not formatted correctly for base64 data"
        )
    try:
        return base64.b64decode(value["b64"], validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid("Unable to base64 decode") from error


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
        f"JSON Value: {_text(value)} Type: {kind} is not of expected type: "
        f"{type_name(dtype)}"
    )


def _text(value):
    """Formats JSON for a message, shortened: an image may be megabytes long."""
    text = json.dumps(value, skipkeys=True)
    return text if len(text) <= 200 else f"{text[:200]}..."
