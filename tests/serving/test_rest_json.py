"""REST bodies: what TF Serving's reader of JSON takes, and how its writer prints.

The numbers stand in tensorflow_serving/util/json_tensor_test.cc, or follow from
json_tensor.cc and rapidjson 1.1.0.
"""

import json

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2

from mae_server import json_documents, json_inputs, json_outputs, rest
from mae_server.decimals import decimals
from mae_server.errors import RequestError


def read(text, dtype=tf.float32, **more):
    """Reads the input `x` of a request's body; `more` are further inputs' dtypes."""
    infos = {
        name: meta_graph_pb2.TensorInfo(dtype=one.as_datatype_enum)
        for name, one in {"x": dtype, **more}.items()
    }
    body = text if isinstance(text, bytes) else text.encode()
    return json_inputs.read_inputs(json_documents.parse(body), infos)["x"]


def refused(text, dtype=tf.float32, **more):
    """Returns code and message of a body's error."""
    with pytest.raises(RequestError) as caught:
        read(text, dtype, **more)
    return caught.value.code, str(caught.value)


def test_floats_are_rounded_as_json_tensor_test_has_it():
    found = read('{"instances": [1435774380, 1435774380.0, 16777217, 1, 2.5]}')
    assert found.dtype == np.float32
    assert found.tolist() == [1435774336, 1435774336, 16777216, 1, 2.5]
    most = np.finfo("float64").max
    found = read(f'{{"instances": [{most}, {-most}, 1e39, {2.0**-1022}, -1e-320]}}')
    assert found.tolist() == [np.inf, -np.inf, np.inf, 0, 0]
    assert np.signbit(found[4])
    exact = read('{"inputs": [16777217, 0.1, 18446744073709551615]}', tf.float64)
    assert exact.tolist() == [16777217, 0.1, 2.0**64]
    assert read('{"inputs": [[1e39, 1], [2, 3]]}').tolist() == [[np.inf, 1], [2, 3]]


def test_numbers_that_are_not_finite():
    words = "NaN, -NaN, Inf, -Inf, Infinity, -Infinity"
    found = read(f'{{"a": "Inf \\" NaN", "inputs": [{words}, 1]}}')
    assert np.isnan(found[:2]).all()
    assert found[2:].tolist() == [np.inf, -np.inf, np.inf, -np.inf, 1]
    body = b'{"inputs": ["Inf", "-NaN\\\\\\""], "x": Inf}'
    assert read(body, tf.string).tolist() == [b"Inf", b'-NaN\\"']
    for word in ("inf", "nan", "Infi", "+1", "01", ".5", "1.", "0x1"):
        assert "JSON Parse error" in refused(f'{{"inputs": [{word}]}}')[1], word
    for number in ("1e400", "-1e400", "9" * 400):
        assert "too big" in refused(f'{{"inputs": [{number}]}}')[1]


@pytest.mark.parametrize(
    "dtype, text, wanted",
    [
        (tf.bool, "[true, false]", [True, False]),
        (
            tf.int64,
            "[-9223372036854775808, 9223372036854775807]",
            [-(2**63), 2**63 - 1],
        ),
        (tf.uint64, "[18446744073709551615]", [2**64 - 1]),
        (tf.uint32, "[4294967295]", [2**32 - 1]),
        (tf.int32, "[-2147483648]", [-(2**31)]),
        # read as int32, and cut by Tensor::FromProto to the type's bits
        (tf.uint8, "[255, 300, -1]", [255, 44, 255]),
        (tf.int8, "[200]", [-56]),
        (tf.int16, "[70000]", [4464]),
    ],
)
def test_bools_and_integers(dtype, text, wanted):
    for key in ("inputs", "instances"):
        found = read(f'{{"{key}": {text}}}', dtype)
        assert found.dtype == dtype.as_numpy_dtype and found.tolist() == wanted


@pytest.mark.parametrize(
    "dtype, text, kind",
    [
        (tf.bool, "1", "Number"),
        (tf.bool, '"true"', "String"),
        (tf.float32, "true", "True"),
        (tf.float32, "null", "Null"),
        (tf.float32, '{"b64": "eA=="}', "Object"),
        (tf.int64, "1.0", "Number"),
        (tf.int64, "9223372036854775808", "Number"),
        (tf.int64, "1e3", "Number"),
        (tf.int64, "NaN", "Number"),
        (tf.uint64, "-1", "Number"),
        (tf.uint64, "18446744073709551616", "Number"),
        (tf.uint32, "4294967296", "Number"),
        (tf.uint8, "2147483648", "Number"),
        (tf.string, "1", "Number"),
    ],
)
def test_values_of_the_wrong_type(dtype, text, kind):
    code, message = refused(f'{{"inputs": [{text}]}}', dtype)
    name = {"float32": "float"}.get(dtype.name, dtype.name)
    assert code == "INVALID_ARGUMENT"
    assert f"Type: {kind} is not of expected type: {name}" in message


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16, tf.uint16, tf.complex64])
def test_types_that_json_has_no_reader_for(dtype):
    name = {"float16": "half"}.get(dtype.name, dtype.name)
    wanted = f"Conversion of JSON Value: 1.5 to type: {name}"
    assert refused('{"inputs": [1.5]}', dtype) == ("UNIMPLEMENTED", wanted)
    code, message = refused('{"instances": [1.5]}', dtype)
    assert code == "INVALID_ARGUMENT" and f"Error: UNIMPLEMENTED: {wanted}" in message


def test_what_surrounds_a_document():
    for around in (
        b"\xef\xbb\xbf%s",
        b" \n\t%s more text",
        b"%s}",
        b"%s\x00",
        b"%s\xff",
        b"\xef\xbb\xbf \r%s[",
    ):
        assert read(around % b'{"inputs": [1]}').tolist() == [1], around
    assert refused("")[1] == "JSON Parse error: The document is empty"
    assert refused(b"\xef\xbb\xbf")[1].startswith("JSON Parse error")
    assert refused("[1] {}")[1] == "JSON Value: [1] Is not object"
    assert refused('{"inputs": [1 2]}')[1].endswith("at offset: 14")


def test_strings_may_be_any_bytes():
    found = read(
        b'{"inputs": ["\xff\x80", "gr\xc3\xb6\xc3\x9fer", "\\u00e9"]}', tf.string
    )
    assert found.tolist() == [b"\xff\x80", "größer".encode(), "é".encode()]
    _, message = refused('{"inputs": ["\\ud800"]}', tf.string)
    assert message == "JSON Parse error: The surrogate pair in string is invalid."


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("aGVsbG8=", b"hello"),
        ("aGVsbG8", b"hello"),
        ("aGVsbG8.", b"hello"),
        ("aGVs\\r\\n bG8=\\t", b"hello"),
        ("eA", b"x"),
        ("eA= =", b"x"),
        ("eB==", b"x"),
        ("", b""),
        (" ", b""),
        ("eA=", None),
        ("eA===", None),
        ("e", None),
        ("eHh4=", None),
        ("eA=x", None),
        ("a-_b", None),
        ("%", None),
        ("é", None),
    ],
)
def test_base64(text, wanted):
    body = f'{{"instances": [{{"b64": "{text}"}}]}}'
    if wanted is None:
        assert "Unable to base64 decode" in refused(body, tf.string)[1]
    else:
        assert read(body, tf.string).tolist() == [wanted]


@pytest.mark.parametrize(
    "body, wanted",
    [
        (
            '{"instances": 3}',
            "JSON Value: {\n    \"instances\": 3\n} Expecting 'instances' to ",
        ),
        ('{"instances": []}', "No values in 'instances' array"),
        ('{"instances": [[1]]}', "instances is a plain list"),
        ('{"inputs": [[1]]}', "inputs is a plain value/list"),
        ('{"inputs": {"y": 1}}', "Missing named input: x in 'inputs' object."),
        (
            '{"instances": [{"x": 1, "z": 2}]}',
            "Failed to process element: 0 key: z of 'instances' list. Error: "
            "INVALID_ARGUMENT: JSON object: does not have named input: z",
        ),
        (
            '{"instances": [{"x": 1}]}',
            "Failed to process element: 0 of 'instances' list. JSON object: "
            '{\n    "x": 1\n} keys must be equal to: x,y',
        ),
        (
            '{"instances": [{"x": [1], "y": 1}, {"x": [[1]], "y": 1}]}',
            "Failed to process element: 1 key: x of 'instances' list. Error: "
            "INVALID_ARGUMENT: Expecting shape [1] but got: [1,1]",
        ),
    ],
)
def test_errors_of_several_inputs(body, wanted):
    assert wanted in refused(body, y=tf.float32)[1]


# of FromJsonSingleFloatTensor... in json_tensor_test.cc, and of absl::StrCat
TEXTS = {
    9000000: "9e+06",
    999999: "999999.0",
    0.5: "0.5",
    0.0003: "0.0003",
    0.00003: "3e-05",
    555557.5: "555557.5",
    3: "3.0",
    -0.0: "-0.0",
    0.1: "0.1",
    1 / 3: "0.333333343",
    -1 / 3: "-0.333333343",
    16777216: "16777216.0",
    1e-4: "0.0001",
    123456.7: "123456.703",
    1e-45: "1.4013e-45",
    np.finfo("float32").max: "3.40282347e+38",
    np.nan: "NaN",
    np.inf: "Infinity",
    -np.inf: "-Infinity",
}


def test_texts_of_floats():
    assert decimals(np.float32(list(TEXTS))) == list(TEXTS.values())
    doubles = np.array([1 / 3, 0.1, 1e300, 123456789, 2.0**-1074, np.nan])
    assert decimals(np.zeros(1, "float32")) == ["0.0"]
    assert decimals(doubles) == [
        *("0.33333333333333331", "0.1", "1e+300", "123456789.0", "4.94066e-324", "NaN")
    ]
    assert decimals(np.float32([])) == decimals(np.float64([])) == []


def test_texts_of_many_floats():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 20_000, dtype="uint32").view("float32")
    short = rng.integers(1, 10**6, 20_000) / 10.0 ** rng.integers(0, 11, 20_000)
    usual = rng.standard_normal(20_000)
    array = np.concatenate([bits, np.float32(short), np.float32(usual)])
    array = array[np.isfinite(array)]
    for value, text in zip(array, decimals(array), strict=True):
        wanted = format(value, "g")
        if np.float32(wanted) != value:
            wanted = format(value, ".9g")
        assert text == (wanted if set(wanted) & set(".e") else f"{wanted}.0")


def test_answers_of_all_types():
    outputs = {
        "b": np.array([[True], [False]]),
        "f": np.float32([[0.1, 9e6], [np.nan, -np.inf]]),
        "i": np.array([-1, 2], "int8"),
        "n": np.array(["größer\n".encode(), b'"'], object),
        "n_bytes": np.array([b"hello", b""], object),
        "u": np.array([2**64 - 1, 0], "uint64"),
    }
    text = json_outputs.write_outputs(outputs, in_rows=True).decode()
    assert '"f": [0.1,9e+06]' in text and '"f": [NaN,-Infinity]' in text
    first, second = json.loads(text)["predictions"]
    assert first == {
        **{"b": [True], "f": [0.1, 9e6], "i": -1, "n": "größer\n"},
        **{"n_bytes": {"b64": "aGVsbG8="}, "u": 2**64 - 1},
    }
    assert second["n"] == '"'
    columns = json.loads(json_outputs.write_outputs(outputs, in_rows=False))["outputs"]
    assert columns["b"] == [[True], [False]] and columns["i"] == [-1, 2]
    cube = np.arange(12, dtype="float64").reshape(2, 3, 2)
    for rows, key in ((True, "predictions"), (False, "outputs")):
        found = json.loads(json_outputs.write_outputs({"x": cube}, rows))
        assert found == {key: cube.tolist()}
    assert (
        json_outputs.write_outputs({"x": np.float32(2)}, False) == b'{"outputs": 2.0}'
    )
    hollow = {"x": np.zeros((2, 0), "float32")}
    assert json_outputs.write_outputs(hollow, False) == b'{"outputs": [[], []]}'
    empty = {"x": np.zeros((0, 3)), "y": np.zeros(0)}
    assert json_outputs.write_outputs(empty, in_rows=True) == b'{"predictions": []}'


@pytest.mark.parametrize("name", ["float16", "bfloat16", "uint16", "complex64"])
def test_types_that_json_has_no_writer_for(name):
    array = np.zeros(2, tf.as_dtype(name).as_numpy_dtype)
    with pytest.raises(RequestError) as caught:
        json_outputs.write_outputs({"x": array}, in_rows=False)
    wanted = {"float16": "half"}.get(name, name)
    assert str(caught.value) == f"Failed to write JSON value for tensor type: {wanted}"


def test_answers_without_a_batch():
    for outputs, message in (
        ({"x": np.zeros(2), "y": np.zeros(3)}, "Tensor name: y has inconsistent batch"),
        ({"x": np.zeros(())}, "Tensor name: x has no shape information"),
    ):
        with pytest.raises(RequestError, match=message):
            json_outputs.write_outputs(outputs, in_rows=True)


def test_classes_and_numbers():
    rows = [[("größer", np.float32(0.1)), ("", np.float32(1))], []]
    text = json_outputs.write_classes(rows).decode()
    assert text == '{"results": [[["größer", 0.1], ["", 1.0]], []]}'
    numbers = json_outputs.write_numbers(np.float32([1, 1 / 3]))
    assert numbers == b'{"results": [1.0, 0.333333343]}'
    for write in (json_outputs.write_classes, json_outputs.write_numbers):
        with pytest.raises(RequestError, match="Cannot convert empty"):
            write([])


def test_examples():
    body = b"""{"signature_name": "s", "context": {"q": "pizza"}, "examples": [
        {"names": ["a", {"b64": "aGVsbG8"}], "ratings": [8.0, NaN], "mix": [1, true]},
        {"large": 18446744073709551616}
    ]}"""
    name, examples = rest._read_examples(body)
    first, second = (tf.train.Example.FromString(one).features for one in examples)
    assert name == "s" and list(first.feature["q"].bytes_list.value) == [b"pizza"]
    assert list(first.feature["names"].bytes_list.value) == [b"a", b"hello"]
    assert first.feature["ratings"].float_list.value[0] == 8
    assert list(first.feature["mix"].int64_list.value) == [1, 1]
    assert second.feature["large"].float_list.value[0] == 2.0**64


@pytest.mark.parametrize(
    "body, message",
    [
        ('{"context": [], "examples": 1}', "must be JSON object but got JSON Array"),
        (
            '{"a": 1}',
            "JSON Value: {\n    \"a\": 1\n} When method is classify, key 'examples' is",
        ),
        ('{"examples": {}}', "Expecting 'examples' value to be an list/array"),
        ('{"examples": []}', "'examples' value is an empty array"),
        ('{"examples": [[]]}', "Example must be JSON object but got JSON Array"),
        ('{"examples": [{"n": [10, null]}]}', "unexpected JSON type: Null"),
        ('{"examples": [{"n": {"b64": 1}}]}', "unexpected JSON type: Object"),
        ('{"examples": [{"n": [[1]]}]}', "unexpected JSON type: Array"),
        ('{"examples": [{"n": [10, 10.0]}]}', "feature: n expecting type: int64"),
        ('{"examples": [{"n": 18446744073709551615}]}', "n has uint64_t element"),
        ('{"examples": [{"\\ud800": 1}]}', "surrogate pair"),
    ],
)
def test_errors_of_examples(body, message):
    with pytest.raises(RequestError) as caught:
        rest._read_examples(body.encode())
    assert message in str(caught.value)


class Asked:
    """Stands for a `Service`; says what it was asked."""

    def __init__(self):
        self.models = self

    def status(self, *spec):
        raise RequestError("NOT_FOUND", f"status {spec}")

    def metadata(self, spec):
        raise RequestError("NOT_FOUND", f"metadata {spec}")


@pytest.mark.parametrize(
    "method, path, status, message",
    [
        ("GET", "/v1/models/mae", 404, "status ('mae', None)"),
        ("GET", "/V1/Models/m%61e/Labels/a%20b", 404, "status ('mae', None)"),
        ("GET", "/v1/models/mae/versions/007", 404, "status ('mae', 7)"),
        ("GET", "/v1/models/m/labels/a%20b/metadata", 404, "('m', None, 'a b')"),
        ("GET", "/v1/models/mae/versions/7/metadata", 404, "metadata ('mae', 7, None)"),
        # its regular expressions know no letters' case, its comparisons do
        ("GET", "/v1/models/mae/METADATA", 404, "status ('mae', None)"),
        ("POST", "/v1/models/mae:PREDICT", 400, "Malformed request: POST /v1/models/"),
        # a query belongs to the path
        ("GET", "/v1/models/mae?a=1", 404, "status ('mae?a=1', None)"),
        ("POST", "/v1/models/mae:predict?a=1", 400, "Malformed request: POST"),
        ("GET", "/v1/models", 400, "Missing model name in request."),
        ("GET", "/v1/models/versions/1", 400, "Missing model name in request."),
        ("GET", f"/v1/models/m/versions/{2**63}", 400, "Failed to convert version"),
        (
            "GET",
            f"/v1/models/m/versions/{'9' * 5000}",
            400,
            "Failed to convert version",
        ),
        ("GET", "/v1/models/m/versions/-1", 400, "Malformed request"),
        ("DELETE", "/v1/models/mae", 400, "Malformed request: DELETE /v1/models/mae"),
        ("HEAD", "/v1/models/mae", 400, "Malformed request: HEAD"),
        ("GET", "/v1/nothing", 400, "Malformed request: GET /v1/nothing"),
    ],
)
def test_paths(method, path, status, message):
    api = rest.RestApi(Asked())
    with pytest.raises(RequestError) as caught:
        api._answer(method, path, b"", None)
    assert (caught.value.http_status, message in str(caught.value)) == (status, True)
