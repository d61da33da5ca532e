"""Text of floats in JSON, as TF Serving writes it.

`WriteDecimal` in tensorflow_serving/util/json_tensor.cc: six significant digits where
they read back as the same number, else nine of a float32 and seventeen of a float64;
`.0` behind whole numbers.
"""

import numpy as np
import orjson

# decimal exponents that six and nine digits are written without "e"
_LEAST, _MOST = -4, 5
_POWERS = 10.0 ** np.arange(_LEAST, _MOST + 2)


def decimals(array):
    """Returns the texts of a flat float32 or float64 array as a list."""
    if array.dtype == np.float32:
        return _of_float32(array) if len(array) else []
    return [_one(value, ".17g", float) for value in array.tolist()]


def _one(value, full, back):
    """Writes a number, whose type `back` converts to."""
    text = format(value, "g")
    if value != value:
        return "NaN"
    if text in ("inf", "-inf"):
        return text.replace("inf", "Infinity")
    if back(text) != value:
        text = format(value, full)
    return text if "." in text or "e" in text else f"{text}.0"


def _of_float32(array):
    with np.errstate(invalid="ignore"):  # of signaling NaNs
        size = np.abs(array).astype("float64")
    plain = (size >= _POWERS[0]) & (size < _POWERS[-1])
    if not plain.all():
        rest = [_one(value, ".9g", np.float32) for value in array[~plain].tolist()]
        texts = np.empty(array.shape, object)
        texts[~plain] = rest
        texts[plain] = _of_float32(array[plain]) if plain.any() else []
        return texts.tolist()
    exponent = np.searchsorted(_POWERS, size, "right") - 1 + _LEAST
    # the product of 24 bits and 10**12 is exact, so it is rounded once, ties to even
    digits = np.rint(size * 10.0 ** (8 - exponent))
    six = np.rint(size * 10.0 ** (5 - exponent))
    same = (six / 10.0 ** (5 - exponent)).astype("float32") == np.abs(array)
    digits = np.where(same, six * 1000, digits).astype("int64")
    return _write(np.signbit(array), digits, exponent)


def _write(negative, digits, exponent):
    """Writes numbers of nine digits, the first of which counts `10**exponent`."""
    count, places = len(digits), 2 * (10 - _LEAST) + 2
    # a place of each digit from -4 on, each with one for the point behind it
    text = np.full((count, places), ord("0"), "uint8")
    text[:, 2:-1:2] = ord(".")
    text[:, 0], text[:, -1] = ord("-"), ord(",")
    packed = orjson.dumps(digits, option=orjson.OPT_SERIALIZE_NUMPY)
    nine = np.frombuffer(packed, "uint8")[1:].reshape(count, 10)[:, :9]
    text[:, 1 - 2 * _LEAST : 19 - 2 * _LEAST : 2] = nine
    last = 8 - np.argmax(nine[:, ::-1] != ord("0"), axis=1)
    place, exponent = np.arange(_LEAST, 10), exponent[:, None]
    written = np.zeros((count, places), bool)
    written[:, 1:-1:2] = (place >= np.minimum(exponent, 0)) & (
        place <= np.maximum(last[:, None], exponent + 1)
    )
    written[:, 2:-1:2] = place == exponent
    written[:, 0], written[:, -1] = negative, True
    return text.ravel()[np.flatnonzero(written)].tobytes().decode().split(",")[:-1]
