"""Examples of the public models, as plain data; images are no squares."""

import keras

from keras_mae import (
    MAEClassifier,
    MAEDecoder,
    MAEEncoder,
    MAEPretrainer,
    MAESegmenter,
)
from tests.contract_cases import BLOCK, DROPOUTS, Case, Tensor

STACK = {**BLOCK, "hidden_dim": 8, "depth": 2, "initializer_range": 0.1}
# 2 x 6 patches of 8 x 4 pixels
IMAGE = {"image_size": (16, 24), "patch_size": (8, 4)}


def encoder_parts(channels, **overrides):
    """Returns a function of a dtype policy that builds an encoder alone."""
    arguments = {**STACK, **IMAGE, "depth": 1, "num_channels": channels, **overrides}
    return lambda dtype: {"encoder": MAEEncoder(**arguments, dtype=dtype)}


def encoder(channels=3):
    return Case(
        MAEEncoder,
        {
            **STACK,
            **IMAGE,
            **DROPOUTS,
            "num_channels": channels,
            "seed": 3,
            "final_norm": False,
            "drop_path_rate": 0.2,
            "train_positions": True,
        },
        {"images": Tensor((None, 16, 24, channels))},
        Tensor((None, 1 + 12, 8)),
        weights=2 + 2 + 2 * 11,
        trained=2 + 2 + 2 * 11,
        seeds=1 + 1 + 2 * 3,
        labels=Tensor((None, 1 + 12, 8)),
        compiled={"loss": "mse"},
    )


def masked_encoder(channels=3):
    attention = Tensor((None, 2, 1 + 3, 1 + 3))
    return Case(
        MAEEncoder,
        {
            **STACK,
            **IMAGE,
            "num_channels": channels,
            "rematerialize": True,
            "residual_dtype": "float32",
        },
        {"images": Tensor((None, 16, 24, channels))},
        {
            "latent": Tensor((None, 1 + 3, 8)),
            "mask": Tensor((None, 12), "float32"),
            "ids_restore": Tensor((None, 12), "int32"),
            "ids_shuffle": Tensor((None, 12), "int32"),
            "hidden_states": (Tensor((None, 1 + 3, 8), "float32"),) * 3,
            "attentions": (attention, attention),
        },
        options={
            "mask_ratio": 0.75,
            "seed": 1,
            "output_hidden_states": True,
            "output_attentions": True,
        },
        weights=2 + 2 + 2 * 11 + 2,
        trained=2 + 1 + 2 * 11 + 2,
        seeds=1,
    )


def decoder(rematerialize):
    again = {"rematerialize": True, "residual_dtype": "float32"}
    dropouts = again if rematerialize else DROPOUTS
    return Case(
        MAEDecoder,
        {
            **STACK,
            **dropouts,
            "grid": (2, 6),
            "patch_dim": 20,
            "latent_dim": 4,
            "depth": 1,
        },
        {
            "latent": Tensor((None, 1 + 3, 4)),
            "ids_restore": Tensor((None, 12), below=12),
        },
        Tensor((None, 12, 20)),
        fixed=("final_norm",),
        weights=2 + 1 + 1 + 11 + 2 + 2,
        trained=2 + 1 + 11 + 2 + 2,
        seeds=0 if rematerialize else 3,
        labels=Tensor((None, 12, 20)),
        compiled={"loss": "mse"} if rematerialize else None,
    )


def pretrainer(channels=3):
    def parts(dtype):
        (encoder,) = encoder_parts(channels)(dtype).values()
        arguments = {**STACK, "hidden_dim": 4, "depth": 1, "dtype": dtype}
        return {
            "encoder": encoder,
            "decoder": MAEDecoder((2, 6), encoder.patch_dim, 8, **arguments),
        }

    return Case(
        MAEPretrainer,
        {"mask_ratio": 0.5, "norm_pix_loss": True, "mask_sampling": "block"},
        {"images": Tensor((None, 16, 24, channels))},
        {
            "loss": Tensor((), "float32"),
            "logits": Tensor((None, 12, 8 * 4 * channels)),
            "mask": Tensor((None, 12), "float32"),
            "ids_restore": Tensor((None, 12), "int32"),
            "latent": Tensor((None, 1 + 6, 8)),
        },
        options={"seed": 1},
        parts=parts,
        weights=(2 + 2 + 11 + 2) + (2 + 1 + 1 + 11 + 2 + 2),
        trained=(2 + 1 + 11 + 2) + (2 + 1 + 11 + 2 + 2),
        seeds=1,
        compiled={},
    )


def classifier(channels=3, pooling="mean"):
    probe = {"pooling": "cls", "batch_norm": True, "head_dropout_rate": 0.1}
    mean = pooling == "mean"
    return Case(
        MAEClassifier,
        # the published range makes a head that is nearly zero
        {"num_classes": 3, "head_range": 0.2, **({} if mean else probe)},
        {"images": Tensor((None, 16, 24, channels))},
        Tensor((None, 3), "float32"),
        parts=encoder_parts(channels, drop_path_rate=0.2 if mean else 0.0),
        # before the head a norm of its own, or the statistics of batches
        weights=(2 + 2 + 11 + 2) + 2 + 2,
        # one norm: the encoder's has no use where the classifier has its own
        trained=(2 + 1 + 11) + 2 + 2,
        seeds=2,
        labels=Tensor((None,), below=3),
        compiled={"loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True)},
    )


def probe(channels=3):
    return classifier(channels, "cls")


def segmenter(channels=3):
    return Case(
        MAESegmenter,
        {"num_classes": 3, "layers": (0, 1), "hidden_dim": 6},
        {"images": Tensor((None, 16, 24, channels))},
        Tensor((None, 16, 24, 3)),
        parts=encoder_parts(channels, depth=3),
        weights=(2 + 2 + 3 * 11 + 2) + 2 * 2 + 2 + 2,
        # the last block and the norm behind it have no use
        trained=(2 + 1 + 2 * 11) + 2 * 2 + 2 + 2,
        seeds=1,
        labels=Tensor((None, 16, 24), below=3),
        compiled={"loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True)},
    )


# models of images, by the number of channels
IMAGE_MODELS = {
    "MAEEncoder": encoder,
    "MAEEncoder masked": masked_encoder,
    "MAEPretrainer": pretrainer,
    "MAEClassifier": classifier,
    "MAEClassifier probe": probe,
    "MAESegmenter": segmenter,
}
MODELS = {
    "MAEDecoder": decoder(rematerialize=False),
    "MAEDecoder rematerialized": decoder(rematerialize=True),
    **{name: make() for name, make in IMAGE_MODELS.items()},
}
