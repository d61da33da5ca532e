"""Export of quantized models, and of models with LoRA."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mae
from keras_mae.export import export_savedmodel
from tests.scripts import load, refusal

PROCESSOR = keras_mae.MAEImageProcessor(image_size=32)


def make_classifier():
    encoder = keras_mae.MAEEncoder.from_preset("mae_tiny", patch_size=8, depth=1)
    return keras_mae.MAEClassifier(encoder, 4, head_range=0.2)


def size_of(folder):
    return sum(path.stat().st_size for path in (folder / "variables").iterdir())


@pytest.fixture
def pixels():
    rng = np.random.default_rng(0)
    return rng.standard_normal((3, 32, 32, 3)).astype("float32")


@pytest.mark.nightly
@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_a_quantized_file_and_the_flag_export_the_same(tmp_path, pixels, mode):
    model = make_classifier()
    model.save(tmp_path / "float.keras")
    PROCESSOR.save_pretrained(tmp_path)
    model.quantize(mode)
    model.save(tmp_path / "quantized.keras")
    script = load("serving/export.py")
    for name, flags in (
        ("float", {}),
        ("flag", {"quantize": mode}),
        ("quantized", {}),
    ):
        source = "quantized" if name == "quantized" else "float"
        config = script.ExportConfig(
            model=str(tmp_path / f"{source}.keras"),
            out=str(tmp_path / name),
            warmup_batch_sizes="",
            **flags,
        )
        script.main(config)
    probabilities = tf.nn.softmax(model(pixels)).numpy()
    for name in ("flag", "quantized"):
        folder = tmp_path / name / "1"
        signature = tf.saved_model.load(folder).signatures["classify_from_pixels"]
        got = signature(pixels=tf.constant(pixels))
        wanted = np.take_along_axis(probabilities, got["class_ids"].numpy(), axis=1)
        np.testing.assert_allclose(got["probabilities"], wanted, atol=5e-3)
        assert size_of(folder) < 0.5 * size_of(tmp_path / "float" / "1")


@pytest.mark.nightly
def test_lora_is_merged_into_the_kernels(tmp_path, pixels):
    model = make_classifier()
    model.encoder.enable_lora(64)
    qkv = model.encoder.blocks[0].attention.qkv
    qkv.lora_kernel_b.assign(keras.random.normal(qkv.lora_kernel_b.shape) * 0.02)
    wanted = model(pixels)
    export_savedmodel(model, PROCESSOR, tmp_path / "1", warmup_batch_sizes=())
    # the model itself goes on with LoRA
    assert qkv.lora_enabled and len(model.trainable_weights) == 3 + 4
    loaded = tf.saved_model.load(tmp_path / "1")
    got = loaded.signatures["classify_from_pixels"](pixels=tf.constant(pixels))
    best = np.asarray(wanted).argmax(axis=1)
    np.testing.assert_array_equal(got["class_ids"][:, 0], best)
    names = tf.train.list_variables(str(tmp_path / "1/variables/variables"))
    weights = [name for name, _ in names if name.startswith("weights/")]
    assert len(weights) == len(make_classifier().weights)


@pytest.mark.nightly
def test_a_quantized_model_is_not_quantized_again(tmp_path):
    model = make_classifier()
    model.quantize("int8")
    model.save(tmp_path / "model.keras")
    PROCESSOR.save_pretrained(tmp_path)
    flags = (f"--model={tmp_path / 'model.keras'}", f"--out={tmp_path / 'out'}")
    assert "already quantized" in refusal(
        "serving/export.py", *flags, "--quantize=int8"
    )
    line = refusal("serving/export.py", *flags, "--precision=mixed_bfloat16")
    assert "keeps the precision that it was quantized in" in line
