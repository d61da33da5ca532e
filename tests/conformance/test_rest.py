"""REST: both formats, versions, labels, metadata, and each row of the error table."""

import math

import numpy as np
import pytest

from tests.conformance import models
from tests.conformance.calls import b64, picture


@pytest.fixture(scope="module")
def pictures():
    return [picture(seed) for seed in range(3)]


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


def test_numbers_that_are_not_finite_go_both_ways(caller):
    body = b'{"instances": [[NaN, 1.0], [Infinity, -Infinity], [0.1, 2]]}'
    status, answer = caller.post("echo:predict", body)
    assert status == 200
    rows = [row["doubled"] for row in answer["predictions"]]
    assert math.isnan(rows[0][0]) and rows[1] == [math.inf, -math.inf]
    # the shortest text of a float32
    assert rows[2] == [0.2, 4.0]


def test_strings_and_bytes(caller):
    body = {"signature_name": "text", "instances": ["größer", b64(b"\x01\x02")]}
    status, answer = caller.post("echo:predict", body)
    assert status == 200
    first, second = answer["predictions"]
    assert first == {"text": "größer", "text_bytes": b64("größer".encode())}
    assert second["text_bytes"] == b64(b"\x01\x02")


def test_an_empty_batch(caller):
    assert caller.post("mae:predict", {"inputs": []}) == (200, {"outputs": []})
    status, answer = caller.post("mae:predict", {"instances": []})
    assert status == 400 and "No values in 'instances' array" in answer["error"]


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


def test_versions_and_labels(caller):
    body = {"inputs": []}
    for which in ("", "/versions/1", "/versions/2", "/labels/stable", "/labels/canary"):
        assert caller.post(f"mae{which}:predict", body)[0] == 200, which
    sound = {"error_code": "OK", "error_message": ""}
    rows = [
        {"version": str(version), "state": "AVAILABLE", "status": sound}
        for version in (2, 1)
    ]
    assert caller.get("mae") == (200, {"model_version_status": rows})
    for which in ("/versions/1", "/labels/stable"):
        assert caller.get(f"mae{which}") == (200, {"model_version_status": rows[1:]})


def test_metadata(caller):
    for which, version in (("", "2"), ("/versions/1", "1"), ("/labels/stable", "1")):
        status, answer = caller.get(f"mae{which}/metadata")
        assert status == 200
        assert answer["model_spec"]["name"] == "mae"
        assert answer["model_spec"]["version"] == version
        signatures = answer["metadata"]["signature_def"]["signature_def"]
        assert "reconstruct_with_mask" in signatures
        info = signatures["serving_default"]["inputs"]["image_bytes"]
        assert info["dtype"] == "DT_STRING"
        assert [d["size"] for d in info["tensor_shape"]["dim"]] == ["-1"]


PIXELS = {"signature_name": "features_from_pixels"}
COUNT = {"signature_name": "count"}
MASK = {"signature_name": "reconstruct_with_mask"}
CLASSIFY = {"signature_name": "classify_examples"}


@pytest.mark.parametrize(
    "path, body, status, message",
    [
        ("nothing:predict", {"inputs": []}, 404, "Servable not found for request: L"),
        ("mae/versions/50:predict", {"inputs": []}, 404, "Specific(mae, 50)"),
        ("mae/labels/old:predict", {"inputs": []}, 400, "version label: old"),
        ("mae:predict", {"signature_name": "X"}, 400, '"X" not found in signature'),
        ("mae:predict", {"signature_name": 1}, 400, "must be a string value"),
        ("mae:predict", {"inputs": {"x": 1}}, 400, "Missing named input: image_bytes"),
        ("mae:predict", {"instances": [{"x": 1}]}, 400, ""),
        ("mae:predict", {"instances": [1]}, 400, "not of expected type: string"),
        ("echo:predict", {"inputs": [["a", 1]]}, 400, "not of expected type: float"),
        ("echo:predict", {"inputs": [[None, 1]]}, 400, "not of expected type: float"),
        ("echo:predict", {"inputs": [[True, 1.0]]}, 400, "not of expected type: float"),
        ("echo:predict", {"inputs": [[1e39, 1.0]]}, 400, "without loss of precision"),
        ("echo:predict", {"inputs": [[2**25, 1]]}, 400, "without loss of precision"),
        ("echo:predict", {"inputs": [1.5], **COUNT}, 400, "expected type: int64"),
        ("echo:predict", {"inputs": [2**70], **COUNT}, 400, ""),
        ("echo:predict", {"instances": [[1, 2], [3, 4, 5]]}, 400, "size: 2 but got: 3"),
        ("echo:predict", {"inputs": [[1, 2], [3]]}, 400, "unexpected size: 1"),
        ("echo:predict", {"inputs": [[1, [2]]]}, 400, "unexpected level"),
        ("echo:predict", {"inputs": [[[1], 2]]}, 400, "incorrect level"),
        ("echo:predict", {"instances": [{"x": [1, 2]}, [1, 2]]}, 400, "got list"),
        ("echo:predict", {"instances": [[1, 2], {"x": [1, 2]}]}, 400, "got object"),
        ("mae:predict", {"instances": ["x"], **MASK}, 400, "list of objects"),
        ("mae:predict", {"inputs": ["x"], **MASK}, 400, "expecting an object"),
        ("mae:predict", {"instances": [{"b64": "%"}]}, 400, "base64"),
        ("mae:predict", {"instances": [{"b64": ""}]}, 400, "Input is empty"),
        ("mae:predict", {"instances": ["x"]}, 400, "Unknown image file format"),
        ("mae:predict", b"", 400, "JSON Parse error"),
        ("mae:predict", b"{", 400, "JSON Parse error"),
        ("mae:predict", b"\xff\xfe", 400, "JSON Parse error"),
        ("mae:predict", b'{"inputs": ["\\ud800"]}', 400, "JSON Parse error"),
        ("mae:predict", b"[1]", 400, "Is not object"),
        ("mae:predict", {}, 400, "Missing 'inputs' or 'instances' key"),
        ("mae:predict", {"inputs": [], "instances": []}, 400, "only one of"),
        ("mae:predict", {"instances": 3}, 400, "to be an list/array"),
        ("classifier:classify", {**CLASSIFY}, 400, "key 'examples' is expected"),
        ("classifier:classify", {"examples": 1, **CLASSIFY}, 400, "an list/array"),
        ("classifier:classify", {"examples": [], **CLASSIFY}, 400, "empty array"),
        ("classifier:classify", {"examples": [3], **CLASSIFY}, 400, "JSON object"),
        (
            "classifier:classify",
            {"examples": [{}]},
            400,
            "method_name to be te",
        ),
        (
            "classifier:classify",
            {"examples": [{"x": None}], **CLASSIFY},
            400,
            "JSON ty",
        ),
        ("classifier:classify", {"examples": [{"x": [1, 2.5]}], **CLASSIFY}, 400, "x"),
        ("classifier:classify", {"examples": [{}], "signature_name": "X"}, 400, "X"),
    ],
)
def test_errors_of_the_table(caller, path, body, status, message):
    got, answer = caller.post(path, body)
    assert (got, set(answer)) == (status, {"error"}), answer
    assert message in answer["error"]


@pytest.mark.parametrize("path", ["nothing", "mae/versions/50", "nothing/metadata"])
def test_status_of_unknown_models_and_versions(caller, path):
    status, answer = caller.get(path)
    assert status == 404 and path.partition("/")[0] in answer["error"]


@pytest.mark.parametrize(
    "method, path",
    [
        ("POST", "/v1/models/mae:explain"),
        ("POST", "/v1/models/mae"),
        ("GET", "/v1/models/mae:predict"),
        ("GET", "/v1/models/mae/versions/x"),
        ("POST", "/v1/models/mae/versions/1/labels/stable:predict"),
        ("GET", "/v1/nothing"),
        ("DELETE", "/v1/models/mae"),
    ],
)
def test_malformed_requests(caller, method, path):
    status, answer = caller.http(method, path)
    assert status in (400, 404, 405) and "error" in answer


def test_an_image_without_its_batch_axis_is_an_error_not_an_abort(caller):
    image = np.zeros((32, 32, 3)).tolist()
    for body in ({"instances": image, **PIXELS}, {"inputs": image, **PIXELS}):
        assert caller.post("mae:predict", body)[0] == 400
    assert caller.post("mae:predict", {"inputs": []})[0] == 200


def test_a_path_may_be_escaped(caller):
    assert caller.get("%6d%61e")[0] == 200
    assert caller.post("mae/labels/st%61ble:predict", {"inputs": []})[0] == 200


def test_chunked_bodies(caller):
    chunks = iter([b'{"inputs"', b": [[1, ", b"2]]}"])
    status, answer = caller.http("POST", "/v1/models/echo:predict", chunks)
    assert status == 200
    assert answer["outputs"] == {"doubled": [[2.0, 4.0]], "row_sum": [3.0]}
