"""Models, encoders and classifiers from runs, `.keras` files and published weights."""

import functools

import keras
import numpy as np
import pytest

import keras_mae
from keras_mae.models.loading import (
    copy_encoder,
    is_run,
    load_classifier,
    load_model,
    load_pretrainer,
    load_run,
    local_folder,
    with_precision,
)
from keras_mae.preprocessing.pretrained_processor import (
    find_processor,
    training_processor,
)


@pytest.fixture
def run(make_model, tmp_path):
    model = make_model(num_channels=1)
    model.save(tmp_path / "model.keras")
    processor = keras_mae.MAEImageProcessor(32, (0.3,), (0.2,))
    processor.save_pretrained(tmp_path)
    return tmp_path, model


def test_a_copy_has_the_weights_and_other_settings(make_model, images):
    encoder = make_model().encoder
    copy = copy_encoder(encoder, drop_path_rate=0.1, train_positions=True)
    np.testing.assert_array_equal(copy(images), encoder(images))
    assert len(copy.trainable_variables) == len(encoder.trainable_variables) + 1
    half = copy_encoder(encoder, dtype="mixed_bfloat16", rematerialize=True)
    assert half.rematerialize and half(images).dtype == "bfloat16"


def test_a_copy_for_another_size_resizes_positions(make_model):
    encoder = make_model().encoder
    wide = np.random.default_rng(0).normal(size=(2, 32, 64, 3)).astype("float32")
    copy = copy_encoder(encoder, image_size=(32, 64))
    wanted = encoder(wide, interpolate=True)
    np.testing.assert_allclose(copy(wide), wanted, atol=1e-5)


def test_a_copy_for_grey_images_sees_what_rgb_showed(make_model):
    encoder = make_model().encoder
    grey = np.random.default_rng(0).normal(size=(2, 32, 32, 1)).astype("float32")
    copy = copy_encoder(encoder, num_channels=1)
    wanted = encoder(np.repeat(grey, 3, axis=-1))
    np.testing.assert_allclose(copy(grey), wanted, atol=1e-5)
    back = copy_encoder(copy, num_channels=3)
    np.testing.assert_allclose(back(np.repeat(grey, 3, axis=-1)), wanted, atol=1e-5)


def test_other_channels_are_told(make_model, tmp_path, capsys):
    make_model().save_pretrained(tmp_path)
    load_pretrainer(tmp_path, num_channels=3)
    assert "channel(s)" not in capsys.readouterr().out
    for load in (load_pretrainer, functools.partial(load_classifier, num_classes=2)):
        assert load(tmp_path, num_channels=1).encoder.num_channels == 1
        assert "of 3 channel(s), these have 1" in capsys.readouterr().out


def test_a_frozen_encoder_is_copied_free(make_model):
    encoder = make_model().encoder
    encoder.trainable = False
    assert copy_encoder(encoder).trainable_variables


@pytest.mark.slow
def test_a_run_becomes_a_classifier_and_keeps_its_head(run, tmp_path):
    folder, model = run
    assert is_run(folder) and is_run(folder / "model.keras") and not is_run("a/b")
    image = np.random.default_rng(0).normal(size=(2, 32, 32, 1)).astype("float32")
    classifier = load_classifier(folder, 3, head={"head_range": 1.0})
    tokens = model.encoder(image, output_hidden_states=True)["hidden_states"][-1]
    wanted = classifier.head_norm(np.asarray(tokens)[:, 1:].mean(axis=1))
    np.testing.assert_allclose(classifier.pooled(image), wanted, atol=1e-5)
    path = tmp_path / "classifier.keras"
    classifier.save(path)
    again = load_classifier(path, 3)
    np.testing.assert_allclose(again(image), classifier(image), atol=1e-6)
    other = load_classifier(path, 4)
    assert other(image).shape == (2, 4)
    fresh = load_classifier(path, 3, keep_head=False)
    np.testing.assert_allclose(fresh.pooled(image), classifier.pooled(image), atol=1e-6)
    assert np.abs(fresh(image) - classifier(image)).max() > 0.1


def test_published_weights_become_a_classifier(make_model, images, tmp_path):
    make_model(hidden_dim=24, num_heads=2).save_pretrained(tmp_path)
    classifier = load_classifier(tmp_path, 5, "cls", drop_path_rate=0.1)
    assert classifier(images).shape == (4, 5)
    assert classifier.encoder.stochastic_depth.rate == 0.1


def test_what_was_assumed_of_published_weights_is_printed(make_model, tmp_path, capsys):
    make_model().save_pretrained(tmp_path, "timm")
    for load in (load_model, functools.partial(load_classifier, num_classes=5)):
        load(tmp_path)
        assert f"{tmp_path}: timm" in capsys.readouterr().out


def test_the_processor_is_the_runs_where_channels_agree(run, capsys):
    folder, _ = run
    for source in (folder, folder / "model.keras"):
        processor = training_processor(source, 64, (0.5,), (0.5,))
        assert processor.image_mean == (0.3,) and processor.image_size == (64, 64)
        assert processor.resample == "bicubic"
    assert not capsys.readouterr().out
    assert training_processor(folder, 64, (0.5,) * 3, (0.5,) * 3).num_channels == 3
    assert "by the data set's mean [0.5, 0.5, 0.5]" in capsys.readouterr().out
    assert training_processor(None, 64, (0.5,), (0.5,)).image_mean == (0.5,)
    assert not capsys.readouterr().out


def test_a_broken_run_is_one_clear_error(run):
    folder, _ = run
    with pytest.raises(ValueError, match="does not exist"):
        load_run(folder / "nowhere")
    (folder / "model.keras").write_bytes(b"PK no zip")
    with pytest.raises(ValueError, match=r"model.keras is not a readable model"):
        load_classifier(folder, 3)


def test_a_tilde_is_the_users_own_folder(run, monkeypatch):
    folder, model = run
    monkeypatch.setenv("HOME", str(folder.parent))
    source = f"~/{folder.name}"
    assert is_run(source)
    loaded, processor = load_run(f"{source}/model.keras")
    assert processor.image_mean == (0.3,)
    model.encoder.save_pretrained(folder / "theirs")
    for weights in (loaded, load_model(f"{source}/theirs")[0]):
        assert weights.count_params()
    assert find_processor(f"{source}/model.keras").image_mean == (0.3,)


def test_a_model_alone_has_no_processor(run):
    folder, _ = run
    (folder / "preprocessor_config.json").unlink()
    for source in (folder, folder / "model.keras"):
        model, processor = load_model(source)
        assert isinstance(model, keras_mae.MAEPretrainer) and processor is None
        assert load_classifier(source, 3).num_classes == 3
        assert training_processor(source, 32, (0.5,), (0.4,)).image_mean == (0.5,)
        with pytest.raises(ValueError, match=r"has no preprocessor_config\.json"):
            load_run(source)


@pytest.fixture
def probe(make_model, tmp_path):
    """A linear probe that was trained: statistics, a norm and a head of its own."""
    model = keras_mae.MAEClassifier(make_model().encoder, 3, batch_norm=True)
    rng = np.random.default_rng(0)
    width = model.encoder.hidden_dim
    model.batch_norm.set_weights([rng.random(width), 0.01 + 0.01 * rng.random(width)])
    model.head_norm.set_weights([rng.random(width), rng.random(width)])
    model.head.set_weights([rng.normal(size=(width, 3)), rng.random(3)])
    model.save(tmp_path / "model.keras")
    return model


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_probes_head_comes_with_its_statistics(batch_norm, probe, tmp_path, images):
    classifier = load_classifier(tmp_path, 3, head={"batch_norm": batch_norm})
    assert (classifier.batch_norm is not None) == batch_norm
    np.testing.assert_allclose(classifier(images), probe(images), atol=1e-5, rtol=1e-5)


def test_a_head_without_statistics_is_not_put_behind_fresh_ones(make_model, tmp_path):
    model = keras_mae.MAEClassifier(make_model().encoder, 3, head_range=1.0)
    model.head_norm.beta.assign(model.head_norm.beta + 1)
    model.save(tmp_path / "model.keras")
    probe = load_classifier(tmp_path, 3, head={"batch_norm": True})
    assert np.abs(probe.head.kernel).max() < 0.1  # drawn, and not of deviation 1
    # the norm belongs to the features
    np.testing.assert_array_equal(probe.head_norm.beta, model.head_norm.beta)


def test_a_probe_of_other_classes_or_pooling_gives_its_encoder(probe, tmp_path, images):
    other = load_classifier(tmp_path, 4)
    np.testing.assert_allclose(other.pooled(images), probe.pooled(images), atol=1e-6)
    cls = load_classifier(tmp_path, 3, "cls")
    assert np.abs(cls.head.kernel).max() < 1e-3  # drawn


def test_a_segmenter_gives_its_encoder(make_model, tmp_path, images):
    encoder = make_model().encoder
    keras_mae.MAESegmenter(encoder, 3, layers=(0, 1)).save(tmp_path / "model.keras")
    classifier = load_classifier(tmp_path, 3)
    np.testing.assert_allclose(classifier.encoder(images), encoder(images), atol=1e-6)


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


def test_a_copied_encoder_is_not_frozen(make_model):
    encoder = make_model().encoder
    encoder.freeze_but_last(1)
    encoder.blocks[1].attention.trainable = False
    copy = copy_encoder(encoder)
    assert all(layer.trainable for layer in copy._flatten_layers())


@pytest.fixture(params=["run", pytest.param("published", marks=pytest.mark.slow)])
def saved(request, tmp_path):
    """Saves a model as a run's file, or as published weights; returns the source."""

    def save(model):
        if request.param == "published":
            model.save_pretrained(tmp_path)
            return tmp_path
        model.save(tmp_path / "model.keras")
        return tmp_path / "model.keras"

    return save


def test_a_pretrainer_goes_on_as_it_was(make_model, images, saved):
    model = make_model(mask_ratio=0.5, norm_pix_loss=True, num_heads=2)
    model.decoder.trainable = False
    source = saved(model)
    again = load_pretrainer(source, patch_size=8, dtype="float32", seed=3)
    assert (again.mask_ratio, again.norm_pix_loss) == (0.5, True)
    assert len(again.trainable_variables) > len(model.trainable_variables)
    wanted = model(images, seed=0)["logits"]
    np.testing.assert_allclose(again(images, seed=0)["logits"], wanted, atol=1e-6)
    other = load_pretrainer(
        source, mask_ratio=0.25, norm_pix_loss=False, dtype="mixed_bfloat16"
    )
    assert (other.mask_ratio, other.norm_pix_loss) == (0.25, False)
    assert other.decoder.compute_dtype == "bfloat16"


def test_a_pretrainer_for_other_images(make_model, saved):
    """Grey images in three channels: nothing that was learnt is lost."""
    model = make_model(num_channels=1)
    wide = np.random.default_rng(0).normal(size=(2, 32, 48, 1)).astype("float32")
    other = load_pretrainer(saved(model), image_size=(32, 48), num_channels=3)
    # patch kernels keep their sum, and each channel predicts what one did
    wanted = model(wide, seed=0, interpolate=True)
    found = other(wide.repeat(3, axis=-1), seed=0)
    logits = np.asarray(found["logits"]).reshape(2, 24, 64, 3)
    for channel in range(3):
        np.testing.assert_allclose(logits[..., channel], wanted["logits"], atol=1e-5)
    assert float(found["loss"]) == pytest.approx(float(wanted["loss"]), rel=1e-5)


def test_fewer_channels_average_what_is_predicted(make_model, saved):
    model = make_model()
    grey = np.random.default_rng(0).normal(size=(2, 32, 32, 1)).astype("float32")
    other = load_pretrainer(saved(model), num_channels=1)
    wanted = np.asarray(model(grey.repeat(3, axis=-1), seed=0)["logits"])
    wanted = wanted.reshape(2, 16, 64, 3).mean(axis=-1)
    np.testing.assert_allclose(other(grey, seed=0)["logits"], wanted, atol=1e-5)


def test_an_encoder_gets_a_fresh_decoder(make_model, images, saved, capsys):
    encoder = make_model(drop_path_rate=0.1, train_positions=True).encoder
    encoder.freeze_but_last(0)
    model = load_pretrainer(saved(encoder), dtype="float32")
    line, *_ = capsys.readouterr().out.splitlines()
    assert "has no decoder: a fresh one of 8 blocks, 512 wide, is trained" in line
    assert model.norm_pix_loss and model.mask_ratio == 0.75
    np.testing.assert_allclose(model.encoder(images), encoder(images), atol=1e-6)
    assert model.encoder.stochastic_depth is None
    assert model.encoder.patch_embedding.trainable


def test_a_presets_encoder_gets_that_presets_decoder(saved, capsys):
    encoder = keras_mae.MAEEncoder.from_preset("mae_tiny", patch_size=8)
    model = load_pretrainer(saved(encoder), "mae_tiny", mask_ratio=0.5)
    assert model.decoder.hidden_dim == 64 and model.mask_ratio == 0.5
    assert "of 2 blocks, 64 wide" in capsys.readouterr().out


def test_a_classifier_run_gives_its_encoder_to_a_pretrainer(make_model, images, saved):
    classifier = keras_mae.MAEClassifier(make_model(num_heads=2).encoder, 3, "cls")
    model = load_pretrainer(saved(classifier))
    wanted = classifier.encoder(images)
    np.testing.assert_allclose(model.encoder(images), wanted, atol=1e-6)


def test_sizes_that_contradict_a_pretrainer_are_refused(make_model, saved):
    source = saved(make_model())
    with pytest.raises(ValueError, match=r"patch_size must be .*\(8, 8\). Received: 4"):
        load_pretrainer(source, patch_size=4)
    wanted = r"leave the preset out. Received: preset=mae_tiny, but .*hidden_dim=16 \("
    with pytest.raises(ValueError, match=wanted):
        load_pretrainer(source, "mae_tiny")
    with pytest.raises(ValueError, match="preset must be one of"):
        load_pretrainer(source, "mae_giant")
    with pytest.raises(ValueError, match="divisible"):
        load_pretrainer(source, image_size=30)


def test_a_checkpoint_of_a_run_has_the_runs_processor(run):
    folder, model = run
    (folder / "checkpoints").mkdir()
    path = folder / "checkpoints" / "epoch-0001.keras"
    model.save(path)
    assert training_processor(path, 32, (0.5,), (0.5,)).image_mean == (0.3,)


def test_pretraining_gets_a_final_norm_that_fine_tuning_left_out(
    make_model, tmp_path, capsys
):
    encoder = make_model(num_heads=2, final_norm=False).encoder
    keras_mae.MAEClassifier(encoder, 3).save(tmp_path / "model.keras")
    model = load_pretrainer(tmp_path)
    assert "has no final norm: a fresh one is trained" in capsys.readouterr().out
    assert model.encoder.final_norm and model.encoder.norm.trainable_weights


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_probes_pth_comes_with_its_statistics(batch_norm, probe, tmp_path, images):
    pytest.importorskip("torch")
    probe.save_pretrained(tmp_path / "pth", "facebook")
    source, head = tmp_path / "pth", {"batch_norm": batch_norm}
    classifier = load_classifier(source, 3, head=head)
    assert (classifier.batch_norm is not None) == batch_norm
    assert not classifier.port_report.fresh
    np.testing.assert_allclose(classifier(images), probe(images), atol=1e-4, rtol=1e-4)
    other = keras_mae.MAEClassifier.from_pretrained(source, num_classes=4)
    assert other.batch_norm is None
    assert keras_mae.MAEClassifier.from_pretrained(source).batch_norm is not None


def test_a_model_of_another_class_is_named(tmp_path):
    layers = [keras.Input((4,)), keras.layers.Dense(2)]
    keras.Sequential(layers).save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match=r"must hold a MAEEncoder.*Sequential"):
        load_model(tmp_path)
