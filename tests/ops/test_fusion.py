"""Fused ops: the same values and gradients as plain ones; loss on removed patches."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mae
from keras_mae.ops import fused_kernels
from keras_mae.ops.fusion import fusible, fusion_scope, should_fuse
from keras_mae.ops.tracing import cpu_graph_scope

NOISE = np.random.default_rng(1).random((4, 16)).astype("float32")


def step(model, images, **options):
    """Returns loss and gradients of a step in a graph."""

    @tf.function(autograph=False)
    def run():
        with tf.GradientTape() as tape:
            loss = model(images, noise=NOISE, training=True, **options)["loss"]
        return loss, tape.gradient(loss, model.trainable_variables)

    return run()


def assert_close(model, got, wanted, tolerance=1e-5):
    for variable, mine, theirs in zip(
        model.trainable_variables, got, wanted, strict=True
    ):
        mine, theirs = (np.asarray(tf.cast(g, "float32")) for g in (mine, theirs))
        scale = max(np.abs(theirs).max(), 1e-4)
        assert np.abs(mine - theirs).max() < tolerance * scale, variable.path


@pytest.mark.slow
@pytest.mark.parametrize(
    "norm_pix_loss", [True, pytest.param(False, marks=pytest.mark.nightly)]
)
def test_fusion_and_removed_patches_change_no_gradient(
    make_model, images, norm_pix_loss
):
    model = make_model(norm_pix_loss=norm_pix_loss, decoder_depth=2)
    wanted_loss, wanted = step(model, images)
    for on in (False, True):
        for loss_only in (False, True):
            with cpu_graph_scope(on), fusion_scope(on):
                loss, got = step(model, images, loss_only=loss_only)
            np.testing.assert_allclose(loss, wanted_loss, rtol=1e-5)
            assert_close(model, got, wanted)


@pytest.mark.slow
def test_fusion_in_bfloat16_differs_by_rounding(make_model, images):
    model = make_model(dtype="mixed_bfloat16")
    _, wanted = step(model, images)
    with fusion_scope(True):
        _, got = step(model, images)
    assert_close(model, got, wanted, tolerance=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy", [None, pytest.param("mirrored", marks=pytest.mark.nightly)]
)
def test_fused_training_is_plain_training(make_model, images, monkeypatch, strategy):
    weights = []
    for minimum in (10**12, 0):
        monkeypatch.setattr("keras_mae.ops.fusion._MIN_PARAMETERS", minimum)
        keras.utils.set_random_seed(0)
        scope = tf.distribute.get_strategy()
        if strategy:
            scope = tf.distribute.MirroredStrategy(["CPU:0"])
        with scope.scope():
            model = make_model()
            optimizer = keras_mae.pretraining_optimizer(1e-3)
            # leaves a gradient of mere rounding, the key bias's, small
            optimizer.epsilon = 1e-4
            model.compile(optimizer=optimizer, jit_compile=False)
        assert model.fuses == (minimum == 0)
        model.fit(images, batch_size=4, epochs=3, shuffle=False, verbose=0)
        weights.append([np.asarray(w) for w in model.trainable_variables])
    for mine, theirs in zip(*weights, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-5)


def gradients(function, *inputs):
    """Returns what a function of tensors computes, and its gradients, in a graph."""

    @tf.function(autograph=False)
    def run(*inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            output = function(*inputs)
        upstream = tf.cos(tf.cast(tf.range(tf.size(output)), "float32"))
        upstream = tf.cast(tf.reshape(upstream, tf.shape(output)), output.dtype)
        return [output, *tape.gradient(output, inputs, upstream)]

    return run(*map(tf.constant, inputs))


@pytest.mark.parametrize("queries", [5, 3])
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 0.05)])
def test_the_fused_operations_are_the_plain_ones(queries, dtype, tolerance):
    def draw(*shape):
        return rng.standard_normal(shape).astype("float32")

    def attend(query, key, value):
        return tf.nn.softmax(query @ tf.linalg.matrix_transpose(key)) @ value

    def normalize(x, gamma, beta):
        return keras.ops.layer_normalization(x, gamma, beta, epsilon=1e-6)

    rng = np.random.default_rng(0)
    keys = draw(2, 3, 5, 4), draw(2, 3, 5, 4)
    cases = [
        (fused_kernels.attend, attend, (draw(2, 3, queries, 4), *keys)),
        (fused_kernels.add_bias, lambda x, b: x + b, (draw(7, 4), draw(4))),
        (
            lambda *inputs: fused_kernels.layer_norm(*inputs, epsilon=1e-6),
            normalize,
            (3 + draw(2, queries, 8), draw(8), draw(8)),
        ),
    ]
    for ours, plain, inputs in cases:
        wanted = gradients(plain, *inputs)
        parts = [tf.cast(x, dtype if x.ndim != 1 else "float32") for x in inputs]
        if ours is fused_kernels.add_bias:
            parts = [tf.cast(x, dtype) for x in inputs]
        for got, value in zip(gradients(ours, *parts), wanted, strict=True):
            scale = np.abs(value).max()
            np.testing.assert_allclose(
                tf.cast(got, "float32"), value, atol=tolerance * scale
            )


@pytest.mark.nightly
def test_rematerialized_and_accumulated_fused_steps_have_the_same_gradient(
    make_model, images
):
    found = []
    for options in ({}, {"rematerialize": True}):
        for steps in (1, 2):
            keras.utils.set_random_seed(0)
            model = make_model(**options)
            model.compile(
                optimizer=keras.optimizers.SGD(1.0),
                accumulation_steps=steps,
                jit_compile=False,
            )
            model.fuses = True
            model.fit(images[:4], batch_size=4, verbose=0)
            found.append([np.asarray(w) for w in model.trainable_variables])
    for weights in found[1:]:
        for mine, theirs in zip(weights, found[0], strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-5)


@pytest.mark.slow
def test_predict_and_evaluate_fuse_to_the_same_numbers(make_model, images, monkeypatch):
    model = make_model()
    model.compile(jit_compile=False)
    found = []
    for minimum in (10**12, 0):
        monkeypatch.setattr("keras_mae.ops.fusion._MIN_PARAMETERS", minimum)
        for part in (model, model.encoder):
            part.predict_function = part.test_function = None
        predicted = model.predict(images, verbose=0)["logits"]
        tokens = model.encoder.predict(images, verbose=0)
        found.append([predicted, tokens, model.evaluate(images, verbose=0)])
    for plain, fused_ones in zip(*found, strict=True):
        np.testing.assert_allclose(fused_ones, plain, rtol=1e-4, atol=1e-5)


def test_large_models_fuse_on_cpus(monkeypatch):
    assert should_fuse(compiled=False, parameters=10**8)
    assert not should_fuse(compiled=False, parameters=10**6)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [kind])
    assert not should_fuse(compiled=False, parameters=10**8)


def test_several_outputs_and_inputs_without_gradient():
    @fusible
    def both(x, y, power):
        return x**power * y, x + 0 * y

    x, y = tf.constant([1.0, 2.0]), tf.constant([3.0, 4.0])
    found = []
    for on in (False, True):
        with tf.GradientTape() as tape, fusion_scope(on):
            tape.watch([x, y])
            product, total = both(x, y, power=2)
            loss = tf.reduce_sum(product) + tf.reduce_sum(total)
        found.append([value.numpy() for value in tape.gradient(loss, [x, y])])
    np.testing.assert_allclose(found[0], found[1])


def test_only_removed_patches_are_scored_with_any_mask(make_model, images):
    model = make_model()
    mask = np.float32([[1, 0, 0, 1] * 4, [0, 1, 1, 0] * 4] * 2)
    whole = model(images, mask=mask)["loss"]
    alone = model(images, mask=mask, loss_only=True)
    assert set(alone) == {"loss"}
    np.testing.assert_allclose(alone["loss"], whole, rtol=1e-5)
