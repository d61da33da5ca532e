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
from pathlib import Path

import keras

from keras_mae import callbacks, data, flags
from keras_mae.distribution import STRATEGIES, make_strategy
from keras_mae.optimization import pretraining_optimizer, warmup_cosine


def _flag(default, text, choices=None):
    return dataclasses.field(
        default=default, metadata={"help": text, "choices": choices}
    )


@dataclasses.dataclass
class PretrainConfig:
    """The flags of this script."""

    dataset: str = _flag("digits", f"one of {', '.join(data.SOURCES)}")
    output: str = _flag("runs/pretrain", "folder for everything the run writes")
    overwrite: bool = _flag(False, "replace the run that --output holds")
    preset: str = _flag("mae_tiny", f"one of {', '.join(keras_mae.PRESETS)}")
    image_size: int | None = _flag(None, "pixels; default: the preset's")
    patch_size: int | None = _flag(None, "pixels; default: the preset's")
    mask_ratio: float = _flag(0.75, "share of patches to remove, in [0, 1)")
    norm_pix_loss: bool = _flag(True, "normalize the targets patch by patch")
    epochs: int = _flag(100, "passes over the data")
    warmup_epochs: int = _flag(5, "epochs of linear warm-up")
    batch_size: int = _flag(64, "images an update, over all replicas")
    blr: float = _flag(1.5e-4, "base learning rate, for 256 images an update")
    weight_decay: float = _flag(0.05, "AdamW's, for matrices and tokens")
    strategy: str = _flag("cpu", f"one of {', '.join(STRATEGIES)}")
    replicas: int | None = _flag(None, "devices of --strategy=mirrored")
    precision: str = _flag(
        "float32", "dtype policy", ("float32", "bfloat16", "mixed_bfloat16")
    )
    seed: int = _flag(0, "of weights, masks, shuffling and crops")
    checkpoint_every: int = _flag(10, "epochs between two checkpoints")
    picture_every: int = _flag(10, "epochs between two pictures")
    pictures: int = _flag(4, "held-out images to draw")


def main(config):
    """Runs the whole of it: strategy, data, model, fit."""
    output = Path(config.output)
    if (output / "model.keras").exists() and not config.overwrite:
        raise ValueError(
            f"{output} holds a run already: give --overwrite or another --output"
        )
    strategy = make_strategy(config.strategy, config.replicas)
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
    steps = data.epoch_size(source) // config.batch_size
    with strategy.scope():
        compile_model(model, config, steps)
    write_settings(output, config, processor)
    print(
        f"{config.preset}: {model.count_params():,} parameters, "
        f"{data.epoch_size(source)} images an epoch, "
        f"{strategy.num_replicas_in_sync} replica(s)"
    )
    model.fit(
        images,
        epochs=config.epochs,
        steps_per_epoch=steps,
        validation_data=(held_out,),
        validation_batch_size=min(config.batch_size, len(held_out)),
        callbacks=make_callbacks(config, processor, held_out[: config.pictures]),
        shuffle=False,  # the pipeline does
        verbose=1 if os.isatty(1) else 2,
    )
    print(f"The run lies in {output}")


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
    model.compile(optimizer=pretraining_optimizer(model, schedule, config.weight_decay))


def write_settings(output, config, processor):
    """Writes the flags and the processor beside the weights to come."""
    (output / "logs" / "pictures").mkdir(parents=True, exist_ok=True)
    settings = json.dumps(dataclasses.asdict(config), indent=2)
    (output / "config.json").write_text(settings + "\n")
    processor.save_pretrained(output)


def make_callbacks(config, processor, images):
    """Lists the callbacks, those that check before those that write."""
    output = Path(config.output)
    return [
        callbacks.StopOnNonFiniteLoss(),
        callbacks.UnwrapLogs(),
        callbacks.Checkpoint(output / "model.keras", config.checkpoint_every),
        callbacks.ReconstructionPictures(
            processor, images, output / "logs" / "pictures", config.picture_every
        ),
        keras.callbacks.CSVLogger(output / "history.csv"),
        keras.callbacks.TensorBoard(output / "logs", write_graph=False),
    ]


if __name__ == "__main__":
    flags.run_script(main, PretrainConfig, __doc__.splitlines()[0])
