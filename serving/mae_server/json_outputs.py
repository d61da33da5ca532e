"""Responses of TF Serving's REST API: arrays, classes and numbers to JSON.

As the writers of tensorflow_serving/util/json_tensor.cc have it: strings are base64
where the output's name ends in `_bytes`, and numbers that are not finite are bare `NaN`
and `Infinity`.
"""

import base64
from itertools import islice

import numpy as np
import orjson
import tensorflow as tf

from mae_server import errors
from mae_server.decimals import decimals, rows
from mae_server.errors import invalid, type_name

# of an answer's text, and of a number in it; 540 images' features of ViT-B/16
MOST_BYTES, _BYTES_OF_NUMBER = 2**30, 13
# values that are made text at once
_BLOCK = 2**16
_INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint32", "uint64")


def write_outputs(outputs, in_rows):
    """Returns the JSON body of a predict response, in row or column format."""
    names = sorted(outputs)
    if sum(_size_of(array) for array in outputs.values()) > MOST_BYTES:
        # clients ask again on 429
        raise invalid(errors.ANSWER_TOO_LARGE, limit=MOST_BYTES)
    if not in_rows:
        texts = [_texts(name, outputs[name], ()) for name in names]
        texts = [next(text) for text in texts]
        text = texts[0] if len(names) == 1 else _object(names, texts)
        return _document("outputs", text)
    count = _batch_size(outputs)
    columns = [_texts(name, outputs[name], (count,)) for name in names]
    if len(names) == 1:
        return _document("predictions", _list(columns[0]))
    rows_of_texts = zip(*columns, strict=True)
    return _document("predictions", _list(_object(names, row) for row in rows_of_texts))


def write_classes(rows):
    """Returns the JSON body of a classify response: `(label, score)` pairs per row."""
    if not rows:
        raise invalid(errors.NO_CLASSES)
    lists = []
    for row in rows:
        scores = decimals(np.array([score for _, score in row], "float32"))
        pairs = zip(row, scores, strict=True)
        lists.append(_list(f"[{_quoted(label)}, {text}]" for (label, _), text in pairs))
    return _document("results", _list(lists))


def write_numbers(values):
    """Returns the JSON body of a regress response: a number per example."""
    if not len(values):
        raise invalid(errors.NO_NUMBERS)
    return _document("results", _list(decimals(np.array(values, "float32"))))


def _batch_size(outputs):
    sizes = {}
    for name in sorted(outputs):
        if outputs[name].ndim == 0:
            raise invalid(errors.NO_BATCH_AXIS, name=name)
        sizes[name] = len(outputs[name])
        wanted = next(iter(sizes.values()))
        if sizes[name] != wanted:
            raise invalid(
                errors.INCONSISTENT_BATCH_SIZE,
                name=name,
                got=sizes[name],
                wanted=wanted,
            )
    return wanted


def _size_of(array):
    """Estimates the bytes of an output's text."""
    if array.dtype == object:
        return sum(len(value) for value in array.flat) * 4 // 3
    return array.size * _BYTES_OF_NUMBER


def _texts(name, array, outer):
    """Yields the text of each item; `outer` is the shape that holds the items."""
    inner = array.shape[len(outer) :]
    count = int(np.prod(outer))
    if array.dtype in (np.float32, np.float64) and inner:
        lists = _float_lists(array.reshape(int(np.prod(array.shape[:-1])), inner[-1]))
        return (_nested(lists, inner[:-1]) for _ in range(count))
    values = _values(name, array.ravel())
    return (_nested(values, inner) for _ in range(count))


def _float_lists(matrix):
    """Yields the text of each row."""
    step = max(_BLOCK // max(matrix.shape[1], 1), 1)
    for begin in range(0, len(matrix), step):
        yield from (f"[{text}]" for text in rows(matrix[begin : begin + step]))


def _values(name, flat):
    """Yields the text of each value."""
    kind = flat.dtype.name
    for begin in range(0, len(flat), _BLOCK):
        block = flat[begin : begin + _BLOCK]
        if kind in ("float32", "float64"):
            yield from decimals(block)
        elif kind in _INTEGERS:
            yield from map(str, block.tolist())
        elif kind == "bool":
            yield from ("true" if value else "false" for value in block.tolist())
        elif kind == "object":
            write = _encoded if name.endswith("_bytes") else _quoted
            yield from map(write, block.tolist())
        else:  # half, bfloat16, uint16 and complex numbers
            raise invalid(errors.UNWRITABLE, dtype=type_name(tf.as_dtype(flat.dtype)))


def _encoded(value):
    return f'{{"b64": "{base64.b64encode(value).decode()}"}}'


def _quoted(value):
    text = value.decode(errors="replace") if isinstance(value, bytes) else value
    return orjson.dumps(text).decode()


def _nested(texts, shape):
    """Takes the values of a shape from an iterator, and writes them as lists."""
    if not shape:
        return next(texts)
    if len(shape) == 1:
        return _list(islice(texts, shape[0]))
    return _list(_nested(texts, shape[1:]) for _ in range(shape[0]))


def _list(texts):
    return f"[{', '.join(texts)}]"


def _object(names, texts):
    pairs = zip(names, texts, strict=True)
    return f"{{{', '.join(f'{_quoted(name)}: {text}' for name, text in pairs)}}}"


def _document(key, text):
    return f'{{"{key}": {text}}}'.encode()
