"""serving/config/nginx.conf: a real nginx in front of the embedded server, over TLS."""

import base64
import json
import os
import re
import shutil
import socket
import subprocess
import time

import numpy as np
import pytest
import tensorflow as tf
import urllib3
from PIL import Image

from mae_server.process import running
from tests.pictures import encode
from tests.scripts import ROOT, environment

grpc = pytest.importorskip("grpc")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("nginx"), reason="no nginx on PATH"),
    pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl on PATH"),
]

TOKEN = "5a.b+c$" + 16 * "7"  # a pattern's characters too
BODY, BURST = 200_000, 30
# the configuration around it is that of nginx's image, for one process and any user
MAIN = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
  include /etc/nginx/mime.types; access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/1; uwsgi_temp_path {folder}/2; scgi_temp_path {folder}/3;
  include {folder}/proxy.conf;
}}
"""


class Proxy:
    """An nginx with the configuration of this folder."""

    def __init__(self, folder, rest, grpc, per="s", **variables):
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        variables = {"REST": rest, "GRPC": grpc, "TOKEN": TOKEN, **variables}
        variables = {"RATE": 1000, "BURST": 1000, "BODY": BODY, **variables}
        text = (ROOT / "serving/config/nginx.conf").read_text()
        text = re.sub(r"\$\{MAE_(\w+)\}", lambda it: str(variables[it[1]]), text)
        for old, new in {
            "listen 8443": f"listen 127.0.0.1:{self.port}",
            "/certs/": f"{folder}/",
            "root /page": f"root {ROOT}/serving/page",
            "r/s;": f"r/{per};",
        }.items():
            assert old in text
            text = text.replace(old, new)
        (folder / "proxy.conf").write_text(text)
        (folder / "nginx.conf").write_text(MAIN.format(folder=folder))
        self.http = urllib3.PoolManager(ca_certs=str(folder / "tls.crt"), retries=False)

    def __enter__(self):
        arguments = ["nginx", "-c", self.folder / "nginx.conf", "-e", "stderr"]
        self.process = subprocess.Popen(arguments)
        end = time.monotonic() + 300
        while time.monotonic() < end:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return self
            assert self.process.poll() is None
            time.sleep(0.05)
        raise AssertionError("nginx does not listen")

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()
        self.http.clear()

    def ask(self, method, path, token=TOKEN, **options):
        headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
        url = f"https://localhost:{self.port}{path}"
        return self.http.request(method, url, headers=headers, **options)

    def predict(self, content, **options):
        body = {"instances": [{"b64": base64.b64encode(content).decode()}]}
        path = "/v1/models/mae:predict"
        return self.ask("POST", path, body=json.dumps(body), **options)

    def rpc(self, method, request, response, token=TOKEN):
        certificate = (self.folder / "tls.crt").read_bytes()
        credentials = grpc.ssl_channel_credentials(certificate)
        with grpc.secure_channel(f"localhost:{self.port}", credentials) as channel:
            call = channel.unary_unary(
                f"/tensorflow.serving.{method}",
                request_serializer=type(request).SerializeToString,
                response_deserializer=response.FromString,
            )
            return call(
                request, timeout=300, metadata=[("authorization", f"Bearer {token}")]
            )


def certificate(folder):
    """Writes tls.crt and tls.key as docs/serving.md says."""
    text = (ROOT / "docs/serving.md").read_text()
    (line,) = re.findall(r"^openssl req (?:.*\\\n)*.*$", text, re.MULTILINE)
    line = line.replace("certs/", f"{folder}/")
    subprocess.run(["bash", "-c", line], check=True, stderr=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("proxy")
    certificate(folder)
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    for package in ("starlette", "uvicorn", "tensorflow_serving"):
        pytest.importorskip(package)
    models = tmp_path_factory.mktemp("models")
    shutil.unpack_archive(ROOT / "tests/fixtures/v0_1/savedmodel.zip", models)
    flags = ("--model_name=mae", f"--model_base_path={models}")
    script = ROOT / "serving/local_server.py"
    with running(script, *flags, env=environment()) as (rest, rpc, _):
        yield rest, rpc


@pytest.fixture(scope="module")
def proxy(folder, server):
    with Proxy(folder, *server) as proxy:
        yield proxy


def error(response):
    return json.loads(response.data)["error"]


@pytest.fixture(scope="module")
def picture():
    return encode(Image.new("RGB", (40, 30), (200, 30, 40)), "png")


@pytest.mark.nightly
def test_rest_and_grpc_answer_the_same_over_tls(proxy, picture):
    predict_pb2 = pytest.importorskip("tensorflow_serving.apis.predict_pb2")
    response = proxy.predict(picture)
    assert response.status == 200
    rest = np.array(json.loads(response.data)["predictions"])
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "mae"
    request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto([picture]))
    answer = proxy.rpc(
        "PredictionService/Predict", request, predict_pb2.PredictResponse
    )
    features = tf.make_ndarray(answer.outputs["features"])
    np.testing.assert_allclose(features, rest, rtol=1e-5, atol=1e-6)


def test_the_docs_line_works_as_pasted(proxy):
    if not shutil.which("curl"):
        pytest.skip("no curl on PATH")
    text = (ROOT / "docs/serving.md").read_text()
    (line,) = re.findall(r"^curl --cacert (?:.*\\\n)*.*$", text, re.MULTILINE)
    line = line.replace("certs/", f"{proxy.folder}/").replace("8443", str(proxy.port))
    finished = subprocess.run(
        ["bash", "-c", line],
        env={**os.environ, "TOKEN": TOKEN},
        capture_output=True,
        check=True,
    )
    assert b"AVAILABLE" in finished.stdout


@pytest.mark.parametrize("token", [None, "", TOKEN[:-1], TOKEN + "7", TOKEN.upper()])
def test_requests_need_the_token(proxy, picture, token):
    response = proxy.predict(picture, token=token)
    assert response.status == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert error(response) == "The token is missing or wrong"
    assert proxy.ask("GET", "/v1/models/mae", token=token).status == 401


@pytest.mark.parametrize("empty", ["", "short"])
def test_a_token_that_is_not_set_opens_nothing(folder, server, empty):
    with Proxy(folder, *server, TOKEN=empty) as proxy:
        assert proxy.ask("GET", "/v1/models/mae", token=empty).status == 401


def test_status_and_metadata_pass(proxy):
    status = json.loads(proxy.ask("GET", "/v1/models/mae").data)
    assert status["model_version_status"][0]["state"] == "AVAILABLE"
    assert proxy.ask("GET", "/v1/models/mae/metadata").status == 200
    # the server's own errors stay as they are
    response = proxy.ask("GET", "/v1/models/other")
    assert response.status == 404 and "other" in error(response)


def test_a_large_request_is_refused_before_the_server(proxy):
    response = proxy.predict(bytes(BODY))
    assert response.status == 413
    assert error(response) == f"The request is larger than {BODY}"


def test_grpc_has_codes(proxy, picture):
    predict_pb2 = pytest.importorskip("tensorflow_serving.apis.predict_pb2")
    management = pytest.importorskip("tensorflow_serving.apis.model_management_pb2")

    def code(method, content, answer, **options):
        with pytest.raises(grpc.RpcError) as caught:
            proxy.rpc(method, content, answer, **options)
        return caught.value.code()

    predict = ("PredictionService/Predict", predict_pb2.PredictRequest())
    answer = predict_pb2.PredictResponse
    assert code(*predict, answer, token="x") == grpc.StatusCode.UNAUTHENTICATED
    predict[1].inputs["image_bytes"].CopyFrom(tf.make_tensor_proto([bytes(2 * BODY)]))
    assert code(*predict, answer) == grpc.StatusCode.RESOURCE_EXHAUSTED
    # who may ask for predictions may not change what is served
    reload = management.ReloadConfigRequest()
    method = "ModelService/HandleReloadConfigRequest"
    answer = management.ReloadConfigResponse
    assert code(method, reload, answer) == grpc.StatusCode.UNIMPLEMENTED


def test_many_requests_are_told_to_wait(folder, server):
    apis = "tensorflow_serving.apis"
    get_model_status_pb2 = pytest.importorskip(f"{apis}.get_model_status_pb2")
    # a minute for each request in place of a second: none is allowed meanwhile
    with Proxy(folder, *server, per="m", RATE=1, BURST=3) as proxy:
        answers = [proxy.ask("GET", "/v1/models/mae") for _ in range(8)]
        assert [it.status for it in answers[:4]] == 4 * [200]
        assert answers[-1].status == 429
        assert answers[-1].headers["Retry-After"] == "1"
        assert error(answers[-1]) == "Too many requests"
        with pytest.raises(grpc.RpcError) as caught:
            request = get_model_status_pb2.GetModelStatusRequest()
            response = get_model_status_pb2.GetModelStatusResponse
            proxy.rpc("ModelService/GetModelStatus", request, response)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        # the page is no request to the model
        assert proxy.ask("GET", "/").status == 200


def test_a_server_that_is_away_is_unavailable(folder):
    with Proxy(folder, "127.0.0.1:9", "127.0.0.1:9") as proxy:
        response = proxy.ask("GET", "/v1/models/mae")
        assert response.status == 503
        assert error(response) == "The model server does not answer"


def test_the_page_needs_no_token_and_metrics_are_not_shown(proxy):
    response = proxy.ask("GET", "/", token=None)
    page = (ROOT / "serving/page/index.html").read_bytes()
    assert (response.status, response.data) == (200, page)
    assert response.headers["X-Frame-Options"] == "DENY"
    script = proxy.ask("GET", "/page.js", token=None)
    assert "javascript" in script.headers["Content-Type"]
    metrics = "/monitoring/prometheus/metrics"
    for path in (metrics, f"/v1/..{metrics}", f"/v1/models/..%2f..{metrics}"):
        assert proxy.ask("GET", path).status in (400, 404), path


def test_plain_http_is_refused(proxy):
    http = urllib3.PoolManager(retries=False)
    assert http.request("GET", f"http://localhost:{proxy.port}/").status == 400


@pytest.mark.nightly
def test_the_page_asks_for_the_token(proxy):
    sync_api = pytest.importorskip("playwright.sync_api")
    chrome = shutil.which("chromium") or shutil.which("google-chrome")
    if chrome is None:
        pytest.skip("no chromium or chrome on PATH")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chrome, args=["--no-sandbox"]
        )
        page = browser.new_context(ignore_https_errors=True).new_page()
        page.set_default_timeout(120_000)
        page.goto(f"https://localhost:{proxy.port}/")
        field = page.get_by_label("Token of this server")
        for token, status in (("wrong", "401"), (TOKEN, "Loss")):
            field.fill(token)
            with page.expect_navigation():
                page.get_by_role("button", name="Use", exact=True).click()
            page.locator("#status").filter(has_text=status).wait_for()
        assert not field.is_visible()
        browser.close()
