"""AdamW and schedules: weight decay, and PyTorch's numbers."""

import math

import keras
import numpy as np
import pytest

from keras_mae.ops.tracing import cpu_graph_scope
from keras_mae.optimizers.adamw import pretraining_optimizer
from keras_mae.optimizers.schedules import warmup_cosine

pytestmark = pytest.mark.backends


def test_schedule_is_linear_then_half_cosine():
    schedule = warmup_cosine(2.0, 110, 10, min_learning_rate=0.5)
    for step in range(111):
        wanted = 2.0 * step / 10
        if step >= 10:
            wanted = 0.5 + 1.5 * 0.5 * (1 + math.cos(math.pi * (step - 10) / 100))
        np.testing.assert_allclose(float(schedule(step)), wanted, atol=1e-6)


def test_schedule_without_warmup_starts_at_the_peak():
    assert float(warmup_cosine(2.0, 10, 0)(0)) == 2.0


@pytest.mark.parametrize("warmup", [-1, 10, 11])
def test_warmup_must_be_shorter_than_training(warmup):
    with pytest.raises(ValueError, match=f"warmup_steps={warmup}, total_steps=10"):
        warmup_cosine(1.0, 10, warmup)


def test_vectors_are_not_decayed_and_tokens_are(make_model):
    model = make_model()
    optimizer = pretraining_optimizer(1e-3)
    decayed = {
        variable.path.split("/")[-1]: optimizer._use_weight_decay(variable)
        for variable in model.trainable_variables
    }
    assert decayed == {
        "kernel": True,
        "cls_token": True,
        "mask_token": True,
        "bias": False,
        "gamma": False,
        "beta": False,
    }


def update(optimizer, gradients, variables, in_graph):
    """Applies gradients, at once or in a graph."""
    if not optimizer.built:
        optimizer.build(variables)

    def apply():
        optimizer.apply_gradients(zip(gradients, variables, strict=True))

    if in_graph:
        import tensorflow as tf

        apply = tf.function(apply, autograph=False)
    apply()


@pytest.mark.slow
@pytest.mark.parametrize(
    "in_place", [False, pytest.param(True, marks=pytest.mark.tensorflow)]
)
@pytest.mark.parametrize("size", [pytest.param(1.0, marks=pytest.mark.nightly), 1e-8])
def test_twenty_updates_equal_torchs(make_model, in_place, size):
    torch = pytest.importorskip("torch")
    model = make_model()
    variables = model.trainable_variables
    parameters = [torch.nn.Parameter(torch.from_numpy(v.numpy())) for v in variables]
    groups = [
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        {"params": [p for p in parameters if p.ndim > 1]},
    ]
    reference = torch.optim.AdamW(groups, 1e-3, betas=(0.9, 0.95), weight_decay=0.05)
    optimizer = pretraining_optimizer(1e-3, weight_decay=0.05)
    assert optimizer.epsilon == reference.defaults["eps"] == 1e-8
    rng = np.random.default_rng(0)
    for _ in range(20):
        gradients = [size * rng.standard_normal(v.shape) for v in variables]
        gradients = [gradient.astype("float32") for gradient in gradients]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = torch.from_numpy(gradient)
        reference.step()
        tensors = [keras.ops.convert_to_tensor(gradient) for gradient in gradients]
        with cpu_graph_scope(in_place):
            update(optimizer, tensors, variables, in_place)
    for variable, parameter in zip(variables, parameters, strict=True):
        wanted = parameter.detach().numpy()
        np.testing.assert_allclose(variable.numpy(), wanted, atol=1e-5)


@pytest.mark.slow
def test_exclusions_survive_saving(make_model, images, tmp_path):
    model = make_model()
    model.compile(optimizer=pretraining_optimizer(1e-3))
    model.fit(images, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for variable in loaded.trainable_variables:
        wanted = len(variable.shape) > 1
        assert loaded.optimizer._use_weight_decay(variable) == wanted, variable.path


def test_the_peak_must_be_positive():
    with pytest.raises(ValueError, match="learning_rate must be positive"):
        warmup_cosine(0.0, 10, 1)
