"""load_model: runs, .keras files, published weights; changing the precision."""

import numpy as np
import pytest

import keras_mae
from keras_mae.models.loading import load_model, with_precision
from keras_mae.utils.files import local_folder


@pytest.mark.parametrize("kind", ["pretrainer", "classifier", "probe", "encoder"])
def test_another_precision_keeps_the_weights(make_model, images, kind):
    model = make_model(dtype="float32", drop_path_rate=0.1)
    if kind != "pretrainer":
        model = model.encoder
    if kind in ("classifier", "probe"):
        model = keras_mae.MAEClassifier(
            model, 3, batch_norm=kind == "probe", head_range=1.0
        )
    half = with_precision(model, "mixed_bfloat16")
    assert type(half) is type(model) and half.compute_dtype == "bfloat16"
    policies = {layer.dtype_policy.name for layer in half._flatten_layers()}
    # a generator of random numbers keeps its own
    assert policies <= {"mixed_bfloat16", "float32"}
    for new, old in zip(half.weights, model.weights, strict=True):
        assert new.path.split("/")[-1] == old.path.split("/")[-1]
        np.testing.assert_array_equal(new, old)
    full = with_precision(half, "float32")
    call = getattr(model, "encoder", model)
    again = getattr(full, "encoder", full)
    np.testing.assert_allclose(again(images), call(images), atol=1e-6)
    stored = with_precision(model, "bfloat16")
    assert {weight.dtype for weight in stored.weights} == {"bfloat16"}


def test_published_weights_tell_their_class(make_model, tmp_path):
    pytest.importorskip("safetensors")
    model = make_model(patch_size=8)
    classifier = keras_mae.MAEClassifier(model.encoder, 3, pooling="cls")
    for name, saved in {
        "MAEPretrainer": model,
        "MAEClassifier": classifier,
        "MAEEncoder": model.encoder,
    }.items():
        folder = tmp_path / name
        saved.save_pretrained(folder)
        loaded, processor = load_model(folder)
        assert type(loaded).__name__ == name and processor is None
        keras_mae.MAEImageProcessor(32, resample="bicubic").save_pretrained(folder)
        for source in (folder, folder / "model.safetensors"):
            _, processor = load_model(source)
            assert processor.resample == "bicubic"


def test_a_probe_of_pytorch_is_a_classifier(make_model, tmp_path):
    pytest.importorskip("torch")
    probe = keras_mae.MAEClassifier(make_model().encoder, 3, "cls", batch_norm=True)
    probe.save_pretrained(tmp_path, format="facebook")
    loaded, _ = load_model(tmp_path / "model.pth")
    assert isinstance(loaded, keras_mae.MAEClassifier)
    assert loaded.batch_norm is not None


def test_a_run_is_loaded_with_its_processor(make_model, tmp_path):
    make_model().save(tmp_path / "model.keras")
    keras_mae.MAEImageProcessor(image_size=32).save_pretrained(tmp_path)
    for source in (tmp_path, tmp_path / "model.keras"):
        model, processor = load_model(source)
        assert isinstance(model, keras_mae.MAEPretrainer)
        assert processor.image_size == (32, 32)
        assert local_folder(source) == tmp_path
    with pytest.raises(ValueError, match="which does not exist"):
        load_model(tmp_path / "nowhere")
