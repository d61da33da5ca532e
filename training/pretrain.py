"""Pretrain an MAE. Run: python training/pretrain.py --dataset=digits --output=run

Writes into --output: `model.keras` (the newest checkpoint), `checkpoints/` (the last
few), `preprocessor_config.json`, `config.json` (these flags, for --config),
`history.csv`, TensorBoard events under `logs/`, and pictures of held-out images under
`logs/pictures/`.

Exit codes: 0, done; 2, wrong flags or files, in one line; 3, the loss is no number; 75,
told to stop by SIGTERM, or left alone by another worker: run it again with --resume.
"""

import keras_mae  # first: it imports TensorFlow quietly

# isort: split
import dataclasses

import numpy as np
import tensorflow as tf

from keras_mae import data
from keras_mae.callbacks.pictures import ReconstructionPictures
from keras_mae.data.pretraining_pipeline import options
from keras_mae.optimizers.adamw import pretraining_optimizer
from keras_mae.optimizers.schedules import warmup_cosine
from keras_mae.runs.training_run import Training, TrainingConfig, exit_on_lost_worker
from keras_mae.utils.flags import flag, run_script

# what a resumed run may change, of the flags below
MAY_DIFFER = ("picture_every", "pictures", "validation_images")


@dataclasses.dataclass
class PretrainConfig(TrainingConfig):
    """The flags of this script."""

    output: str = flag("folder for everything the run writes", "runs/pretrain")
    compile_for: str | None = flag("compile for a TPU, say v5e:4x4, and report", None)
    preset: str = flag(f"one of {', '.join(keras_mae.PRESETS)}", "mae_tiny")
    image_size: int | None = flag("pixels; default: the preset's", None)
    patch_size: int | None = flag("pixels; default: the preset's", None)
    mask_ratio: float = flag("share of patches to remove, in [0, 1)", 0.75)
    norm_pix_loss: bool = flag("normalize the targets patch by patch", True)
    crop_scale: float | None = flag("least share of a crop; default: the data's", None)
    flip: bool | None = flag("mirror half of the images; default: the data's", None)
    picture_every: int = flag("epochs between two pictures", 10)
    pictures: int = flag("held-out images to draw", 4)
    validation_images: int = flag("held-out images to evaluate, at most", 512)


def main(config):
    """Runs the whole of it: strategy, data, model, fit."""
    config = config.resolved(on_tpu=config.compile_for is not None)
    if config.compile_for is not None:
        return compile_for(config)
    training = Training(
        config,
        at_least_one=("pictures", "validation_images"),
        may_differ=MAY_DIFFER,
        beginning=("compile_for",),
    )
    with training.strategy.scope():
        model = build_model(
            config, len(training.source.mean), training.total_steps,
            training.warmup_steps,
        )  # fmt: skip
    if config.dry_run:
        return print(training.describe(model))
    return train(training, model)


def build_model(config, channels, total_steps, warmup_steps, rematerialize=None):
    """Builds the preset and compiles it with the published optimizer and schedule."""
    sizes = {"image_size": config.image_size, "patch_size": config.patch_size}
    model = keras_mae.MAEPretrainer.from_preset(
        config.preset,
        num_channels=channels,
        mask_ratio=config.mask_ratio,
        norm_pix_loss=config.norm_pix_loss,
        rematerialize=config.rematerialize if rematerialize is None else rematerialize,
        dtype=config.precision,
        seed=config.seed,
        **{name: size for name, size in sizes.items() if size is not None},
    )
    schedule = warmup_cosine(
        config.blr * config.batch_size / 256, total_steps, warmup_steps
    )
    optimizer = pretraining_optimizer(schedule, config.weight_decay)
    model.compile(optimizer=optimizer, **config.compile_options())
    model.optimizer.build(model.trainable_variables)
    return model


def compile_for(config):
    """Answers whether a TPU would take the step, without one."""
    from keras_mae.profiling import tpu_check, tpu_report

    topology = tpu_check.parse_topology(config.compile_for)

    def make_model(rematerialize):
        # 1000 steps: the number changes no shape
        return build_model(config, 3, 1000, 100, rematerialize)

    results = tpu_check.check(
        make_model, topology, config.batch_size, config.accumulation_steps
    )
    print(tpu_report.report(results))


def train(training, model):
    """Prepares data and pictures, and fits."""
    config, source, corrupt = training.config, training.source, training.corrupt
    processor = keras_mae.MAEImageProcessor(
        model.encoder.image_size, source.mean, source.std, resample="bicubic"
    )
    crops = len(source.held_out) * source.repeats
    count = max(min(crops, config.validation_images), config.pictures)
    held_out = data.held_out_images(source, processor, count, corrupt)
    validation = validation_batches(held_out, config, training.strategy)
    pictures = ReconstructionPictures(
        processor,
        held_out[: config.pictures],
        training.run.pictures,
        config.picture_every,
    )
    # a mask ratio that removes or keeps nothing shows here
    model(held_out[:1], seed=0)

    augmentation = source.augmentation
    if config.crop_scale is not None:
        augmentation = augmentation._replace(scale=(config.crop_scale, 1.0))
    if config.flip is not None:
        augmentation = augmentation._replace(flip=config.flip)

    def batches(context, step):
        return data.training_pipeline(
            source,
            processor,
            config.batch_size,
            config.seed,
            step,
            context,
            corrupt,
            augmentation,
        )

    training.fit(model, processor, batches, [pictures], validation)
    return model


def validation_batches(images, config, strategy):
    """Gives each replica its share of held-out images, in batches of one shape.

    A few of the last images are left out where they don't fill the batches.

    Returns:
        A tuple: the distributed batches, and how many there are.
    """
    replicas = strategy.num_replicas_in_sync
    whole = config.batch_size * config.steps_per_execution
    # Keras runs whole executions
    count = -(-len(images) // whole) * config.steps_per_execution
    size = len(images) // (count * replicas)
    if not size:
        raise ValueError(
            f"The {len(images)} held-out images must be at least one a replica. "
            f"Received: {replicas} replicas; more --pictures take more of them"
        )
    images = images[: count * replicas * size]
    images = images.reshape(count, replicas, size, *images.shape[1:])

    def share(context):
        local = replicas // context.num_input_pipelines
        first = context.input_pipeline_id * local
        mine = images[:, first : first + local]
        batches = tf.data.Dataset.from_tensor_slices(
            np.ascontiguousarray(mine).reshape(-1, *mine.shape[2:])
        )
        return batches.repeat().with_options(options())

    return strategy.distribute_datasets_from_function(share), count


def cli():
    """Runs the command line."""
    run_script(exit_on_lost_worker(main), PretrainConfig, __doc__)


if __name__ == "__main__":
    cli()
