"""gRPC by the official stubs: predict, filters, classify, metadata, status, errors."""

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    predict_pb2,
)

from tests.conformance import models
from tests.conformance.calls import picture

X = {"x": np.float32([[1, 2], [3, 4]])}


def test_features_of_encoded_pictures(caller):
    pictures = [picture(seed) for seed in range(2)]
    found, response = caller.predict("mae", {"image_bytes": [p for _, p in pictures]})
    wanted = models.pretrainer().encoder(models.processor()([p for p, _ in pictures]))
    np.testing.assert_allclose(found["features"], wanted, atol=1e-4)
    assert found["features"].dtype == np.float32
    assert response.model_spec.name == "mae"
    assert response.model_spec.version.value == 2
    assert response.model_spec.signature_name == "serving_default"


def test_masks_noise_and_seeds(caller):
    image, png = picture()
    pixels = models.processor()(image)
    model = models.pretrainer()
    mask = np.float32([[1, 0] * 8])
    noise = np.linspace(0, 1, 16, dtype="float32")[None, ::-1].copy()
    for signature, inputs, options in (
        ("reconstruct", {"seed": np.int64([3])}, {"seed": 3}),
        ("reconstruct_with_mask", {"mask": mask}, {"mask": mask}),
        ("reconstruct_with_noise", {"noise": noise}, {"noise": noise}),
    ):
        wanted = model.reconstruct(pixels, **options)
        for suffix, image_input in (
            ("", {"image_bytes": [png]}),
            ("_from_pixels", {"pixels": pixels}),
        ):
            found, _ = caller.predict(
                "mae", {**image_input, **inputs}, signature + suffix
            )
            np.testing.assert_array_equal(found["mask"], wanted["mask"])
            np.testing.assert_allclose(found["loss"], wanted["loss"], rtol=1e-4)
            assert found["reconstruction"].shape == (1, 32, 32, 3)


def test_classes_labels_and_probabilities(caller):
    image, png = picture(5)
    logits = np.asarray(models.classifier()(models.processor()(image)))[0]
    found, _ = caller.predict("classifier", {"image_bytes": [png]}, "classify")
    order = np.argsort(-logits)
    assert found["class_ids"].tolist() == [order.tolist()]
    labels = [[label.decode() for label in row] for row in found["labels"]]
    assert labels == [[models.LABELS[k] for k in order]]
    odds = np.exp(logits - logits.max())
    wanted = (odds / odds.sum())[order]
    np.testing.assert_allclose(found["probabilities"][0], wanted, atol=1e-4)


def test_the_classify_api(caller):
    image, png = picture(5)
    logits = np.asarray(models.classifier()(models.processor()(image)))[0]
    odds = np.exp(logits - logits.max())
    for arguments in (
        {"features": [{"image/encoded": png}] * 2},
        {"features": [{}, {}], "context": {"image/encoded": png}},
    ):
        response = caller.classify("classifier", **arguments)
        assert len(response.result.classifications) == 2
        classes = response.result.classifications[1].classes
        assert [row.label for row in classes] == models.LABELS
        scores = [row.score for row in classes]
        np.testing.assert_allclose(scores, odds / odds.sum(), atol=1e-4)
    assert response.model_spec.version.value == 1


def test_tensors_come_in_typed_fields(caller):
    """tensorflow_serving/servables/tensorflow/predict_util.cc: kAsProtoField."""
    _, response = caller.predict("echo", X)
    doubled = response.outputs["doubled"]
    assert list(doubled.float_val) == [2, 4, 6, 8] and not doubled.tensor_content
    _, response = caller.predict("echo", {"n": np.int64([7])}, "count")
    assert list(response.outputs["n"].int64_val) == [7]


def test_output_filters(caller):
    assert set(caller.predict("echo", X)[0]) == {"doubled", "row_sum"}
    found, response = caller.predict("echo", X, outputs=["row_sum"])
    assert set(response.outputs) == {"row_sum"} and found["row_sum"].tolist() == [3, 7]
    for outputs, message in (
        (["nothing"], "output tensor alias not found in signature: nothing"),
        (["row_sum", "row_sum"], "duplicate output tensor alias: row_sum"),
    ):
        expect(grpc.StatusCode.INVALID_ARGUMENT, message, caller.predict, "echo", X,
               outputs=outputs)  # fmt: skip


def test_numbers_that_are_not_finite(caller):
    x = np.float32([[np.nan, np.inf]])
    found, _ = caller.predict("echo", {"x": x})
    np.testing.assert_array_equal(found["doubled"], x)


@pytest.mark.parametrize(
    "name, signature, inputs",
    [
        ("mae", "", {"image_bytes": np.zeros(0, object)}),
        ("mae", "features_from_pixels", {"pixels": np.zeros((0, 32, 32, 3), "f4")}),
        (
            "mae",
            "reconstruct_with_mask_from_pixels",
            {
                "pixels": np.zeros((0, 32, 32, 3), "f4"),
                "mask": np.zeros((0, 16), "f4"),
            },
        ),
        (
            "mae",
            "reconstruct",
            {"image_bytes": np.zeros(0, object), "seed": np.zeros(0, "i8")},
        ),
        ("classifier", "classify", {"image_bytes": np.zeros(0, object)}),
        ("echo", "", {"x": np.zeros((0, 2), "f4")}),
    ],
)
def test_an_empty_batch(caller, name, signature, inputs):
    inputs = {
        key: tf.make_tensor_proto(value, tf.string) if value.dtype == object else value
        for key, value in inputs.items()
    }
    found, _ = caller.predict(name, inputs, signature)
    assert {len(value) for value in found.values()} == {0}


def test_versions_and_labels(caller):
    for which, version in (
        ({}, 2),
        ({"version": 1}, 1),
        ({"label": "stable"}, 1),
        ({"label": "canary"}, 2),
    ):
        empty = {"image_bytes": tf.make_tensor_proto([], tf.string)}
        _, response = caller.predict("mae", empty, **which)
        assert response.model_spec.version.value == version
    assert caller.status("mae") == {1: "AVAILABLE", 2: "AVAILABLE"}
    assert caller.status("mae", version=1) == {1: "AVAILABLE"}


def test_metadata(caller):
    response = caller.metadata("classifier", "signature_def")
    assert response.model_spec.version.value == 1
    unpacked = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(unpacked)
    method = unpacked.signature_def["classify_examples"].method_name
    assert method == "tensorflow/serving/classify"


def test_messages_larger_than_grpc_default_limit(caller):
    pixels = np.zeros((800, 32, 32, 3), "float32")  # 9.8 MB
    found, response = caller.predict("mae", {"pixels": pixels}, "features_from_pixels")
    assert found["features"].shape == (800, 17, 128)
    assert response.ByteSize() > 4 * 2**20  # what gRPC itself would refuse


def expect(code, message, function, *arguments, **options):
    with pytest.raises(grpc.RpcError) as caught:
        function(*arguments, **options)
    assert caught.value.code() == code, caught.value.details()
    assert message in caught.value.details()


INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    "code, message, name, inputs, options",
    [
        (NOT_FOUND, "Servable not found for request: Latest(no)", "no", X, {}),
        (NOT_FOUND, "Specific(mae, 50)", "mae", X, {"version": 50}),
        (INVALID, "Unrecognized servable version", "mae", X, {"label": "old"}),
        (INVALID, "ModelSpec has no name specified", "", X, {}),
        (
            grpc.StatusCode.FAILED_PRECONDITION,
            'Serving signature key "X" not found.',
            "echo",
            X,
            {"signature": "X"},
        ),
        (INVALID, "input size does not match signature", "echo", {}, {}),
        (INVALID, "input size does not match", "echo", {**X, "y": X["x"]}, {}),
        (INVALID, "", "echo", {"y": X["x"]}, {}),
        (INVALID, "to be float but string is provided", "echo", {"x": ["a"]}, {}),
        (INVALID, "", "echo", {"x": X["x"].astype("f8")}, {}),
        (INVALID, "", "echo", {"x": X["x"][0]}, {}),
        (INVALID, "", "echo", {"x": np.zeros((2, 3), "f4")}, {}),
        (INVALID, "Unknown image file format", "mae", {"image_bytes": ["x"]}, {}),
        (INVALID, "Input is empty", "mae", {"image_bytes": [b""]}, {}),
        (INVALID, "", "mae", {"image_bytes": [[b"x"]]}, {}),
    ],
)
def test_errors_of_the_table(caller, code, message, name, inputs, options):
    expect(code, message, caller.predict, name, inputs, **options)


def test_an_image_without_its_batch_axis_is_an_error_not_an_abort(caller):
    pixels = {"pixels": np.zeros((32, 32, 3), "float32")}
    expect(INVALID, "", caller.predict, "mae", pixels, "features_from_pixels")
    assert caller.status("mae")[2] == "AVAILABLE"


def test_tensors_larger_than_their_data(caller):
    for dims, values in (([2**40, 2], [1.0]), ([-1, 2], [1.0]), ([3, 2], [1.0] * 9)):
        proto = tf.make_tensor_proto(np.float32(values))
        del proto.tensor_shape.dim[:]
        for size in dims:
            proto.tensor_shape.dim.add(size=size)
        expect(INVALID, "", caller.predict, "echo", {"x": proto})


def test_errors_of_metadata_and_status(caller):
    expect(INVALID, "at least one metadata_field", caller.metadata, "mae")
    expect(INVALID, "Metadata field", caller.metadata, "mae", "x")
    expect(NOT_FOUND, "Servable not found", caller.metadata, "no", "signature_def")
    expect(NOT_FOUND, "Could not find any versions of model no", caller.status, "no")
    expect(NOT_FOUND, "Could not find version 50", caller.status, "mae", version=50)


def test_errors_of_classify(caller):
    row = [{"image/encoded": picture()[1]}]
    for arguments, message in (
        (("classifier", row, ""), "Expected classification signature method_name"),
        (("classifier", row, "X"), "No signature was found with the name: X"),
        (("classifier", []), "Input is empty"),
        (("classifier", [{}]), ""),
    ):
        expect(INVALID, message, caller.classify, *arguments)
    expect(NOT_FOUND, "Servable not found", caller.classify, "no", row)


def test_requests_without_a_model(caller):
    for method, request in (
        (caller.prediction.Predict, predict_pb2.PredictRequest()),
        (caller.prediction.Classify, classification_pb2.ClassificationRequest()),
        (
            caller.prediction.GetModelMetadata,
            get_model_metadata_pb2.GetModelMetadataRequest(
                metadata_field=["signature_def"]
            ),
        ),
    ):
        expect(INVALID, "", method, request)


def test_a_deadline_ends_the_call(caller):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "mae"
    request.model_spec.signature_name = "features_from_pixels"
    pixels = np.zeros((800, 32, 32, 3), "float32")
    request.inputs["pixels"].CopyFrom(tf.make_tensor_proto(pixels))
    with pytest.raises(grpc.RpcError) as caught:
        caller.prediction.Predict(request, timeout=0.005)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
