"""REST: both formats, versions, labels, metadata, and each row of the error table."""

import base64
import gzip
import json
import math

import numpy as np
import pytest

from tests.conformance import models
from tests.conformance.calls import b64, picture
from tests.conformance.sources import case, source

TENSOR = "util/json_tensor.cc: "
HANDLER = "model_servers/http_rest_api_handler.cc: "
PATHS = "model_servers/http_rest_api_util.cc: "
HTTP = "model_servers/http_server.cc: "
EVHTTP = "util/net_http/server/internal/evhttp_request.cc: "
DECODE = "tensorflow/core/kernels/image/decode_image_op.cc: Compute"
NO_SERVABLE = "core/basic_manager.cc: GetUntypedServableHandle"


@pytest.fixture(scope="module")
def pictures():
    return [picture(seed) for seed in range(3)]


@source(
    TENSOR + "FillTensorMapFromInstancesList",
    TENSOR + "FillTensorMapFromInputsMap",
    TENSOR + "MakeJsonFromTensors",
)
def test_features_in_row_and_column_format(caller, pictures):
    wanted = models.pretrainer().encoder(models.processor()([p for p, _ in pictures]))
    encoded = [b64(png) for _, png in pictures]
    for body, key in (
        ({"instances": encoded}, "predictions"),
        ({"instances": [{"image_bytes": one} for one in encoded]}, "predictions"),
        ({"inputs": {"image_bytes": encoded}}, "outputs"),
        ({"inputs": encoded}, "outputs"),
    ):
        status, answer = caller.post("mae:predict", body)
        assert status == 200 and set(answer) == {key}
        np.testing.assert_allclose(answer[key], wanted, atol=1e-4)


@source(TENSOR + "MakeRowFormatJsonFromTensors", TENSOR + "AddTensorValues")
def test_pixels_and_several_outputs(caller, pictures):
    pixels = models.processor()(pictures[0][0])
    wanted = models.pretrainer().reconstruct(pixels, seed=7)
    body = {
        "signature_name": "reconstruct_from_pixels",
        "inputs": {"pixels": pixels.tolist(), "seed": [7]},
    }
    status, answer = caller.post("mae:predict", body)
    assert status == 200
    np.testing.assert_array_equal(answer["outputs"]["mask"], wanted["mask"])
    np.testing.assert_allclose(answer["outputs"]["loss"], wanted["loss"], rtol=1e-4)
    row = {"image_bytes": b64(pictures[0][1]), "seed": 7}
    body = {"signature_name": "reconstruct", "instances": [row] * 2}
    status, answer = caller.post("mae:predict", body)
    assert status == 200 and len(answer["predictions"]) == 2
    names = {"reconstruction", "mask", "loss", "patch_size"}
    assert set(answer["predictions"][1]) == names
    assert answer["predictions"][1]["patch_size"] == [8, 8]
    assert np.shape(answer["predictions"][1]["reconstruction"]) == (32, 32, 3)
    np.testing.assert_array_equal(answer["predictions"][1]["mask"], wanted["mask"][0])


@source(TENSOR + "ParseJson", TENSOR + "WriteDecimal")
def test_numbers_that_are_not_finite_go_both_ways(caller):
    body = b'{"instances": [[NaN, 1.0], [Infinity, -Inf], [0.1, 2]]}'
    status, answer = caller.post("echo:predict", body)
    assert status == 200
    rows = [row["doubled"] for row in answer["predictions"]]
    assert math.isnan(rows[0][0]) and rows[1] == [math.inf, -math.inf]
    assert rows[2] == [0.2, 4.0]


@source(TENSOR + "AddValueToTensor", TENSOR + "WriteDecimal")
def test_numbers_are_rounded_to_float_and_written_in_full(caller):
    rows = [[2**24 + 1, 1e39], [4500000, 0.000015], [1 / 3, -499999.5]]
    body = json.dumps({"inputs": rows}).encode()
    status, _, text = caller.raw("POST", "/v1/models/echo:predict", body)
    assert status == 200
    numbers = text.split(b'"doubled":')[1].replace(b"[", b"").replace(b" ", b"")
    numbers = numbers.partition(b"]]")[0].replace(b"]", b"").replace(b"\n", b"")
    assert numbers == b"33554432.0,Infinity,9e+06,3e-05,0.666666687,-999999.0"


@source(TENSOR + "AddValueToTensor", TENSOR + "AddSingleValueAndAdvance")
def test_bools_and_small_integers(caller):
    body = {"signature_name": "invert", "instances": [True, False]}
    assert caller.post("echo:predict", body) == (200, {"predictions": [False, True]})
    # read as int32, and cut to the type's bits
    body = {"signature_name": "small", "inputs": [255, 300, -1]}
    assert caller.post("echo:predict", body) == (200, {"outputs": [255, 44, 255]})


@source(TENSOR + "AddSingleValueAndAdvance", TENSOR + "AddValueToTensor")
def test_half_and_bfloat16_have_no_json(caller):
    status, answer = caller.post("echo:predict", {"inputs": [1.5], **TO_HALF})
    assert status == 400
    assert answer["error"] == "Failed to write JSON value for tensor type: half"
    status, answer = caller.post("echo:predict", {"inputs": [1.5], **FROM_BFLOAT16})
    assert status == 501
    assert "Conversion of JSON Value: 1.5 to type: bfloat16" in answer["error"]


@source(TENSOR + "IsNamedTensorBytes", TENSOR + "JsonDecodeBase64Object")
def test_strings_and_bytes(caller):
    body = {"signature_name": "text", "instances": ["größer", b64(b"\x01\x02")]}
    status, answer = caller.post("echo:predict", body)
    assert status == 200
    first, second = answer["predictions"]
    assert first == {"text": "größer", "text_bytes": b64("größer".encode())}
    assert second["text_bytes"] == b64(b"\x01\x02")


@source(TENSOR + "JsonDecodeBase64Object")
@pytest.mark.parametrize("change", ["lines", "bare", "dots"])
def test_base64_with_line_breaks_and_without_padding(caller, change):
    data = b"x" * 100
    text = base64.b64encode(data).decode()
    text = {
        "lines": base64.encodebytes(data).decode().replace("\n", "\r\n"),
        "bare": text.rstrip("="),
        "dots": text.replace("=", "."),
    }[change]
    body = {"signature_name": "text", "inputs": [{"b64": text}]}
    status, answer = caller.post("echo:predict", body)
    assert status == 200, answer
    assert answer["outputs"]["text_bytes"] == [b64(data)]


@source(TENSOR + "ParseJson")
@pytest.mark.parametrize("around", [b"\xef\xbb\xbf%s", b"\n%s and more", b"%s]"])
def test_what_surrounds_a_document(caller, around):
    body = around % b'{"signature_name": "count", "inputs": [3]}'
    assert caller.post("echo:predict", body) == (200, {"outputs": [3]})


@source(EVHTTP + "NeedUncompressGzipContent", EVHTTP + "ReadRequestGzipBytes")
def test_gzip_bodies(caller):
    body = gzip.compress(b'{"signature_name": "count", "inputs": [3]}')
    path, headers = "/v1/models/echo:predict", {"Content-Encoding": "gzip"}
    assert caller.http("POST", path, body, headers) == (200, {"outputs": [3]})
    # what can't be unpacked is an empty body
    status, answer = caller.http("POST", path, body[:-1], headers)
    assert (status, answer["error"]) == (400, "JSON Parse error: The document is empty")


@source(HTTP + "ProcessRequest", PATHS + "AddHeaders", TENSOR + "MakeJsonFromStatus")
def test_answers_are_json(caller):
    body = b'{"inputs": [[1, 2]]}'
    for method, path, given, status in (
        ("POST", "/v1/models/echo:predict", body, 200),
        ("GET", "/v1/models/echo", b"", 200),
        ("GET", "/v1/models/echo/metadata", b"", 200),
        ("GET", "/v1/models/nothing", b"", 404),
        ("POST", "/v1/models/echo:predict", b"{", 400),
    ):
        got, kind, text = caller.raw(method, path, given, {"Accept-Encoding": "gzip"})
        assert (got, kind) == (status, "application/json")
        assert set(json.loads(text)) == {"error"} or status == 200


@source(HTTP + "ProcessRequest")
def test_options(caller):
    path = "/v1/models/echo:predict"
    page = {"Origin": f"http://{caller.server.rest}"}
    assert caller.raw("OPTIONS", path, headers=page)[::2] == (200, b"")
    assert caller.raw("OPTIONS", path)[::2] == (400, b"")


@source(TENSOR + "FillPredictRequestFromJson", TENSOR + "AddTensorValues")
def test_an_empty_batch(caller):
    assert caller.post("mae:predict", {"inputs": []}) == (200, {"outputs": []})
    status, answer = caller.post("mae:predict", {"instances": []})
    assert status == 400 and "No values in 'instances' array" in answer["error"]


@source(TENSOR + "MakeRowFormatJsonFromTensors")
@pytest.mark.parametrize("x", [[1.0, 2.0]])
def test_outputs_without_rows_have_columns_only(caller, x):
    body = {"signature_name": "lengths"}
    status, answer = caller.post("echo:predict", {"inputs": x, **body})
    wanted = {"count": 2, "x": x, "pairs": [x]}
    assert (status, answer) == (200, {"outputs": wanted})
    status, answer = caller.post("echo:predict", {"instances": x, **body})
    assert status == 400 and answer["error"].startswith("Tensor name: ")


@source(
    TENSOR + "FillClassifyRegressRequestFromJson",
    TENSOR + "MakeJsonFromClassificationResult",
)
def test_classify(caller, pictures):
    rows = [{"image/encoded": b64(png)} for _, png in pictures]
    body = {"signature_name": "classify_examples", "examples": rows}
    status, answer = caller.post("classifier:classify", body)
    assert status == 200
    logits = models.classifier()(models.processor()([p for p, _ in pictures]))
    odds = np.exp(logits)
    wanted = odds / odds.sum(-1, keepdims=True)
    assert [[label for label, _ in row] for row in answer["results"]] == (
        [models.LABELS] * 3
    )
    scores = [[score for _, score in row] for row in answer["results"]]
    np.testing.assert_allclose(scores, wanted, atol=1e-4)
    body = {**body, "examples": [{}], "context": rows[0]}
    status, answer = caller.post("classifier:classify", body)
    assert status == 200
    np.testing.assert_allclose([s for _, s in answer["results"][0]], wanted[0], 1e-3)


@source(
    "servables/tensorflow/classifier.cc: PostProcessClassificationResult",
    TENSOR + "MakeJsonFromClassificationResult",
)
def test_classes_or_scores_alone(caller):
    for signature, wanted in (
        ("both", [["größer", 0.25], ["no", 0.75]]),
        ("classes", [["größer", 0.0], ["no", 0.0]]),
        ("scores", [["", 0.25], ["", 0.75]]),
    ):
        body = {"signature_name": signature, "examples": [{"x": 0.25}] * 2}
        found = caller.post("examples:classify", body)
        assert found == (200, {"results": [wanted] * 2})


@source(
    TENSOR + "FillRegressionRequestFromJson",
    TENSOR + "MakeJsonFromRegressionResult",
    HANDLER + "ProcessRegressRequest",
)
def test_regress(caller):
    rows = [{"x": 0.5}, {"x": [2.0]}]
    for signature in ("serving_default", "column"):
        body = {"signature_name": signature, "examples": rows}
        assert caller.post("examples:regress", body) == (200, {"results": [0.5, 2.0]})
    body = {"context": {"x": 3.0}, "examples": [{}, {}]}
    assert caller.post("examples:regress", body) == (200, {"results": [3.0, 3.0]})


@source(
    PATHS + "ParseModelInfo",
    "model_servers/get_model_status_impl.cc: GetModelStatusWithModelSpec",
)
def test_versions_and_labels(caller):
    body = {"inputs": []}
    versions, labels = (
        ("/versions/1", "/versions/02"),
        ("/labels/stable", "/labels/canary"),
    )
    for which in ("", *versions, *labels):
        assert caller.post(f"mae{which}:predict", body)[0] == 200, which
    sound = {"error_code": "OK", "error_message": ""}
    rows = [
        {"version": str(version), "state": "AVAILABLE", "status": sound}
        for version in (2, 1)
    ]
    # a status has no labels: they are not looked at
    for which in ("", "/labels/stable", "/labels/none"):
        assert caller.get(f"mae{which}") == (200, {"model_version_status": rows})
    assert caller.get("mae/versions/1") == (200, {"model_version_status": rows[1:]})


@source(
    "servables/tensorflow/get_model_metadata_impl.cc: SavedModelGetSignatureDef",
    PATHS + "ToJsonString",
)
def test_metadata(caller):
    for which, version in (("", "2"), ("/versions/1", "1"), ("/labels/stable", "1")):
        status, answer = caller.get(f"mae{which}/metadata")
        assert status == 200
        spec = {"name": "mae", "signature_name": "", "version": version}
        assert answer["model_spec"] == spec
        signatures = answer["metadata"]["signature_def"]["signature_def"]
        assert "reconstruct_with_mask" in signatures
        assert "__saved_model_init_op" in signatures
        info = signatures["serving_default"]["inputs"]["image_bytes"]
        assert info["dtype"] == "DT_STRING"
        shape = {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False}
        assert info["tensor_shape"] == shape


PIXELS = {"signature_name": "features_from_pixels"}
COUNT = {"signature_name": "count"}
MASK = {"signature_name": "reconstruct_with_mask"}
CLASSIFY = {"signature_name": "classify_examples"}
TO_HALF = {"signature_name": "to_half"}
FROM_BFLOAT16 = {"signature_name": "from_bfloat16"}
LABEL = "model_servers/server_core.cc: GetModelVersionForLabel"
VALUE = TENSOR + "AddValueToTensor"
FILL = TENSOR + "FillTensorProto"
ROWS = TENSOR + "FillTensorMapFromInstancesList"
ITEM = TENSOR + "AddInstanceItem"
COLUMNS = TENSOR + "FillTensorMapFromInputsMap"
BYTES = TENSOR + "JsonDecodeBase64Object"
PARSE = TENSOR + "ParseJson"
REQUEST = TENSOR + "FillPredictRequestFromJson"
EXAMPLES = TENSOR + "FillClassifyRegressRequestFromJson"
FEATURE = TENSOR + "AddValueToFeature"
FLOAT = "not of expected type: float"


@pytest.mark.parametrize(
    "path, body, status, message",
    [
        case(NO_SERVABLE, "nothing:predict", {"inputs": []}, 404,
             "Servable not found for request: L"),
        case(NO_SERVABLE, "mae/versions/50:predict", {"inputs": []}, 404,
             "Specific(mae, 50)"),
        case(LABEL, "mae/labels/old:predict", {"inputs": []}, 400,
             "version label: old"),
        case(HANDLER + "GetInfoMap", "mae:predict", {"signature_name": "X"}, 400,
             '"X" not found in signature'),
        case(TENSOR + "FormatSignatureError", "mae:predict", {"signature_name": 1}, 400,
             "must be a string value"),
        case(COLUMNS, "mae:predict", {"inputs": {"x": 1}}, 400,
             "Missing named input: image_bytes in 'inputs' object."),
        case(ITEM, "mae:predict", {"instances": [{"x": 1}]}, 400,
             "JSON object: does not have named input: x"),
        case(ROWS, "mae:predict", {"instances": [{"mask": [0]}], **MASK}, 400,
             "keys must be equal to: image_bytes,mask"),
        case(VALUE, "mae:predict", {"instances": [1]}, 400,
             "JSON Value: 1 Type: Number is not of expected type: string"),
        case(VALUE, "echo:predict", {"inputs": [["a", 1]]}, 400, FLOAT),
        case(VALUE, "echo:predict", {"inputs": [[None, 1]]}, 400, f"Null is {FLOAT}"),
        case(VALUE, "echo:predict", {"inputs": [[True, 1.0]]}, 400, f"True is {FLOAT}"),
        case(FILL, "echo:predict", {"inputs": [[{"b64": "eA=="}]]}, 400, FLOAT),
        case(VALUE, "echo:predict", {"inputs": [1.5], **COUNT}, 400, "type: int64"),
        case(VALUE, "echo:predict", {"inputs": [2**63], **COUNT}, 400, "type: int64"),
        case(VALUE, "echo:predict", {"inputs": [2**70], **COUNT}, 400, "type: int64"),
        case(VALUE, "echo:predict", {"inputs": [1], "signature_name": "invert"}, 400,
             "Type: Number is not of expected type: bool"),
        case(ITEM, "echo:predict", {"instances": [[1, 2], [3, 4, 5]]}, 400,
             "Expecting tensor size: 2 but got: 3"),
        case(ITEM, "echo:predict", {"instances": [[1, 2], [[3, 4]]]}, 400,
             "Expecting shape [2] but got: [1,2]"),
        case(FILL, "echo:predict", {"inputs": [[1, 2], [3]]}, 400,
             "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
        case(FILL, "echo:predict", {"inputs": [[1, [2]]]}, 400, "unexpected level: 2"),
        case(FILL, "echo:predict", {"inputs": [[[1], 2]]}, 400,
             "JSON Value: 2 found at incorrect level: 3 in the JSON DOM. Expected at "
             "level: 3"),
        case(ROWS, "echo:predict", {"instances": [{"x": [1, 2]}, [1, 2]]}, 400,
             "Expecting object but got list at item 1"),
        case(ROWS, "echo:predict", {"instances": [[1, 2], {"x": [1, 2]}]}, 400,
             "Expecting value/list but got object at item 1"),
        case(ROWS, "mae:predict", {"instances": ["x"], **MASK}, 400,
             "instances is a plain list, but expecting list of objects"),
        case(COLUMNS, "mae:predict", {"inputs": ["x"], **MASK}, 400,
             "inputs is a plain value/list, but expecting an object"),
        case(BYTES, "mae:predict", {"instances": [{"b64": "%"}]}, 400,
             "Unable to base64 decode"),
        case(BYTES, "mae:predict", {"inputs": [{"b64": 1}]}, 400,
             "not formatted correctly for base64 data"),
        case(DECODE, "mae:predict", {"instances": [{"b64": ""}]}, 400,
             "Input is empty"),
        case(DECODE, "mae:predict", {"instances": ["x"]}, 400,
             "Unknown image file format"),
        case(PARSE, "mae:predict", b"", 400, "JSON Parse error: The document is empty"),
        case(PARSE, "mae:predict", b"{", 400, "JSON Parse error"),
        case(PARSE, "mae:predict", b"\xff\xfe", 400, "JSON Parse error"),
        case(PARSE, "mae:predict", b'{"inputs": ["\\ud800"]}', 400,
             "JSON Parse error: The surrogate pair in string is invalid."),
        case(PARSE, "echo:predict", b'{"inputs": [[1e400, 1]]}', 400,
             "JSON Parse error: Number too big to be stored in double."),
        case(PARSE, "mae:predict", b"[1]", 400, "Is not object"),
        case(REQUEST, "mae:predict", {}, 400, "Missing 'inputs' or 'instances' key"),
        case(REQUEST, "mae:predict", {"inputs": [], "instances": []}, 400,
             "expecting only one of 'inputs' or 'instances' keys to exist"),
        case(REQUEST, "mae:predict", {"instances": 3}, 400,
             "Expecting 'instances' to be an list/array"),
        case(EXAMPLES, "classifier:classify", {**CLASSIFY}, 400,
             "When method is classify, key 'examples' is expected and was not found"),
        case(EXAMPLES, "examples:regress", {}, 400, "key 'examples' is expected"),
        case(EXAMPLES, "classifier:classify", {"examples": 1}, 400,
             "Expecting 'examples' value to be an list/array"),
        case(EXAMPLES, "classifier:classify", {"examples": []}, 400,
             "'examples' value is an empty array"),
        case(TENSOR + "MakeExampleFromJsonObject", "classifier:classify",
             {"examples": [3]}, 400, "Example must be JSON object but got JSON Number"),
        case("servables/tensorflow/classifier.cc: PreProcessClassification",
             "classifier:classify", {"examples": [{}]}, 400,
             "No classification inputs found in SignatureDef"),
        case("servables/tensorflow/regressor.cc: PreProcessRegression",
             "examples:regress", {"examples": [{}], "signature_name": "both"}, 400,
             "Expected one output Tensor."),
        case(FEATURE, "classifier:classify", {"examples": [{"x": None}]}, 400,
             "Feature: x has element with unexpected JSON type: Null"),
        case(TENSOR + "IncompatibleFeatureKindError", "classifier:classify",
             {"examples": [{"x": [1, 2.5]}]}, 400,
             "Unexpected element type in feature: x expecting type: int64"),
        case("servables/tensorflow/classifier.cc: GetClassificationSignatureDef",
             "classifier:classify", {"examples": [{}], "signature_name": "X"}, 400,
             "No signature was found with the name: X"),
    ],
)  # fmt: skip
def test_errors_of_the_table(caller, path, body, status, message):
    got, answer = caller.post(path, body)
    assert (got, set(answer)) == (status, {"error"}), answer
    assert message in answer["error"]


STATUS = "model_servers/get_model_status_impl.cc: GetModelStatusWithModelSpec"


@pytest.mark.parametrize(
    "path, message",
    [
        case(STATUS, "nothing", "Could not find any versions of model nothing"),
        case(STATUS, "mae/versions/50", "Could not find version 50 of model mae"),
        case(NO_SERVABLE, "nothing/metadata", "Servable not found for request: Latest"),
        # a query belongs to the path, and here to the model's name
        case(EVHTTP + "path_and_query", "mae?a=1", "of model mae?a=1"),
    ],
)
def test_status_of_unknown_models_and_versions(caller, path, message):
    status, answer = caller.get(path)
    assert status == 404 and message in answer["error"]


@pytest.mark.parametrize(
    "method, path, message",
    [
        case(PATHS + "kPredictionApiGegex", "POST", "mae:explain", "Malformed request"),
        case(PATHS + "kPredictionApiGegex", "POST", "mae", "Malformed request: POST"),
        case(PATHS + "kPredictionApiGegex", "POST",
             "mae/versions/1/labels/stable:predict", "Malformed request"),
        case(EVHTTP + "path_and_query", "POST", "mae:predict?a=1", "Malformed request"),
        # its pattern has no letters' case, the comparison behind it has
        case(HANDLER + "ProcessRequest", "POST", "mae:PREDICT", "Malformed request"),
        case(PATHS + "kModelStatusApiRegex", "GET", "mae:predict", "Malformed request"),
        case(PATHS + "kModelStatusApiRegex", "GET", "mae/versions/x", "Malformed req"),
        case(PATHS + "ParseModelInfo", "GET", f"mae/versions/{2**63}",
             "Failed to convert version"),
        case(PATHS + "ParseModelInfo", "DELETE", "mae",
             "Malformed request: DELETE /v1/models/mae"),
    ],
)  # fmt: skip
def test_malformed_requests(caller, method, path, message):
    status, answer = caller.http(method, f"/v1/models/{path}")
    assert status == 400 and message in answer["error"]


@pytest.mark.parametrize(
    "path, message",
    [
        case(HTTP + "Dispatch", "/v1/nothing", "Malformed request: GET /v1/nothing"),
        case(HANDLER + "ProcessModelStatusRequest", "/v1/models", "Missing model name"),
    ],
)
def test_paths_without_a_model(caller, path, message):
    status, answer = caller.http("GET", path)
    assert status == 400 and message in answer["error"]


@source(PATHS + "DecodeArg")
def test_a_path_may_be_escaped(caller):
    assert caller.get("%6d%61e")[0] == 200
    assert caller.post("mae/labels/st%61ble:predict", {"inputs": []})[0] == 200


@source(HTTP + "ReadRequestBytes")
def test_chunked_bodies(caller):
    chunks = iter([b'{"inputs"', b": [[1, ", b"2]]}"])
    status, answer = caller.http("POST", "/v1/models/echo:predict", chunks)
    assert status == 200
    assert answer["outputs"] == {"doubled": [[2.0, 4.0]], "row_sum": [3.0]}
