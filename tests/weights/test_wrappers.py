"""State dicts inside other things: wrappers' names and prefixes, strangers beside."""

import argparse
import functools

import h5py
import numpy as np
import pytest
from safetensors.numpy import save_file

import keras_mae
from keras_mae.weights import PortError, export_weights, load_weights
from keras_mae.weights.key_mapping import FACEBOOK, HUGGINGFACE
from tests.crafted import forge

SIZES = {"num_heads": 2, "decoder_num_heads": 2}


@pytest.fixture
def model(make_model):
    return make_model()


@pytest.fixture
def state(model):
    return export_weights(model, FACEBOOK)


def read(source, cls=keras_mae.MAEPretrainer, **options):
    heads = SIZES if cls is keras_mae.MAEPretrainer else {"num_heads": 2}
    return cls.from_pretrained(source, **heads, **options)


def assert_holds(loaded, state):
    naming = FACEBOOK
    for key, value in export_weights(loaded, naming).items():
        np.testing.assert_array_equal(value, state[key])


def prefixed(state, prefix):
    return {f"{prefix}{key}": value for key, value in state.items()}


def shifted(state):
    return {key: value + 1 for key, value in state.items()}


NAMES = (
    *("model", "state_dict", "model_state_dict", "module", "model_state", "net"),
    *("teacher", "student", "encoder", "target_encoder", "model_ema", "weights"),
    *("state_dict_ema", "ema", "state.model", "checkpoint.ema.module"),
)


@pytest.mark.parametrize("name", NAMES)
def test_a_state_dict_is_found_under_any_name(name, state):
    content = functools.reduce(
        lambda inner, key: {key: inner}, reversed(name.split(".")), state
    )
    content |= {"epoch": 3, "loss": {"center": np.zeros(3)}}
    loaded = read(content)
    assert_holds(loaded, state)
    assert ("averaged copy" in str(loaded.port_report)) == ("ema" in name)


def test_plain_weights_go_before_averaged_ones(state):
    loaded = read({"model_ema": shifted(state), "model": state})
    assert_holds(loaded, state)
    assert "state_key='model_ema' reads it" in str(loaded.port_report)
    loaded = read({"model_ema": shifted(state), "model": state}, state_key="model_ema")
    assert_holds(loaded, shifted(state))


def test_mmengine_stores_the_averaged_copy_as_the_weights(state):
    torch = pytest.importorskip("torch")
    plain = prefixed(shifted(state), "module.") | {"steps": torch.tensor(9)}
    content = {"meta": {}, "state_dict": state, "ema_state_dict": plain}
    loaded = read(content)
    assert_holds(loaded, state)
    report = str(loaded.port_report)
    assert "the weights are the averaged copy, state_dict" in report
    assert "the model as trained is there too: state_key='ema_state_dict'" in report
    assert_holds(read(content, state_key="ema_state_dict"), shifted(state))


def test_another_model_beside_the_weights_is_named(state):
    loaded = read({"teacher": shifted(state), "model": state})
    assert_holds(loaded, state)
    assert "another model is there too: state_key='teacher'" in str(loaded.port_report)


def test_a_key_s_beginning_means_the_plain_weights(state):
    content = {
        "ema": prefixed(shifted(state), "teacher.") | prefixed(state, "student."),
        "model": prefixed(state, "teacher.") | prefixed(state, "student."),
    }
    loaded = read(content, state_key="teacher.")
    assert_holds(loaded, state)
    assert "state_key='ema' reads it" in str(loaded.port_report)
    assert_holds(read(content, state_key="ema.teacher."), shifted(state))


@pytest.mark.parametrize("options", [{}, {"state_key": "module."}])
def test_a_table_that_is_no_tensor_is_not_computed(options, model, state):
    weights = prefixed(export_weights(model.encoder, FACEBOOK), "module.")
    weights["module.pos_embed"] = ["not", "a", "tensor"]
    with pytest.raises(PortError, match=r"pos_embed must be a tensor\. Received: list"):
        read(
            weights,
            keras_mae.MAEEncoder,
            image_size=model.encoder.image_size,
            **options,
        )


def test_several_are_listed(state):
    content = {"student": state, "teacher": shifted(state), "head": {"w": np.ones(2)}}
    count = len(state)
    with pytest.raises(PortError) as error:
        read(content)
    assert str(error.value).endswith(
        "holds several state dicts; pass state_key. There are 'student' "
        f"({count} tensors), 'teacher' ({count} tensors)"
    )
    assert_holds(read(content, state_key="teacher"), shifted(state))
    with pytest.raises(PortError, match=r"'head' \(1 tensors\). Received: 'other'"):
        read(content, state_key="other")


def test_a_dict_in_memory_is_read_as_the_same_in_a_file(state, tmp_path):
    torch = pytest.importorskip("torch")
    tensors = {key: torch.tensor(value) for key, value in state.items()}
    arguments = argparse.Namespace(norm_pix_loss=True)
    content = {"teacher": tensors, "epoch": 3, "args": arguments}
    torch.save(content, tmp_path / "run.pth")
    for source in (content, tmp_path / "run.pth"):
        loaded = read(source)
        assert_holds(loaded, state)
        assert loaded.norm_pix_loss
    with pytest.raises(PortError, match=r"^state dict: args\.norm_pix_loss must be"):
        read(content | {"args": {"norm_pix_loss": 3}})


def test_timm_writes_three_sizes_of_an_image(make_model):
    encoder = make_model(image_size=(16, 64)).encoder
    arguments = argparse.Namespace(input_size=[3, 16, 64])
    source = {"state_dict": export_weights(encoder, FACEBOOK), "args": arguments}
    assert read(source, keras_mae.MAEEncoder).image_size == (16, 64)


@pytest.mark.parametrize("kind", ["sparse", "meta"])
def test_tensors_without_plain_values_are_refused_by_name(kind, state):
    torch = pytest.importorskip("torch")
    tensor = torch.tensor(state["norm.weight"])
    tensor = tensor.to_sparse() if kind == "sparse" else tensor.to("meta")
    with pytest.raises(PortError, match=r"norm\.weight must be a tensor"):
        read(state | {"norm.weight": tensor})


PREFIXES = (
    *("module.", "_orig_mod.", "model.", "net.", "mae.", "backbone.", "encoder."),
    *("trunk.", "vit.", "module.model.", "_fsdp_wrapped_module.", "student.backbone."),
    *("module._orig_mod.", "a.b.c.d."),
)


@pytest.mark.parametrize("naming", [FACEBOOK, HUGGINGFACE], ids=["facebook", "hub"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_any_common_prefix_is_taken_off(prefix, naming, model, state):
    keys = prefixed(export_weights(model, naming), prefix)
    loaded = read(keys, layer_norm_epsilon=1e-6)
    assert_holds(loaded, state)
    assert "taken off the keys: " in str(loaded.port_report)


def test_parts_inside_keys_are_taken_off(state):
    inserted = {
        key.replace("blocks.0.", "blocks.0._checkpoint_wrapped_module.").replace(
            "attn.", "attn._fsdp_wrapped_module._orig_mod."
        ): value
        for key, value in state.items()
    }
    loaded = read(inserted)
    assert_holds(loaded, state)
    report = str(loaded.port_report)
    assert "taken off the keys: _checkpoint_wrapped_module" in report


def test_two_models_in_one_state_dict_are_told_apart(state):
    both = prefixed(state, "student.") | prefixed(shifted(state), "teacher.")
    with pytest.raises(PortError, match=r"begin with 'student\.', 'teacher\.'; pass"):
        read(both)
    assert_holds(read(both, state_key="teacher."), shifted(state))


def test_a_model_without_a_prefix_is_read_beside_another(state):
    both = state | prefixed(shifted(state), "teacher.")
    with pytest.raises(PortError, match=r"'', 'teacher\.'; ignore=\('teacher\.\*',\) "):
        read(both)
    assert_holds(read(both, ignore=("teacher.*",)), state)


def write_without_dicts(state, container, folder):
    """Writes a container that holds tensors alone."""
    if container == "HDF5":
        with h5py.File(folder / "tf_model.h5", "w") as file:
            for key, value in state.items():
                file[key] = value
    elif container == "safetensors":
        save_file(state, folder / "model.safetensors")
    else:
        forge.write_shards(folder, state)


@pytest.mark.parametrize("container", ["safetensors", "shards", "HDF5"])
def test_they_are_told_apart_where_there_are_no_dicts(container, state, tmp_path):
    both = prefixed(state, "student.") | prefixed(shifted(state), "teacher.")
    write_without_dicts(both, container, tmp_path)
    with pytest.raises(PortError, match=r"'teacher\.'; pass one as state_key"):
        read(tmp_path)
    assert_holds(read(tmp_path, state_key="teacher."), shifted(state))
    with pytest.raises(PortError, match=r"such as 'student\.b.* Received: 'taecher"):
        read(tmp_path, state_key="taecher.")


def test_strangers_are_left_out_by_name_alone(model, state):
    encoder = export_weights(model.encoder, FACEBOOK)
    strangers = {"fpn.0.weight": np.ones(3), "decode_head.conv.bias": np.ones(2)}
    source = prefixed(encoder, "backbone.") | strangers
    with pytest.raises(PortError, match=r"unused key: decode_head\.conv\.bias \(2,\)"):
        read(source, keras_mae.MAEEncoder)
    with pytest.raises(PortError, match=r"ignore= leaves out keys"):
        read(source, keras_mae.MAEEncoder)
    loaded = read(source, keras_mae.MAEEncoder, ignore=("fpn.*", "decode_head.*"))
    assert set(loaded.port_report.left_out) == set(strangers)
    assert_holds(loaded, state)
    # what the model needs can't be ignored
    with pytest.raises(PortError, match=r"missing key: norm\.weight"):
        read(
            source, keras_mae.MAEEncoder, ignore=["fpn.*", "decode_head.*", "*norm.w*"]
        )


def test_what_an_encoder_has_no_use_for_is_no_error(model, state):
    encoder = export_weights(model.encoder, FACEBOOK)
    extra = {
        "mask_token": np.zeros((1, 1, 8)),
        "pixel_mean": np.zeros((1, 3, 1, 1)),
        "normalize.std": np.ones(3),
        "n_averaged": np.int64(9),  # of PyTorch's AveragedModel
    }
    loaded = read(encoder | extra, keras_mae.MAEEncoder)
    assert set(loaded.port_report.left_out) == set(extra)
    assert_holds(loaded, state)
    # a norm or a head of such a name is more than statistics of an image
    with pytest.raises(PortError, match=r"unused key: tokens\.mean"):
        read(encoder | {"tokens.mean": np.zeros((1, 197, 8))}, keras_mae.MAEEncoder)


@pytest.mark.parametrize("cls", [keras_mae.MAEEncoder, keras_mae.MAEPretrainer])
def test_absent_tables_are_computed(cls, model, state):
    part = model if cls is keras_mae.MAEPretrainer else model.encoder
    weights = export_weights(part, FACEBOOK)
    tables = [key for key in weights if "pos_embed" in key]
    assert tables
    for key in tables:
        del weights[key]
    with pytest.raises(PortError, match="has no positions; pass image_size"):
        read(weights, cls)
    loaded = read(weights, cls, image_size=model.encoder.image_size)
    assert_holds(loaded, state)
    assert "pos_embed is absent, and computed: sin-cos" in str(loaded.port_report)
    # also where the model's own table was trained
    encoder = getattr(part, "encoder", part)
    positions = encoder.patch_embedding.positions.embeddings
    positions.assign(positions + 1)
    load_weights(part, weights)
    assert_holds(part, state)
