"""serving/mae_client: results equal those of the Keras models."""

import keras
import numpy as np
import pytest

from tests.conformance import models
from tests.conformance.sources import source
from tests.stand_ins import grey, mae_client

PROCESSOR = models.processor()


@pytest.fixture(params=["rest", "grpc"])
def connect(server, request):
    """Makes clients of the server by one protocol; closes them."""
    clients = []

    def connect_one(**options):
        by_grpc = request.param == "grpc"
        address = getattr(server, request.param)
        options = {"timeout": 300, "batch_size": 2, **options}
        client = mae_client.Client(address, grpc=by_grpc, **options)
        clients.append(client)
        return client

    yield connect_one
    for client in clients:
        client.close()


@pytest.fixture
def three():
    return np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), "uint8")


@source("servables/tensorflow/predict_util.cc: RunPredict")
def test_features(connect, three):
    pixels = PROCESSOR(three)
    wanted = models.pretrainer().encoder(pixels)
    for given in ({"images": three}, {"pixels": pixels}):
        features = connect().features(**given).features
        np.testing.assert_allclose(features, wanted, atol=1e-4)


@source("servables/tensorflow/predict_util.cc: RunPredict")
def test_reconstructions(connect, three, tmp_path):
    client, model = connect(), models.pretrainer()
    answer = client.reconstruct(three, seed=5)
    for index, pixels in enumerate(PROCESSOR(three)):
        alone = model.reconstruct(pixels[None], seed=5 + index)
        np.testing.assert_array_equal(answer.mask[index], alone["mask"][0])
        np.testing.assert_allclose(answer.loss[index], alone["loss"][0], rtol=1e-4)
    np.testing.assert_array_equal(answer.patch_size, [[8, 8]] * 3)
    assert answer.patch_size.dtype == np.int32
    again = client.reconstruct(three, mask=answer.mask)
    np.testing.assert_allclose(again.reconstruction, answer.reconstruction, atol=1e-2)
    # the largest noise is removed
    again = client.reconstruct(pixels=PROCESSOR(three), noise=answer.mask)
    np.testing.assert_array_equal(again.mask, answer.mask)
    answer.save(tmp_path / "picture.png", three)


@source("servables/tensorflow/predict_util.cc: RunPredict")
def test_classes(connect, three):
    answer = connect(model="classifier").classify(three)
    logits = models.classifier()(PROCESSOR(three))
    wanted = np.asarray(keras.ops.softmax(logits))
    ids = np.argsort(-wanted, axis=1)
    np.testing.assert_array_equal(answer.class_ids, ids)
    np.testing.assert_allclose(
        answer.probabilities, np.take_along_axis(wanted, ids, axis=1), atol=1e-4
    )
    np.testing.assert_array_equal(answer.labels, np.array(models.LABELS)[ids])


@source(
    "model_servers/get_model_status_impl.cc: GetModelStatusWithModelSpec",
    "servables/tensorflow/get_model_metadata_impl.cc: SavedModelGetSignatureDef",
)
def test_status_and_metadata(connect):
    assert set(connect().status()) == {(1, "AVAILABLE", ""), (2, "AVAILABLE", "")}
    # labels are not looked at
    assert len(connect(label="stable").status()) == 2
    inputs = connect().metadata()["features"].inputs
    assert inputs == {"image_bytes": ("string", (None,))}
    nothing = connect().reconstruct([])
    assert nothing.reconstruction.shape == (0, 32, 32, 3)
    assert nothing.patch_size.shape == (0, 2)


@source(
    "tensorflow/core/kernels/image/decode_image_op.cc: Compute",
    "servables/tensorflow/predict_util.cc: RunPredict",
)
def test_server_errors(connect):
    with pytest.raises(mae_client.ServingError, match="JPEG") as error:
        connect().features(b"\xff\xd8\xff")
    assert error.value.code == "INVALID_ARGUMENT"
    # REST has but one status for both
    for images in (grey(1), []):
        with pytest.raises(mae_client.ServingError, match="not found") as error:
            connect().classify(images)
        assert error.value.code in ("INVALID_ARGUMENT", "FAILED_PRECONDITION")
