"""Subclasses of the models, with weights and layers of their own."""

import keras
import numpy as np
import pytest

import keras_mae

pytestmark = pytest.mark.backends


def value(variable):
    return keras.ops.convert_to_numpy(variable)


@keras.saving.register_keras_serializable(package="tests")
class Taught(keras_mae.MAEPretrainer):
    """A pretrainer with a weight of its own."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.extra = self.add_weight(shape=(2,), initializer="zeros", name="extra")


def test_weights_that_a_subclass_adds_are_saved(make_model, tmp_path):
    model = Taught.from_config(make_model().get_config())
    model.extra.assign([3.0, 4.0])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(value(loaded.extra), [3, 4])
    model.save_weights(tmp_path / "model.weights.h5")
    model.extra.assign([0.0, 0.0])
    model.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(value(model.extra), [3, 4])


def test_a_file_without_them_is_refused(make_model, tmp_path):
    plain = make_model()
    plain.save_weights(tmp_path / "plain.weights.h5")
    model = Taught.from_config(plain.get_config())
    with pytest.raises(ValueError, match=r"The file has no weight \S*extra"):
        model.load_weights(tmp_path / "plain.weights.h5")


class Layered:
    """Mixin that adds a layer of its own behind a model's."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.extra = keras.layers.Dense(2, name="extra")
        self.extra.build((None, 3))


def parts(kind, encoder):
    if kind is keras_mae.MAEEncoder:
        return encoder.get_config()
    return {"encoder": encoder, "num_classes": 3}


@pytest.mark.parametrize(
    "kind",
    [keras_mae.MAEEncoder, keras_mae.MAEClassifier, keras_mae.MAESegmenter],
    ids=lambda kind: kind.__name__,
)
def test_layers_that_a_subclass_adds_are_trained_and_saved(kind, make_model, tmp_path):
    subclass = type("Subclass", (Layered, kind), {})
    keras.saving.register_keras_serializable("tests", kind.__name__)(subclass)
    model = subclass(**parts(kind, make_model(depth=1).encoder))
    assert any(model.extra.kernel is weight for weight in model.trainable_weights)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(value(loaded.extra.kernel), value(model.extra.kernel))


class Counting(keras_mae.MAEPretrainer):
    """Counts its updates by a metric of its own."""

    def __init__(self, encoder, decoder, **kwargs):
        super().__init__(encoder, decoder, **kwargs)
        self.updates = keras.metrics.Sum(name="updates")

    def track(self, loss, outputs, data):
        self.updates.update_state(1.0)
        return super().track(loss, outputs, data)


def test_a_subclass_comes_back_from_a_preset(make_model, tmp_path, monkeypatch):
    model = Taught.from_config(make_model().get_config())
    model.extra.assign([3.0, 4.0])
    model.save_to_preset(tmp_path)
    loaded = Taught.from_preset(tmp_path)
    np.testing.assert_array_equal(value(loaded.extra), [3, 4])
    assert type(keras_mae.MAEPretrainer.from_preset(tmp_path)) is Taught
    model.save_to_preset(tmp_path)
    # in a process that has not imported it
    monkeypatch.setattr(keras.saving, "get_registered_object", lambda name: None)
    with pytest.raises(ValueError, match=r"imported first.*tests>Taught"):
        Taught.from_preset(tmp_path)


def test_a_subclass_that_is_not_registered_writes_no_preset(make_model, tmp_path):
    made = make_model()
    model = Counting(made.encoder, made.decoder)
    with pytest.raises(ValueError, match=r"register_keras_serializable.*Counting"):
        model.save_to_preset(tmp_path / "preset")
    assert not (tmp_path / "preset").exists()


@pytest.mark.slow
def test_a_metric_of_a_subclass_is_reset_and_reported(make_model, images):
    made = make_model()
    model = Counting(made.encoder, made.decoder)
    model.compile(optimizer=keras.optimizers.SGD(0.0))
    history = model.fit(images, batch_size=2, epochs=2, verbose=0).history
    assert history["updates"] == [2.0, 2.0]
    results = model.evaluate(images, batch_size=4, verbose=0, return_dict=True)
    assert results["updates"] == 1.0 and set(results) == {"loss", "updates"}


@pytest.mark.slow
def test_regularizers_are_part_of_the_loss(make_model, images):
    model = make_model()
    kernel = model.encoder.patch_embedding.projection.kernel
    losses = []
    for regularizer in (None, keras.regularizers.L2(0.1)):
        kernel.regularizer = regularizer
        model.compile(optimizer=keras.optimizers.SGD(0.0))
        losses.append(model.evaluate(images, verbose=0))
    added = 0.1 * np.square(keras.ops.convert_to_numpy(kernel)).sum()
    assert losses[1] - losses[0] == pytest.approx(added, rel=1e-5)
    kernel.regularizer = keras.regularizers.L2(0.1)
    model.compile(optimizer=keras.optimizers.SGD(0.1))
    before = np.square(keras.ops.convert_to_numpy(kernel)).sum()
    model.fit(images, epochs=3, verbose=0)
    assert np.square(keras.ops.convert_to_numpy(kernel)).sum() < before


class Spare(keras_mae.MAEPretrainer):
    """Has a trainable layer that its loss does not use."""

    def __init__(self, encoder, decoder, **kwargs):
        super().__init__(encoder, decoder, **kwargs)
        self.spare = keras.layers.Dense(2)
        self.spare.build((None, 4))


@pytest.mark.nightly
@pytest.mark.parametrize("parts", [1, 2])
def test_weights_that_the_loss_does_not_use_stay_as_they_are(make_model, images, parts):
    made = make_model()
    model = Spare(made.encoder, made.decoder)
    model.compile(optimizer=keras.optimizers.Adam(0.1), accumulation_steps=parts)
    before = [value(one) for one in (model.spare.kernel, made.decoder.pred.bias)]
    if keras.backend.backend() == "jax":  # which gives a gradient of 0
        model.fit(images, batch_size=4, verbose=0)
    else:
        with pytest.warns(UserWarning, match=r"does not depend on these.*kernel"):
            model.fit(images, batch_size=4, verbose=0)
    after = [value(one) for one in (model.spare.kernel, made.decoder.pred.bias)]
    np.testing.assert_array_equal(after[0], before[0])
    assert (after[1] != before[1]).any()
