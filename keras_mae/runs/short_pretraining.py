"""Pretrain a small encoder in memory, and compute its features, to compare settings."""

import keras
import numpy as np

from keras_mae import data
from keras_mae.models.pretrainer import MAEPretrainer
from keras_mae.optimizers.adamw import pretraining_optimizer
from keras_mae.optimizers.schedules import warmup_cosine
from keras_mae.preprocessing.image_processor import MAEImageProcessor
from keras_mae.runs import probing

# small datasets of small images need a high learning rate
BLR = 8e-3


def make_processor(source, encoder):
    """Builds the image processor of a source's images."""
    return MAEImageProcessor(
        encoder.image_size, source.mean, source.std, resample="bicubic"
    )


def pretrain_encoder(source, seed, epochs, batch_size, jit_compile=True, **overrides):
    """Pretrains `mae_tiny` on a source, without labels; returns the encoder."""
    keras.utils.set_random_seed(seed)
    model = MAEPretrainer.from_preset(
        "mae_tiny",
        **{
            "num_channels": len(source.mean),
            "norm_pix_loss": True,
            "seed": seed,
            **overrides,
        },
    )
    processor = make_processor(source, model.encoder)
    batches = data.training_pipeline(source, processor, batch_size, seed)
    steps = epochs * (source.epoch_size // batch_size)
    schedule = warmup_cosine(BLR * batch_size / 256, steps, steps // 12)
    model.compile(pretraining_optimizer(schedule), jit_compile=jit_compile)
    model.fit(batches, epochs=1, steps_per_epoch=steps, verbose=0, shuffle=False)
    return model.encoder


def source_features(source, encoder, batch_size):
    """Mean patch tokens of training and held-out images, `(N, D)` each."""
    processor = make_processor(source, encoder)
    return [
        probing.mean_features(
            encoder, processor.normalize(np.stack(images)), batch_size
        )
        for images in (source.training, source.held_out)
    ]
