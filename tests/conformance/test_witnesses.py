"""Clients that are not ours: curl, and ovmsclient over gRPC and HTTP.

ovmsclient is asked for versions by number: without one it asks for version 0, which
OpenVINO's server takes for the newest and TF Serving does not.
"""

import base64
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from tests.conformance.calls import picture
from tests.conformance.sources import source
from tests.scripts import ROOT

HANDLER = "model_servers/http_rest_api_handler.cc: ProcessRequest"
PREDICT = "servables/tensorflow/predict_util.cc: RunPredict"


def curl_commands():
    """Returns the commands of docs/serving.md that ask this server by curl."""
    text = (ROOT / "docs/serving.md").read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = re.split(r"(?<![|\\])\n", "\n".join(blocks))
    # tests/serving/test_proxy.py runs the one that asks the proxy
    return [line for line in lines if "curl" in line and "http://localhost" in line]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@source(HANDLER, "util/json_tensor.cc: ParseJson")
@pytest.mark.parametrize("command", curl_commands())
def test_curl_commands_of_the_docs(server, tmp_path, command):
    image, _ = picture()
    image.save(tmp_path / "cat.jpg")
    assert command.count("localhost:8501") == 1, command
    finished = subprocess.run(
        ["bash", "-c", command.replace("localhost:8501", server.rest)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    answer = json.loads(finished.stdout)
    if "predictions" in answer:
        assert np.shape(answer["predictions"]) == (1, 17, 128)
    elif "results" in answer:
        (classes,) = answer["results"]
        assert sum(score for _, score in classes) == pytest.approx(1, abs=1e-5)
    else:
        assert answer["model_version_status"][0]["state"] == "AVAILABLE"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
# libevent's evhttp, which it is built on, answers 100
@source("util/net_http/server/internal/evhttp_server.cc: EvHTTPServer")
def test_curl_waits_for_100_continue(server, tmp_path):
    _, png = picture(size=(1200, 900))
    rows = [{"b64": base64.b64encode(png).decode()}] * 2
    body = tmp_path / "body.json"
    body.write_text(json.dumps({"instances": rows}))
    assert body.stat().st_size > 2**20  # curl asks before it sends so much
    address = f"http://{server.rest}/v1/models/mae:predict"
    finished = subprocess.run(
        ["curl", "--silent", "--fail", "-HExpect: 100-continue", f"-d@{body}", address],
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    assert len(json.loads(finished.stdout)["predictions"]) == 2


@pytest.fixture(params=["grpc", "rest"])
def client(request, server):
    ovmsclient = pytest.importorskip("ovmsclient")
    if request.param == "grpc":
        return ovmsclient.make_grpc_client(server.grpc)
    return ovmsclient.make_http_client(server.rest)


@source(PREDICT, HANDLER)
def test_ovmsclient_predicts(client):
    _, png = picture()
    found = client.predict({"image_bytes": [png]}, "mae", 2)
    assert np.asarray(found).shape == (1, 17, 128)
    x = np.float32([[1, 2]])
    found = client.predict({"x": x}, "echo", 1)
    np.testing.assert_array_equal(found["doubled"], 2 * x)


@source(
    "model_servers/get_model_status_impl.cc: GetModelStatusWithModelSpec",
    "servables/tensorflow/get_model_metadata_impl.cc: SavedModelGetSignatureDef",
)
def test_ovmsclient_reads_status_and_metadata(client, request):
    for version in (1, 2):
        status = client.get_model_status("mae", version)
        assert status[version]["state"] == "AVAILABLE"
    metadata = client.get_model_metadata("echo", 1)
    if "rest" in request.node.name:
        # it waits for OpenVINO's spelling, and hands TF Serving's on as it is
        assert metadata["model_spec"]["version"] == "1"
        return
    assert metadata["inputs"]["x"]["shape"] == [-1, 2]
    assert set(metadata["outputs"]) == {"doubled", "row_sum"}
    assert metadata["model_version"] == 1


@source("core/basic_manager.cc: GetUntypedServableHandle", PREDICT)
def test_ovmsclient_understands_errors(client):
    errors = pytest.importorskip("ovmsclient.tfs_compat.base.errors")
    with pytest.raises(errors.ModelNotFoundError):
        client.predict({"x": np.float32([[1, 2]])}, "nothing", 1)
    with pytest.raises(errors.InvalidInputError):
        client.predict({"x": np.float32([[1, 2, 3]])}, "echo", 1)
