"""Throughput: what the logs say, and what a step costs."""

import types

import keras
import pytest
import tensorflow as tf

import keras_mae
from keras_mae.callbacks.throughput import Throughput
from keras_mae.ops.fusion import auto_jit_compile
from keras_mae.profiling import costs
from keras_mae.utils.devices import has_accelerator


class Clock:
    """A model, its data and a clock that they alone move on."""

    steps_per_execution = 1

    def __init__(self, monkeypatch, waiting, training):
        self.now, self.waiting, self.training = 0.0, waiting, training
        self.optimizer = types.SimpleNamespace(iterations=0, learning_rate=1e-3)
        monkeypatch.setattr("time.perf_counter", lambda: self.now)

    def __iter__(self):
        return self

    def __next__(self):
        self.now += self.waiting

    def train_function(self, iterator):
        next(iterator)
        self.now += self.training
        self.optimizer.iterations += 1


def run_epochs(clock, speed, epochs=2, steps=4, pause=0.0):
    """Calls the callback as `fit` does; returns the logs of the last epoch."""
    speed.set_model(clock)
    speed.on_train_begin()
    for epoch in range(epochs):
        speed.on_epoch_begin(epoch)
        for step in range(steps):
            clock.train_function(clock)
            logs = {}
            speed.on_train_batch_end(step, logs)
        clock.now += pause
        logs = {}
        speed.on_epoch_end(epoch, logs)
    speed.on_train_end()
    return logs


def test_updates_that_loss_scaling_skips_are_no_rate(monkeypatch):
    clock = Clock(monkeypatch, waiting=1, training=1)
    speed = Throughput(8, 100, flops_per_image=1.0, peak_flops=1.0)
    speed.set_model(clock)
    speed.on_train_begin()
    speed.on_epoch_begin(0)
    clock.now += 1
    logs = {}
    speed.on_train_batch_end(0, logs)
    assert logs["images_per_second"] == 0 and "hours_left" not in logs


def test_rates_and_waiting_are_those_of_the_clock(monkeypatch):
    clock = Clock(monkeypatch, waiting=0.3, training=0.1)
    speed = Throughput(2, total_steps=16, flops_per_image=1e9, peak_flops=1e12)
    logs = run_epochs(clock, speed)
    assert logs["data_wait"] == pytest.approx(0.75)
    assert logs["images_per_second"] == pytest.approx(5.0)
    assert logs["mfu"] == pytest.approx(5e9 / 1e12)
    assert logs["hours_left"] == pytest.approx(8 * 2 / 5.0 / 3600)
    assert logs["learning_rate"] == 1e-3
    # as Keras made it: the next fit measures anew
    assert clock.train_function == Clock.train_function.__get__(clock)


def test_epoch_seconds_include_time_between_steps(monkeypatch):
    clock = Clock(monkeypatch, waiting=0.0, training=0.1)
    speed = Throughput(2, total_steps=16, flops_per_image=1e9, peak_flops=1e12)
    logs = run_epochs(clock, speed, pause=8.0)
    assert logs["epoch_seconds"] == pytest.approx(8.4)
    assert logs["images_per_second"] == pytest.approx(20.0)


def test_the_first_step_of_a_new_function_does_not_count(monkeypatch):
    """Another mask ratio makes one, whose first step compiles."""
    clock = Clock(monkeypatch, waiting=0.0, training=0.1)
    speed = Throughput(2, total_steps=16, flops_per_image=1e9, peak_flops=1e12)
    speed.set_model(clock)
    speed.on_train_begin()
    for epoch in range(2):
        # as `make_train_function(force=True)`
        clock.train_function = Clock.train_function.__get__(clock)
        speed.on_epoch_begin(epoch)
        for step in range(4):
            clock.now += 60.0 * (step == 0)
            clock.train_function(clock)
            logs = {}
            speed.on_train_batch_end(step, logs)
        speed.on_epoch_end(epoch, logs)
        assert logs["images_per_second"] == pytest.approx(20.0)
    assert logs["epoch_seconds"] == pytest.approx(60.4)


@pytest.mark.backends
def test_fit_reports_speed(make_model, images):
    model = make_model()
    model.compile(optimizer=keras.optimizers.SGD(1e-3))
    speed = Throughput(2, total_steps=4, flops_per_image=1e9, peak_flops=1e12)
    logs = model.fit(images, batch_size=2, verbose=0, callbacks=[speed]).history
    assert logs["epoch_seconds"][0] > 0 and logs["images_per_second"][0] > 0
    if keras.backend.backend() == "torch":  # its steps are given their batch
        assert "data_wait" not in logs
    else:
        assert 0 <= logs["data_wait"][0] <= 1
    assert getattr(model.train_function, "__self__", None) is not speed


def test_flops_and_memory_of_the_base_model():
    # a forward pass of 8.6 + 10 GFLOP, and twice that again
    model = keras_mae.MAEPretrainer.from_preset("mae_base")
    assert costs.flops_per_image(model) == pytest.approx(56.5e9, rel=0.03)
    # 112 M weights, gradients and two moments; 128 images a chip in bfloat16
    assert costs.estimate_memory(model, 0) == pytest.approx(1.79e9, rel=0.01)


def test_frozen_parts_cost_less():
    model = keras_mae.MAEClassifier.from_preset("mae_tiny", num_classes=10)
    encoder = model.encoder
    forward, memory = costs.forward_flops(model), costs.estimate_memory(model, 0)
    activations = costs.estimate_memory(model, 64) - memory
    assert costs.flops_per_image(model) == 3 * forward

    encoder.freeze_but_last(1)
    kernels, attention = 2 * 65 * (4 * 128**2 + 2 * 128 * 512), 4 * 65**2 * 128
    last = 2 * (kernels + attention)
    assert costs.flops_per_image(model) == forward + last
    part = costs.estimate_memory(model, 64) - costs.estimate_memory(model, 0)
    assert part == activations / 4  # one of four blocks

    encoder.trainable = False
    assert costs.flops_per_image(model) == forward
    weights = 4 * model.count_params()
    assert weights < costs.estimate_memory(model, 0) < 1.1 * weights < memory / 3
    assert costs.estimate_memory(model, 64) - part == costs.estimate_memory(model, 0)


def test_lora_has_gradients_of_activations_but_not_of_kernels():
    encoder = keras_mae.MAEEncoder.from_preset("mae_tiny")
    forward = costs.forward_flops(encoder)
    encoder.enable_lora(rank=4)
    assert 2 < costs.flops_per_image(encoder) / forward < 2.3


def test_rematerialization_takes_less_memory(make_model):
    kept = costs.estimate_memory(make_model(), 64)
    assert costs.estimate_memory(make_model(rematerialize=True), 64) < kept


def test_peaks_are_looked_up_or_measured():
    strategy = tf.distribute.get_strategy()
    assert costs.peak_flops(strategy, "bfloat16", "v5litepod-16") == 197e12
    assert 1e9 < costs.peak_flops(strategy, "float32") < 1e14


@pytest.mark.parametrize(
    "kind, flops",
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA H200", 989e12),
        ("another", 7.0),
    ],
)
def test_peaks_are_looked_up_by_the_names_that_jax_gives(monkeypatch, kind, flops):
    jax = pytest.importorskip("jax")
    device = types.SimpleNamespace(device_kind=kind)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(jax, "devices", lambda: [device])
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    monkeypatch.setattr(costs, "measured_flops", lambda precision: 7.0)
    assert costs.peak_flops(None, "mixed_bfloat16") == flops


def test_a_strategy_on_the_cpu_leaves_a_gpu_out(monkeypatch):
    cpu, other = tf.distribute.OneDeviceStrategy("/cpu:0"), tf.distribute.get_strategy()
    found = {"GPU": ["a GPU"], "TPU": []}
    monkeypatch.setattr(tf.config, "list_physical_devices", found.get)
    details = {"device_name": "NVIDIA H100 80GB HBM3"}
    monkeypatch.setattr(
        tf.config.experimental, "get_device_details", lambda gpu: details
    )
    monkeypatch.setattr(costs, "measured_flops", lambda precision: 7.0)
    assert costs.peak_flops(other, "float32") == 495e12
    assert costs.peak_flops(cpu, "float32") == 7.0
    assert has_accelerator() and not has_accelerator(cpu)
    with cpu.scope():
        assert not has_accelerator() and not auto_jit_compile()
