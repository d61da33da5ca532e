"""The train step: loss scaling, gradient accumulation; `keras.Model.export`."""

import keras
import numpy as np
import pytest

import keras_mae

pytestmark = pytest.mark.backends

SGD = keras.optimizers.SGD
SCALED = {
    "a factor": lambda: SGD(1.0, loss_scale_factor=1024.0),
    "a scale found by trying": lambda: keras.optimizers.LossScaleOptimizer(SGD(1.0)),
}


def values(variables):
    return [keras.ops.convert_to_numpy(variable) for variable in variables]


def one_update(model, images, **options):
    """Trains a step; returns what it reports, and the norm of what it changed."""
    before = values(model.trainable_variables)
    model.compile(**options)
    history = model.fit(images, batch_size=len(images), verbose=0).history
    changes = zip(values(model.trainable_variables), before, strict=True)
    change = np.sqrt(sum(np.sum((new - old) ** 2) for new, old in changes))
    return {name: losses[0] for name, losses in history.items()}, change


@pytest.mark.slow
@pytest.mark.parametrize("scaled", SCALED)
def test_a_scaled_loss_changes_neither_norm_nor_clipping(scaled, make_model, images):
    wanted, _ = one_update(make_model(seed=0), images, optimizer=SGD(1.0))
    keras.utils.set_random_seed(0)
    got, change = one_update(
        make_model(seed=0), images, optimizer=SCALED[scaled](), clip_norm=0.1
    )
    assert wanted["gradient_norm"] > 0.11  # so that 0.1 does clip
    assert got["gradient_norm"] == pytest.approx(wanted["gradient_norm"], rel=1e-4)
    assert change == pytest.approx(0.1, rel=1e-3)


@pytest.mark.slow
def test_float16_trains_with_a_loss_scale(make_model, images):
    model = make_model(dtype="mixed_float16")
    logs, change = one_update(model, images, optimizer=SGD(1.0), clip_norm=0.1)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert np.isfinite(logs["loss"]) and change == pytest.approx(0.1, rel=1e-2)


@pytest.mark.tensorflow
def test_a_model_on_one_mirrored_device_is_saved(make_model, images, tmp_path):
    import tensorflow as tf

    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        model = make_model(depth=1)
        model.compile(optimizer=SGD(0.1))
    loss = model.fit(images, verbose=0).history["loss"]
    model.save(tmp_path / "model.keras")
    total, count = keras.models.load_model(tmp_path / "model.keras").running_metrics
    assert total / count == pytest.approx(loss[0])


@pytest.mark.slow
def test_accumulation_drops_the_same_branches(make_model, images):
    losses = []
    for steps in (1, 2):
        model = make_model(seed=0, drop_path_rate=0.5)
        logs, _ = one_update(
            model, images, optimizer=SGD(0.1), accumulation_steps=steps
        )
        losses.append(logs["loss"])
        keras.utils.set_random_seed(0)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize("kind", ["pretrainer", "encoder", "classifier", "segmenter"])
def test_a_model_that_was_never_called_is_exported(kind, make_model, images, tmp_path):
    pretrainer = make_model(depth=1)
    model = {
        "pretrainer": lambda: pretrainer,
        "encoder": lambda: pretrainer.encoder,
        "classifier": lambda: keras_mae.MAEClassifier(pretrainer.encoder, 3),
        "segmenter": lambda: keras_mae.MAESegmenter(pretrainer.encoder, 3),
    }[kind]()
    model.export(tmp_path / "exported", verbose=False)
    answer = keras.layers.TFSMLayer(tmp_path / "exported", call_endpoint="serve")(
        images
    )
    if kind == "pretrainer":
        assert answer["logits"].shape == (4, 16, 192)
    else:
        np.testing.assert_allclose(answer, model(images), atol=1e-5)


@pytest.mark.slow
def test_a_decoder_without_blocks_trains_the_same_loss(make_model, images):
    model = make_model(decoder_depth=0)
    wanted = float(model(images, seed=0)["loss"])
    assert float(model(images, seed=0, loss_only=True)["loss"]) == pytest.approx(wanted)
    logs, _ = one_update(model, images, optimizer=SGD(0.1))
    assert np.isfinite(logs["loss"])
    with pytest.raises(ValueError, match=r"depth must not be negative\. Received: -1"):
        make_model(depth=-1)


@pytest.mark.slow
def test_fit_goes_on_after_a_refused_data_set(make_model, images):
    model = make_model()
    model.compile(optimizer=keras.optimizers.Adam(1e-3))
    with pytest.raises(ValueError, match="must be images or"):
        model.fit({"pixel_values": images}, batch_size=len(images), verbose=0)
    model.fit(images, batch_size=len(images), verbose=0)
    assert model.optimizer.iterations == 1
