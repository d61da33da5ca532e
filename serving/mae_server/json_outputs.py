"""Responses of TF Serving's REST API: arrays and classes to JSON."""

import base64
import json

import numpy as np
import orjson

from mae_server import errors
from mae_server.errors import invalid


def write_outputs(outputs, rows):
    """Returns the JSON body of a predict response, in row or column format.

    As TF Serving writes them: strings are base64 where the output's name ends in
    `_bytes`, and numbers that are not finite are bare `NaN` and `Infinity`.
    """
    finite = all(
        np.isfinite(array).all()
        for array in outputs.values()
        if array.dtype.kind == "f"
    )
    outputs = {name: _writable(name, outputs[name]) for name in sorted(outputs)}
    alone = next(iter(outputs.values())) if len(outputs) == 1 else None
    if not rows:
        return _dump({"outputs": outputs if alone is None else alone}, finite)
    sizes = {len(value) if np.ndim(value) else None for value in outputs.values()}
    if len(sizes) > 1 or None in sizes:
        raise invalid(errors.INCONSISTENT_BATCH_SIZES, names=sorted(outputs))
    if alone is not None:
        return _dump({"predictions": alone}, finite)
    rows = zip(*outputs.values(), strict=True)
    rows = [dict(zip(outputs, row, strict=True)) for row in rows]
    return _dump({"predictions": rows}, finite)


def write_results(rows):
    """Returns the JSON body of a classify response: `(label, score)` pairs per row."""
    finite = all(np.isfinite(score) for row in rows for _, score in row)
    return _dump({"results": rows}, finite)


def _writable(name, array):
    if array.dtype != object:
        return np.ascontiguousarray(array)
    return _strings(array.tolist(), name.endswith("_bytes"))


def _strings(value, encoded):
    if isinstance(value, list):
        return [_strings(item, encoded) for item in value]
    if encoded:
        return {"b64": base64.b64encode(value).decode()}
    return value.decode(errors="replace")


def _dump(document, finite):
    if finite:
        # as TF Serving, it writes a float32 as 0.1, not as 0.10000000149
        return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    return json.dumps(document, default=_plain).encode()


def _plain(array):
    """Converts an array to lists, with the shortest decimals of float32."""
    if array.dtype == np.float32:
        array = array.astype(str).astype("float64")
    return array.tolist()
