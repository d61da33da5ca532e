"""serving/mae_client: requests and results, by REST and gRPC alike."""

import asyncio
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests import stand_ins
from tests.scripts import ROOT
from tests.stand_ins import (
    PACKAGE,
    GrpcStub,
    RestStub,
    Together,
    connect,
    grey,
    mae_client,
)

ServingError = mae_client.ServingError
stub, stub_class = stand_ins.stub, stand_ins.stub_class


def test_features_of_one_image_and_of_none(stub):
    with connect(stub) as asked:
        features = asked.features(grey(3)).features
        assert features.shape == (1, 5, 2) and features.dtype == np.float32
        np.testing.assert_array_equal(features, np.full((1, 5, 2), 3))
        nothing = asked.features([]).features
        assert nothing.shape == (0, 5, 2) and nothing.dtype == np.float32


def test_empty_batch_has_the_right_shapes(stub):
    with connect(stub) as asked:
        answer = asked.reconstruct([])
    assert answer.reconstruction.shape == (0, 8, 8, 3)
    assert answer.mask.shape == (0, 4) and answer.loss.shape == (0,)


def test_long_lists_come_back_in_order(stub):
    # the first batches take the longest
    stub.brain.hold = Together(4, lambda value: (20 - value) * 0.02)
    images = [grey(value) for value in range(20)]
    with connect(stub, batch_size=3, concurrency=4) as asked:
        features = asked.features(images).features
    np.testing.assert_array_equal(features[:, 0, 0], np.arange(20))
    sizes = sorted(len(call[1]["image_bytes"]) for call in stub.brain.calls)
    assert sizes == [2, 3, 3, 3, 3, 3, 3]
    assert stub.brain.most_busy == 4


def test_seeds_continue_over_batches(stub):
    images = [grey(value) for value in range(5)]
    with connect(stub, batch_size=2) as asked:
        assert asked.reconstruct(images).loss.tolist() == [0, 1, 2, 3, 4]
        assert asked.reconstruct(images, seed=7).loss.tolist() == [7, 8, 9, 10, 11]
        answer = asked.reconstruct(images, seed=[5, 4, 3, 2, 1])
        assert answer.loss.tolist() == [5, 4, 3, 2, 1]
        assert answer.loss.dtype == answer.mask.dtype == np.float32
    signature, inputs, _ = stub.brain.calls[0]
    assert signature == "reconstruct" and inputs["seed"].dtype == np.int64


def test_large_batches_are_split_by_bytes(stub, monkeypatch):
    sizes = [(8, 8), (256, 256), (8, 8), (8, 8), (8, 8)]
    encoded = [mae_client.images.encode(grey(n, size)) for n, size in enumerate(sizes)]
    # room for two of the small ones; the large one goes alone
    limit = sum(map(len, encoded[2:4])) * 4 / 3
    assert len(encoded[1]) * 4 / 3 > limit
    monkeypatch.setattr(mae_client.jobs, "_MAX_BYTES", limit)
    mask = np.eye(5, 4, dtype="float32")
    with connect(stub) as asked:
        answer = asked.reconstruct(encoded, seed=[5, 4, 3, 2, 1])
        assert answer.loss.tolist() == [5, 4, 3, 2, 1]
        np.testing.assert_allclose(answer.reconstruction[:, 0, 0, 0], np.arange(5) / 2)
        np.testing.assert_array_equal(asked.reconstruct(encoded, mask=mask).mask, mask)
    calls = [call[1] for call in stub.brain.calls]
    assert [len(inputs["image_bytes"]) for inputs in calls] == [1, 1, 2, 1] * 2
    assert [len(inputs["seed"]) for inputs in calls[:4]] == [1, 1, 2, 1]


def test_pixels_are_split_by_their_json_size(stub, monkeypatch):
    pixels = np.random.default_rng(0).normal(size=(5, 8, 8, 3)).astype("float32")
    limit = 2 * 6 * pixels[0].nbytes
    monkeypatch.setattr(mae_client.jobs, "_MAX_BYTES", limit)
    with connect(stub) as asked:
        features = asked.features(pixels=pixels).features
    np.testing.assert_allclose(features[:, 0, 0], pixels.mean((1, 2, 3)), 1e-5)
    assert [len(call[1]["pixels"]) for call in stub.brain.calls] == [2, 2, 1]
    assert 0.8 * limit < len(json.dumps(pixels[:2].tolist())) < limit


def test_reconstructions_as_files(stub):
    with connect(stub, batch_size=2) as asked:
        answer = asked.reconstruct_png([grey(value) for value in range(3)], seed=7)
        nothing = asked.reconstruct_png([])
    assert answer.png_bytes.tolist() == [
        b"\x89PNG\xff\0" + bytes([n]) for n in range(3)
    ]
    assert answer.loss.tolist() == [7, 8, 9] and answer.mask.shape == (3, 4)
    assert nothing.png_bytes.shape == (0,) and nothing.mask.shape == (0, 4)
    assert {call[0] for call in stub.brain.calls} == {"reconstruct_png_bytes"}


def test_answers_that_do_not_fit_are_errors_of_the_server(stub):
    images = [grey(1), grey(2)]
    for embedding in (np.ones((1, 2)), np.ones((3, 2)), np.float64(1)):
        stub.brain.answer = lambda *_, it=embedding: {"embedding": it}
        with connect(stub) as asked, pytest.raises(ServingError) as error:
            asked.embed(images)
        assert error.value.code == "INTERNAL"


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_list_is_not_answered_by_two_versions(asynchronous):
    images = [grey(value) for value in range(3)]
    with GrpcStub() as stub:
        # REST does not say which version answers

        def update(_):
            stub.brain.version += 1
            return 0

        stub.brain.hold = update
        options = {"grpc": True, "batch_size": 1, "concurrency": 1}
        with pytest.raises(ServingError, match=r"Versions \[3, 4, 5\]") as error:
            if asynchronous:
                asyncio.run(embed_in_loop(images, stub.address, options))
            else:
                with mae_client.Client(stub.address, **options) as asked:
                    asked.embed(images)
        assert error.value.code == "ABORTED"


async def embed_in_loop(images, address, options):
    async with mae_client.AsyncClient(address, **options) as asked:
        return await asked.embed(images)


@pytest.mark.parametrize("outputs", [[[1, 2], [3]], [["a"]], [{"a": 1}], {"b": 1}])
def test_strange_json_is_an_error_of_the_server(outputs):
    class Odd(stand_ins.RestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send(200, {"outputs": outputs})

    with RestStub(handler=Odd) as stub, connect(stub) as asked:
        with pytest.raises(ServingError) as error:
            asked.embed([grey(1), grey(2)])
        assert error.value.code == "INTERNAL"


def test_requests_fit_through_the_proxy():
    text = (ROOT / "serving/docker-compose.yml").read_text()
    (megabytes,) = re.findall(r"\$\{BODY:-(\d+)m\}", text)
    # JSON's brackets, names and quotes beside the images
    assert int(megabytes) * 2**20 > mae_client.jobs._MAX_BYTES + 2**20


def test_masks_and_noise_are_split_with_their_images(stub):
    images = [grey(value) for value in range(3)]
    mask = np.float32([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]])
    with connect(stub, batch_size=2, concurrency=1) as asked:
        answer = asked.reconstruct(images, mask=mask)
        np.testing.assert_array_equal(answer.mask, mask)
        assert np.isnan(answer.loss).all()  # JSON's bare NaN
        answer = asked.reconstruct(images, mask=[1, 0, 1, 0])
        np.testing.assert_array_equal(answer.mask, [[1, 0, 1, 0]] * 3)
        asked.reconstruct(images, noise=mask / 8)
    signature, inputs, _ = stub.brain.calls[-1]
    assert signature == "reconstruct_with_noise"
    np.testing.assert_array_equal(inputs["noise"], mask[2:] / 8)


def test_pixels_use_from_pixels_signatures(stub):
    pixels = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype("float32")
    with connect(stub) as asked:
        features = asked.features(pixels=pixels).features
        np.testing.assert_allclose(features[:, 0, 0], pixels.mean((1, 2, 3)), 1e-5)
        assert asked.features(pixels=pixels[0]).features.shape == (1, 5, 2)
        asked.reconstruct(pixels=pixels, seed=1)
        asked.classify(pixels=pixels)
    signatures = [call[0] for call in stub.brain.calls]
    assert signatures == [
        "features_from_pixels",
        "features_from_pixels",
        "reconstruct_from_pixels",
        "classify_from_pixels",
    ]
    np.testing.assert_array_equal(stub.brain.calls[0][1]["pixels"], pixels)


def test_classification_dtypes(stub):
    with connect(stub) as asked:
        answer = asked.classify([grey(1), grey(2)])
    assert answer.class_ids.tolist() == [[7, 2**40]] * 2
    assert answer.class_ids.dtype == np.int64
    assert answer.probabilities.dtype == np.float32
    assert answer.labels.tolist() == [["Käse", "cat"]] * 2
    assert answer.labels.dtype.kind == "U"


def test_status_and_metadata_are_the_same_by_rest_and_grpc(stub):
    with connect(stub) as asked:
        statuses, signatures = asked.status(), asked.metadata()
    assert statuses == [(2, "AVAILABLE", ""), (3, "END", "torn")]
    assert statuses[1].error == "torn"
    assert set(signatures) == {
        *("embed", "features", "reconstruct", "reconstruct_png_bytes")
    }
    assert signatures["reconstruct"].inputs == {
        "image_bytes": ("string", (None,)),
        "seed": ("int64", (None,)),
    }
    features = signatures["features"].outputs["features"]
    assert features == mae_client.TensorInfo("float32", (None, 5, 2))


@pytest.mark.parametrize(
    "options, path",
    [({"version": 3}, "/versions/3"), ({"label": "a b"}, "/labels/a%20b")],
)
def test_requests_name_version_or_label(stub, options, path):
    with connect(stub, model="m", **options) as asked:
        asked.features(grey(1))
    ((_, _, place),) = stub.brain.calls
    if not stub.grpc:
        assert place == f"/v1/models/m{path}:predict"
    elif "version" in options:
        assert (place.name, place.version.value) == ("m", 3)
    else:
        assert (place.name, place.version_label) == ("m", "a b")


def test_address_may_have_scheme_and_path():
    with (
        RestStub() as stub,
        mae_client.Client(f"http://{stub.address}/behind/a/proxy/") as asked,
    ):
        asked.features(grey(1))
    ((_, _, place),) = stub.brain.calls
    assert place == "/behind/a/proxy/v1/models/mae:predict"


@pytest.mark.slow
def test_messages_larger_than_grpc_default(stub):
    stub.brain.stretch = 200_000  # 2 million floats, 8 MB
    pixels = np.zeros((2, 512, 512, 3), "float32")  # 6 MB
    with connect(stub) as asked:
        features = asked.features(pixels=pixels).features
    assert features.shape == (2, 5, 400_000)


def test_a_missing_output_is_an_error(stub, monkeypatch):
    monkeypatch.setattr(
        stub.brain, "answer", lambda *_: {"x": np.zeros(1), "y": np.zeros(1)}
    )
    with (
        connect(stub) as asked,
        pytest.raises(mae_client.ServingError, match="features"),
    ):
        asked.features(grey(1))


def test_embeddings(stub):
    with connect(stub, batch_size=2) as asked:
        embedding = asked.embed([grey(0), grey(255), grey(0)]).embedding
        assert asked.answering_version() == 2
    assert embedding.shape == (3, 2) and embedding.dtype == np.float32
    np.testing.assert_allclose(embedding[:, 0], [1, np.cos(1), 1], atol=1e-6)
    assert {call[0] for call in stub.brain.calls} == {"embed"}


def test_levels_are_sent_as_packed_bytes(stub):
    levels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), "uint8")
    with connect(stub, batch_size=2) as asked:
        features = asked.features(pixels_u8=levels).features
        asked.embed(pixels_u8=levels[0])
        answer = asked.reconstruct(pixels_u8=levels[:, ::-1], seed=3)
        with pytest.raises(ValueError, match="of dtype uint8"):
            asked.features(pixels_u8=levels / 255)
    np.testing.assert_allclose(features[:, 0, 0], levels.mean((1, 2, 3)), 1e-5)
    assert sorted(answer.loss.tolist()) == [3, 4, 5]
    assert {call[0] for call in stub.brain.calls} == {
        "features_from_pixels_u8",
        "embed_from_pixels_u8",
        "reconstruct_from_pixels_u8",
    }
    first, *_ = stub.brain.calls[2][1]["pixels_u8"]
    assert first == levels[0].tobytes()


@pytest.mark.parametrize("wanted", [True, False])
def test_requests_are_compressed_where_asked(wanted):
    with RestStub() as stub, connect(stub, gzip=wanted) as asked:
        noise = np.random.default_rng(0).integers(0, 256, (99, 99, 3), "uint8")
        asked.features([grey(1)])
        asked.features([noise])
    small, large = stub.brain.headers
    assert "content-encoding" not in small
    assert large.get("content-encoding") == ("gzip" if wanted else None)
    sent = len(stub.brain.calls[1][1]["image_bytes"][0])
    # base64 is a third longer than the picture, which itself can't be compressed
    assert (int(large["content-length"]) < 1.1 * sent) == wanted


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_copied_client_folder_needs_no_tensorflow(tmp_path, protocol):
    shutil.copytree(PACKAGE, tmp_path / "mae_client")
    by_grpc = protocol == "grpc"
    allowed = ("numpy", "PIL", "httpx2", *(("grpc", "google") if by_grpc else ()))
    code = (
        "import sys\n"
        "from mae_client import Client\n"
        f"with Client(sys.argv[1], grpc={by_grpc}) as client:\n"
        "    print(client.features(b'\\xff\\xd8\\xff').features.shape)\n"
        "    client.metadata(), client.status()\n"
        "roots = {name.split('.')[0] for name in sys.modules}\n"
        f"unwanted = {{'tensorflow', 'tensorflow_serving', 'keras', 'keras_mae', "
        f"'ml_dtypes', 'grpc', 'google'}} - set({allowed})\n"
        "assert not roots & unwanted, roots & unwanted\n"
    )
    with (GrpcStub if by_grpc else RestStub)() as stub:
        stub.brain.answer = lambda *_: {"features": np.zeros((1, 5, 2))}
        finished = subprocess.run(
            [sys.executable, "-c", code, stub.address],
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip() == "(1, 5, 2)"
