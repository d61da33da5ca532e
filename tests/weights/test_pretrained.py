"""from_pretrained and save_pretrained: other sizes, other channels, other tasks."""

import json

import keras
import numpy as np
import pytest

import keras_mae
from keras_mae import MAEClassifier, MAEEncoder, MAEPretrainer
from keras_mae.ops.activations import gelu_tanh
from keras_mae.ops.positions import resize_positions
from keras_mae.presets import PRESETS
from keras_mae.weights import PortError, PortReport, export_weights, load_weights
from keras_mae.weights.config_readers import num_heads_of_preset
from keras_mae.weights.key_mapping import FACEBOOK
from tests.comparison import assert_same_weights

pytestmark = pytest.mark.backends


@pytest.fixture
def saved(make_model, tmp_path):
    """The smallest model with random positions, and a folder that holds it."""
    model = make_model(norm_pix_loss=True, mask_ratio=0.5)
    rng = np.random.default_rng(0)
    for part in (model.encoder.patch_embedding, model.decoder):
        table = part.positions.embeddings
        table.assign(rng.standard_normal(table.shape))
    model.save_pretrained(tmp_path)
    return model, tmp_path


def assert_equal(one, two):
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(one), keras.ops.convert_to_numpy(two)
    )


@pytest.mark.slow
def test_the_configuration_comes_over(saved):
    model, folder = saved
    loaded = MAEPretrainer.from_pretrained(folder)
    assert loaded.norm_pix_loss is True and loaded.mask_ratio == 0.5
    assert loaded.port_report.target == "normalized pixels"
    assert loaded.port_report.place == str(folder)
    images = np.random.default_rng(1).standard_normal((2, 32, 32, 3))
    one, two = (m(images, seed=0)["logits"] for m in (model, loaded))
    assert_equal(one, two)


@pytest.mark.slow
def test_overrides_win_and_are_noted(saved):
    _, folder = saved
    loaded = MAEPretrainer.from_pretrained(
        folder, norm_pix_loss=False, mask_ratio=0.9, layer_norm_epsilon=1e-12
    )
    assert (loaded.norm_pix_loss, loaded.mask_ratio) == (False, 0.9)
    assert loaded.port_report.notes == (
        "layer_norm_epsilon is 1e-12; the source says 1e-06",
        "mask_ratio is 0.9; the source says 0.5",
        "norm_pix_loss is False; the source says True",
    )
    with pytest.raises(ValueError, match="Received: colour"):
        MAEPretrainer.from_pretrained(folder, colour=1)
    with pytest.raises(PortError, match=r"missing key: vit\.encoder\.layer\.2"):
        MAEPretrainer.from_pretrained(folder, depth=3)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["torch", "timm"])
@pytest.mark.parametrize("size", [64, (24, 40)])
def test_positions_of_both_sides_are_resized_in_two_dimensions(saved, size, way):
    model, folder = saved
    loaded = MAEPretrainer.from_pretrained(folder, image_size=size, position_resize=way)
    grid = loaded.encoder.grid
    for part in ("encoder.patch_embedding", "decoder"):
        old, new = model, loaded
        for name in part.split("."):
            old, new = getattr(old, name), getattr(new, name)
        wanted = resize_positions(
            old.positions.embeddings[0], (4, 4), grid, antialias=way == "timm"
        )
        assert_equal(new.positions.embeddings[0], wanted)
    (sentence,) = loaded.port_report.resized
    assert sentence.startswith("positions of encoder and decoder 4x4 -> ")
    assert sentence.endswith(f"bicubic as {way}'s")


@pytest.mark.slow
def test_positions_are_resized_as_pytorch_does(saved):
    torch = pytest.importorskip("torch")
    model, folder = saved
    loaded = MAEEncoder.from_pretrained(folder, image_size=(24, 56))
    table = model.encoder.patch_embedding.positions.embeddings.numpy()
    grid = torch.tensor(table[:, 1:]).reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    for antialias in (False, True):
        loaded = MAEEncoder.from_pretrained(
            folder,
            image_size=(24, 56),
            position_resize="timm" if antialias else "torch",
        )
        wanted = torch.nn.functional.interpolate(
            grid, (3, 7), mode="bicubic", align_corners=False, antialias=antialias
        )
        got = loaded.patch_embedding.positions.embeddings.numpy()[0, 1:]
        wanted = wanted.permute(0, 2, 3, 1).reshape(21, -1).numpy()
        np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.slow
def test_a_file_without_configuration_is_of_a_square_if_it_can_be(make_model):
    options = {"num_heads": 2, "decoder_num_heads": 2}
    state = export_weights(make_model(), FACEBOOK)
    loaded = MAEPretrainer.from_pretrained(state, **options)
    assert loaded.encoder.image_size == (32, 32)
    assert loaded.port_report.notes[0] == (
        "positions are taken for those of 32x32 pixels, a square; source_image_size "
        "says otherwise"
    )
    loaded = MAEPretrainer.from_pretrained(state, image_size=(16, 56), **options)
    assert "4x4 -> 2x7" in loaded.port_report.resized[0]
    wide = export_weights(make_model(image_size=(16, 24)), FACEBOOK)
    with pytest.raises(PortError, match=r"6 positions .* pass source_image_size"):
        MAEPretrainer.from_pretrained(wide, **options)
    loaded = MAEPretrainer.from_pretrained(wide, image_size=(16, 24), **options)
    assert not loaded.port_report.resized
    loaded = MAEPretrainer.from_pretrained(wide, source_image_size=(16, 24), **options)
    assert loaded.encoder.image_size == (16, 24)


def test_positions_that_fit_the_size_wanted_are_not_resized(make_model):
    wide = make_model(image_size=(16, 64))  # as many patches as 32x32
    state = export_weights(wide, FACEBOOK)
    options = {"image_size": (16, 64), "num_heads": 2, "decoder_num_heads": 2}
    loaded = MAEPretrainer.from_pretrained(state, **options)
    assert_same_weights(loaded, wide)
    assert not loaded.port_report.resized
    assert loaded.port_report.notes[0] == (
        "positions are taken for those of 16x64 pixels, the image_size wanted; "
        "source_image_size says otherwise"
    )
    report = load_weights(make_model(image_size=(16, 64)), state)
    assert "those of 16x64 pixels, the image_size wanted" in report.notes[0]
    # unless something says that they are of another image
    loaded = MAEPretrainer.from_pretrained(state, source_image_size=32, **options)
    assert "4x4 -> 2x8" in loaded.port_report.resized[0]
    assert not any("positions are taken" in note for note in loaded.port_report.notes)
    with pytest.raises(PortError, match="don't fit source_image_size 48"):
        MAEPretrainer.from_pretrained(state, source_image_size=48, **options)
    with pytest.raises(ValueError, match=r"source_image_size must be a positive int"):
        MAEPretrainer.from_pretrained(state, source_image_size=0, **options)


@pytest.mark.slow
def test_what_the_configuration_says_of_positions_holds(saved):
    _, folder = saved
    loaded = MAEEncoder.from_pretrained(folder, image_size=(16, 64))
    assert "4x4 -> 2x8" in loaded.port_report.resized[0]
    assert loaded.port_report.notes == ()


@pytest.mark.slow
def test_a_size_that_is_told_wrongly_may_be_stated(saved):
    model, folder = saved
    path = folder / "config.json"
    text = path.read_text()
    path.write_text(json.dumps({**json.loads(text), "image_size": 224}))
    with pytest.raises(
        PortError, match=r"image_size \(224, 224\); .*pass source_image"
    ):
        MAEPretrainer.from_pretrained(folder)
    loaded = MAEPretrainer.from_pretrained(folder, image_size=32)
    path.write_text(text)
    assert_same_weights(loaded, model)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("merge", ["sum", "mean"])
def test_other_channels(saved, channels, merge):
    model, folder = saved
    loaded = MAEPretrainer.from_pretrained(
        folder, num_channels=channels, channel_merge=merge
    )
    grey = np.random.default_rng(1).standard_normal((2, 32, 32, 1)).astype("float32")
    wanted = model.encoder(grey.repeat(3, axis=-1))
    factor = 1 if merge == "sum" else 3 / channels
    got = loaded.encoder(grey.repeat(channels, axis=-1) * factor)
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    assert loaded.port_report.resized == (
        f"channels 3 -> {channels}, patch kernels by {merge}",
    )
    if merge == "sum":
        # each channel is predicted as the mean of the old ones
        one, two = (
            m.reconstruct(grey.repeat(c, axis=-1), seed=0, mask=None)
            for m, c in ((model, 3), (loaded, channels))
        )
        assert_equal(one["mask"], two["mask"])
        pixels = [
            np.asarray(m(grey.repeat(c, axis=-1), seed=0)["logits"])
            .reshape(2, 16, 64, c)
            .mean(axis=-1)
            for m, c in ((model, 3), (loaded, channels))
        ]
        np.testing.assert_allclose(*pixels, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"position_resize": "nearest"}, r"position_resize must be one of .*nearest"),
        ({"channel_merge": "max"}, r"channel_merge must be one of sum, mean.*'max'"),
    ],
)
def test_wrong_options_are_refused(saved, options, message):
    with pytest.raises(ValueError, match=message):
        MAEEncoder.from_pretrained(saved[1], **options)


@pytest.mark.slow
def test_a_missing_decoder_is_an_error_that_names_files_with_one(saved, tmp_path):
    model, _ = saved
    model.encoder.save_pretrained(tmp_path / "encoder")
    with pytest.raises(PortError, match=r"has no decoder\. .*mae_visual.*allow_miss"):
        MAEPretrainer.from_pretrained(tmp_path / "encoder")
    loaded = MAEPretrainer.from_pretrained(
        tmp_path / "encoder", allow_missing_decoder=True, decoder_depth=1
    )
    assert loaded.port_report.fresh == ("decoder",)
    # the paper's, but for what was stated
    assert loaded.decoder.hidden_dim == 512 and len(loaded.decoder.blocks) == 1
    assert_same_weights(loaded.encoder, model.encoder)


@pytest.mark.slow
def test_an_encoder_leaves_the_decoder_out_and_says_so(saved):
    model, folder = saved
    encoder = MAEEncoder.from_pretrained(folder)
    report = encoder.port_report
    assert all(key.startswith("decoder.") for key in report.left_out)
    assert report.filled + len(report.left_out) == len(export_weights(model))
    assert "left out: " in str(report) and "normalized pixels" in str(report)


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_classifier_starts_from_a_pretrained_encoder(saved, pooling):
    model, folder = saved
    with pytest.raises(ValueError, match="num_classes must be given"):
        MAEClassifier.from_pretrained(folder)
    classifier = MAEClassifier.from_pretrained(folder, num_classes=3, pooling=pooling)
    images = np.random.default_rng(1).standard_normal((2, 32, 32, 3))
    outputs = model.encoder(images, output_hidden_states=True)
    got = classifier.encoder(images, output_hidden_states=True)
    assert_equal(got["hidden_states"][-1], outputs["hidden_states"][-1])
    fresh = {"mean": ("head", "head_norm"), "cls": ("head",)}
    assert classifier.port_report.fresh == fresh[pooling]
    assert classifier(images).shape == (2, 3)


@pytest.mark.slow
def test_another_number_of_classes_makes_a_fresh_head(make_model, tmp_path):
    classifier = MAEClassifier(make_model().encoder, num_classes=7)
    classifier.save_pretrained(tmp_path, "timm")
    same = MAEClassifier.from_pretrained(tmp_path)
    assert same.num_classes == 7 and not same.port_report.fresh
    other = MAEClassifier.from_pretrained(tmp_path, num_classes=4)
    assert other.port_report.fresh == ("head",)  # the norm before it is kept
    assert other.port_report.left_out == ("head.bias", "head.weight")
    assert_equal(other.head_norm.gamma, classifier.head_norm.gamma)


@pytest.mark.slow
def test_an_encoder_out_of_a_fine_tuned_file_has_no_final_norm(make_model, tmp_path):
    classifier = MAEClassifier(make_model().encoder, num_classes=7)
    classifier.save_pretrained(tmp_path, "timm")
    encoder = MAEEncoder.from_pretrained(tmp_path)
    assert not encoder.final_norm
    images = np.random.default_rng(1).standard_normal((2, 32, 32, 3))
    outputs = classifier.encoder(images, output_hidden_states=True)
    assert_equal(encoder(images), outputs["hidden_states"][-1])
    with pytest.raises(PortError, match="has no final norm"):
        MAEEncoder.from_pretrained(tmp_path, final_norm=True)


@pytest.mark.slow
def test_heads_must_be_stated_where_nothing_tells(make_model):
    state = export_weights(make_model(), FACEBOOK)
    with pytest.raises(PortError, match=r"num_heads can't be inferred from shapes"):
        MAEEncoder.from_pretrained(state)
    with pytest.raises(PortError, match=r"decoder_num_heads can't be inferred"):
        MAEPretrainer.from_pretrained(state, num_heads=2)


@pytest.mark.parametrize("name", ["mae_base", "mae_large", "mae_huge"])
def test_heads_of_published_sizes_are_known(name):
    sizes = PRESETS[name]
    assert num_heads_of_preset(sizes) == (sizes["num_heads"], name)
    assert num_heads_of_preset(sizes, "decoder_") == (16, "mae_base")


# a ViT-S has 6 heads here, and 12 in solo-learn: outputs would be far off
@pytest.mark.parametrize("name", ["mae_tiny", "mae_small"])
def test_heads_of_other_sizes_are_not_guessed(name):
    assert num_heads_of_preset(PRESETS[name]) == (None, None)
    assert num_heads_of_preset(PRESETS[name], "decoder_") == (None, None)


def test_heads_that_nobody_told_are_asked_for():
    tiny = MAEEncoder.from_preset("mae_tiny", num_heads=8)
    state = export_weights(tiny, FACEBOOK)
    with pytest.raises(PortError, match=r"num_heads can't be inferred .*num_heads=12"):
        MAEEncoder.from_pretrained(state)
    loaded = MAEEncoder.from_pretrained(state, num_heads=8)
    images = np.random.default_rng(0).standard_normal((1, 32, 32, 3))
    assert_equal(loaded(images), tiny(images))


@pytest.mark.slow
@pytest.mark.parametrize("place", ["file", "folder"])
def test_a_published_name_tells_the_target(place, make_model, tmp_path):
    torch = pytest.importorskip("torch")
    state = export_weights(make_model(), FACEBOOK)
    tensors = {key: torch.tensor(value) for key, value in state.items()}
    path = tmp_path / "mae_pretrain_vit_x_full.pth"
    torch.save({"model": tensors}, path)
    loaded = MAEPretrainer.from_pretrained(
        path if place == "file" else tmp_path, num_heads=2, decoder_num_heads=2
    )
    assert loaded.norm_pix_loss is True
    assert loaded.port_report.target == "normalized pixels"
    # what the file itself says holds
    torch.save({"model": tensors, "args": {"norm_pix_loss": False}}, path)
    loaded = MAEPretrainer.from_pretrained(path, num_heads=2, decoder_num_heads=2)
    assert loaded.norm_pix_loss is False


@pytest.mark.slow
def test_a_model_that_is_there_keeps_its_heads(saved, make_model):
    _, folder = saved
    other = make_model(num_heads=4)
    before = [weight.numpy() for weight in other.weights]
    with pytest.raises(PortError, match=r"num_heads must be the model's, 4\..* 2"):
        load_weights(other, folder)
    for weight, old in zip(other.weights, before, strict=True):
        assert_equal(weight, old)
    assert isinstance(load_weights(make_model(), folder), PortReport)


def test_a_model_that_is_there_keeps_its_settings(make_model):
    model = make_model()
    state = export_weights(model)
    with pytest.raises(ValueError, match=r"takes filename, .*Received: image_size, x"):
        load_weights(model, state, image_size=64, x=1, progress=False)


@pytest.mark.parametrize("wrong", [None, "decoder", "sequential"])
def test_other_models_are_refused_by_name(wrong, make_model):
    model = {"decoder": make_model().decoder, "sequential": keras.Sequential()}
    name = {"decoder": "MAEDecoder", "sequential": "Sequential"}.get(wrong, "NoneType")
    for call in (export_weights, lambda model: load_weights(model, {})):
        with pytest.raises(ValueError, match=rf"needs a MAEPre.* Received: {name}"):
            call(model.get(wrong))


@pytest.mark.slow
def test_channels_of_half_precision_are_merged_in_float32(saved):
    from safetensors.numpy import save_file

    model, folder = saved
    state = {k: v.astype("float16") for k, v in export_weights(model).items()}
    save_file(state, folder / "model.safetensors")
    loaded = MAEEncoder.from_pretrained(folder, num_channels=1)
    key = "vit.embeddings.patch_embeddings.projection.weight"
    wanted = state[key].astype("float64").sum(axis=1).transpose(1, 2, 0)
    got = loaded.patch_embedding.projection.kernel.numpy()
    np.testing.assert_allclose(got, wanted.reshape(got.shape), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_types_are_read_and_noted(saved, dtype, tmp_path):
    import ml_dtypes
    from safetensors.numpy import save_file

    model, folder = saved
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    state = {key: value.astype(kind) for key, value in export_weights(model).items()}
    save_file(state, folder / "model.safetensors")
    loaded = MAEPretrainer.from_pretrained(folder)
    assert loaded.port_report.notes == (f"some tensors are stored as {dtype}",)
    for key, value in export_weights(loaded).items():
        assert_equal(value, state[key].astype("float32"))


@pytest.mark.slow
def test_the_policy_can_be_chosen(saved):
    loaded = MAEEncoder.from_pretrained(saved[1], dtype="mixed_bfloat16")
    assert loaded.compute_dtype == "bfloat16"
    tokens = loaded(np.zeros((1, 32, 32, 3)))
    assert keras.backend.standardize_dtype(tokens.dtype) == "bfloat16"


@pytest.mark.slow
def test_a_saved_keras_model_keeps_the_weights(saved, tmp_path):
    loaded = MAEPretrainer.from_pretrained(saved[1])
    loaded.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.port_report is None
    assert_same_weights(again, loaded)


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "silu", gelu_tanh])
def test_activations_come_over(activation, make_model, tmp_path):
    model = make_model(activation=activation)
    model.save_pretrained(tmp_path)
    loaded = MAEPretrainer.from_pretrained(tmp_path)
    configs = [m.encoder.get_config()["activation"] for m in (model, loaded)]
    assert configs[0] == configs[1]
    assert not loaded.port_report.notes
    images = np.random.default_rng(1).standard_normal((2, 32, 32, 3))
    assert_equal(loaded.encoder(images), model.encoder(images))


@pytest.mark.slow
def test_an_older_save_is_replaced_and_other_weights_are_kept(saved, make_model):
    _, folder = saved
    other = make_model()
    other.save_pretrained(folder)
    assert_equal(
        MAEPretrainer.from_pretrained(folder).decoder.mask_token,
        other.decoder.mask_token,
    )
    before = sorted(path.name for path in folder.iterdir())
    assert before == ["config.json", "model.safetensors"]
    with pytest.raises(
        ValueError, match=r"not hold other weights. Received: model.safe"
    ):
        other.save_pretrained(folder, "facebook")
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.parametrize("format", ["huggingface", "timm"])
def test_the_flags_of_a_run_are_kept(format, make_model, tmp_path):
    text = '{"epochs": 3, "preset": "mae_tiny"}'
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"a run or.* another folder.*epochs, preset"):
        make_model().save_pretrained(tmp_path, format)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_text() == text


@pytest.mark.parametrize("way", ["save_pretrained", "save_to_preset"])
def test_a_file_is_no_folder(way, make_model, tmp_path):
    (tmp_path / "file").touch()
    for place in ("file", "file/inside"):
        with pytest.raises(ValueError, match=rf"{place} must be a folder\. Received"):
            getattr(make_model(), way)(tmp_path / place)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "format", "message"),
    [
        (
            {"image_size": (16, 32)},
            "huggingface",
            r"square image_size.*16, 32",
        ),
        ({"patch_size": (8, 4)}, "huggingface", r"square patch_size"),
        (
            {"activation": "tanh"},
            "huggingface",
            r"activation must be one of .*Received: tanh",
        ),
        ({"activation": "relu"}, "facebook", r"activation must be gelu.*relu"),
        ({"qkv_bias": False}, "facebook", r"qkv_bias must be True.*False"),
        ({}, "onnx", r"format must be one of huggingface, timm, facebook.*'onnx'"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(
    build, format, message, make_model, tmp_path
):
    if format == "facebook":
        pytest.importorskip("torch")  # it writes such files
    with pytest.raises(ValueError, match=message):
        make_model(**build).save_pretrained(tmp_path / "out", format)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "format", "message"),
    [
        ({"pooling": "mean"}, "huggingface", r"pooling='cls'"),
        ({"pooling": "mean"}, "huggingface", r"try timm or facebook"),
        ({"pooling": "cls", "batch_norm": True}, "huggingface", r"without batch_norm"),
        ({"pooling": "cls", "batch_norm": True}, "huggingface", r"; try facebook"),
        ({"pooling": "cls", "batch_norm": True}, "timm", r"a linear head"),
    ],
)
def test_heads_that_a_format_cannot_hold(head, format, message, make_model, tmp_path):
    classifier = MAEClassifier(make_model().encoder, num_classes=2, **head)
    with pytest.raises(ValueError, match=message):
        classifier.save_pretrained(tmp_path / "out", format)


@pytest.mark.slow
def test_different_sides_do_not_fit_one_configuration(make_model, tmp_path):
    model = make_model()
    config = model.decoder.get_config()
    config["layer_norm_epsilon"] = 1e-3
    decoder = keras_mae.MAEDecoder.from_config(config)
    model = MAEPretrainer(model.encoder, decoder)
    with pytest.raises(ValueError, match="layer_norm_epsilon must be the same"):
        model.save_pretrained(tmp_path / "out")


@pytest.mark.slow
def test_another_epsilon_is_noted(make_model, tmp_path):
    report = make_model(layer_norm_epsilon=1e-12).encoder.save_pretrained(
        tmp_path, "timm"
    )
    assert report.notes == ("layer_norm_epsilon is 1e-12; that library uses 1e-06",)


@pytest.mark.slow
@pytest.mark.parametrize("build", [MAEEncoder, MAEClassifier])
def test_a_part_is_filled_from_a_whole_file(build, saved, make_model):
    model, folder = saved
    target = make_model().encoder
    if build is MAEClassifier:
        target = MAEClassifier(target, num_classes=3)
    report = load_weights(target, folder)
    assert report.left_out
    encoder = getattr(target, "encoder", target)
    # also the final norm, which the mean leaves unused
    assert_same_weights(encoder, model.encoder)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["huggingface", "timm", "facebook"])
def test_low_precision_models_are_written(format, tmp_path):
    if format == "facebook":
        pytest.importorskip("torch")
    encoder = MAEEncoder.from_preset("mae_tiny", dtype="bfloat16")
    encoder.save_pretrained(tmp_path, format)
    again = MAEEncoder.from_pretrained(tmp_path, dtype="bfloat16")
    assert_same_weights(again, encoder)


@pytest.mark.slow
def test_progress_is_shown(saved, capsys):
    MAEEncoder.from_pretrained(saved[1], progress=True)
    assert "/variable" in capsys.readouterr().out


@pytest.mark.slow
def test_a_timm_configuration_of_another_pooling_is_refused(make_model, tmp_path):
    MAEClassifier(make_model().encoder, 3, "cls").save_pretrained(tmp_path, "timm")
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["model_args"]["global_pool"] = "avg"
    path.write_text(json.dumps(config))
    with pytest.raises(PortError, match=r"global_pool must be token, or avg"):
        MAEClassifier.from_pretrained(tmp_path)
