"""`evaluate` masks an image by its place in the data set, whatever the batch size."""

import keras
import numpy as np
import pytest
import tensorflow as tf

pytestmark = pytest.mark.backends


@pytest.fixture(scope="module")
def many():
    return np.random.default_rng(1).standard_normal((7, 32, 32, 3)).astype("float32")


def compiled(model, **options):
    model.compile(optimizer=keras.optimizers.SGD(0.1), **options)
    return model


def test_the_batch_size_does_not_change_what_evaluate_returns(make_model, many):
    model = compiled(make_model(depth=1))
    wanted = model.evaluate(many, batch_size=7, verbose=0)
    # the loss of one call, with the masks of rows 0 to 6
    assert wanted == pytest.approx(float(model(many, seed=0)["loss"]), rel=1e-5)
    for batch_size in (1, 3, 4):
        got = model.evaluate(many, batch_size=batch_size, verbose=0)
        assert got == pytest.approx(wanted, rel=1e-5), batch_size
    # images that change their places change their masks
    turned = model.evaluate(many[::-1], batch_size=3, verbose=0)
    assert turned != pytest.approx(wanted, rel=1e-5)
    # a single batch is an evaluation of its own
    first = model.evaluate(many[:3], verbose=0)
    for _ in range(2):
        assert model.test_on_batch(many[:3]) == pytest.approx(first, rel=1e-5)


@pytest.mark.slow
def test_validation_in_fit_counts_from_its_own_start(make_model, many):
    model = compiled(make_model(depth=1))
    history = model.fit(
        many,
        batch_size=7,
        epochs=2,
        validation_data=many,
        validation_batch_size=2,
        verbose=0,
    ).history
    got = model.evaluate(many, batch_size=5, verbose=0)
    assert history["val_loss"][-1] == pytest.approx(got, rel=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() == "torch", reason="Keras has none there")
@pytest.mark.parametrize("jit_compile", [False, True])
def test_several_steps_per_execution_count_on(make_model, many, jit_compile):
    model = compiled(make_model(depth=1))
    wanted = model.evaluate(many, verbose=0)
    compiled(model, steps_per_execution=2, jit_compile=jit_compile)
    for batch_size in (1, 2):
        batches = tf.data.Dataset.from_tensor_slices(many).batch(batch_size)
        got = model.evaluate(batches, verbose=0)
        assert got == pytest.approx(wanted, rel=1e-5)
