"""LARS: PyTorch's numbers, vectors, saving and loading."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops

from keras_mae import MAEClassifier
from keras_mae.optimizers.lars import LARS
from keras_mae.optimizers.schedules import warmup_cosine
from tests.comparison import assert_goes_on_as_before

pytestmark = pytest.mark.backends

# zero weights, zero gradients, a decay, a vector: what two updates leave of them
UPDATES = """
import keras, numpy as np
from keras_mae.optimizers.lars import LARS

values = np.linspace(-1, 1, 12).astype("float32").reshape(3, 4)
variables = [keras.Variable(value) for value in (values, 0 * values, values[0])]
matrix = keras.ops.convert_to_tensor(values[::-1].copy())
vector = keras.ops.convert_to_tensor(values[1])
optimizer = LARS(2.0, trust_coefficient=0.05, weight_decay=0.1)
for factor in (1.0, 0.0):
    # one tensor for two variables: PyTorch's could be changed in place
    gradients = [matrix * factor] * 2 + [vector * factor]
    optimizer.apply_gradients(zip(gradients, variables))
updated = [keras.ops.convert_to_numpy(variable).tolist() for variable in variables]
print(updated)
"""


def apply(optimizer, variable, gradient):
    """Makes one update; returns the variable as float32."""
    gradient = ops.cast(np.array(gradient, "float32"), variable.dtype)
    optimizer.apply_gradients([(gradient, variable)])
    return np.asarray(ops.cast(variable, "float32"))


def torch_step(torch, parameters, buffers, rate, trust_coefficient, weight_decay):
    """Updates PyTorch's parameters by the formula of LARS's docstring."""
    with torch.no_grad():
        for parameter, buffer in zip(parameters, buffers, strict=True):
            update = parameter.grad
            if parameter.ndim > 1:
                update = update + weight_decay * parameter
                norms = parameter.norm().item(), update.norm().item()
                if min(norms) > 0:
                    update = update * (trust_coefficient * norms[0] / norms[1])
            buffer.copy_(0.9 * buffer + update)
            parameter -= rate * buffer


@pytest.mark.parametrize(
    ("trust_coefficient", "weight_decay"), [(0.001, 0.0), (0.02, 0.1)]
)
def test_twenty_updates_equal_torchs(trust_coefficient, weight_decay):
    torch = pytest.importorskip("torch")
    model = keras.Sequential(
        [
            keras.layers.Input((6,)),
            keras.layers.Dense(8, activation="tanh"),
            # zeros: its norm is zero at first, and so is the first layer's gradient
            keras.layers.Dense(3, kernel_initializer="zeros"),
        ]
    )
    variables = model.trainable_variables
    before = [variable.numpy() for variable in variables]
    parameters = [torch.nn.Parameter(torch.from_numpy(v.copy())) for v in before]
    buffers = [torch.zeros_like(parameter) for parameter in parameters]
    schedule = warmup_cosine(1.0, total_steps=20, warmup_steps=4)
    optimizer = LARS(
        schedule, trust_coefficient=trust_coefficient, weight_decay=weight_decay
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss)
    rng = np.random.default_rng(0)
    for step in range(20):
        x, y = rng.standard_normal((16, 6)).astype("float32"), rng.integers(3, size=16)
        w1, b1, w2, b2 = parameters
        logits = torch.tanh(torch.from_numpy(x) @ w1 + b1) @ w2 + b2
        for parameter in parameters:
            parameter.grad = None
        torch.nn.functional.cross_entropy(logits, torch.from_numpy(y)).backward()
        rate = float(schedule(step))
        torch_step(torch, parameters, buffers, rate, trust_coefficient, weight_decay)
        model.train_on_batch(x, y)
    for variable, parameter, old in zip(variables, parameters, before, strict=True):
        wanted = parameter.detach().numpy()
        np.testing.assert_allclose(variable.numpy(), wanted, rtol=0, atol=1e-6)
        assert np.abs(wanted - old).max() > 1e-3


def test_momentum_is_free_of_the_learning_rate():
    variable = keras.Variable([1.0, 2.0])
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([0], [1.0, 10.0])
    optimizer = LARS(schedule, momentum=0.5)
    np.testing.assert_allclose(apply(optimizer, variable, [1, 0]), [0, 2])
    # the buffer holds 0.5 * 1 + 0, to be multiplied by the new rate
    np.testing.assert_allclose(apply(optimizer, variable, [0, 0]), [-5, 2])


@pytest.mark.parametrize("shape", [(2, 2), (1, 1, 4), (2, 1, 2, 1)])
def test_norms_are_of_the_whole_tensor(shape):
    weights = np.reshape([2.0, 4.0, 6.0, 8.0], shape)
    gradient = np.reshape([0.0, 3.0, 4.0, 0.0], shape)
    optimizer = LARS(2.0, trust_coefficient=0.5)
    updated = apply(optimizer, keras.Variable(weights), gradient)
    wanted = weights - 2 * 0.5 * 120**0.5 / 5 * gradient
    np.testing.assert_allclose(updated, wanted, rtol=1e-6)


def test_decay_is_done_once_and_not_to_vectors():
    optimizer = LARS(2.0, trust_coefficient=0.25, weight_decay=0.1)
    # no gradient: the decay alone is the direction, and its length the ratio's
    updated = apply(optimizer, keras.Variable([[3.0, 4.0]]), [[0, 0]])
    np.testing.assert_allclose(updated, [[1.5, 2.0]], rtol=1e-6)
    optimizer = LARS(2.0, trust_coefficient=0.25, weight_decay=0.1)
    updated = apply(optimizer, keras.Variable([3.0, 4.0]), [0.5, 0])
    np.testing.assert_allclose(updated, [2.0, 4.0], rtol=1e-6)


def test_keras_exclusions_hold():
    variable = keras.Variable([[3.0, 4.0]])
    optimizer = LARS(2.0, weight_decay=0.1)
    optimizer.exclude_from_weight_decay([variable])
    np.testing.assert_array_equal(apply(optimizer, variable, [[0, 0]]), [[3, 4]])


def test_bfloat16_weights_are_updated_in_float32():
    weights = np.full((64, 64), 3.0)
    gradient = np.zeros((64, 64))
    gradient[0] = 0.5
    results = []
    for dtype in ("float32", "bfloat16"):
        variable = keras.Variable(weights, dtype=dtype)
        optimizer = LARS(0.7, trust_coefficient=0.3)
        results.append(apply(optimizer, variable, gradient))
        assert optimizer.variables[-1].dtype == dtype
    # the one difference is the rounding of the stored weights
    wanted = ops.cast(ops.cast(results[0] - weights, "bfloat16"), "float32") + weights
    wanted = ops.cast(ops.cast(wanted, "bfloat16"), "float32")
    np.testing.assert_array_equal(results[1], wanted)


@pytest.mark.slow
def test_a_saved_probe_goes_on_as_before(make_model, images, tmp_path):
    encoder = make_model().encoder
    encoder.trainable = False
    model = MAEClassifier(encoder, 3, pooling="cls", batch_norm=True)
    optimizer = LARS(warmup_cosine(1.0, 10, 2), 0.8, 0.01, 0.1)
    assert_goes_on_as_before(model, optimizer, images, tmp_path / "model.keras")


def test_config_round_trip():
    config = LARS(0.3, 0.8, 0.01, 0.1, clipnorm=2.0).get_config()
    copy = LARS.from_config(dict(config))
    assert copy.get_config() == config
    assert (copy.momentum, copy.trust_coefficient) == (0.8, 0.01)
    assert (copy.weight_decay, copy.clipnorm) == (0.1, 2.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("trust_coefficient", 0.0),
        ("weight_decay", -0.1),
        ("weight_decay", None),
    ],
)
def test_errors_name_what_was_received(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .*Received: {value}"):
        LARS(0.1, **{name: value})


@pytest.mark.nightly
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_another_backend_updates_the_same(backend):
    pytest.importorskip(backend)
    here = {}
    exec(UPDATES, here)
    finished = subprocess.run(
        [sys.executable, "-c", UPDATES],
        capture_output=True,
        text=True,
        env={**os.environ, "KERAS_BACKEND": backend},
    )
    assert finished.returncode == 0, finished.stderr
    updated = json.loads(finished.stdout.splitlines()[-1])
    for got, wanted in zip(updated, here["updated"], strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-6)
