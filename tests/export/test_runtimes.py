"""export_runtime: OpenVINO, LiteRT and ONNX Runtime answer as the model."""

import importlib.util

import keras
import numpy as np
import pytest

import keras_mae
from keras_mae.export import build_signatures, export_runtime, load_runtime, runtimes
from tests.scripts import load, refusal

SCRIPT = "serving/export.py"
MODULES = {
    "openvino": ["openvino"],
    "litert": ["ai_edge_litert"],
    "onnx": ["tf2onnx", "onnxruntime"],
}
PROCESSOR = keras_mae.MAEImageProcessor(image_size=32)


def pretrainer():
    return keras_mae.MAEPretrainer.from_preset(
        "mae_tiny", patch_size=8, depth=1, decoder_depth=1, norm_pix_loss=True
    )


def classifier():
    encoder = keras_mae.MAEEncoder.from_preset("mae_tiny", patch_size=8, depth=1)
    return keras_mae.MAEClassifier(encoder, 3, head_range=1.0)


def pixels(count, size=32):
    rng = np.random.default_rng(count)
    return rng.standard_normal((count, size, size, 3)).astype("float32")


@pytest.mark.nightly
def test_keras_own_onnx_file_of_an_encoder_loads(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("tf2onnx")
    encoder = pretrainer().encoder
    encoder.export(str(tmp_path / "encoder.onnx"), format="onnx", verbose=False)
    session = runtime.InferenceSession(tmp_path / "encoder.onnx")
    images = pixels(2)
    (got,) = session.run(None, {session.get_inputs()[0].name: images})
    np.testing.assert_allclose(got, np.asarray(encoder(images)), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("format", MODULES)
def test_a_pretrainer_encodes_and_reconstructs(format, tmp_path):
    for module in MODULES[format]:
        pytest.importorskip(module)
    model = pretrainer()
    export_runtime(model, PROCESSOR, tmp_path / "1", format)
    functions = load_runtime(tmp_path / "1")
    assert set(functions) == {"encode", "reconstruct"}
    noise = np.random.default_rng(0).random((5, 16), "float32")
    for count in (1, 5, 2):
        images = pixels(count)
        got = functions["encode"](pixels=images)
        features = np.asarray(model.encoder(images))
        np.testing.assert_allclose(got["features"], features, atol=1e-4)
        mean = features[:, 1:].mean(axis=1)
        mean /= np.linalg.norm(mean, axis=1, keepdims=True)
        np.testing.assert_allclose(got["embedding"], mean, atol=1e-5)
        got = functions["reconstruct"](pixels=images, noise=noise[:count])
        wanted = model.reconstruct(images, noise=noise[:count])
        np.testing.assert_array_equal(got["mask"], wanted["mask"])
        np.testing.assert_allclose(got["loss"], wanted["loss"], rtol=1e-4)
        levels = PROCESSOR.denormalize(np.asarray(wanted["reconstruction"]))
        levels = np.clip(levels, 0, 255)
        np.testing.assert_allclose(got["reconstruction"], levels, atol=0.02)
        np.testing.assert_array_equal(got["patch_size"], [[8, 8]] * count)
    images = pixels(2)
    for name, inputs, message in (
        ("encode", {}, "encode takes pixels=. Received: nothing"),
        ("encode", {"pixels": images, "noise": noise}, "takes pixels"),
        # a runtime may have those of the last call still
        ("reconstruct", {"pixels": images}, "noise.*Received: pixels$"),
        ("reconstruct", {"pixels": images, "noise": noise[:1]}, r"shape \(2, 16\)"),
        ("encode", {"pixels": images[0]}, r"\(32, 32, 32, 3\). Received: \(32, 32, 3"),
        ("encode", {"pixels": images[:, :16]}, r"Received: \(2, 16, 32, 3\)"),
        ("encode", {"pixels": images[:0]}, r"\(1, 32, 32, 3\)\. Received: \(0, 32"),
    ):
        with pytest.raises(ValueError, match=message):
            functions[name](**inputs)
    with pytest.raises(ValueError, match=r"takes pixels=.*an array without a name"):
        functions["encode"](images)
    # lists and float64 do as well
    got = functions["encode"](pixels=images.tolist())
    features = np.asarray(model.encoder(images))
    np.testing.assert_allclose(got["features"], features, atol=1e-4)


@pytest.mark.nightly
@pytest.mark.parametrize("format", MODULES)
def test_the_script_exports_a_classifier_beside_the_versions(format, tmp_path):
    for module in MODULES[format]:
        pytest.importorskip(module)
    model = classifier()
    model.save(tmp_path / "model.keras")
    PROCESSOR.save_pretrained(tmp_path)
    (tmp_path / "labels.txt").write_text("cat\ndog\nowl\n")
    script = load(SCRIPT)
    out = tmp_path / "mae"
    script.main(
        script.ExportConfig(
            model=str(tmp_path / "model.keras"), out=str(out), format=format
        )
    )
    # a server of the folder's SavedModels looks at numbers only
    folder = out / f"1-{format}"
    assert [path.name for path in out.iterdir()] == [folder.name]
    assert (folder / "labels.txt").read_text() == "cat\ndog\nowl\n"
    processor = keras_mae.MAEImageProcessor.from_pretrained(folder)
    images = processor(np.random.default_rng(0).integers(0, 256, (4, 40, 50, 3)))
    functions = load_runtime(folder)
    got = functions["classify"](pixels=images)["probabilities"]
    wanted = keras.ops.softmax(model(images))
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    got = functions["encode"](pixels=images)["features"]
    np.testing.assert_allclose(got, model.pooled(images), atol=1e-4)


@pytest.mark.slow
def test_a_failed_export_changes_nothing(tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    encoder = pretrainer().encoder
    folder = tmp_path / "1-openvino"
    export_runtime(encoder, PROCESSOR, folder, "openvino")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    other = build_signatures(pretrainer().encoder, PROCESSOR)
    with pytest.raises(ValueError, match=r"encode: .* must equal the model's"):
        runtimes.verify_runtime(folder, other)
    with pytest.raises(ValueError, match="already exists"):
        export_runtime(encoder, PROCESSOR, folder, "openvino")
    with monkeypatch.context() as patch:
        patch.setattr(runtimes, "build_signatures", lambda *a, **k: other)
        patch.setattr(runtimes, "_traced", lambda _: runtimes_traced(encoder))
        with pytest.raises(ValueError, match="must equal the model's"):
            export_runtime(encoder, PROCESSOR, folder, "openvino", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def runtimes_traced(encoder, traced=runtimes._traced):
    return traced(build_signatures(encoder, PROCESSOR))


@pytest.mark.slow
def test_what_does_not_fit_is_refused(tmp_path, monkeypatch):
    encoder = keras_mae.MAEEncoder.from_preset(
        "mae_tiny", patch_size=8, depth=1, dtype="mixed_bfloat16"
    )
    with pytest.raises(ValueError, match=r"litert, onnx\. Received: 'torch'"):
        export_runtime(encoder, PROCESSOR, tmp_path / "1", "torch")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'keras-mae\[litert\]'"):
        export_runtime(encoder, PROCESSOR, tmp_path / "1", "litert")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(ValueError, match=r"in float32\. Received: bfloat16"):
        export_runtime(encoder, PROCESSOR, tmp_path / "1", "litert")
    rounded = keras_mae.MAEEncoder.from_preset("mae_tiny", patch_size=8, depth=1)
    rounded.quantize("int8")
    with pytest.raises(ValueError, match=r"in float32\. Received: quantized"):
        export_runtime(rounded, PROCESSOR, tmp_path / "1", "litert")
    with pytest.raises(ValueError, match=r"must have a file of \*\.xml, model\.tflite"):
        load_runtime(tmp_path)
    assert not any(tmp_path.iterdir())
    for flag in ("--batching", "--top_k=3"):
        error = refusal(SCRIPT, "--model=x", flag, "--format=litert")
        assert f"{flag.split('=')[0]} needs --format=savedmodel" in error
