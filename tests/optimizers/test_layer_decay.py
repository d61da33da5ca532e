"""Layer-wise learning rate decay: scales, weight decay, saving."""

import contextlib
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops

from keras_mae import MAEClassifier, MAEEncoder
from keras_mae.optimizers.layer_decay import (
    FineTuningAdamW,
    finetuning_optimizer,
    lr_scale,
)
from keras_mae.optimizers.schedules import warmup_cosine
from tests.comparison import assert_goes_on_as_before

pytestmark = pytest.mark.backends

# 0.65 to the power of 13, 12, ... 0: the embedding, twelve blocks, the rest
SCALES = [
    0.0036972058910187135,
    0.005688009063105713,
    0.00875078317400879,
    0.013462743344628906,
    0.020711912837890624,
    0.0318644812890625,
    0.04902227890625,
    0.075418890625,
    0.1160290625,
    0.17850625,
    0.274625,
    0.4225,
    0.65,
    1.0,
]

# the same random updates under every backend and strategy
UPDATES = """
import json
import keras, numpy as np
import keras_mae
from keras_mae.optimizers.layer_decay import FineTuningAdamW

def make_model():
    keras.utils.set_random_seed(0)
    sizes = dict(hidden_dim=8, depth=2, num_heads=2, mlp_dim=8, patch_size=8)
    encoder = keras_mae.MAEEncoder.from_preset("mae_tiny", image_size=16, **sizes)
    model = keras_mae.MAEClassifier(encoder, num_classes=3)
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(rng.standard_normal(variable.shape).astype("float32"))
    return model

def make_optimizer():
    # an epsilon that leaves a gradient of mere rounding, the key bias's, small
    return FineTuningAdamW(
        0.1, layer_decay=0.5, depth=2, weight_decay=0.2, epsilon=0.1
    )

def summary(model):
    found = {}
    for variable in model.trainable_variables:
        # without the model's name, which Keras counts up
        path = variable.path.split("/", 1)[1]
        value = keras.ops.convert_to_numpy(variable)
        found[path] = [float(value.sum()), float(value.std())]
    return found
"""
APPLY = """
model, optimizer = make_model(), make_optimizer()
rng = np.random.default_rng(1)
for _ in range(3):
    gradients = [
        keras.ops.convert_to_tensor(rng.standard_normal(v.shape).astype("float32"))
        for v in model.trainable_variables
    ]
    optimizer.apply_gradients(zip(gradients, model.trainable_variables))
updated = summary(model)
print(json.dumps(updated))
"""
FIT = """
from keras_mae.utils.distribution import make_strategy

images = np.random.default_rng(2).standard_normal((12, 16, 16, 3)).astype("float32")
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
summaries = []
# mirrored first: devices are made before TensorFlow's first operation
for name, replicas in ("mirrored", 2), ("cpu", None):
    with make_strategy(name, replicas).scope():
        model = make_model()
        model.compile(optimizer=make_optimizer(), loss=loss)
    model.fit(images, np.arange(12) % 3, batch_size=4, shuffle=False, verbose=0)
    summaries.append(summary(model))
print(json.dumps(summaries))
"""


def run(code, **environment):
    """Runs code in a process of its own; returns what it prints as JSON."""
    finished = subprocess.run(
        [sys.executable, "-c", UPDATES + code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


def assert_same_summary(got, wanted):
    assert set(got) == set(wanted)
    for path, values in wanted.items():
        np.testing.assert_allclose(got[path], values, atol=1e-4, err_msg=path)


def make_variable(value, path="root/head/kernel", dtype="float32"):
    """Makes a variable of this path."""
    *scopes, name = path.split("/")
    with contextlib.ExitStack() as stack:
        for scope in scopes:
            stack.enter_context(keras.name_scope(scope))
        return keras.Variable(value, dtype=dtype, name=name)


def lr_scales(model, layer_decay):
    """Returns each trainable variable's share of the learning rate, by path."""
    depth = len(model.encoder.blocks)
    paths = [variable.path for variable in model.trainable_variables]
    return {path: lr_scale(path, layer_decay, depth) for path in paths}


@pytest.fixture
def classifier():
    sizes = {"hidden_dim": 8, "depth": 12, "num_heads": 2, "mlp_dim": 8}
    encoder = MAEEncoder.from_preset("mae_tiny", **sizes, train_positions=True)
    return MAEClassifier(encoder, num_classes=3)


def test_scales_of_base_are_the_published_ones(classifier):
    found = {}
    for path, scale in lr_scales(classifier, 0.65).items():
        found.setdefault("/".join(path.split("/")[1:2]), set()).add(scale)
    wanted = {"patch_embedding": SCALES[0], "head_norm": 1.0, "head": 1.0}
    wanted |= {f"block_{index}": SCALES[index + 1] for index in range(12)}
    assert set(found) == set(wanted)
    for layer, scale in wanted.items():
        assert len(found[layer]) == 1, layer
        assert found[layer].pop() == pytest.approx(scale, rel=1e-12), layer


def test_every_trainable_variable_has_a_scale(classifier):
    scales = lr_scales(classifier, 0.65)
    assert set(scales) == {v.path for v in classifier.trainable_variables}
    assert len(scales) == len(classifier.trainable_variables) == 4 + 12 * 12 + 4


def test_final_norm_and_positions(classifier):
    encoder = classifier.encoder
    probe = MAEClassifier(encoder, num_classes=3, pooling="cls")
    scales = lr_scales(probe, 0.65)
    assert scales[encoder.norm.gamma.path] == 1.0
    positions = encoder.patch_embedding.positions.embeddings
    assert scales[positions.path] == pytest.approx(SCALES[0], rel=1e-12)


@pytest.mark.parametrize(
    ("path", "exponent"),
    {
        "mae_encoder/block_12/mlp/fc1/kernel": 11,
        "mae_encoder/block_1/mlp/fc1/kernel": 22,
        # a model's name, or a layer's that is like a block's, is none
        "block_7/block_12/norm1/gamma": 11,
        "patch_embedding/block_12/norm1/gamma": 11,
        "block_3/norm/gamma": 0,
        "mae_encoder/my_block_3/gamma": 0,
        "mae_encoder/block_3b/gamma": 0,
        "mae_encoder/block_/gamma": 0,
        "mae_encoder/patch_embedding_norm/gamma": 0,
        "mae_classifier/head/block_3": 0,
        # an encoder within somebody's layer
        "outer/block_1/mae_encoder/block_12/attention/qkv/kernel": 11,
        "outer/block_1/mae_encoder/patch_embedding/projection/kernel": 24,
        "kernel": 0,
    }.items(),
)
def test_paths_are_read_by_component(path, exponent):
    assert lr_scale(path, 0.5, depth=23) == 0.5**exponent


def test_vectors_cls_and_positions_are_not_decayed(classifier):
    variables = classifier.trainable_variables
    optimizer = finetuning_optimizer(1e-3, 0.65, depth=12)
    optimizer.build(variables)
    decayed = {
        variable.path.split("/")[-1]: optimizer._use_weight_decay(variable)
        for variable in variables
    }
    assert decayed == {
        "kernel": True,
        "cls_token": False,
        "embeddings": False,
        "bias": False,
        "gamma": False,
        "beta": False,
    }


@pytest.mark.tensorflow
@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_rate_and_decay_shrink_alike(graph):
    import tensorflow as tf

    paths = ["e/patch_embedding/projection/kernel", "e/block_0/kernel", "c/head/kernel"]
    paths += ["e/patch_embedding/cls_token"]
    variables = [make_variable([[2.0, 2.0]], path) for path in paths]
    optimizer = FineTuningAdamW(0.1, layer_decay=0.5, depth=1, weight_decay=0.2)
    gradient = ops.convert_to_tensor([[0.0, 7.0]])
    optimizer.build(variables)

    def update():
        optimizer.apply([gradient] * 4, variables)

    (tf.function(update) if graph else update)()
    # Adam's first step has the length of the rate, whatever the gradient
    for variable, scale, decay in zip(
        variables, (0.25, 0.5, 1, 0.25), (0.2, 0.2, 0.2, 0), strict=True
    ):
        decayed = 2 * (1 - 0.1 * scale * decay)
        wanted = [[decayed, decayed - 0.1 * scale]]
        np.testing.assert_allclose(variable.numpy(), wanted, atol=1e-6)


@pytest.mark.slow
def test_a_saved_model_goes_on_as_before(make_model, images, tmp_path):
    model = MAEClassifier(make_model().encoder, num_classes=3)
    optimizer = finetuning_optimizer(warmup_cosine(1e-2, 10, 2), 0.5, depth=2)
    optimizer.epsilon = 1e-3  # else the key bias's gradient, rounding alone, counts
    assert_goes_on_as_before(model, optimizer, images, tmp_path / "model.keras")


def test_config_round_trip():
    config = finetuning_optimizer(1e-3, 0.65, depth=12).get_config()
    copy = FineTuningAdamW.from_config(dict(config))
    assert copy.get_config() == config
    assert (copy.layer_decay, copy.depth, copy.weight_decay) == (0.65, 12, 0.05)
    assert (copy.beta_1, copy.beta_2, copy.epsilon) == (0.9, 0.999, 1e-8)


def test_a_bfloat16_second_moment_moves():
    variable = make_variable([1.0, 1.0], dtype="bfloat16")
    optimizer = finetuning_optimizer(1e-3, 1.0, depth=1)
    optimizer.build([variable])
    (velocity,) = optimizer._velocities
    velocity.assign([1.0, 0.5])
    optimizer.apply([ops.zeros((2,), "bfloat16")])
    np.testing.assert_allclose(velocity.numpy(), [0.999, 0.4995], rtol=1e-6)


def test_bfloat16_weights_decay():
    # by less than half the distance to the next bfloat16: lost, if rounded by itself
    variable = make_variable(np.full((100, 100), 0.05), dtype="bfloat16")
    optimizer = finetuning_optimizer(1e-3, 1.0, depth=1, weight_decay=1.0)
    rng = np.random.default_rng(0)
    for _ in range(100):
        gradient = rng.standard_normal((100, 100)).astype("float32")
        optimizer.apply([ops.cast(gradient, "bfloat16")], [variable])
    mean = float(ops.mean(ops.cast(variable, "float32")))
    assert mean / 0.05 == pytest.approx(0.999**100, abs=0.03)


@pytest.mark.parametrize("layer_decay", [0.0, -0.5, 1.5])
def test_layer_decay_must_be_a_share(layer_decay):
    with pytest.raises(ValueError, match=rf"in \(0, 1\]. Received: {layer_decay}"):
        finetuning_optimizer(1e-3, layer_decay, depth=12)


@pytest.mark.parametrize("depth", [0, -1, 12.0])
def test_depth_must_be_a_positive_int(depth):
    with pytest.raises(ValueError, match=f"positive int. Received: {depth}"):
        finetuning_optimizer(1e-3, 0.65, depth=depth)


def test_depth_must_be_the_encoders(classifier):
    optimizer = finetuning_optimizer(1e-3, 0.65, depth=11)
    message = r"block_0 to block_10\. Received: .*block_11"
    with pytest.raises(ValueError, match=message):
        optimizer.build(classifier.trainable_variables)
    assert not optimizer.built


def test_names_of_models_do_not_matter():
    sizes = {"hidden_dim": 8, "depth": 2, "num_heads": 2, "mlp_dim": 8}
    encoder = MAEEncoder(image_size=32, **sizes, name="block_9")
    model = MAEClassifier(encoder, 3, name="patch_embedding")
    scales = set(lr_scales(model, 0.5).values())
    assert scales == {0.125, 0.25, 0.5, 1.0}
    assert lr_scales(model, 0.5)[model.head.kernel.path] == 1.0


@pytest.mark.nightly
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_another_backend_updates_the_same(backend):
    pytest.importorskip(backend)
    here = {}
    exec(UPDATES + APPLY, here)
    assert_same_summary(run(APPLY, KERAS_BACKEND=backend), here["updated"])


@pytest.mark.tensorflow
@pytest.mark.nightly
def test_replicas_update_as_one():
    assert_same_summary(*run(FIT))
