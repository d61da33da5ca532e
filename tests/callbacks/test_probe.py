"""Probing while training: numbers, intervals, logs, and that it changes nothing."""

import csv

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mae
from keras_mae.callbacks import FeatureProbe
from keras_mae.callbacks.history import RunHistory
from keras_mae.models.features import PooledFeatures
from keras_mae.ops.neighbors import knn_scores, top_accuracies

pytestmark = pytest.mark.backends


@pytest.fixture
def labelled():
    """Bright and dark squares, of which each is told by its mean."""
    rng = np.random.default_rng(0)
    labels = np.arange(20) % 2
    images = rng.normal(size=(20, 32, 32, 3)) * 0.1 + labels[:, None, None, None]
    return images.astype("float32"), labels


def compiled(make_model, **options):
    model = make_model(depth=1)
    model.compile(optimizer=keras_mae.pretraining_optimizer(1e-3, **options))
    return model


def split(labelled):
    images, labels = labelled
    return (images[:12], labels[:12]), (images[12:], labels[12:])


def test_features_are_those_of_a_fresh_classifier(make_model, images):
    encoder = make_model(depth=1).encoder
    frozen = [layer.trainable for layer in encoder._flatten_layers()]
    for pooling in ("mean", "cls"):
        got = PooledFeatures(encoder, pooling).predict_on_batch(images)
        classifier = keras_mae.MAEClassifier(encoder, 2, pooling=pooling)
        wanted = classifier.pooled(images, training=False)
        wanted = keras.ops.convert_to_numpy(wanted)
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)
    # one that was trained, as training/linear_probe.py may be given
    norm = keras_mae.MAEClassifier(encoder, 2).head_norm
    norm.beta.assign(norm.beta + 3)
    shifted = PooledFeatures(encoder, norm=norm).predict_on_batch(images)
    mean = PooledFeatures(encoder).predict_on_batch(images)
    np.testing.assert_allclose(shifted, mean + 3, rtol=0, atol=1e-5)
    assert [layer.trainable for layer in encoder._flatten_layers()] == frozen


def test_the_logs_have_what_the_features_give(make_model, labelled):
    model, probe = compiled(make_model), FeatureProbe(*split(labelled), k=3)
    logs = {}
    probe.set_model(model)
    probe.set_params({"epochs": 1})
    probe.on_epoch_end(0, logs)
    features = PooledFeatures(model.encoder).predict_on_batch(labelled[0])
    scores = knn_scores(features[:12], labelled[1][:12], features[12:], 2, k=3)
    wanted = top_accuracies(scores, labelled[1][12:])
    assert tuple(logs[name] for name in probe.log_names[:2]) == wanted
    assert logs["probe_seconds"] > 0
    # images of weight 0 are padding; labels may be one-hot
    one_hot = np.eye(2)[labelled[1]]
    batches = tf.data.Dataset.from_tensors(
        (labelled[0][8:12], one_hot[8:12], [0, 0, 1, 1])
    )
    few = FeatureProbe(batches, [(labelled[0][12:], one_hot[12:])], k=3)
    few.set_model(model)
    scores = knn_scores(features[10:12], labelled[1][10:12], features[12:], 2, k=3)
    assert few.evaluate() == top_accuracies(scores, labelled[1][12:])
    ids = np.where([0, 0, 1, 1], labelled[1][8:12], -1)
    few.training = tf.data.Dataset.from_tensors((labelled[0][8:12], ids, [0, 0, 1, 1]))
    assert few.evaluate() == top_accuracies(scores, labelled[1][12:])


def test_labels_may_be_floats_and_must_be_whole(make_model, labelled):
    """As of image_dataset_from_directory(label_mode="binary")."""
    (images, labels), held_out = split(labelled)
    probe = FeatureProbe((images, labels[:, None].astype("float32")), held_out, k=3)
    probe.set_model(make_model(depth=1))
    accuracies = probe.evaluate()
    probe.training = images, labels
    assert probe.evaluate() == accuracies
    for wrong in (0.5, -1.0):
        probe.training = images, np.full((12, 1), wrong)
        with pytest.raises(ValueError, match=rf"ids or one-hot. Received: {wrong}"):
            probe.evaluate()


@pytest.mark.slow
def test_only_some_epochs_are_probed_and_training_is_the_same(
    make_model, labelled, tmp_path
):
    probe = FeatureProbe(*split(labelled), every=3)
    traces = []
    call = PooledFeatures.call
    results = []
    for callbacks in ([], [probe, RunHistory(tmp_path / "h.csv", probe.log_names)]):
        keras.utils.set_random_seed(0)
        model = compiled(make_model)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                PooledFeatures, "call", lambda *a: traces.append(1) or call(*a)
            )
            history = model.fit(
                labelled[0], batch_size=10, epochs=5, verbose=0, callbacks=callbacks
            ).history
        results.append(history["loss"])
    assert results[0] == results[1]
    rows = list(csv.DictReader((tmp_path / "h.csv").open()))
    filled = [row["epoch"] for row in rows if row["probe_knn_accuracy"]]
    assert filled == ["0", "2", "4"] and len(rows) == 5
    assert len(history["probe_knn_accuracy"]) == 3
    if keras.backend.backend() != "torch":  # which runs each batch
        assert len(traces) <= 4  # of two shapes, not of three evaluations


def test_rows_of_a_resumed_run_keep_their_columns(tmp_path):
    path = tmp_path / "history.csv"
    path.write_text("epoch,loss,probe_knn_accuracy,val_loss\n0,3.0,0.5,4.0\n")
    history = RunHistory(path)  # without a probe, this time
    history.set_model(keras.Sequential())
    history.on_train_begin()
    history.on_epoch_end(1, {"loss": 2.0, "val_loss": 5.0})
    history.on_train_end()
    assert path.read_text().splitlines()[-1] == "1,2.0,,5.0"


def test_a_column_that_is_new_does_not_shift_the_others(tmp_path):
    path = tmp_path / "history.csv"
    path.write_text("epoch,loss,val_loss\n0,3.0,4.0\n1,2.0\n")  # cut off: no space
    history = RunHistory(path, ["probe"])
    history.set_model(keras.Sequential())
    history.on_train_begin()
    history.on_epoch_end(2, {"loss": 1.5, "val_loss": 2.5})
    history.on_epoch_end(3, {"loss": 1.0, "val_loss": 2.0, "learning_rate": 0.5})
    history.on_epoch_end(4, {"loss": 0.5, "probe": 0.75})
    history.on_train_end()
    header = "epoch,learning_rate,loss,probe,val_loss"
    rows = ["0,,3.0,,4.0", "1,,2.0,,", "2,,1.5,,2.5", "3,0.5,1.0,,2.0",
            "4,,0.5,0.75,"]  # fmt: skip
    assert path.read_text().splitlines() == [header, *rows]


@pytest.mark.slow
def test_the_linear_probe_learns_and_repeats_itself(make_model, labelled):
    probe = FeatureProbe(*split(labelled), method="linear")
    probe.set_model(compiled(make_model))
    first = probe.evaluate()
    head = probe._head.model.get_weights()
    assert first[0] > 0.9 and probe.evaluate() == first
    for one, other in zip(head, probe._head.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert probe.log_names[0] == "probe_linear_accuracy"


@pytest.mark.slow
def test_averaged_weights_are_probed(make_model, labelled, monkeypatch):
    model = compiled(make_model, ema=0.9)
    for _ in range(3):
        model.train_on_batch(labelled[0])
    probe, seen = FeatureProbe(*split(labelled)), []
    probe.set_model(model)
    monkeypatch.setattr(
        "keras_mae.callbacks.probe.extract_features",
        lambda function, batches: (
            seen.append(keras.ops.convert_to_numpy(model.trainable_variables[0]))
            or (np.ones((8, 2)), np.arange(8) % 2)
        ),
    )
    probe.evaluate()
    average = model.optimizer._model_variables_moving_average[0]
    np.testing.assert_array_equal(seen[0], keras.ops.convert_to_numpy(average))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"every": 0}, "every must be at least 1. Received: 0"),
        ({"method": "svm"}, "method must be knn or linear. Received: 'svm'"),
        ({"pooling": "max"}, "pooling must be mean or cls. Received: 'max'"),
    ],
)
def test_settings_are_checked(labelled, options, message):
    with pytest.raises(ValueError, match=message):
        FeatureProbe(*split(labelled), **options)


def test_labels_are_counted(make_model, labelled):
    images, labels = labelled
    probe = FeatureProbe((images, labels[:3]), (images, labels))
    probe.set_model(compiled(make_model))
    with pytest.raises(ValueError, match="Received: 20 images, 3 labels"):
        probe.evaluate()
