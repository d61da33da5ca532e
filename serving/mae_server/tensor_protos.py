"""Messages of arrays and examples, as TF Serving writes and reads them."""

import math

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

from mae_server import errors
from mae_server.errors import invalid

# of the context of examples, counted for each of them
MOST_CONTEXT_BYTES = 2**28
# tensorflow/core/framework/tensor_shape.h, TensorShape::MaxDimensions
_MOST_AXES = 254
# dtype -> field of TensorProto (tensorflow/core/framework/tensor.proto)
_FIELDS = {
    tf.float32: "float_val",
    tf.float64: "double_val",
    tf.int64: "int64_val",
    tf.bool: "bool_val",
    tf.string: "string_val",
    tf.uint32: "uint32_val",
    tf.uint64: "uint64_val",
    tf.float16: "half_val",
    tf.bfloat16: "half_val",
    **dict.fromkeys((tf.int8, tf.int16, tf.int32, tf.uint8, tf.uint16), "int_val"),
}
# of these a packed field is the array's own bytes
_PACKED = {tf.float32: "<f4", tf.float64: "<f8"}


def dtype_of(array):
    """Returns the TensorFlow type of an array; text and objects are strings."""
    return tf.string if array.dtype.kind in "OSU" else tf.dtypes.as_dtype(array.dtype)


def typed_tensor_proto(array):
    """Makes a `TensorProto` with its values in a typed field, such as `float_val`."""
    # predict_util.cc, Tensor::AsProtoField: so TF Serving answers by default
    array = np.asarray(array)
    dtype = dtype_of(array)
    if dtype not in _FIELDS:
        return tf.make_tensor_proto(array)
    proto = tensor_pb2.TensorProto(dtype=dtype.as_datatype_enum)
    proto.tensor_shape.CopyFrom(tf.TensorShape(array.shape).as_proto())
    field = _FIELDS[dtype]
    if dtype in _PACKED:
        number = proto.DESCRIPTOR.fields_by_name[field].number
        packed = array.astype(_PACKED[dtype]).tobytes()
        # wire type 2: a length and so many bytes
        proto.MergeFromString(bytes([number << 3 | 2]) + _varint(len(packed)) + packed)
        return proto
    if field == "half_val":
        array = array.view("uint16")
    getattr(proto, field).extend(array.ravel().tolist())
    return proto


def announced_bytes(proto):
    """Returns what a `TensorProto` takes as an array; its last value may repeat."""
    dtype = tf.dtypes.as_dtype(proto.dtype)
    sizes = [dimension.size for dimension in proto.tensor_shape.dim]
    # the product of a million sizes would take hours
    if len(sizes) > _MOST_AXES or min(sizes, default=0) < 0:
        raise ValueError("invalid or too large shape")
    count = math.prod(sizes)
    if dtype != tf.string:
        return count * max(dtype.size, 1)
    lengths = [len(value) for value in proto.string_val]
    repeated = max(count - len(lengths), 0) * lengths[-1] if lengths else 0
    # an array of objects holds pointers
    return max(sum(lengths) + repeated, 8 * count)


def _varint(number):
    """Writes a number as protocol buffers do, 7 bits a byte."""
    octets = bytearray()
    while number > 0x7F:
        octets.append(number & 0x7F | 0x80)
        number >>= 7
    octets.append(number)
    return bytes(octets)


def examples_of(message, most=None):
    """Returns the serialized examples of an `Input`, at most so many."""
    context, listed = b"", message.example_list
    if message.WhichOneof("kind") == "example_list_with_context":
        listed = message.example_list_with_context
        context = listed.context.SerializeToString()
    errors.check_batch_size(len(listed.examples), most)
    examples = [example.SerializeToString() for example in listed.examples]
    return with_context(context, examples)


def with_context(context, examples):
    """Merges serialized examples with what all of them have in common."""
    size = len(context) * len(examples)
    if size > MOST_CONTEXT_BYTES:
        raise invalid(errors.CONTEXT_TOO_LARGE, size=size, limit=MOST_CONTEXT_BYTES)
    # concatenated serialized messages are merged
    return [context + example for example in examples]
