"""Fused ops: the same values and gradients as plain ones; loss on removed patches."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mae
from keras_mae.layers.mlp import MLP
from keras_mae.layers.transformer import TransformerBlock
from keras_mae.ops import fused_block
from keras_mae.ops.fusion import fusion_scope, should_fuse
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
    "dtype", ["bfloat16", pytest.param("float64", marks=pytest.mark.nightly)]
)
def test_models_of_pure_precision_run_where_others_fuse(
    make_model, images, monkeypatch, dtype
):
    monkeypatch.setattr("keras_mae.ops.fusion._MIN_PARAMETERS", 0)
    model = make_model(dtype=dtype, depth=1)
    optimizer = keras_mae.pretraining_optimizer(1e-3)
    model.compile(optimizer=optimizer, jit_compile=False)
    assert model.fuses
    history = model.fit(images, batch_size=4, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert {weight.dtype for weight in model.trainable_weights} == {dtype}
    assert np.isfinite(model.evaluate(images, verbose=0))
    assert model.predict(images, verbose=0)["logits"].shape == (4, 16, 192)


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


def block_step(block, x, fused, **options):
    """Returns a block's output and the gradients of input, factors and weights."""
    wanted = [variable.value for variable in block.trainable_variables]

    @tf.function(autograph=False)
    def run(x):
        with tf.GradientTape() as tape, fusion_scope(fused):
            tape.watch(x)
            output, attention = block(x, keep_attention=False, **options)
        assert attention is None
        upstream = tf.cos(tf.cast(tf.range(tf.size(output)), "float32"))
        upstream = tf.cast(tf.reshape(upstream, tf.shape(output)), output.dtype)
        return [output, *tape.gradient(output, [x, *wanted], upstream)]

    return [np.asarray(tf.cast(value, "float32")) for value in run(x)]


BLOCK_CASES = {
    "plain": ({}, {}),
    "no bias": ({"qkv_bias": False}, {}),
    "another activation": ({"activation": "swish"}, {}),
    "the last queries": ({}, {"first_query": 2}),
    "stochastic depth": ({}, {"factors": np.float32([[0, 1.5], [2, 0.5]])}),
    "both": ({}, {"first_query": 3, "factors": np.float32([[1, 0], [2, 1]])}),
    "bfloat16": ({"dtype": "mixed_bfloat16"}, {}),
    "bfloat16 weights": ({"dtype": "bfloat16"}, {}),
    "float16 weights": ({"dtype": "float16"}, {}),
    "bfloat16, float32 between": (
        {"dtype": "mixed_bfloat16", "residual_dtype": "float32"},
        {},
    ),
}


@pytest.mark.parametrize("case", BLOCK_CASES)
def test_a_fused_block_is_the_plain_one(case, monkeypatch):
    fused_calls, compute = [], fused_block.fused_block

    def counted(*arguments):
        fused_calls.append(arguments)
        return compute(*arguments)

    monkeypatch.setattr(fused_block, "fused_block", counted)
    config, options = BLOCK_CASES[case]
    keras.utils.set_random_seed(0)
    block = TransformerBlock(12, num_heads=3, mlp_dim=20, **config)
    block.build((None, None, 12))
    for variable in block.trainable_variables:
        variable.assign(variable + keras.random.normal(variable.shape, stddev=0.3))
    x = tf.constant(np.random.default_rng(0).standard_normal((2, 5, 12)), "float32")
    x = tf.cast(x, config.get("residual_dtype") or block.compute_dtype)
    tolerance = 1e-5 if block.compute_dtype == "float32" else 0.05
    plain = block_step(block, x, False, **options)
    assert not fused_calls
    fused = block_step(block, x, True, **options)
    assert len(fused_calls) == 1
    largest = max(np.abs(value).max() for value in plain)
    for mine, theirs in zip(fused, plain, strict=True):
        # the keys' bias has no gradient but rounding
        scale = max(np.abs(theirs).max(), 0.01 * largest)
        np.testing.assert_allclose(mine, theirs, atol=tolerance * scale)


def test_a_fused_block_takes_any_number_of_images():
    block = TransformerBlock(8, num_heads=2, mlp_dim=16)
    block.build((None, None, 8))

    @tf.function(input_signature=[tf.TensorSpec((None, 3, 8))], autograph=False)
    def run(x):
        with fusion_scope(True):
            return block(x, keep_attention=False)[0]

    for batch in (2, 1, 0):
        assert run(tf.ones((batch, 3, 8))).shape == (batch, 3, 8)


def test_a_block_with_a_part_of_another_kind_is_not_fused(monkeypatch):
    monkeypatch.setattr(fused_block, "fused_block", pytest.fail)

    class Doubled(MLP):
        def call(self, x):
            return 2 * super().call(x)

    x = np.ones((1, 3, 8), "float32")
    blocks = [TransformerBlock(8, num_heads=2, mlp_dim=16) for _ in range(3)]
    blocks[0].mlp = Doubled(8, mlp_dim=16)
    blocks[1].mlp = keras.layers.Dense(8)
    for block in blocks:
        block(x)
    blocks[2].mlp.fc1.quantize("int8")
    blocks.insert(0, TransformerBlock(8, num_heads=2, mlp_dim=16, dtype="float64"))
    for block in blocks:
        wanted, attention = block(x)
        assert attention.shape == (1, 2, 3, 3)
        with fusion_scope(True):
            got, _ = block(x, keep_attention=False)
        np.testing.assert_array_equal(got, wanted)
    # one whose attention is asked for
    with fusion_scope(True):
        _, again = TransformerBlock.from_config(block.get_config())(x)
    assert again.shape == attention.shape


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


def test_only_removed_patches_are_scored_with_any_mask(make_model, images):
    model = make_model()
    mask = np.float32([[1, 0, 0, 1] * 4, [0, 1, 1, 0] * 4] * 2)
    whole = model(images, mask=mask)["loss"]
    alone = model(images, mask=mask, loss_only=True)
    assert set(alone) == {"loss"}
    np.testing.assert_allclose(alone["loss"], whole, rtol=1e-5)

    # within a graph the number of visible patches is unknown
    @tf.function(autograph=False)
    def compiled(mask):
        return model(images, mask=mask, loss_only=True)

    alone = compiled(tf.constant(mask))
    assert set(alone) == {"loss"}
    np.testing.assert_allclose(alone["loss"], whole, rtol=1e-5)
