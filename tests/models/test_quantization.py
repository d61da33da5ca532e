"""`quantize` on all models: saved, loaded, cloned, trained, and what is refused."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_mae
from keras_mae.layers.adapted import is_quantized
from keras_mae.models.loading import copy_encoder, with_precision
from tests.layers.test_freezing import copies

pytestmark = pytest.mark.backends
SLOW = pytest.mark.slow

# relative to the largest output
ROUNDING = {"int8": 0.05, "int4": 0.4, "float8": 0.3}
MODELS = {
    "encoder": lambda model: model.encoder,
    "pretrainer": lambda model: model,
    "classifier": lambda model: keras_mae.MAEClassifier(
        model.encoder, 3, head_range=0.1
    ),
    "segmenter": lambda model: keras_mae.MAESegmenter(model.encoder, 3, hidden_dim=8),
}


def answer(model, images):
    if isinstance(model, keras_mae.MAEPretrainer):
        return ops.convert_to_numpy(model(images, seed=0)["logits"])
    return ops.convert_to_numpy(model(images))


# one of all is asked in each check
TIERS = {("encoder", "int8"): SLOW}
CASES = [
    pytest.param(name, mode, marks=TIERS.get((name, mode), pytest.mark.nightly))
    for name in MODELS
    for mode in ROUNDING
]


@pytest.mark.parametrize("name, mode", CASES)
def test_a_quantized_model_answers_alike_and_is_kept(
    make_model, images, tmp_path, name, mode
):
    model = MODELS[name](make_model())
    wanted = answer(model, images)
    model.quantize(mode)
    got = answer(model, images)
    error = np.abs(got - wanted).max() / np.abs(wanted).max()
    assert 0 < error < ROUNDING[mode]
    dense = [one for one in model._flatten_layers() if hasattr(one, "kernel")]
    assert dense and all(one.quantization_mode == mode for one in dense)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(answer(loaded, images), got)
    copy = type(model).from_config(model.get_config())
    assert [weight.dtype for weight in copy.weights] == [
        weight.dtype for weight in model.weights
    ]


@pytest.mark.nightly
def test_weights_take_a_quarter_or_less(make_model, tmp_path):
    sizes = {}
    for mode in (None, "int8", "int4"):
        encoder = make_model(hidden_dim=256, num_heads=4, mlp_dim=1024).encoder
        if mode is not None:
            encoder.quantize(mode)
        encoder.save_weights(tmp_path / "x.weights.h5")
        sizes[mode] = (tmp_path / "x.weights.h5").stat().st_size
    assert sizes["int8"] < 0.3 * sizes[None] and sizes["int4"] < 0.6 * sizes["int8"]


@pytest.mark.nightly
def test_a_quantizer_and_a_filter_of_the_users_own_are_kept(make_model, tmp_path):
    model = MODELS["classifier"](make_model())
    quantizer = keras.quantizers.AbsMaxQuantizer(axis=0, value_range=(-63, 63))
    config = keras.quantizers.Int8QuantizationConfig(weight_quantizer=quantizer)
    model.quantize(config=config, filters="fc")
    for made in (model, *copies(model, tmp_path)):
        mlp = made.encoder.blocks[0].mlp
        quantizer = mlp.fc1.quantization_config.weight_quantizer
        assert tuple(quantizer.value_range) == (-63, 63)
        assert mlp.fc2.quantization_mode == "int8"
        assert made.head.quantization_mode is None
        assert made.encoder.blocks[0].attention.qkv.quantization_mode is None


@SLOW
def test_a_block_of_its_own_is_built_quantized():
    for mode in ("int8", "int4", "float8"):
        block = keras_mae.layers.TransformerBlock(8, num_heads=2, mlp_dim=16)
        tokens = np.ones((2, 3, 8), "float32")
        block(tokens)
        for part in (block.mlp.fc1, block.attention.qkv):
            part.quantize(mode)
        made = keras_mae.layers.TransformerBlock.from_config(block.get_config())
        made(tokens)
        assert made.mlp.fc1.quantization_mode == mode
        assert made.mlp.fc2.quantization_mode is None
        # what is built quantized has its weights in another order
        values = {one.path.partition("/")[2]: one for one in block.weights}
        for weight in made.weights:
            weight.assign(values[weight.path.partition("/")[2]])
        for ours, theirs in zip(made(tokens), block(tokens), strict=True):
            np.testing.assert_array_equal(
                ops.convert_to_numpy(ours), ops.convert_to_numpy(theirs)
            )


@pytest.mark.nightly
def test_fused_inference_is_that_of_the_quantized_layers(
    make_model, images, monkeypatch
):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("other backends don't fuse")
    monkeypatch.setattr(keras_mae.ops.fusion, "_MIN_PARAMETERS", 0)
    model = MODELS["classifier"](make_model())
    model.quantize("int8")
    wanted = answer(model, images)
    got = model.predict(images, verbose=0)
    # where a value is about to be rounded, the last digit decides
    assert np.abs(got - wanted).max() < 0.02 * np.abs(wanted).max()


@SLOW
def test_float8_is_trained(make_model, images):
    model = MODELS["classifier"](make_model())
    model.quantize("float8")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(1e-2), loss=loss)
    losses = model.fit(images, np.array([0, 1, 2, 0]), epochs=4, verbose=0)
    assert losses.history["loss"][-1] < losses.history["loss"][0]


@SLOW
def test_float8_scales_are_neither_summed_nor_clipped(make_model, images):
    found = []
    for options in ({}, {"accumulation_steps": 2, "clip_norm": 0.1}):
        keras.utils.set_random_seed(0)
        encoder = make_model(depth=1, patch_size=16).encoder
        model = keras_mae.MAEClassifier(encoder, 3, head_range=0.5)
        model.quantize("float8")
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(1.0), loss=loss, **options)
        before = model.get_weights()
        labels = np.array([0, 1, 2, 0])
        logs = model.fit(images, labels, batch_size=4, verbose=0).history
        change, scales = 0, []
        for old, new in zip(before, model.weights, strict=True):
            new, name = ops.convert_to_numpy(new), new.path.rpartition("/")[2]
            if "scale" in name or "amax" in name:
                scales += [] if "grad" in name else [new]
            else:
                change += np.sum((new - old) ** 2)
        found.append((logs["gradient_norm"][0], np.sqrt(change), scales))
    (norm, change, wanted), (_, clipped, scales) = found
    assert change == pytest.approx(norm, rel=1e-3) and norm > 0.2
    assert clipped == pytest.approx(0.1, rel=1e-3)
    for mine, theirs in zip(scales, wanted, strict=True):
        # a last digit may round otherwise in 8 bits
        np.testing.assert_allclose(mine, theirs, rtol=0.1)


@pytest.mark.slow
def test_what_does_not_go_is_one_error(make_model, tmp_path):
    model = MODELS["classifier"](make_model())
    config = keras.quantizers.GPTQConfig(["text"], tokenizer=len)
    with pytest.raises(ValueError, match=r"int8, int4, float8.*Received: 'gptq'"):
        model.quantize("gptq", config=config)
    assert not is_quantized(model)
    model.quantize("int8")
    with pytest.raises(ValueError, match="already quantized"):
        model.quantize("int8")
    with pytest.raises(ValueError, match="keeps the precision"):
        with_precision(model, "mixed_bfloat16")
    with pytest.raises(ValueError, match="can't be trained: train first"):
        copy_encoder(model.encoder)
    with pytest.raises(ValueError, match="Received: a quantized model"):
        model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="export_weights needs float weights"):
        keras_mae.weights.export_weights(model)
