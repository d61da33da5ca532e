"""Every published kind of file: read exactly, equal outputs and gradients, and back."""

import argparse
import importlib.util
import re
from typing import NamedTuple

import keras
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
if importlib.util.find_spec("timm") is None:
    pytest.skip("timm is not installed", allow_module_level=True)

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    ViTForImageClassification,
    ViTMAEForPreTraining,
    ViTMAEModel,
)

from keras_mae import MAEClassifier, MAEEncoder, MAEImageProcessor, MAEPretrainer
from keras_mae.weights import export_weights
from keras_mae.weights.key_mapping import FACEBOOK, HUGGINGFACE_STATE, port_rows
from keras_mae.weights.state_dict import contents_of, find_variable, sizes_of
from tests import autodiff
from tests.comparison import assert_same_weights
from tests.parity import torch_models
from tests.parity.reference import to_torch
from tests.parity.small_model import assert_close, assert_gradients_close
from tests.parity.torch_models import DECODER, FAMILIES, NUM_CLASSES, timm

pytestmark = pytest.mark.backends


class Case(NamedTuple):
    """A kind of file: how PyTorch's model is built and stored, and what reads it."""

    build: object  # family -> PyTorch model
    store: object  # (model, folder) -> path
    reader: type
    format: str  # of save_pretrained


def facebook_file(name, args=None):
    """Stores as facebook does: weights under `model`, a Namespace beside them."""

    def store(model, folder):
        content = {"model": model.state_dict(), "epoch": 799}
        if args is not None:
            content["args"] = argparse.Namespace(lr=1e-3, device="cuda", **args)
        torch.save(content, folder / name)
        return folder / name

    return store


def saved(model, folder):
    """Stores as the installed transformers does."""
    model.save_pretrained(folder)
    return folder


def sharded(model, folder):
    model.save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def hub_state(model, folder):
    """Returns the state with the keys that the hub's files have."""
    saved(model, folder)
    wrong, right = "decoder.decoder_encoder.layer", "decoder.decoder_layers"
    state = load_file(folder / "model.safetensors")
    return {key.replace(wrong, right): value for key, value in state.items()}


def hub(model, folder):
    """Stores as the hub's safetensors files are."""
    save_file(hub_state(model, folder), folder / "model.safetensors")
    return folder


def hub_bin(model, folder):
    """Stores as the hub's oldest files are: a pickle, 4.x keys."""
    torch.save(hub_state(model, folder), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def state_file(model, folder):
    """Stores `state_dict()` of 5.x, beside the configuration."""
    saved(model, folder)
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


def timm_folder(model, folder):
    """Stores as timm's push to the hub does."""
    from timm.models._hub import save_for_hf

    save_for_hf(model, folder, safe_serialization=True)
    return folder


def timm_file(model, folder):
    """Stores the weights alone, as timm's training script does."""
    torch.save({"state_dict": model.state_dict()}, folder / "model_best.pth")
    return folder / "model_best.pth"


def huggingface(model_class, **extra):
    return lambda family: torch_models.huggingface_model(family, model_class, **extra)


def vit(**extra):
    return lambda family: torch_models.timm_model(family, **extra)


PRETRAINING = huggingface(ViTMAEForPreTraining)
NORMALIZED = huggingface(ViTMAEForPreTraining, norm_pix_loss=True)
BARE = huggingface(ViTMAEModel, mask_ratio=0.0)
CLASSIFIER = huggingface(ViTForImageClassification)
HEAD = {"num_classes": NUM_CLASSES}

CASES = {
    "facebook_full": Case(
        lambda family: torch_models.facebook_model(family, norm_pix_loss=True),
        facebook_file("mae_pretrain_vit_x_full.pth"),
        MAEPretrainer,
        "facebook",
    ),
    "facebook_visualize": Case(
        torch_models.facebook_model,
        facebook_file("mae_visualize_vit_x.pth"),
        MAEPretrainer,
        "facebook",
    ),
    "facebook_training_run": Case(
        lambda family: torch_models.facebook_model(family, norm_pix_loss=True),
        facebook_file("checkpoint-799.pth", {"norm_pix_loss": True}),
        MAEPretrainer,
        "facebook",
    ),
    "facebook_encoder": Case(
        vit(), facebook_file("mae_pretrain_vit_x.pth"), MAEEncoder, "facebook"
    ),
    "facebook_finetuned_mean": Case(
        vit(global_pool="avg", **HEAD),
        facebook_file("mae_finetuned_vit_x.pth", {"nb_classes": NUM_CLASSES}),
        MAEClassifier,
        "facebook",
    ),
    "facebook_finetuned_cls": Case(
        vit(**HEAD), facebook_file("finetuned.pth", {}), MAEClassifier, "facebook"
    ),
    "facebook_linear_probe": Case(
        torch_models.linear_probe,
        facebook_file("linprobe.pth", {}),
        MAEClassifier,
        "facebook",
    ),
    "huggingface_hub": Case(PRETRAINING, hub, MAEPretrainer, "huggingface"),
    "huggingface_hub_bin": Case(PRETRAINING, hub_bin, MAEPretrainer, "huggingface"),
    "huggingface_saved": Case(NORMALIZED, saved, MAEPretrainer, "huggingface"),
    "huggingface_sharded": Case(PRETRAINING, sharded, MAEPretrainer, "huggingface"),
    "huggingface_state": Case(PRETRAINING, state_file, MAEPretrainer, "huggingface"),
    "huggingface_bare": Case(BARE, saved, MAEEncoder, "huggingface"),
    "huggingface_bare_state": Case(BARE, state_file, MAEEncoder, "huggingface"),
    "huggingface_classifier": Case(CLASSIFIER, saved, MAEClassifier, "huggingface"),
    "huggingface_classifier_state": Case(
        CLASSIFIER, state_file, MAEClassifier, "huggingface"
    ),
    "timm_encoder": Case(vit(), timm_folder, MAEEncoder, "timm"),
    "timm_encoder_file": Case(vit(), timm_file, MAEEncoder, "timm"),
    "timm_classifier": Case(vit(**HEAD), timm_folder, MAEClassifier, "timm"),
    "timm_classifier_mean": Case(
        vit(global_pool="avg", **HEAD), timm_folder, MAEClassifier, "timm"
    ),
}


# the proportions of base are enough for most changes
TIERS = {"base": (), "huge": pytest.mark.nightly, "large": pytest.mark.nightly}


@pytest.fixture(params=[pytest.param(name, marks=TIERS[name]) for name in FAMILIES])
def family(request):
    return request.param


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def heads(family, reader):
    """What shapes can't tell."""
    stated = {"num_heads": FAMILIES[family]["num_heads"]}
    if reader is MAEPretrainer:
        stated["decoder_num_heads"] = DECODER["num_heads"]
    return stated


def read(case, family, path):
    return case.reader.from_pretrained(path, **heads(family, case.reader))


def probe(shape):
    """Fixed random weights that make one number of an output."""
    return np.random.default_rng(2).standard_normal(tuple(shape)).astype("float32")


def torch_forward(model, images, noise):
    """Returns PyTorch's output, and the number whose gradients are compared."""
    if isinstance(model, torch_models.FacebookMAE):
        return reversed(model(images, noise))
    if isinstance(model, ViTMAEForPreTraining):
        outputs = model(images, noise=noise)
        return outputs.logits, outputs.loss
    if isinstance(model, ViTMAEModel):
        # noise that is sorted already leaves the tokens in raster order
        output = model(images, noise=noise.sort(dim=1).values).last_hidden_state
    elif isinstance(model, ViTForImageClassification):
        output = model(images).logits
    elif isinstance(model.head, torch.nn.Identity):
        output = model.forward_features(images)
    else:
        output = model(images)
    return output, (output * torch.from_numpy(probe(output.shape))).sum()


def torch_results(model, images, noise):
    """Returns PyTorch's output and gradients."""
    output, number = torch_forward(model, to_torch(images), torch.from_numpy(noise))
    number.backward()
    gradients = {
        name: parameter.grad.numpy()
        for name, parameter in model.named_parameters()
        # ours are fixed; timm's can be trained
        if parameter.grad is not None and not re.search("pos(ition)?_embed", name)
    }
    return output.detach().numpy(), gradients


def keras_results(model, naming, images, noise):
    """Returns Keras's output and gradients, the latter by PyTorch's names."""
    rows = port_rows(contents_of(model), naming)
    variables = {row.path: find_variable(model, row.path) for row in rows}
    variables = {path: v for path, v in variables.items() if v.trainable}

    def compute():
        if isinstance(model, MAEPretrainer):
            outputs = model(images, noise=noise)
            return outputs["loss"], outputs["logits"]
        output = model(images)
        return keras.ops.sum(output * keras.ops.array(probe(output.shape))), output

    (_, output), values = autodiff.gradients(compute, list(variables.values()))
    values = dict(zip(variables, values, strict=True))
    return np.asarray(output), export_weights(model, naming, values)


@pytest.mark.slow
def test_file_gives_equal_outputs_and_gradients(case, family, tmp_path):
    theirs = case.build(family)
    ours = read(case, family, case.store(theirs, tmp_path))
    naming = FACEBOOK
    if case.format == "huggingface":
        prefix = "" if case.reader is MAEEncoder else "vit."
        naming = HUGGINGFACE_STATE._replace(prefix=prefix)
    images, noise = torch_models.family_batch(family)
    wanted, wanted_gradients = torch_results(theirs, images, noise)
    got, got_gradients = keras_results(ours, naming, images, noise)
    assert_close(got, wanted, "output")
    assert_gradients_close(got_gradients, wanted_gradients)
    report = ours.port_report
    assert not report.fresh and not report.resized
    assert set(report.left_out) <= {"head.0.num_batches_tracked"}


def reload(case, model, folder):
    """Lets PyTorch's own library read what was written, complaining of nothing."""
    if case.format == "huggingface":
        loaded, info = type(model).from_pretrained(folder, output_loading_info=True)
        assert not any(info.values()), info
        return loaded
    if case.format == "timm":
        return timm.create_model(f"local-dir:{folder}", pretrained=True)
    content = torch.load(folder / "model.pth", weights_only=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    model.load_state_dict(content["model"], strict=True)
    return model


@pytest.mark.slow
def test_round_trip_is_bit_equal(case, family, tmp_path):
    theirs = case.build(family)
    before = {key: value.clone() for key, value in theirs.state_dict().items()}
    (tmp_path / "in").mkdir()
    ours = read(case, family, case.store(theirs, tmp_path / "in"))
    report = ours.save_pretrained(tmp_path / "out", case.format)
    assert not report.left_out
    after = reload(case, theirs, tmp_path / "out").state_dict()
    assert set(after) == set(before)
    for key, value in before.items():
        assert torch.equal(after[key], value), key
    again = case.reader.from_pretrained(tmp_path / "out")
    assert_same_weights(again, ours)
    assert sizes_of(again) == sizes_of(ours)


@pytest.mark.parametrize(
    ("name", "target"),
    {
        "facebook_full": "normalized pixels",
        "facebook_visualize": "pixels",
        "facebook_training_run": "normalized pixels",
        "facebook_encoder": None,
        "huggingface_hub": "pixels",
        "huggingface_saved": "normalized pixels",
        "timm_encoder": None,
    }.items(),
)
def test_the_report_says_what_the_decoder_predicts(name, target, tmp_path):
    case = CASES[name]
    model = read(case, "base", case.store(case.build("base"), tmp_path))
    assert model.port_report.target == target
    if target:
        assert model.norm_pix_loss == (target == "normalized pixels")


def test_timm_is_told_how_images_are_prepared(tmp_path):
    from timm.data import resolve_model_data_config

    encoder = MAEEncoder.from_preset("mae_tiny", num_channels=1)
    processor = MAEImageProcessor(32, (0.25,), (0.2,))
    encoder.save_pretrained(tmp_path, "timm", processor)
    assert (tmp_path / "preprocessor_config.json").exists()
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert resolve_model_data_config(theirs) == {
        "input_size": (1, 32, 32),
        "mean": [0.25],
        "std": [0.2],
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "crop_mode": "squash",
    }


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"img_size": 24}, {"image_size": 24}),
        ({"img_size": (12, 20)}, {"image_size": (12, 20)}),
        ({"in_chans": 1}, {"num_channels": 1}),
    ],
    ids=["larger", "wide", "grayscale"],
)
def test_other_sizes_equal_timms(theirs, ours, tmp_path):
    """timm itself resizes positions with antialiasing, and sums kernels for grey."""
    timm_folder(torch_models.timm_model("base"), tmp_path)
    wanted = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, **theirs)
    encoder = MAEEncoder.from_pretrained(tmp_path, **ours)
    shape = (2, *encoder.image_size, encoder.num_channels)
    images = np.random.default_rng(1).standard_normal(shape).astype("float32")
    with torch.no_grad():
        tokens = wanted.eval().forward_features(to_torch(images))
    assert_close(encoder(images), tokens, "tokens")
    assert encoder.port_report.resized
