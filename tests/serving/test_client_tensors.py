"""serving/mae_client: gRPC's messages and tensors, without TensorFlow's modules."""

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import descriptor_pool
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    predict_pb2,
)

from tests import stand_ins
from tests.stand_ins import GrpcStub, mae_client

from mae_client import messages, tensors  # isort: skip

THEIRS = {
    "PredictRequest": predict_pb2.PredictRequest,
    "PredictResponse": predict_pb2.PredictResponse,
    "GetModelStatusRequest": get_model_status_pb2.GetModelStatusRequest,
    "GetModelStatusResponse": get_model_status_pb2.GetModelStatusResponse,
    "GetModelMetadataRequest": get_model_metadata_pb2.GetModelMetadataRequest,
    "GetModelMetadataResponse": get_model_metadata_pb2.GetModelMetadataResponse,
    "SignatureDefMap": get_model_metadata_pb2.SignatureDefMap,
}


def compare(ours, theirs, seen):
    """Asserts that each field of a message is as TF Serving's, and below it."""
    if ours.full_name in seen:
        return
    seen.add(ours.full_name)
    for field in ours.fields:
        other = theirs.fields_by_name[field.name]
        same = ("number", "type", "is_repeated", "is_packed")
        for name in same:
            if (ours.name, field.name, name) == ("StatusProto", "error_code", "type"):
                continue  # an enum there, whose numbers are all that is sent
            assert getattr(field, name) == getattr(other, name), (ours.name, field.name)
        if field.message_type is not None:
            compare(field.message_type, other.message_type, seen)
        elif field.enum_type is not None:
            numbers = {each.name: each.number for each in field.enum_type.values}
            wanted = {each.name: each.number for each in other.enum_type.values}
            assert numbers.items() <= wanted.items()


def test_messages_have_the_fields_of_the_official_ones():
    seen = set()
    for name, theirs in THEIRS.items():
        compare(getattr(messages, name).DESCRIPTOR, theirs.DESCRIPTOR, seen)
    assert len(seen) > len(messages._MESSAGES)  # the entries of maps too


def test_messages_stay_out_of_the_pool_that_all_share():
    name = messages.ModelSpec.DESCRIPTOR.full_name
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindMessageTypeByName(name)


ARRAYS = [
    np.float32([[1.5, -2], [np.nan, np.inf]]),
    np.float64([0.1]),
    np.float16([0.5, -3, np.inf]),
    np.int8([-1, 2]),
    np.int16([-300]),
    np.int32([2**31 - 1]),
    np.int64([-(2**63), 3]),
    np.uint8([255]),
    np.uint16([65535]),
    np.uint32([2**32 - 1]),
    np.uint64([2**64 - 1]),
    np.array([True, False]),
    np.array([[b"\xff", b""]], object),
    np.zeros((0, 3), "float32"),
    np.float32(2.5),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: str(array.dtype))
def test_arrays_go_there_and_back(array):
    theirs = tf.make_tensor_proto(array)
    typed = tf.compat.v1.make_tensor_proto(array.tolist(), theirs.dtype, array.shape)
    for proto in (theirs, typed):
        got = read(proto)
        assert got.dtype == array.dtype and got.shape == array.shape
        np.testing.assert_array_equal(got, array)
    sent = tf.make_ndarray(theirs.FromString(written(array)))
    assert sent.dtype == array.dtype and sent.shape == array.shape
    np.testing.assert_array_equal(sent, array)


def read(proto):
    return tensors.from_proto(
        messages.TensorProto.FromString(proto.SerializeToString())
    )


def written(array):
    return tensors.to_proto(array).SerializeToString()


def test_bfloat16_is_read_as_float32():
    values = tf.constant([1.5, -2, 3e38], tf.bfloat16)
    for proto in (
        tf.make_tensor_proto(values),
        tf.make_tensor_proto([1.5, -2, 3e38], tf.bfloat16),
    ):
        got = read(proto)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, tf.cast(values, tf.float32))


def test_a_repeated_value_is_written_once():
    proto = tf.make_tensor_proto([7.0], tf.float32, [2, 3])
    assert len(proto.float_val) == 1
    np.testing.assert_array_equal(read(proto), np.full((2, 3), 7))
    proto.float_val.append(8)
    np.testing.assert_array_equal(read(proto), tf.make_ndarray(proto))


def test_metadata_that_cannot_be_read_is_an_error_of_the_server(monkeypatch):
    metadata = get_model_metadata_pb2.GetModelMetadataResponse()
    metadata.metadata["signature_def"].value = b"\xff"
    servicer = stand_ins.PredictionServicer
    monkeypatch.setattr(servicer, "GetModelMetadata", lambda *_: metadata)
    with GrpcStub() as stub, stand_ins.connect(stub) as asked:
        with pytest.raises(mae_client.ServingError, match="invalid") as error:
            asked.metadata()
        assert error.value.code == "INTERNAL"


def test_what_cannot_be_read_is_an_error():
    with pytest.raises(ValueError, match="dtype 18"):
        read(tf.make_tensor_proto([1j]))
    proto = tf.make_tensor_proto([1.0, 2.0])
    proto.tensor_shape.dim[0].size = 3
    with pytest.raises(ValueError, match="reshape"):
        read(proto)
    # a few bytes that announce 32 TB
    proto = tf.make_tensor_proto([1.0], tf.float32, [1])
    proto.tensor_shape.dim[0].size = 2**43
    with pytest.raises(ValueError, match="shape"):
        read(proto)
