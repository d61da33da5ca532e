"""`residual_dtype`: what the blocks put out is added up in another dtype."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_mae

pytestmark = pytest.mark.backends


def array(tensor):
    return ops.convert_to_numpy(ops.cast(tensor, "float32"))


def test_the_sum_keeps_what_the_compute_dtype_would_round_away(make_model, images):
    states = {}
    for dtype in (None, "float32"):
        model = make_model(dtype="mixed_bfloat16", residual_dtype=dtype)
        keras.utils.set_random_seed(0)
        for weight in model.weights:
            weight.assign(keras.random.normal(weight.shape, stddev=0.1, seed=1))
        outputs = model.encoder(images, output_hidden_states=True)
        states[dtype] = outputs["hidden_states"]
        assert keras.backend.standardize_dtype(outputs["latent"].dtype) == "bfloat16"
    for state in states["float32"]:
        assert keras.backend.standardize_dtype(state.dtype) == "float32"
    last = array(states["float32"][-1])
    assert (last != array(ops.cast(last, "bfloat16"))).any()
    # the same but for rounding
    error = np.linalg.norm(last - array(states[None][-1])) / np.linalg.norm(last)
    assert 0 < error < 0.05


def test_it_is_kept(make_model, tmp_path):
    model = make_model(dtype="mixed_bfloat16", residual_dtype="float32")
    model.save(tmp_path / "model.keras")
    for made in (
        keras.models.load_model(tmp_path / "model.keras"),
        keras.models.clone_model(model),
    ):
        for stack in (made.encoder, made.decoder):
            assert stack.get_config()["residual_dtype"] == "float32"
            assert stack.blocks[0].residual_dtype == "float32"


@pytest.mark.nightly
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("rematerialize", [False, True])
def test_it_is_trained(make_model, images, monkeypatch, fused, rematerialize):
    if fused and keras.backend.backend() != "tensorflow":
        pytest.skip("other backends don't fuse")
    monkeypatch.setattr(keras_mae.ops.fusion, "_MIN_PARAMETERS", 0 if fused else 10**9)
    model = make_model(
        dtype="mixed_bfloat16", residual_dtype="float32", rematerialize=rematerialize
    )
    model.compile(optimizer=keras_mae.pretraining_optimizer(1e-2))
    losses = model.fit(images, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def test_a_dtype_must_be_of_floats():
    with pytest.raises(ValueError, match=r"residual_dtype must be.*Received: 'int8'"):
        keras_mae.layers.TransformerBlock(8, 2, 16, residual_dtype="int8")
