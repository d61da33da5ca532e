"""Speed: what the logs say of it, and what a step costs."""

import time

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mae
from keras_mae import costs
from keras_mae.throughput import Throughput


@pytest.mark.slow
def test_waiting_for_slow_data_is_measured(make_model, images):
    def slow(image):
        time.sleep(0.4)
        return image

    dataset = tf.data.Dataset.from_tensor_slices(images).repeat(2).batch(1)
    dataset = dataset.map(
        lambda x: tf.ensure_shape(
            tf.numpy_function(slow, [x], tf.float32), (1, 32, 32, 3)
        )
    )
    model = make_model()
    model.compile(optimizer=keras.optimizers.SGD(1e-3))
    speed = Throughput(1, total_steps=16, flops_per_image=1e9, peak_flops=1e12)
    logs = model.fit(dataset, verbose=0, callbacks=[speed]).history
    assert logs["data_wait"][0] > 0.5
    assert 0.5 < logs["images_per_second"][0] < 4
    rate = logs["images_per_second"][0]
    np.testing.assert_allclose(logs["mfu"][0], rate * 1e9 / 1e12)
    np.testing.assert_allclose(logs["hours_left"][0], 8 / rate / 3600)
    np.testing.assert_allclose(logs["learning_rate"][0], 1e-3)


def test_fast_data_is_not_waited_for(make_model, images):
    model = make_model()
    model.compile(optimizer=keras.optimizers.SGD(1e-3))
    speed = Throughput(2, total_steps=40, flops_per_image=1e9, peak_flops=1e12)
    cached = np.tile(images, (10, 1, 1, 1))
    logs = model.fit(cached, batch_size=2, verbose=0, callbacks=[speed]).history
    assert logs["data_wait"][0] < 0.5
    # as Keras made it: the next fit measures anew
    assert model.train_function.__name__ == "function"


def test_a_base_models_image_costs_what_its_matrices_say():
    # a forward pass of 8.6 + 10 GFLOP, and twice that again
    model = keras_mae.MAEPretrainer.from_preset("mae_base")
    assert costs.flops_per_image(model) == pytest.approx(56.5e9, rel=0.03)
    # 112 M weights, gradients and two moments; 128 images a chip in bfloat16
    assert costs.estimate_memory(model, 0) == pytest.approx(1.79e9, rel=0.01)


def test_rematerialization_takes_less_memory(make_model):
    kept = costs.estimate_memory(make_model(), 64)
    assert costs.estimate_memory(make_model(rematerialize=True), 64) < kept


def test_peaks_are_looked_up_or_measured():
    strategy = tf.distribute.get_strategy()
    assert costs.peak_flops(strategy, "bfloat16", "v5litepod-16") == 197e12
    assert 1e9 < costs.peak_flops(strategy, "float32") < 1e14
