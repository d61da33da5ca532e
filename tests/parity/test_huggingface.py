"""Equality with Hugging Face's ViTMAEForPreTraining: outputs, loss, every gradient."""

import keras
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

import keras_mae
from keras_mae.weights import load_weights
from tests.parity.reference import build_pair, to_torch
from tests.parity.small_model import (
    assert_close,
    assert_gradients_close,
    gradients,
    random_batch,
)

pytestmark = pytest.mark.backends

# image size, patch size, channels, mask ratio, further settings
CASES = {
    "square": ((16, 16), 4, 3, 0.75, {}),
    "wide": ((12, 20), 4, 3, 0.6, {}),
    "tall_grayscale": ((21, 6), 3, 1, 0.5, {}),
    "five_channels": ((10, 15), 5, 5, 0.34, {"layer_norm_eps": 1e-6}),
    "no_qkv_bias": ((12, 12), 2, 3, 0.75, {"qkv_bias": False}),
    "relu": ((14, 14), 7, 3, 0.5, {"hidden_act": "relu"}),
    "gelu_tanh": ((8, 8), 4, 3, 0.5, {"hidden_act": "gelu_pytorch_tanh"}),
}


@pytest.fixture(params=[False, True], ids=["pixels", "norm_pix_loss"])
def norm_pix_loss(request):
    return request.param


# JAX compiles each operation for each shape: one case in each check, all at night
RARE = pytest.mark.nightly if keras.backend.backend() == "jax" else ()
PARAMS = [
    pytest.param(case, id=name, marks=() if name == "square" else RARE)
    for name, case in CASES.items()
]


@pytest.fixture(params=PARAMS)
def case(request, norm_pix_loss):
    image_size, patch_size, channels, mask_ratio, extra = request.param
    theirs, ours = build_pair(
        image_size,
        patch_size,
        channels,
        mask_ratio=mask_ratio,
        norm_pix_loss=norm_pix_loss,
        **extra,
    )
    return theirs, ours, *random_batch(image_size, patch_size, channels)


def test_outputs_are_equal(case):
    theirs, ours, images, noise = case
    with torch.no_grad():
        wanted = theirs(
            to_torch(images),
            noise=torch.from_numpy(noise),
            output_hidden_states=True,
            output_attentions=True,
        )
    got = ours(images, noise=noise, output_hidden_states=True, output_attentions=True)
    for name in ("mask", "ids_restore"):
        np.testing.assert_array_equal(got[name], wanted[name].numpy())
    for name in ("loss", "logits"):
        assert_close(got[name], wanted[name], name)
    for name in ("hidden_states", "attentions"):
        assert len(got[name]) == len(wanted[name])
        for index, (mine, other) in enumerate(
            zip(got[name], wanted[name], strict=True)
        ):
            assert_close(mine, other, f"{name}[{index}]")


def test_gradients_of_every_parameter_are_equal(case):
    theirs, ours, images, noise = case
    theirs(to_torch(images), noise=torch.from_numpy(noise)).loss.backward()
    wanted = {
        name: parameter.grad.numpy()
        for name, parameter in theirs.named_parameters()
        if parameter.requires_grad
    }
    assert_gradients_close(gradients(ours, images, noise), wanted)


def test_interpolated_positions_are_equal():
    theirs, ours = build_pair((16, 16))
    images, noise = random_batch((24, 12), 4, 3)
    with torch.no_grad():
        wanted = theirs.vit(
            to_torch(images),
            noise=torch.from_numpy(noise),
            interpolate_pos_encoding=True,
        )
    got = ours.encoder(images, mask_ratio=0.75, noise=noise, interpolate=True)
    assert_close(got["latent"], wanted.last_hidden_state, "latent")


def test_unmasked_features_are_the_raster_order_of_theirs():
    theirs, ours = build_pair((16, 16), mask_ratio=0.0)
    images, noise = random_batch((16, 16), 4, 3)
    with torch.no_grad():
        wanted = theirs.vit(to_torch(images), noise=torch.from_numpy(noise))
    order = wanted.ids_restore.numpy()[..., None]
    shuffled = wanted.last_hidden_state.numpy()
    raster = np.take_along_axis(shuffled[:, 1:], order, axis=1)
    got = ours.encoder(images)
    assert_close(got[:, :1], shuffled[:, :1], "CLS")
    assert_close(got[:, 1:], raster, "patches")


@pytest.mark.slow
def test_twenty_updates_by_the_published_recipe_are_equal():
    theirs, ours = build_pair((16, 16), norm_pix_loss=True)
    schedule = keras_mae.warmup_cosine(2e-3, total_steps=20, warmup_steps=5)
    ours.compile(keras_mae.pretraining_optimizer(schedule), run_eagerly=True)
    parameters = [p for p in theirs.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        {"params": [p for p in parameters if p.ndim > 1]},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.05)
    for step in range(20):
        images, noise = random_batch((16, 16), 4, 3, seed=step)
        for group in optimizer.param_groups:
            group["lr"] = float(schedule(step))
        optimizer.zero_grad()
        theirs(to_torch(images), noise=torch.from_numpy(noise)).loss.backward()
        optimizer.step()
        # the noise that the step would draw
        ours._draw_noise = lambda images, noise=noise: noise
        ours.fit(images, batch_size=len(images), shuffle=False, verbose=0)
    wanted = build_pair((16, 16), norm_pix_loss=True)[1]
    load_weights(wanted, theirs.state_dict())
    compared = 0
    for mine, other in zip(
        ours.trainable_variables, wanted.trainable_variables, strict=True
    ):
        mine, other = mine.numpy(), other.numpy()
        if mine.ndim == 1 and "qkv" in ours.trainable_variables[compared].path:
            # the key's: its gradient is rounding alone, which Adam blows up
            third = len(mine) // 3
            mine, other = (
                np.delete(x, np.s_[third : 2 * third]) for x in (mine, other)
            )
        np.testing.assert_allclose(mine, other, atol=1e-5)
        compared += 1
    # query, key and value are three matrices and biases there, one here
    assert compared == len(parameters) - 5 * 4
