"""lightly's own masked autoencoder: equal pixels, and what we write loads strictly.

Needs `pip install --no-deps lightly lightly_utils` beside the test extra.
"""

import importlib.util
import warnings

import keras
import numpy as np
import pytest

import keras_mae
from tests.parity.timm_import import import_timm, without_torchvision

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.nightly,
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("lightly") is None, reason="lightly is not installed"
    ),
]


def make_model():
    """Builds what lightly's example trains, 50 tensors of random numbers."""
    timm = import_timm()
    with without_torchvision():
        from lightly.models import modules

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2}
            vit = timm.models.vision_transformer.VisionTransformer(
                num_heads=2, num_classes=0, **sizes
            )
            self.backbone = modules.MaskedVisionTransformerTIMM(vit=vit)
            self.decoder = modules.MAEDecoderTIMM(
                num_patches=16,
                patch_size=8,
                embed_dim=24,
                decoder_embed_dim=16,
                decoder_depth=1,
                decoder_num_heads=2,
            )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # another decoder in 1.7
        model = Model().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def predict(model, images, noise):
    """Predicts the pixels of all patches, as lightly's example does."""
    kept = noise.argsort(1)[:, :4] + 1
    kept = torch.cat([torch.zeros_like(kept[:, :1]), kept], 1)  # CLS first
    with torch.no_grad():
        latent = model.decoder.embed(model.backbone.encode(images, idx_keep=kept))
        tokens = model.decoder.mask_token.expand(len(images), 17, -1).clone()
        tokens.scatter_(1, kept[..., None].expand(latent.shape), latent)
        return model.decoder.predict(model.decoder.decode(tokens))[:, 1:].numpy()


def test_pixels_are_equal_and_it_loads_strictly(tmp_path):
    theirs = make_model()
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "last.ckpt")
    ours = keras_mae.MAEPretrainer.from_pretrained(
        tmp_path / "last.ckpt", num_heads=2, decoder_num_heads=2
    )
    images, noise = torch.rand(2, 3, 32, 32), torch.rand(2, 16)
    wanted = predict(theirs, images, noise)
    logits = ours(np.moveaxis(images.numpy(), 1, -1), noise=noise.numpy())["logits"]
    difference = np.abs(keras.ops.convert_to_numpy(logits) - wanted)
    assert difference.max() < 1e-6 * np.abs(wanted).max()
    ours.save_pretrained(tmp_path / "back", format="lightly")
    state = torch.load(tmp_path / "back/model.pth", weights_only=True)["state_dict"]
    theirs.load_state_dict(state, strict=True)
