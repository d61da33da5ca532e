"""Strategies: several replicas train exactly as one does with the same batch."""

import json
import subprocess
import sys

import numpy as np
import pytest

from keras_mae.distribution import make_strategy

# a process of its own: logical devices must be set before TensorFlow's first operation
TRAIN = """
import json, sys
import keras, numpy as np, tensorflow as tf
import keras_mae
from keras_mae.distribution import make_strategy

name, replicas = sys.argv[1], int(sys.argv[2])
strategy = make_strategy(name, None if name == "cpu" else replicas)
keras.utils.set_random_seed(0)
images = np.random.default_rng(0).standard_normal((24, 16, 16, 3)).astype("float32")
dataset = tf.data.Dataset.from_tensor_slices(images).batch(12)
with strategy.scope():
    model = keras_mae.MAEPretrainer.from_preset(
        "mae_tiny", image_size=16, depth=1, decoder_depth=1, seed=3
    )
    # plain SGD shows a wrong gradient scale, which Adam would hide
    model.compile(optimizer=keras.optimizers.SGD(0.05))
history = model.fit(
    dataset, epochs=3, validation_data=dataset, verbose=0, shuffle=False
).history
losses = {key: [float(np.mean(v)) for v in values] for key, values in history.items()}
weights = {}
for weight in model.trainable_weights:
    value = weight.numpy()
    if weight.path.endswith("qkv/bias"):
        # a shift of all scores changes nothing: the key's gradient is rounding alone
        value = np.delete(value, np.s_[len(value) // 3 : 2 * len(value) // 3])
    weights[weight.path] = value.ravel().tolist()
print(json.dumps([strategy.num_replicas_in_sync, losses, weights]))
"""


def train(strategy, replicas):
    finished = subprocess.run(
        [sys.executable, "-c", TRAIN, strategy, str(replicas)],
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


@pytest.mark.parametrize("replicas", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_mirrored_replicas_equal_one(replicas):
    _, losses, weights = train("cpu", 1)
    count, mirrored_losses, mirrored_weights = train("mirrored", replicas)
    assert count == replicas
    for name, values in losses.items():
        np.testing.assert_allclose(mirrored_losses[name], values, atol=1e-6)
    assert set(mirrored_weights) == set(weights)
    for path, wanted in weights.items():
        np.testing.assert_allclose(
            mirrored_weights[path], wanted, atol=1e-6, err_msg=path
        )


def test_xla_under_several_replicas_is_refused_clearly():
    code = TRAIN.replace("0.05))", "0.05), jit_compile=True)")
    finished = subprocess.run(
        [sys.executable, "-c", code, "mirrored", "2"], capture_output=True, text=True
    )
    assert "jit_compile=True needs one replica" in finished.stderr


def test_unknown_and_impossible_strategies_are_refused():
    with pytest.raises(
        ValueError, match=r"one of cpu, gpu, mirrored. Received: 'moon'"
    ):
        make_strategy("moon")
    with pytest.raises(ValueError, match="needs a GPU"):
        make_strategy("gpu")
    with pytest.raises(ValueError, match="Only strategy 'mirrored' takes replicas"):
        make_strategy("cpu", replicas=2)
    with pytest.raises(ValueError, match="replicas must be in"):
        make_strategy("mirrored", replicas=0)
