"""The protobuf messages of TF Serving's gRPC API that a client needs.

Made here from their field numbers, in a pool of their own: TensorFlow's modules would
import TensorFlow, and messages of the same names in the default pool would collide with
them. Fields that aren't listed are skipped when they are read.
"""

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_ENUMS = {
    "DataType": {
        "DT_INVALID": 0,
        "DT_FLOAT": 1,
        "DT_DOUBLE": 2,
        "DT_INT32": 3,
        "DT_UINT8": 4,
        "DT_INT16": 5,
        "DT_INT8": 6,
        "DT_STRING": 7,
        "DT_INT64": 9,
        "DT_BOOL": 10,
        "DT_BFLOAT16": 14,
        "DT_UINT16": 17,
        "DT_HALF": 19,
        "DT_RESOURCE": 20,
        "DT_VARIANT": 21,
        "DT_UINT32": 22,
        "DT_UINT64": 23,
    },
    "State": {
        "UNKNOWN": 0,
        "START": 10,
        "LOADING": 20,
        "AVAILABLE": 30,
        "UNLOADING": 40,
        "END": 50,
    },
}
# name of a message -> its fields: name, number, type; `*` is repeated, `map` has
# strings as keys. `Int64Value` and `Any` are as in google.protobuf.
_MESSAGES: dict[str, tuple[tuple[str, int, str], ...]] = {
    "Int64Value": (("value", 1, "int64"),),
    "Any": (("type_url", 1, "string"), ("value", 2, "bytes")),
    "Dim": (("size", 1, "int64"), ("name", 2, "string")),
    "TensorShapeProto": (("dim", 2, "*Dim"), ("unknown_rank", 3, "bool")),
    "TensorProto": (
        ("dtype", 1, "DataType"),
        ("tensor_shape", 2, "TensorShapeProto"),
        ("tensor_content", 4, "bytes"),
        ("float_val", 5, "*float"),
        ("double_val", 6, "*double"),
        ("int_val", 7, "*int32"),
        ("string_val", 8, "*bytes"),
        ("int64_val", 10, "*int64"),
        ("bool_val", 11, "*bool"),
        ("half_val", 13, "*int32"),
        ("uint32_val", 16, "*uint32"),
        ("uint64_val", 17, "*uint64"),
    ),
    "ModelSpec": (
        ("name", 1, "string"),
        ("version", 2, "Int64Value"),
        ("signature_name", 3, "string"),
        ("version_label", 4, "string"),
    ),
    "PredictRequest": (
        ("model_spec", 1, "ModelSpec"),
        ("inputs", 2, "map TensorProto"),
    ),
    "PredictResponse": (
        ("outputs", 1, "map TensorProto"),
        ("model_spec", 2, "ModelSpec"),
    ),
    "StatusProto": (("error_code", 1, "int32"), ("error_message", 2, "string")),
    "ModelVersionStatus": (
        ("version", 1, "int64"),
        ("state", 2, "State"),
        ("status", 3, "StatusProto"),
    ),
    "GetModelStatusRequest": (("model_spec", 1, "ModelSpec"),),
    "GetModelStatusResponse": (("model_version_status", 1, "*ModelVersionStatus"),),
    "TensorInfo": (
        ("name", 1, "string"),
        ("dtype", 2, "DataType"),
        ("tensor_shape", 3, "TensorShapeProto"),
    ),
    "SignatureDef": (
        ("inputs", 1, "map TensorInfo"),
        ("outputs", 2, "map TensorInfo"),
        ("method_name", 3, "string"),
    ),
    "SignatureDefMap": (("signature_def", 1, "map SignatureDef"),),
    "GetModelMetadataRequest": (
        ("model_spec", 1, "ModelSpec"),
        ("metadata_field", 2, "*string"),
    ),
    "GetModelMetadataResponse": (
        ("model_spec", 1, "ModelSpec"),
        ("metadata", 2, "map Any"),
    ),
}
_PACKAGE = "mae_client"
_Field = descriptor_pb2.FieldDescriptorProto


def _build_pool():
    file = descriptor_pb2.FileDescriptorProto(
        name="mae_client.proto", package=_PACKAGE, syntax="proto3"
    )
    for name, values in _ENUMS.items():
        enum = file.enum_type.add(name=name)
        for key, number in values.items():
            enum.value.add(name=key, number=number)
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field in fields:
            _add_field(message, *field)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool


def _add_field(message, name, number, kind):
    repeated = kind.startswith(("*", "map "))
    label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
    field = message.field.add(name=name, number=number, label=label)
    if kind.startswith("map "):
        # on the wire a map is its entries, each a message of key and value
        entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        _add_field(entry, "key", 1, "string")
        _add_field(entry, "value", 2, kind.removeprefix("map "))
        field.type = _Field.TYPE_MESSAGE
        field.type_name = f".{_PACKAGE}.{message.name}.{entry.name}"
        return
    kind = kind.removeprefix("*")
    if kind in _ENUMS or kind in _MESSAGES:
        field.type = _Field.TYPE_ENUM if kind in _ENUMS else _Field.TYPE_MESSAGE
        field.type_name = f".{_PACKAGE}.{kind}"
    else:
        field.type = getattr(_Field, f"TYPE_{kind.upper()}")


_POOL = _build_pool()


def _message(name):
    descriptor = _POOL.FindMessageTypeByName(f"{_PACKAGE}.{name}")
    return message_factory.GetMessageClass(descriptor)


ModelSpec = _message("ModelSpec")
TensorProto = _message("TensorProto")
PredictRequest = _message("PredictRequest")
PredictResponse = _message("PredictResponse")
GetModelStatusRequest = _message("GetModelStatusRequest")
GetModelStatusResponse = _message("GetModelStatusResponse")
GetModelMetadataRequest = _message("GetModelMetadataRequest")
GetModelMetadataResponse = _message("GetModelMetadataResponse")
SignatureDefMap = _message("SignatureDefMap")
DataType = _ENUMS["DataType"]
