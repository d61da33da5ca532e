"""Porting by table: exact both ways, or one error and an untouched model."""

import numpy as np
import pytest

from keras_mae.weights import (
    PortError,
    export_weights,
    huggingface_rows,
    import_weights,
)
from keras_mae.weights.port import find_variable


@pytest.fixture(params=[True, False], ids=["qkv_bias", "no_qkv_bias"])
def model(request, make_model):
    return make_model(qkv_bias=request.param, patch_size=(4, 8))


def test_round_trip_is_bit_equal(model, make_model):
    rows = huggingface_rows(model)
    state = export_weights(model, rows)
    other = make_model(qkv_bias=model.encoder.blocks[0].attention.use_bias,
                       patch_size=(4, 8))  # fmt: skip
    import_weights(other, state, rows)
    for one, two in zip(model.weights[:-1], other.weights[:-1], strict=True):
        np.testing.assert_array_equal(one.numpy(), two.numpy())


def test_every_parameter_has_one_row(model):
    paths = [row.path for row in huggingface_rows(model)]
    found = {id(find_variable(model, path)) for path in paths}
    assert len(found) == len(paths)
    parameters = model.encoder.weights + model.decoder.weights
    assert found == {id(v) for v in parameters}


def test_one_error_lists_both_differences_and_nothing_changes(model):
    rows = huggingface_rows(model)
    state = export_weights(model, rows)
    before = [weight.numpy().copy() for weight in model.weights]
    state = {key: value + 1 for key, value in state.items()}
    del state["decoder.mask_token"], state["vit.layernorm.bias"]
    state["zebra"] = np.zeros((2, 3))
    state["vit.embeddings.cls_token"] = np.zeros((1, 1, 5))
    with pytest.raises(PortError) as error:
        import_weights(model, state, rows)
    assert str(error.value).splitlines()[1:] == [
        "  missing key: decoder.mask_token",
        "  missing key: vit.layernorm.bias",
        "  unused key: zebra (2, 3)",
        "  shape of vit.embeddings.cls_token: wanted (1, 1, 16) for "
        "encoder.patch_embedding.cls_token, received (1, 1, 5)",
    ]
    for weight, old in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), old)


def test_a_smaller_source_leaves_nothing_unfilled_unnoticed(make_model):
    model, deeper = make_model(depth=1), make_model(depth=2)
    rows = huggingface_rows(model)
    with pytest.raises(PortError, match=r"unfilled variable: .*block_1/mlp/fc1/kernel"):
        import_weights(deeper, export_weights(model, rows), rows)


def test_a_wrong_rank_is_named(model):
    rows = huggingface_rows(model)
    state = export_weights(model, rows)
    key = "vit.embeddings.patch_embeddings.projection.weight"
    state[key] = np.zeros((3, 4))
    with pytest.raises(PortError, match=rf"shape of {key}.*received \(3, 4\)"):
        import_weights(model, state, rows)
