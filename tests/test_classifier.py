"""The classifier: pooling, gradients, statistics, and its life in Keras."""

import keras
import numpy as np
import pytest

from keras_mae import MAEClassifier, MAEEncoder

HEADS = {
    "mean": {"pooling": "mean"},
    "cls": {"pooling": "cls"},
    "probe": {"pooling": "cls", "batch_norm": True},
}


@pytest.fixture(params=HEADS.values(), ids=HEADS.keys())
def classifier(request, make_model):
    return MAEClassifier(make_model().encoder, num_classes=3, **request.param)


def test_the_mean_leaves_cls_out_and_has_a_norm_of_its_own(make_model, images):
    encoder = make_model().encoder
    classifier = MAEClassifier(encoder, num_classes=3)
    encoder.norm.gamma.assign(encoder.norm.gamma * 7)
    outputs = encoder(images, output_hidden_states=True)
    pooled = np.asarray(outputs["hidden_states"][-1])[:, 1:].mean(axis=1)
    pooled -= pooled.mean(axis=-1, keepdims=True)
    pooled /= np.sqrt(pooled.var(axis=-1, keepdims=True) + 1e-6)
    wanted = pooled @ classifier.head.kernel.numpy()
    np.testing.assert_allclose(classifier(images), wanted, atol=1e-5)


def test_cls_comes_after_the_norm(make_model, images):
    encoder = make_model().encoder
    classifier = MAEClassifier(encoder, num_classes=3, pooling="cls")
    wanted = np.asarray(encoder(images))[:, 0] @ classifier.head.kernel.numpy()
    np.testing.assert_allclose(classifier(images), wanted, atol=1e-5)


def test_every_trainable_variable_learns(classifier, images, recwarn):
    before = [weight.numpy() for weight in classifier.trainable_weights]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    classifier.compile(optimizer="adam", loss=loss, metrics=["accuracy"])
    history = classifier.fit(images, np.array([0, 1, 2, 0]), epochs=3, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]
    for weight, old in zip(classifier.trainable_weights, before, strict=True):
        assert not np.array_equal(weight.numpy(), old), weight.path
    assert not [w for w in recwarn if "Gradients do not exist" in str(w.message)]


def test_the_encoder_is_shared_and_can_be_frozen(make_model, images):
    encoder = make_model().encoder
    encoder.trainable = False
    classifier = MAEClassifier(encoder, 3, "cls", batch_norm=True)
    assert classifier.encoder is encoder
    assert len(classifier.trainable_weights) == 2
    mean = classifier.batch_norm.moving_mean.numpy()
    classifier(images, training=True)
    assert not np.array_equal(classifier.batch_norm.moving_mean.numpy(), mean)


def test_save_and_config_round_trip(classifier, images, tmp_path):
    classifier.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(images), classifier(images))
    copy = MAEClassifier.from_config(classifier.get_config())
    assert copy.get_config() == classifier.get_config()


def test_a_resumed_run_keeps_the_optimizer(classifier, images, tmp_path, recwarn):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    classifier.compile(optimizer="adam", loss=loss)
    classifier.fit(images, np.array([0, 1, 2, 0]), verbose=0)
    classifier.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    ours, theirs = classifier.optimizer.variables, loaded.optimizer.variables
    for one, two in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one.numpy(), two.numpy())
    assert not [w for w in recwarn if "Skipping variable" in str(w.message)]


def test_presets_and_precision(images):
    classifier = MAEClassifier.from_preset(
        "mae_tiny", num_classes=5, pooling="cls", dtype="mixed_bfloat16"
    )
    logits = classifier(images)
    assert logits.shape == (4, 5) and logits.dtype == "bfloat16"
    assert classifier.head.kernel.dtype == "float32"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, r"num_classes must be a positive int. Received: 0"),
        ({"num_classes": "3"}, r"num_classes must be a positive int. Received: '3'"),
        ({"num_classes": 2, "pooling": "max"}, r"pooling must be mean or cls.*'max'"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message, make_model):
    with pytest.raises(ValueError, match=message):
        MAEClassifier(make_model().encoder, **arguments)


def test_cls_needs_a_final_norm():
    encoder = MAEEncoder.from_preset("mae_tiny", final_norm=False)
    assert not encoder.norm.weights
    with pytest.raises(ValueError, match="needs an encoder with a final norm"):
        MAEClassifier(encoder, 3, "cls")


def test_an_encoder_without_final_norm_gives_the_last_block(images):
    encoder = MAEEncoder.from_preset("mae_tiny", final_norm=False)
    copy = MAEEncoder.from_config(encoder.get_config())
    assert not copy.final_norm
    outputs = encoder(images, output_hidden_states=True)
    np.testing.assert_array_equal(outputs["latent"], outputs["hidden_states"][-1])
