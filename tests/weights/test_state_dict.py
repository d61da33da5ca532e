"""Importing and exporting state dicts: exact both ways, or one error and no change."""

import numpy as np
import pytest

import keras_mae
from keras_mae.weights import PortError, export_weights, load_weights
from keras_mae.weights.checkpoint_reader import open_checkpoint
from keras_mae.weights.key_mapping import FACEBOOK, HUGGINGFACE, NAMINGS, port_rows
from keras_mae.weights.state_dict import (
    SizeChange,
    contents_of,
    find_variable,
    import_weights,
)
from tests.comparison import assert_same_weights

pytestmark = pytest.mark.backends


@pytest.fixture(params=[True, False], ids=["qkv_bias", "no_qkv_bias"])
def model(request, make_model):
    return make_model(qkv_bias=request.param, patch_size=(4, 8))


def values(model):
    return [weight.numpy() for weight in model.weights]


def assert_unchanged(model, before):
    for weight, old in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), old)


def test_round_trip_is_bit_equal(model, make_model):
    bias = contents_of(model).qkv_bias
    other, blank = (make_model(qkv_bias=bias, patch_size=(4, 8)) for _ in range(2))
    blank = [weight.numpy() for weight in blank.weights]
    for naming in NAMINGS:
        for weight, value in zip(other.weights, blank, strict=True):
            weight.assign(value)
        load_weights(other, export_weights(model, naming))
        assert_same_weights(other.encoder, model.encoder)
        assert_same_weights(other.decoder, model.decoder)


@pytest.mark.parametrize("naming", [FACEBOOK, HUGGINGFACE], ids=lambda n: n.family)
def test_every_parameter_has_one_row(model, naming):
    paths = [row.path for row in port_rows(contents_of(model), naming)]
    found = {id(find_variable(model, path)) for path in paths}
    assert len(found) == len(paths)
    parameters = model.encoder.weights + model.decoder.weights
    assert found == {id(v) for v in parameters}


def test_the_published_files_have_as_many_keys():
    encoder = keras_mae.MAEEncoder.from_preset(
        "mae_base", image_size=32, hidden_dim=24, num_heads=2, mlp_dim=8
    )
    assert len(export_weights(encoder, FACEBOOK)) == 150
    model = keras_mae.MAEPretrainer.from_preset(
        "mae_base",
        image_size=32,
        hidden_dim=24,
        num_heads=2,
        mlp_dim=8,
        decoder_hidden_dim=16,
        decoder_mlp_dim=8,
    )
    assert len(export_weights(model, FACEBOOK)) == 254
    assert len(export_weights(model, HUGGINGFACE)) == 334


def test_one_error_lists_both_differences_and_nothing_changes(model):
    state = {key: value + 1 for key, value in export_weights(model).items()}
    del state["decoder.mask_token"], state["vit.layernorm.bias"]
    state["zebra"] = np.zeros((2, 3))
    before = values(model)
    with pytest.raises(PortError) as error:
        load_weights(model, state)
    assert str(error.value).splitlines()[1:] == [
        "  missing key: decoder.mask_token",
        "  missing key: vit.layernorm.bias",
        "  unused key: zebra (2, 3)",
    ]
    assert_unchanged(model, before)


def test_a_wrong_shape_is_named_and_nothing_changes(model):
    state = {key: value + 1 for key, value in export_weights(model, FACEBOOK).items()}
    state["blocks.1.mlp.fc2.bias"] = np.zeros(5)
    before = values(model)
    with pytest.raises(PortError) as error:
        load_weights(model, state)
    assert "shape of blocks.1.mlp.fc2.bias: expected (16,) for " in str(error.value)
    assert "encoder.blocks.1.mlp.fc2.bias, received (5,)" in str(error.value)
    assert_unchanged(model, before)


def test_a_smaller_source_leaves_nothing_unfilled_unnoticed(make_model):
    model, deeper = make_model(depth=1), make_model(depth=2)
    with pytest.raises(PortError, match=r"missing key: vit.encoder.layer.1"):
        load_weights(deeper, export_weights(model))
    with pytest.raises(PortError, match=r"unused key: vit.encoder.layer.1"):
        load_weights(model, export_weights(deeper))


def test_a_wrong_rank_is_named(model):
    state = export_weights(model)
    key = "vit.embeddings.patch_embeddings.projection.weight"
    state[key] = np.zeros((3, 4))
    with pytest.raises(PortError, match=rf"{key} must have 4 axes.*\(3, 4\)"):
        load_weights(model, state)


def test_a_table_that_forgets_a_variable_is_found_out(model):
    rows = port_rows(contents_of(model), FACEBOOK)
    forgotten = rows.pop()
    state = export_weights(model, FACEBOOK)
    for key in forgotten.keys:
        del state[key]
    grid, channels = model.encoder.grid, model.encoder.num_channels
    fit = SizeChange(grid, grid, False, channels, channels, "sum")
    with pytest.raises(PortError, match="unfilled variable: mae_decoder"):
        import_weights(model, open_checkpoint(state).tensors, rows, fit)
