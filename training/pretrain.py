"""Pretrain an MAE. Run: python training/pretrain.py --dataset=digits --output=run

Writes into --output: `model.keras` (the last checkpoint, replaced in one step),
`preprocessor_config.json`, `config.json` (these flags), `history.csv`, TensorBoard
events under `logs/`, and pictures of held-out images under `logs/pictures/`.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras_mae  # before keras, which it imports without TensorFlow's chatter

# isort: split
import dataclasses
import json
import shutil
from pathlib import Path

import keras
import tensorflow as tf

from keras_mae import data, flags
from keras_mae.callbacks import (
    Checkpoint,
    ReconstructionPictures,
    StopOnNonFiniteLoss,
    UnwrapLogs,
)
from keras_mae.distribution import STRATEGIES, make_strategy
from keras_mae.flags import flag
from keras_mae.optimization import pretraining_optimizer, warmup_cosine


@dataclasses.dataclass
class PretrainConfig:
    """The flags of this script."""

    dataset: str = flag(f"one of {', '.join(data.SOURCES)}", "digits")
    output: str = flag("folder for everything the run writes", "runs/pretrain")
    overwrite: bool = flag("replace the run that --output holds", False)
    preset: str = flag(f"one of {', '.join(keras_mae.PRESETS)}", "mae_tiny")
    image_size: int | None = flag("pixels; default: the preset's", None)
    patch_size: int | None = flag("pixels; default: the preset's", None)
    mask_ratio: float = flag("share of patches to remove, in [0, 1)", 0.75)
    norm_pix_loss: bool = flag("normalize the targets patch by patch", True)
    epochs: int = flag("passes over the data", 100)
    warmup_epochs: int = flag("epochs of linear warm-up", 5)
    batch_size: int = flag("images an update, over all replicas", 64)
    blr: float = flag("base learning rate, for 256 images an update", 1.5e-4)
    weight_decay: float = flag("AdamW's, for matrices and tokens", 0.05)
    strategy: str = flag(f"one of {', '.join(STRATEGIES)}", "cpu")
    replicas: int | None = flag("devices of --strategy=mirrored", None)
    precision: str = flag(
        "dtype policy", "float32", ("float32", "bfloat16", "mixed_bfloat16")
    )
    seed: int = flag("of weights, masks, shuffling and crops", 0)
    checkpoint_every: int = flag("epochs between two checkpoints", 10)
    picture_every: int = flag("epochs between two pictures", 10)
    pictures: int = flag("held-out images to draw", 4)


def main(config):
    """Runs the whole of it: strategy, data, model, fit."""
    strategy = make_strategy(config.strategy, config.replicas)
    replicas = strategy.num_replicas_in_sync
    check(config, replicas)
    keras.utils.set_random_seed(config.seed)
    source = data.load_source(config.dataset)
    with strategy.scope():
        model = build_model(config, channels=len(source.mean))
    processor = keras_mae.MAEImageProcessor(
        model.encoder.image_size, source.mean, source.std, resample="bicubic"
    )
    images = data.training_pipeline(source, processor, config.batch_size, config.seed)
    held_out = data.held_out_images(
        source, processor, count=max(len(source.held_out), config.pictures)
    )
    validation = validation_pipeline(held_out, config.batch_size, replicas)
    steps = data.epoch_size(source) // config.batch_size
    with strategy.scope():
        compile_model(model, config, steps)
    callbacks = make_callbacks(config, processor, held_out[: config.pictures])
    # a mask ratio that removes or keeps nothing shows here
    model(held_out[:1], seed=0)
    # only now, after all that can be wrong, is an older run touched
    clear(Path(config.output))
    write_settings(config, processor)
    print(
        f"{config.preset}: {model.count_params():,} parameters, "
        f"{data.epoch_size(source)} images an epoch, "
        f"{replicas} replica(s)"
    )
    model.fit(
        images,
        epochs=config.epochs,
        steps_per_epoch=steps,
        validation_data=validation,
        callbacks=callbacks,
        shuffle=False,  # the pipeline does
        verbose=1 if os.isatty(1) else 2,
    )
    print(f"The run lies in {config.output}")


def check(config, replicas):
    """Refuses what no later step would refuse as clearly."""
    if Path(config.output, "model.keras").exists() and not config.overwrite:
        raise ValueError(
            f"{config.output} holds a run already: give --overwrite or another --output"
        )
    if not 0 <= config.warmup_epochs < config.epochs:
        raise ValueError(
            "warmup_epochs must be in [0, epochs). "
            f"Received: warmup_epochs={config.warmup_epochs}, epochs={config.epochs}"
        )
    if config.pictures < 1:
        raise ValueError(f"pictures must be at least 1. Received: {config.pictures}")
    if config.batch_size % replicas:
        raise ValueError(
            f"batch_size must be divisible by the {replicas} replicas. "
            f"Received: {config.batch_size}"
        )


def build_model(config, channels):
    """Builds the preset with what the flags and the data say."""
    sizes = {"image_size": config.image_size, "patch_size": config.patch_size}
    return keras_mae.MAEPretrainer.from_preset(
        config.preset,
        num_channels=channels,
        mask_ratio=config.mask_ratio,
        norm_pix_loss=config.norm_pix_loss,
        dtype=config.precision,
        seed=config.seed,
        **{name: size for name, size in sizes.items() if size is not None},
    )


def compile_model(model, config, steps):
    """Compiles with the published optimizer and schedule."""
    schedule = warmup_cosine(
        config.blr * config.batch_size / 256,
        total_steps=config.epochs * steps,
        warmup_steps=config.warmup_epochs * steps,
    )
    model.compile(optimizer=pretraining_optimizer(schedule, config.weight_decay))


def validation_pipeline(images, batch_size, replicas):
    """Batches held-out images so that every replica gets its share of each batch."""
    whole = len(images) - len(images) % replicas
    if not whole:
        raise ValueError(
            f"The {len(images)} held-out images must be at least one a replica. "
            f"Received: {replicas} replicas; more --pictures take more of them"
        )
    return tf.data.Dataset.from_tensor_slices(images[:whole]).batch(batch_size)


def clear(output):
    """Removes an older run: its checkpoint first, so that no new settings meet it."""
    checkpoint = output / "model.keras"
    if checkpoint.exists():  # else these are somebody else's logs
        checkpoint.unlink()
        shutil.rmtree(output / "logs", ignore_errors=True)


def write_settings(config, processor):
    """Writes the flags and the processor beside the weights to come."""
    output = Path(config.output)
    (output / "logs" / "pictures").mkdir(parents=True, exist_ok=True)
    settings = json.dumps(dataclasses.asdict(config), indent=2)
    (output / "config.json").write_text(settings + "\n")
    processor.save_pretrained(output)


def make_callbacks(config, processor, images):
    """Lists the callbacks, those that check before those that write."""
    output = Path(config.output)
    return [
        StopOnNonFiniteLoss(),
        UnwrapLogs(),
        Checkpoint(output / "model.keras", config.checkpoint_every),
        ReconstructionPictures(
            processor, images, output / "logs" / "pictures", config.picture_every
        ),
        keras.callbacks.CSVLogger(output / "history.csv"),
        keras.callbacks.TensorBoard(output / "logs", write_graph=False),
    ]


if __name__ == "__main__":
    flags.run_script(main, PretrainConfig, __doc__.splitlines()[0])
