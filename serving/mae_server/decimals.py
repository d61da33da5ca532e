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
_TENS = 10.0 ** np.arange(8 - _LEAST + 1)


def decimals(array):
    """Returns the texts of a flat float32 or float64 array as a list."""
    if array.dtype != np.float32:
        return [_one(value, ".17g", float) for value in array.tolist()]
    plain = _is_plain(array)
    if plain.all():
        return _plain_rows(array[:, None]) if len(array) else []
    texts = np.empty(array.shape, object)
    rest = array[~plain].tolist()
    texts[~plain] = [_one(value, ".9g", np.float32) for value in rest]
    texts[plain] = decimals(array[plain])
    return texts.tolist()


def rows(array):
    """Returns the texts of a matrix's rows as a list: numbers with commas between."""
    count, width = array.shape
    if array.dtype != np.float32 or not array.size:
        return [",".join(decimals(row)) for row in array]
    plain = _is_plain(array).all(axis=1)
    texts = np.empty(count, object)
    if plain.any():
        texts[plain] = _plain_rows(array[plain])
    rest = decimals(array[~plain].ravel())
    texts[~plain] = [
        ",".join(rest[begin : begin + width]) for begin in range(0, len(rest), width)
    ]
    return texts.tolist()


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


def _is_plain(array):
    """Whether numbers are written without "e" and words."""
    with np.errstate(invalid="ignore"):  # of signaling NaNs
        size = np.abs(array)
        # arrays: NumPy 1 rounds a scalar to float32, where 1e-4 is less than 1e-4
        return ((size >= _POWERS[:1]) & (size < _POWERS[-1:])) | (size == 0)


def _plain_rows(array):
    """Writes the rows of a float32 matrix, all of which are plain."""
    flat = array.ravel()
    size = np.abs(flat).astype("float64")
    zero = size == 0
    size[zero] = 1
    exponent = np.searchsorted(_POWERS, size, "right") - 1 + _LEAST
    # the product of 24 bits and 10**12 is exact, so it is rounded once, ties to even
    digits = np.rint(size * _TENS[8 - exponent])
    six = np.rint(size * _TENS[5 - exponent])
    same = (six / _TENS[5 - exponent]).astype("float32") == size
    digits = np.where(same, six * 1000, digits).astype("int64")
    packed = orjson.dumps(digits, option=orjson.OPT_SERIALIZE_NUMPY)
    nine = np.frombuffer(packed, "uint8")[1:].reshape(-1, 10)[:, :9].copy()
    nine[zero] = ord("0")
    ends = np.zeros(array.shape, bool)
    ends[:, -1] = True
    text = _write(np.signbit(flat), nine, exponent, ends.ravel())
    return text.split("\n")[:-1]


def _write(negative, nine, exponent, ends):
    """Writes numbers of nine digits, the first of which counts `10**exponent`."""
    count, places = len(nine), 2 * (10 - _LEAST) + 2
    # a place of each digit from -4 on, each with one for the point behind it
    text = np.full((count, places), ord("0"), "uint8")
    text[:, 2:-1:2] = ord(".")
    # a comma follows each, a line's end those in `ends`
    text[:, 0], text[:, -1] = ord("-"), np.where(ends, ord("\n"), ord(","))
    text[:, 1 - 2 * _LEAST : 19 - 2 * _LEAST : 2] = nine
    last = 8 - np.argmax(nine[:, ::-1] != ord("0"), axis=1)
    last[nine[:, 0] == ord("0")] = 0  # zero
    # small integers are compared faster
    place = np.arange(_LEAST, 10, dtype="int8")
    exponent, last = exponent.astype("int8")[:, None], last.astype("int8")[:, None]
    written = np.zeros((count, places), bool)
    written[:, 1:-1:2] = (place >= np.minimum(exponent, 0)) & (
        place <= np.maximum(last, exponent + 1)
    )
    written[:, 2:-1:2] = place == exponent
    written[:, 0], written[:, -1] = negative, True
    return text.ravel()[np.flatnonzero(written)].tobytes().decode()
