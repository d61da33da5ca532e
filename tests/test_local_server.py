"""serving/local_server.py: TF Serving's REST protocol, by a real socket."""

import base64
import http.client
import io
import json
import re
import signal
import subprocess
import urllib.error
import urllib.parse
import urllib.request

import keras
import numpy as np
import pytest
from PIL import Image

import keras_mae
from tests.scripts import command, environment, load, run

SCRIPT = "serving/local_server.py"

pytest.importorskip("flask")
pytest.importorskip("waitress")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Exports a small model, serves it, and yields model, processor and address."""
    keras.utils.set_random_seed(0)
    folder = tmp_path_factory.mktemp("models")
    model = keras_mae.MAEPretrainer.from_preset(
        "mae_tiny", patch_size=8, depth=1, decoder_depth=1
    )
    processor = keras_mae.MAEImageProcessor(image_size=32)
    export = load("serving/export.py")
    for version in (2, 10):
        export.export(model, processor, folder / str(version))
    # none of these is a version
    for name in ("part-11-unfinished", "011", "\u00b2"):
        (folder / name).mkdir()
    (folder / "12").write_text("a file")
    server = start(folder)
    yield model, processor, address_of(server)
    server.terminate()
    assert server.wait(timeout=20) == 0


def start(folder):
    return subprocess.Popen(
        command(SCRIPT, f"--model_base_path={folder}", "--rest_api_port=0"),
        stdout=subprocess.PIPE,
        text=True,
        env={**environment(), "PYTHONUNBUFFERED": "1"},
    )


def address_of(server):
    return re.search(r"http://\S+", server.stdout.readline()).group()


def post(url, body):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(url, data=data, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def png(seed=0):
    levels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), "uint8")
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "PNG")
    return levels, {"b64": base64.b64encode(file.getvalue()).decode()}


def test_rows_and_columns_give_the_models_features(served):
    model, processor, url = served
    (first, one), (second, two) = png(0), png(1)
    wanted = model.encoder(processor([first, second]))
    for body, key in (
        ({"instances": [one, two]}, "predictions"),
        ({"instances": [{"image_bytes": one}, {"image_bytes": two}]}, "predictions"),
        ({"inputs": {"image_bytes": [one, two]}}, "outputs"),
        ({"inputs": [one, two]}, "outputs"),
    ):
        status, answer = post(f"{url}:predict", body)
        assert status == 200 and set(answer) == {key}
        np.testing.assert_allclose(answer[key], wanted, atol=1e-4)


def test_pixels_and_several_outputs(served):
    model, processor, url = served
    levels, encoded = png()
    pixels = processor(levels)
    body = {
        "signature_name": "reconstruct_from_pixels",
        "inputs": {"pixels": pixels.tolist(), "seed": [7]},
    }
    status, columns = post(f"{url}:predict", body)
    assert status == 200
    wanted = model.reconstruct(pixels, seed=7)
    np.testing.assert_array_equal(columns["outputs"]["mask"], wanted["mask"])
    np.testing.assert_allclose(columns["outputs"]["loss"], wanted["loss"], rtol=1e-4)
    body = {
        "signature_name": "reconstruct",
        "instances": [{"image_bytes": encoded, "seed": 7}] * 2,
    }
    status, rows = post(f"{url}:predict", body)
    assert status == 200 and len(rows["predictions"]) == 2
    row = rows["predictions"][1]
    assert set(row) == {"reconstruction", "mask", "loss"}
    np.testing.assert_array_equal(row["mask"], wanted["mask"][0])
    assert np.shape(row["reconstruction"]) == (32, 32, 3)


def test_an_empty_batch_is_answered(served):
    status, answer = post(f"{served[2]}:predict", {"instances": []})
    assert (status, answer) == (200, {"predictions": []})


def test_status_names_the_newest_version(served):
    with urllib.request.urlopen(served[2]) as response:
        answer = json.load(response)
    assert answer["model_version_status"] == [
        {
            "version": "10",
            "state": "AVAILABLE",
            "status": {"error_code": "OK", "error_message": ""},
        }
    ]
    status, _ = post(f"{served[2]}/versions/10:predict", {"instances": [png()[1]]})
    assert status == 200


PIXELS = {"signature_name": "features_from_pixels"}


@pytest.mark.parametrize(
    "path, body, status, message",
    [
        (":predict", b"{", 400, "JSON Parse error"),
        (":predict", b"[" * 100_000, 400, "JSON Parse error"),
        (":predict", b"[1]", 400, "JSON Parse error"),
        (":predict", b"\xff\xfe", 400, "JSON Parse error"),
        (":predict", {}, 400, "Missing 'inputs' or 'instances' key"),
        (":predict", {"instances": 3}, 400, "to be a list"),
        (":predict", {"instances": [1]}, 400, "not of expected type: string"),
        (":predict", {"instances": [{"b64": "%"}]}, 400, "base64"),
        (":predict", {"instances": [{"b64": ""}]}, 400, "Input is empty"),
        (":predict", {"instances": ["x"]}, 400, "Unknown image file format"),
        (":predict", {"instances": ["\ud800"]}, 400, "Unknown image file format"),
        (":predict", {"instances": [["x"]]}, 400, "more dimensions"),
        (
            ":predict",
            b'{"instances":' + b"[" * 900 + b"]" * 900 + b"}",
            400,
            "more dim",
        ),
        (":predict", {"instances": ["x", {"image_bytes": "x"}]}, 400, "or none"),
        (":predict", {"instances": [{"pic": "x"}]}, 400, "input: image_bytes in"),
        (":predict", {"inputs": {"image_bytes": ["x"], "y": 1}}, 400, "input: y in"),
        (":predict", {"instances": ["x"], "signature_name": "no"}, 400, '"no" not fo'),
        (":predict", {"instances": ["x"], "signature_name": [1]}, 400, "not found"),
        (":predict", {"inputs": [[1], [2, 3]], **PIXELS}, 400, "tensor size"),
        (":predict", {"inputs": [["a"]], **PIXELS}, 400, "expected type: float"),
        (":predict", {"inputs": [[1, 2]], **PIXELS}, 400, "must have the shape"),
        (":predict", {"inputs": [[None]], **PIXELS}, 400, "expected type: float"),
        ("/versions/2:predict", {}, 404, "Specific(mae, 2)"),
        ("x:predict", {}, 404, "Latest(maex)"),
        (":classify", {}, 405, "Malformed request"),
        ("/versions/10", {}, 405, "Malformed request"),
    ],
)
def test_errors_say_what_is_wrong(served, path, body, status, message):
    got, answer = post(served[2] + path, body)
    assert (got, set(answer)) == (status, {"error"})
    assert message in answer["error"]


def test_an_image_without_its_batch_axis_is_an_error_not_a_crash(served):
    body = {"instances": np.zeros((32, 32, 3)).tolist(), **PIXELS}
    assert post(f"{served[2]}:predict", body)[0] == 400
    assert post(f"{served[2]}:predict", {"instances": []})[0] == 200


def test_a_huge_body_is_refused_before_it_is_sent(served):
    address = urllib.parse.urlsplit(served[2])
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=20)
    connection.putrequest("POST", f"{address.path}:predict")
    connection.putheader("Content-Length", str(65 * 2**20))
    connection.endheaders()
    assert connection.getresponse().status == 413


def test_a_server_stops_on_sigterm(served, tmp_path):
    folder = tmp_path / "mae"
    load("serving/export.py").export(served[0], served[1], folder / "1")
    server = start(folder)
    address_of(server)
    server.send_signal(signal.SIGTERM)
    assert server.wait(timeout=20) == 0


@pytest.mark.parametrize("make", [lambda p: None, lambda p: (p / "1").mkdir()])
def test_a_folder_without_a_model_is_one_line(tmp_path, make):
    make(tmp_path)
    finished = run(SCRIPT, f"--model_base_path={tmp_path}", "--rest_api_port=0")
    assert finished.returncode == 2
    assert len(finished.stderr.splitlines()) == 1, finished.stderr
    assert str(tmp_path) in finished.stderr


@pytest.mark.parametrize("name, extra", [("seed", [1]), ("mask", [[1.0] + [0.0] * 15])])
def test_every_image_needs_its_own_seed_or_mask(served, name, extra):
    signature = "reconstruct" if name == "seed" else "reconstruct_with_mask"
    inputs = {"image_bytes": [png()[1]] * 3, name: extra}
    body = {"signature_name": signature, "inputs": inputs}
    status, answer = post(f"{served[2]}:predict", body)
    assert status == 400 and f"give a {name} an image" in answer["error"]
