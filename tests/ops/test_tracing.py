"""Tracing: identical blocks are traced once on CPUs, with the same numbers."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mae.layers import TransformerBlock
from keras_mae.ops.tracing import LayerTraceCache, cpu_graph_scope, traced_once


@pytest.fixture
def traced(monkeypatch):
    """Lists the blocks whose Python code runs."""
    names, call = [], TransformerBlock.call

    def counted(self, *arguments, **options):
        names.append(self.name)
        return call(self, *arguments, **options)

    monkeypatch.setattr(TransformerBlock, "call", counted)
    return names


def fit(model, images, **options):
    model.compile(optimizer=keras.optimizers.SGD(1e-2), **options)
    model.fit(images, batch_size=4, epochs=2, verbose=0)


@pytest.mark.slow
def test_a_step_traces_one_block_of_each_kind(make_model, images, traced):
    model = make_model(depth=4, decoder_depth=3)
    traced.clear()
    fit(model, images)
    # the last block of the decoder has fewer queries
    assert len(traced) == 3
    traced.clear()
    model.predict(images, verbose=0)
    assert len(traced) == 3


def test_run_eagerly_is_eager(make_model, images, monkeypatch):
    model, eager = make_model(), []
    call = TransformerBlock.call

    def recorded(self, *arguments, **options):
        eager.append(tf.executing_eagerly())
        return call(self, *arguments, **options)

    monkeypatch.setattr(TransformerBlock, "call", recorded)
    model.compile(optimizer=keras.optimizers.SGD(1e-2), run_eagerly=True)
    model.fit(images, batch_size=4, verbose=0)
    assert eager and all(eager)


@pytest.mark.slow
def test_xla_sees_every_block(make_model, images, traced):
    model = make_model(depth=2, decoder_depth=2)
    traced.clear()
    fit(model, images, jit_compile=True)
    assert len(traced) >= 4


def run(layers, x, on):
    """Returns the outputs of layers in turn, and the gradient of all weights."""
    weights = [weight for layer in layers for weight in layer.trainable_weights]

    @tf.function(autograph=False)
    def compute(x):
        call = LayerTraceCache(TransformerBlock)
        with tf.GradientTape() as tape, cpu_graph_scope(on):
            for layer in layers:
                x, _ = call(layer, x, training=True)
            loss = tf.reduce_sum(x * tf.cos(tf.range(8.0)))
        return x, tape.gradient(loss, weights)

    return compute(x)


def stack(**options):
    return [TransformerBlock(8, 2, 16, **options) for _ in range(3)]


class Scaled(TransformerBlock):
    """A subclass with an attribute that its config leaves out."""

    scale = 1.0

    def call(self, x, **options):
        x, attention = super().call(x, **options)
        return self.scale * x, attention


def patched(block):
    call = block.call
    block.call = lambda x, **options: (2 * call(x, **options)[0], None)


def subclassed(blocks):
    blocks[:] = [Scaled(8, 2, 16) for _ in blocks]
    for block in blocks:
        block.build((2, 5, 8))
    blocks[1].scale = 3.0


CHANGES = {
    "a part's activation": lambda blocks: setattr(
        blocks[1].mlp.fc1, "activation", keras.activations.relu
    ),
    "a part's epsilon": lambda blocks: setattr(blocks[1].norm1, "epsilon", 1.0),
    "a call of its own": lambda blocks: patched(blocks[1]),
    "subclasses": subclassed,
    "none": lambda blocks: None,
    "one is frozen": lambda blocks: setattr(blocks[1], "trainable", False),
    "one has an adapter": lambda blocks: blocks[1].mlp.fc1.enable_lora(2),
    "one computes otherwise": lambda blocks: blocks.__setitem__(
        1, TransformerBlock(8, 2, 16, activation="relu")
    ),
}


QUICK = ("none", "a part's activation", "subclasses")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in CHANGES
    ],
)
def test_values_and_gradients_are_those_of_each_layer(change):
    blocks = stack()
    x = tf.constant(np.random.default_rng(0).standard_normal((2, 5, 8)), tf.float32)
    for block in blocks:
        block.build(x.shape)
    CHANGES[change](blocks)
    if not blocks[1].built:
        blocks[1].build(x.shape)
    for wanted, got in zip(run(blocks, x, False), run(blocks, x, True), strict=True):
        for one, other in zip(
            tf.nest.flatten(wanted), tf.nest.flatten(got), strict=True
        ):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_layers_with_random_numbers_are_traced_each(traced):
    x = tf.ones((2, 5, 8))
    blocks = stack(dropout_rate=0.5)
    for block in blocks:
        block.build(x.shape)
    run(blocks, x, True)
    assert len(traced) == 3


def test_a_function_is_traced_once_a_signature():
    shapes = []

    @traced_once
    def double(x, times=2):
        shapes.append((x.shape.as_list(), times))
        return times * x

    @tf.function(autograph=False)
    def compute(x):
        with cpu_graph_scope(True):
            return double(x) + double(x) + double(x, times=3) + double(x[:1])[0]

    np.testing.assert_array_equal(compute(tf.ones(2)), [9.0, 9.0])
    assert shapes == [([2], 2), ([2], 3), ([1], 2)]
    shapes.clear()
    double(tf.ones(2))
    assert shapes == [([2], 2)]
