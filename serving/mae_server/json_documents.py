"""JSON documents of TF Serving's REST API: their parser, and their text in messages.

As `ParseJson` and `JsonValueToDebugString` in tensorflow_serving/util/json_tensor.cc,
with rapidjson 1.1.0.
"""

import codecs
import json
import re

import numpy as np
import orjson

from mae_server import errors
from mae_server.errors import invalid


def parse(body):
    """Parses a JSON object as rapidjson does for TF Serving."""
    if not body:
        raise invalid(errors.EMPTY_BODY)
    if _memory_of(body) > _MOST_MEMORY:
        raise invalid(errors.TOO_MANY_VALUES, limit=_MOST_MEMORY)
    if body.startswith(codecs.BOM_UTF8):
        body = memoryview(body)[len(codecs.BOM_UTF8) :]
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        # NaN and Inf, strings of any bytes, and text behind the object are read so
        document = _parse_slowly(body)
    if not isinstance(document, dict):
        raise invalid(errors.NOT_AN_OBJECT, value=text_of(document))
    return document


def _parse_slowly(body):
    """Parses what is not strictly JSON, and says where an error is."""
    text = str(body, "utf-8", "surrogateescape")
    if "Inf" in text or "-NaN" in text:
        text = _UNUSUAL.sub(_as_usual, text)
    try:
        document, _ = _DECODER.raw_decode(text, _SPACE.match(text).end())
    except (ValueError, RecursionError) as error:
        said, offset = getattr(error, "msg", str(error)), getattr(error, "pos", 0)
        raise invalid(errors.PARSE_ERROR, error=said, offset=offset) from error
    return document


def _as_usual(match):
    token = match[0]
    if token.startswith('"'):
        return token
    return "NaN" if token == "-NaN" else token.replace("Infinity", "Inf") + "inity"


def _to_float(text):
    value = float(text)
    if abs(value) == np.inf:
        raise ValueError("Number too big to be stored in double.")
    return value


def _to_int(text):
    """Converts to an int where 64 bits hold it, else to a float."""
    value = int(text) if len(text) <= 20 else 2**64
    return value if -(2**63) <= value < 2**64 else _to_float(text)


_DECODER = json.JSONDecoder(parse_float=_to_float, parse_int=_to_int)
_SPACE = re.compile(r"[ \t\r\n]*")
# strings, to be left as they are, and numbers that only rapidjson reads
_UNUSUAL = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|-?Inf(?:inity)?+|-NaN', re.DOTALL)

# bytes that a parsed document may take; 64 MiB of an image's floats take less
_MOST_MEMORY = 2**30
# what a value takes in the parser, as an object, and in a list; more in a dict's key,
# a list and a dict
_BYTES_OF = {b",": 80, b":": 72, b"[": 72, b"{": 240}


def _memory_of(body):
    """Estimates the bytes of memory that parsing takes, from above."""
    return sum(size * body.count(sign) for sign, size in _BYTES_OF.items())


_KINDS = {
    type(None): "Null",
    dict: "Object",
    list: "Array",
    str: "String",
    int: "Number",
    float: "Number",
}


def kind_of(value):
    """Returns a JSON value's type as TF Serving names it."""
    return str(value) if isinstance(value, bool) else _KINDS[type(value)]


def text_of(value, limit=256):
    """Formats the beginning of JSON for a message, as `JsonValueToDebugString`."""
    text = ""
    for piece in _pieces(value, limit):
        if len(text) >= limit:
            break
        text += piece
    return text


def _pieces(value, limit, level=1):
    """Yields the text of a JSON value piece by piece, long strings cut."""
    if isinstance(value, dict):
        yield "{"
        for index, (key, item) in enumerate(value.items()):
            begin = f"{',' if index else ''}\n{level * '    '}"
            yield f"{begin}{_scalar(key, limit)}: "
            yield from _pieces(item, limit, level + 1)
        yield f"\n{(level - 1) * '    '}}}" if value else "}"
    elif isinstance(value, list):
        yield "["
        for index, item in enumerate(value):
            yield ", " if index else ""
            yield from _pieces(item, limit, level + 1)
        yield "]"
    else:
        yield _scalar(value, limit)


def _scalar(value, limit):
    value = value[: limit + 1] if isinstance(value, str) else value
    return json.dumps(value, ensure_ascii=False)
