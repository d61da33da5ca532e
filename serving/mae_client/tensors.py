"""Arrays to and from TensorProto messages, without TensorFlow."""

import math
from typing import Any

import numpy as np

from .messages import DataType, TensorProto

# dtype of TensorFlow -> NumPy's on the wire (little-endian), and the field of values
_READ = {
    "DT_FLOAT": ("<f4", "float_val"),
    "DT_DOUBLE": ("<f8", "double_val"),
    "DT_HALF": ("<f2", "half_val"),
    "DT_BFLOAT16": ("<u2", "half_val"),
    "DT_INT8": ("i1", "int_val"),
    "DT_INT16": ("<i2", "int_val"),
    "DT_INT32": ("<i4", "int_val"),
    "DT_INT64": ("<i8", "int64_val"),
    "DT_UINT8": ("u1", "int_val"),
    "DT_UINT16": ("<u2", "int_val"),
    "DT_UINT32": ("<u4", "uint32_val"),
    "DT_UINT64": ("<u8", "uint64_val"),
    "DT_BOOL": ("?", "bool_val"),
}
# a few bytes may announce any shape
_MOST_VALUES = 2**28
_NAMES = {number: name for name, number in DataType.items()}
_WRITE = {
    np.dtype(kind): DataType[name]
    for name, (kind, _) in _READ.items()
    if name != "DT_BFLOAT16"
}


def to_proto(array: np.ndarray) -> Any:
    """Converts an array to a TensorProto; one of objects holds bytes."""
    proto = TensorProto()
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    if array.dtype == object:
        proto.dtype = DataType["DT_STRING"]
        proto.string_val.extend(array.ravel().tolist())
    else:
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        proto.dtype = _WRITE[little.dtype]
        proto.tensor_content = little.tobytes()
    return proto


def from_proto(proto: Any) -> np.ndarray:
    """Converts a TensorProto to an array; bfloat16 to float32, strings to bytes."""
    shape = [dim.size for dim in proto.tensor_shape.dim]
    count = math.prod(shape)
    if min(shape, default=0) < 0 or count > _MOST_VALUES:
        raise ValueError(f"cannot read a tensor of shape {shape}")
    values = _values(proto)
    if 0 < len(values) < count and not proto.tensor_content:
        # the last value is written once where it repeats to the end
        repeated = np.broadcast_to(values[-1:], (count - len(values),))
        values = np.concatenate([values, repeated])
    return values.reshape(shape)


def _values(proto):
    """Returns the values that a TensorProto holds, in one dimension."""
    if proto.dtype == DataType["DT_STRING"]:
        values = np.empty(len(proto.string_val), dtype=object)
        values[:] = list(proto.string_val)
        return values
    name = _NAMES.get(proto.dtype)
    if name not in _READ:
        raise ValueError(f"cannot read a tensor of dtype {name or proto.dtype}")
    kind, field = _READ[name]
    if proto.tensor_content:
        values = np.frombuffer(proto.tensor_content, kind)
    elif field == "half_val":
        # the bits of 16-bit floats
        values = np.array(proto.half_val, "uint16").view(kind)
    else:
        values = np.array(getattr(proto, field), kind)
    if name == "DT_BFLOAT16":
        # a bfloat16 is the upper half of a float32
        values = (values.astype("uint32") << 16).view("float32")
    return values.astype(values.dtype.newbyteorder("="))
