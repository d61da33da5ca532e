"""gRPC by the official stubs: each call, its answers and its errors."""

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    predict_pb2,
    regression_pb2,
)

from tests.conformance import models
from tests.conformance.calls import picture
from tests.conformance.sources import case, source

X = {"x": np.float32([[1, 2], [3, 4]])}


@source("servables/tensorflow/predict_util.cc: RunPredict")
def test_features_of_encoded_pictures(caller):
    pictures = [picture(seed) for seed in range(2)]
    found, response = caller.predict("mae", {"image_bytes": [p for _, p in pictures]})
    wanted = models.pretrainer().encoder(models.processor()([p for p, _ in pictures]))
    np.testing.assert_allclose(found["features"], wanted, atol=1e-4)
    assert found["features"].dtype == np.float32
    assert response.model_spec.name == "mae"
    assert response.model_spec.version.value == 2
    assert response.model_spec.signature_name == "serving_default"


@source("servables/tensorflow/predict_util.cc: RunPredict")
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


@source("servables/tensorflow/predict_util.cc: RunPredict")
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


@source(
    "servables/tensorflow/classifier.cc: PostProcessClassificationResult",
    "servables/tensorflow/util.cc: InputToSerializedExampleTensor",
)
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


@source("servables/tensorflow/predict_util.cc: kAsProtoField")
def test_tensors_come_in_typed_fields(caller):
    _, response = caller.predict("echo", X)
    doubled = response.outputs["doubled"]
    assert list(doubled.float_val) == [2, 4, 6, 8] and not doubled.tensor_content
    _, response = caller.predict("echo", {"n": np.int64([7])}, "count")
    assert list(response.outputs["n"].int64_val) == [7]


@source("servables/tensorflow/predict_util.cc: PreProcessPrediction")
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


@source("servables/tensorflow/predict_util.cc: kAsProtoField")
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
@source("servables/tensorflow/predict_util.cc: RunPredict")
def test_an_empty_batch(caller, name, signature, inputs):
    inputs = {
        key: tf.make_tensor_proto(value, tf.string) if value.dtype == object else value
        for key, value in inputs.items()
    }
    found, _ = caller.predict(name, inputs, signature)
    assert {len(value) for value in found.values()} == {0}


@source(
    "model_servers/server_core.cc: ServableRequestFromModelSpec",
    "model_servers/get_model_status_impl.cc: GetModelStatusWithModelSpec",
)
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
    # labels are not looked at
    assert caller.status("mae", label="stable") == {1: "AVAILABLE", 2: "AVAILABLE"}


@source("servables/tensorflow/get_model_metadata_impl.cc: SavedModelGetSignatureDef")
def test_metadata(caller):
    response = caller.metadata("classifier", "signature_def")
    assert response.model_spec.version.value == 1
    unpacked = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(unpacked)
    method = unpacked.signature_def["classify_examples"].method_name
    assert method == "tensorflow/serving/classify"
    assert response.model_spec.signature_name == ""
    # all of the MetaGraph's
    assert "__saved_model_init_op" in unpacked.signature_def


@source("model_servers/server.cc: SetMaxMessageSize")
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


FAILED = grpc.StatusCode.FAILED_PRECONDITION
SPEC = "model_servers/server_core.cc: ServableRequestFromModelSpec"
SIZE = "servables/tensorflow/predict_util.cc: VerifyRequestInputsSize"
VALUES = "tensorflow/cc/saved_model/util.cc: GetInputValues"
ARGUMENTS = "tensorflow/core/framework/function.cc: FunctionCallFrame::SetArgs"
DECODE = "tensorflow/core/kernels/image/decode_image_op.cc: Compute"
NO_SERVABLE = "core/basic_manager.cc: GetUntypedServableHandle"


@pytest.mark.parametrize(
    "code, message, name, inputs, options",
    [
        case(NO_SERVABLE, NOT_FOUND, "Servable not found for request: Latest(no)", "no",
             X, {}),
        case(NO_SERVABLE, NOT_FOUND, "Specific(mae, 50)", "mae", X, {"version": 50}),
        case("model_servers/server_core.cc: GetModelVersionForLabel", INVALID,
             "Unrecognized servable version label: old", "mae", X, {"label": "old"}),
        case(SPEC, INVALID, "ModelSpec has no name specified", "", X, {}),
        case("servables/tensorflow/predict_util.cc: RunPredict", FAILED,
             'Serving signature key "X" not found.', "echo", X, {"signature": "X"}),
        case(SIZE, INVALID, "input size does not match signature: 0!=1", "echo",
             {}, {}),
        case(SIZE, INVALID, "Sent extra: {y}. Missing but required: {}.", "echo",
             {**X, "y": X["x"]}, {}),
        case(VALUES, INVALID, "Signature input alias: x(feed name: ", "echo",
             {"y": X["x"]}, {}),
        case(ARGUMENTS, INVALID, "to be float but string is provided", "echo",
             {"x": ["a"]}, {}),
        case(ARGUMENTS, INVALID, "to be float but double is provided", "echo",
             {"x": X["x"].astype("f8")}, {}),
        case("tensorflow/core/kernels/reduction_ops_common.cc: Simplify", INVALID, "",
             "echo", {"x": X["x"][0]}, {}),
        case(DECODE, INVALID, "Unknown image file format", "mae",
             {"image_bytes": ["x"]}, {}),
        case(DECODE, INVALID, "Input is empty", "mae", {"image_bytes": [b""]}, {}),
    ],
)  # fmt: skip
def test_errors_of_the_table(caller, code, message, name, inputs, options):
    expect(code, message, caller.predict, name, inputs, **options)


@source("servables/tensorflow/predict_util.cc: RunPredict")
def test_an_image_without_its_batch_axis_is_an_error_not_an_abort(caller):
    pixels = {"pixels": np.zeros((32, 32, 3), "float32")}
    with pytest.raises(grpc.RpcError):
        caller.predict("mae", pixels, "features_from_pixels")
    assert caller.status("mae")[2] == "AVAILABLE"


@source("tensorflow/cc/saved_model/util.cc: GetInputValues")
def test_a_tensor_of_negative_size_is_an_error(caller):
    proto = tf.make_tensor_proto(np.float32([1.0]))
    proto.tensor_shape.dim[0].size = -1
    message = "tensor parsing error: x"
    expect(INVALID, message, caller.predict, "echo", {"x": proto})


METADATA = "servables/tensorflow/get_model_metadata_impl.cc: "
STATUS = "model_servers/get_model_status_impl.cc: GetModelStatusWithModelSpec"


@pytest.mark.parametrize(
    "code, message, call, name, fields, version",
    [
        case(METADATA + "ValidateGetModelMetadataRequest", INVALID,
             "at least one metadata_field", "metadata", "mae", [], None),
        case(METADATA + "ValidateGetModelMetadataRequest", INVALID,
             "Metadata field x is not supported", "metadata", "no", ["x"], None),
        case(METADATA + "SavedModelGetSignatureDef", NOT_FOUND, "Servable not found",
             "metadata", "no", ["signature_def"], None),
        case(STATUS, NOT_FOUND, "Could not find any versions of model no", "status",
             "no", [], None),
        case(STATUS, NOT_FOUND, "Could not find version 50 of model mae", "status",
             "mae", [], 50),
    ],
)  # fmt: skip
def test_errors_of_metadata_and_status(
    caller, code, message, call, name, fields, version
):
    function = getattr(caller, call)
    expect(code, message, function, name, *fields, version=version)


CLASSIFIER = "servables/tensorflow/classifier.cc: "
PREPROCESS = CLASSIFIER + "PreProcessClassification"
POSTPROCESS = CLASSIFIER + "PostProcessClassificationResult"


@pytest.mark.parametrize(
    "message, name, signature, count",
    [
        case(CLASSIFIER + "GetClassificationSignatureDef",
             "No signature was found with the name: X", "examples", "X", 1),
        case(PREPROCESS, "No classification inputs found in SignatureDef: ",
             "classifier", "", 1),
        case(PREPROCESS, "No classification inputs found", "examples", "renamed", 1),
        case(PREPROCESS, "Expected one or two output Tensors, found 3", "classifier",
             "classify", 1),
        case(PREPROCESS, 'at least one of "classes" or "scores"', "examples", "", 1),
        case(POSTPROCESS, "[batch_size num_classes] but got [2]", "examples",
             "flat_scores", 2),
        case("servables/tensorflow/util.cc: InputToSerializedExampleTensor",
             "Input is empty", "examples", "both", 0),
    ],
)  # fmt: skip
def test_errors_of_classify(caller, message, name, signature, count):
    expect(INVALID, message, caller.classify, name, [{"x": 0.5}] * count, signature)


@source("core/basic_manager.cc: GetUntypedServableHandle")
def test_classify_of_an_unknown_model(caller):
    message = "Servable not found for request: Latest(no)"
    expect(NOT_FOUND, message, caller.classify, "no", [{"x": 0.5}])


@source(
    "tensorflow/core/util/example_proto_fast_parsing.cc: FastParseSerializedExample"
)
def test_an_example_without_its_feature(caller):
    message = "Feature: image/encoded (data type: string) is required"
    expect(INVALID, message, caller.classify, "classifier", [{}])


@source("servables/tensorflow/classifier.cc: PostProcessClassificationResult")
@pytest.mark.parametrize(
    "signature, labels, scores",
    [
        ("both", ["größer", "no"], [0.25, 0.75]),
        ("classes", ["größer", "no"], [0, 0]),
        ("scores", ["", ""], [0.25, 0.75]),
    ],
)
def test_classes_and_scores_alone(caller, signature, labels, scores):
    response = caller.classify("examples", [{"x": 0.5}, {"x": 0.25}], signature)
    assert response.model_spec.signature_name == signature
    classes = response.result.classifications[1].classes
    assert [row.label for row in classes] == labels
    assert [row.score for row in classes] == scores


@source("servables/tensorflow/regressor.cc: PostProcessRegressionResult")
@pytest.mark.parametrize("signature", ["", "column"])
def test_regress(caller, signature):
    rows = [{"x": 0.5}, {"x": 0.25}]
    response = caller.regress("examples", rows, signature)
    assert [row.value for row in response.result.regressions] == [0.5, 0.25]
    assert response.model_spec.version.value == 1
    assert response.model_spec.signature_name == (signature or "serving_default")
    response = caller.regress("examples", [{}, {}], signature, context={"x": 0.5})
    assert [row.value for row in response.result.regressions] == [0.5, 0.5]


REGRESSOR = "servables/tensorflow/regressor.cc: "


@pytest.mark.parametrize(
    "message, signature",
    [
        case(REGRESSOR + "GetRegressionSignatureDef",
             "No signature was found with the name: X", "X"),
        case(REGRESSOR + "PreProcessRegression", "Expected one output Tensor.", "both"),
        case(REGRESSOR + "PreProcessRegression", "No regression inputs found in Sig",
             "renamed"),
        case(REGRESSOR + "PreProcessRegression", "No regression outputs found in Sig",
             "scores"),
        case(REGRESSOR + "PostProcessRegressionResult",
             "[batch_size] or [batch_size, 1] but got [1,2]", "wide"),
        case(REGRESSOR + "PostProcessRegressionResult",
             "Expected output Tensor of DT_FLOAT.  Got: DT_DOUBLE", "doubles"),
    ],
)  # fmt: skip
def test_errors_of_regress(caller, message, signature):
    expect(INVALID, message, caller.regress, "examples", [{"x": 0.5}], signature)


@source("servables/tensorflow/multi_inference.cc: Infer")
def test_multi_inference(caller):
    tasks = [("examples", "", "regress"), ("examples", "both", "classify")]
    response = caller.multi_inference(tasks, [{"x": 0.5}, {"x": 0.25}])
    first, second = response.results
    assert [row.value for row in first.regression_result.regressions] == [0.5, 0.25]
    assert first.model_spec.signature_name == "serving_default"
    assert first.model_spec.version.value == 1
    rows = second.classification_result.classifications
    assert [row.classes[1].score for row in rows] == [0.5, 0.75]
    assert second.model_spec.signature_name == "both"


@source("servables/tensorflow/multi_inference.cc: Infer")
@pytest.mark.parametrize(
    "code, message, tasks",
    [
        (INVALID, "ModelSpec has no name specified.", []),
        (
            INVALID,
            "Found ModelSpec with an empty model name.",
            [("examples", "", "regress"), ("", "both", "classify")],
        ),
        (
            INVALID,
            "must access the same model name",
            [("examples", "", "regress"), ("classifier", "", "classify")],
        ),
        (
            INVALID,
            "Duplicate evaluation of signature: serving_default",
            [("examples", "", "regress"), ("examples", "serving_default", "regress")],
        ),
        (
            INVALID,
            "Requested signature not found in model graph: X",
            [("examples", "X", "regress")],
        ),
        (
            grpc.StatusCode.UNIMPLEMENTED,
            "Unsupported signature method_name: tensorflow/serving/predict",
            [("examples", "", "predict")],
        ),
        (NOT_FOUND, "Servable not found", [("no", "", "regress")]),
    ],
)
def test_errors_of_multi_inference(caller, code, message, tasks):
    expect(code, message, caller.multi_inference, tasks, [{"x": 0.5}])


@source("model_servers/server.cc: EnableDefaultHealthCheckService")
def test_health(caller):
    for name in ("", "ModelService", "PredictionService"):
        assert caller.health(name) == "SERVING"
    expect(NOT_FOUND, "", caller.health, "no")


@source(
    "servables/tensorflow/predict_impl.cc: Predict",
    "servables/tensorflow/classification_service.cc: Classify",
    "servables/tensorflow/regression_service.cc: Regress",
    "servables/tensorflow/get_model_metadata_impl.cc: GetModelMetadata",
    "model_servers/get_model_status_impl.cc: GetModelStatus",
)
def test_requests_without_a_model(caller):
    for method, request in (
        (caller.prediction.Predict, predict_pb2.PredictRequest()),
        (caller.prediction.Classify, classification_pb2.ClassificationRequest()),
        (caller.prediction.Regress, regression_pb2.RegressionRequest()),
        (
            caller.prediction.GetModelMetadata,
            get_model_metadata_pb2.GetModelMetadataRequest(),
        ),
        (caller.models.GetModelStatus, get_model_status_pb2.GetModelStatusRequest()),
    ):
        expect(INVALID, "Missing ModelSpec", method, request)


@source("model_servers/prediction_service_impl.cc: DeadlineToTimeoutMillis")
def test_a_deadline_ends_the_call(caller):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "mae"
    request.model_spec.signature_name = "features_from_pixels"
    pixels = np.zeros((800, 32, 32, 3), "float32")
    request.inputs["pixels"].CopyFrom(tf.make_tensor_proto(pixels))
    with pytest.raises(grpc.RpcError) as caught:
        # too short for ten megabytes, on any machine
        caller.prediction.Predict(request, timeout=0.001)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
