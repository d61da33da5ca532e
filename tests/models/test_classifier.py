"""The classifier: pooling, gradients, statistics, and its life in Keras."""

import keras
import numpy as np
import pytest

from keras_mae import MAEClassifier, MAEEncoder, MAESegmenter

pytestmark = pytest.mark.backends


def test_the_mean_leaves_cls_out_and_has_a_norm_of_its_own(make_model, images):
    encoder = make_model().encoder
    classifier = MAEClassifier(encoder, num_classes=3, head_range=0.2)
    encoder.norm.gamma.assign(encoder.norm.gamma * 7)
    outputs = encoder(images, output_hidden_states=True)
    pooled = np.asarray(outputs["hidden_states"][-1])[:, 1:].mean(axis=1)
    pooled -= pooled.mean(axis=-1, keepdims=True)
    pooled /= np.sqrt(pooled.var(axis=-1, keepdims=True) + 1e-6)
    wanted = pooled @ classifier.head.kernel.numpy()
    np.testing.assert_allclose(classifier(images), wanted, atol=1e-5)


def test_a_mean_over_weights_is_one_over_all_batches(make_model):
    rng = np.random.default_rng(0)
    images = rng.standard_normal((6, 32, 32, 3)).astype("float32")
    labels, weights = np.eye(3)[[0, 1, 2, 0, 1, 2]], np.array([2, 0, 0, 2, 2, 2])
    classifier = MAEClassifier(make_model().encoder, num_classes=3, head_range=1.0)
    loss = keras.losses.CategoricalCrossentropy(
        from_logits=True, reduction="mean_with_sample_weight"
    )
    classifier.compile(optimizer="sgd", loss=loss)
    real = weights > 0
    wanted = classifier.evaluate(images[real], labels[real], verbose=0)
    for size in (1, 3, 4):
        options = {"batch_size": size, "sample_weight": weights, "verbose": 0}
        got = classifier.evaluate(images, labels, **options)
        assert got == pytest.approx(wanted, rel=1e-5), size


def test_cls_comes_after_the_norm(make_model, images):
    encoder = make_model().encoder
    classifier = MAEClassifier(encoder, num_classes=3, pooling="cls", head_range=0.2)
    wanted = np.asarray(encoder(images))[:, 0] @ classifier.head.kernel.numpy()
    np.testing.assert_allclose(classifier(images), wanted, atol=1e-5)


def test_the_encoder_is_shared_and_can_be_frozen(make_model, images):
    encoder = make_model().encoder
    encoder.trainable = False
    classifier = MAEClassifier(encoder, 3, "cls", batch_norm=True)
    assert classifier.encoder is encoder
    assert len(classifier.trainable_weights) == 2
    mean = classifier.batch_norm.moving_mean.numpy()
    classifier(images, training=True)
    assert not np.array_equal(classifier.batch_norm.moving_mean.numpy(), mean)


def test_presets_and_precision(images):
    classifier = MAEClassifier.from_preset(
        "mae_tiny", num_classes=5, pooling="cls", dtype="mixed_bfloat16"
    )
    logits, pooled = classifier(images), classifier.pooled(images)
    assert tuple(logits.shape) == (4, 5)
    assert keras.backend.standardize_dtype(logits.dtype) == "float32"
    assert keras.backend.standardize_dtype(pooled.dtype) == "bfloat16"
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


@pytest.mark.parametrize("head, deviation", [({}, 2e-5), ({"batch_norm": True}, 0.01)])
def test_fresh_heads_are_drawn_as_published(make_model, head, deviation):
    encoder = make_model(hidden_dim=64).encoder
    kernel = MAEClassifier(encoder, 500, "cls", **head).head.kernel.numpy()
    np.testing.assert_allclose(kernel.std(), deviation, rtol=0.02)
    assert abs(kernel).max() > 3 * deviation  # not truncated


class Batches:
    """Two batches of 8 images, with soft labels."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.images = rng.normal(size=(16, 32, 32, 3)).astype("float32")
        self.labels = np.eye(3, dtype="float32")[rng.integers(0, 3, 16)]

    def fit(self, classifier, **options):
        loss = keras.losses.CategoricalCrossentropy(from_logits=True)
        classifier.compile(
            optimizer=keras.optimizers.SGD(0.1),
            loss=loss,
            weighted_metrics=["accuracy"],
            **options,
        )
        history = classifier.fit(
            self.images,
            self.labels,
            batch_size=8,
            epochs=2,
            shuffle=False,
            verbose=0,
            validation_data=(self.images, self.labels),
        )
        return history.history


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"accumulation_steps": 4},
        pytest.param({"jit_compile": True}, marks=pytest.mark.nightly),
        pytest.param({"run_eagerly": True}, marks=pytest.mark.nightly),
    ],
)
def test_parts_graphs_and_xla_train_alike(make_model, options):
    encoder = make_model(drop_path_rate=0.5, seed=0).encoder
    first = MAEClassifier(encoder, 3, head_range=0.2)
    second = MAEClassifier.from_config(first.get_config())
    second.set_weights(first.get_weights())
    wanted = Batches().fit(first)
    got = Batches().fit(second, **options)
    assert wanted.keys() == got.keys() >= {"loss", "accuracy", "gradient_norm"}
    for name, values in wanted.items():
        np.testing.assert_allclose(got[name], values, rtol=1e-4, err_msg=name)
    for mine, theirs in zip(second.weights, first.weights, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5, err_msg=mine.path)


@pytest.mark.tensorflow
def test_keras_itself_trains_to_the_same_numbers(make_model):
    ours = MAEClassifier(make_model().encoder, 3, head_range=0.2)
    plain = MAEClassifier.from_config(ours.get_config())
    plain.set_weights(ours.get_weights())
    # the train step of any other Keras model
    plain.train_step = lambda data: keras.Model.train_step(plain, data)
    wanted, got = Batches().fit(plain), Batches().fit(ours)
    got.pop("gradient_norm")
    for name, values in wanted.items():
        np.testing.assert_allclose(got[name], values, rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_the_last_blocks_alone_are_trained(make_model):
    classifier = MAEClassifier(make_model().encoder, 3, "cls", head_range=0.2)
    before = [weight.numpy() for weight in classifier.weights]
    classifier.encoder.freeze_but_last(1)
    Batches().fit(classifier)
    for weight, old in zip(classifier.weights, before, strict=True):
        parts = ("block_1/", "/norm/", "/head/", "seed_generator")
        moves = any(part in weight.path for part in parts)
        assert moves or np.array_equal(weight.numpy(), old), weight.path
    copy = MAEEncoder.from_config(classifier.encoder.get_config())
    assert copy.trainable_blocks == 1
    assert len(copy.trainable_weights) == len(classifier.encoder.trainable_weights)
    kernel = classifier.encoder.blocks[1].mlp.fc1.kernel
    assert any(kernel is weight for weight in classifier.trainable_weights)
    for wrong in (-1, 3):
        with pytest.raises(ValueError, match=rf"in \[0, 2\]. Received: {wrong}"):
            classifier.encoder.freeze_but_last(wrong)


@pytest.mark.parametrize("kind", [MAEClassifier, MAESegmenter])
def test_a_whole_pretrainer_is_no_encoder(kind, make_model):
    with pytest.raises(ValueError, match=r"must be a MAEEncoder.*: MAEPretrainer"):
        kind(make_model(), 3)


@pytest.mark.tensorflow
def test_images_without_labels_are_refused(make_model, images):
    classifier = MAEClassifier(make_model().encoder, num_classes=3)
    classifier.compile("adam", "categorical_crossentropy")
    with pytest.raises(ValueError, match=r"must be \(images, labels\)"):
        classifier.fit(images, verbose=0)


def test_numpys_ints_are_ints(make_model):
    encoder = make_model().encoder
    model = MAEClassifier(encoder, np.int64(3))
    assert model.num_classes == 3 and type(model.num_classes) is int
    assert MAESegmenter(encoder, np.int32(2)).num_classes == 2
    for wrong in (0, True, 2.0, "3"):
        with pytest.raises(ValueError, match="num_classes must be a positive int"):
            MAEClassifier(encoder, wrong)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_logits_of_mixed_precision_do_not_tie(make_model, images, policy):
    encoder = make_model(dtype=policy).encoder
    model = MAEClassifier(encoder, 2000, head_range=1e-3, dtype=policy)
    assert model.head.compute_dtype == "float32"
    logits = keras.ops.convert_to_numpy(model(images))
    assert logits.dtype == "float32"
    # bfloat16 has 256 values from a power of two to the next one
    assert len(np.unique(logits[0])) > 1900
