"""Pretrain a masked autoencoder. Run: python training/pretrain.py --output=runs/mae

--model goes on from a run, a Hugging Face hub id or a PyTorch checkpoint, on other
images, of another size or number of channels too; the optimizer starts anew.

Writes into --output: `model.keras` (the newest checkpoint; with --ema, the averaged
weights), `checkpoints/` (the last --keep), `preprocessor_config.json`, `config.json`
(the flags, to pass by --config), `history.csv`, and `logs/` with TensorBoard events and
reconstructions of held-out images.

Exit codes: 0 done; 2 wrong flags or files; 3 the loss is NaN or infinite; 75 stopped by
SIGTERM, or another worker was lost: run it again with --resume.
"""

import keras_mae  # first: it imports TensorFlow quietly

# isort: split
import dataclasses

import numpy as np
import tensorflow as tf

from keras_mae import data
from keras_mae.callbacks.mask_ratio import parse_schedule
from keras_mae.callbacks.pictures import ReconstructionPictures
from keras_mae.callbacks.probe import METHODS, FeatureProbe
from keras_mae.layers.mask_sampling import MASK_SAMPLINGS
from keras_mae.models.loading import load_pretrainer
from keras_mae.optimizers.adamw import pretraining_optimizer
from keras_mae.optimizers.schedules import warmup_cosine
from keras_mae.preprocessing.pretrained_processor import training_processor
from keras_mae.recipes import LINEAR_PROBING
from keras_mae.runs.training_config import TrainingConfig, ema_flag
from keras_mae.runs.training_run import Training, exit_on_lost_worker
from keras_mae.utils.devices import check_tensorflow_backend
from keras_mae.utils.flags import flag, run_script

# flags that a resumed run may change
MAY_DIFFER = (
    *("picture_every", "pictures", "validation_images"),
    *("probe_every", "probe_method", "probe_dataset", "num_classes"),
)


@dataclasses.dataclass
class PretrainConfig(TrainingConfig):
    """Flags of this script."""

    output: str = flag("output folder of the run", "runs/pretrain")
    compile_for: str | None = flag(
        "TPU topology such as v5e:4x4: compile the training step for it, report memory "
        "and FLOPs, and exit (needs no TPU)",
        None,
    )
    model: str | None = flag(
        "weights to go on with: run folder, .keras file, hub id, checkpoint folder, "
        ".pth, .safetensors or tf_model.h5, also for another image size; default: "
        "random weights",
        None,
    )
    preset: str | None = flag(
        f"model size: one of {', '.join(keras_mae.PRESETS)}; default: mae_tiny, or "
        "that of --model",
        None,
    )
    image_size: int | None = flag(
        "image size in pixels; default: that of --model or of the preset", None
    )
    patch_size: int | None = flag(
        "patch size in pixels; default: that of --model or of the preset", None
    )
    mask_ratio: float | None = flag(
        "fraction of patches to mask, in [0, 1); default: that of --model, or 0.75",
        None,
    )
    mask_sampling: str | None = flag(
        "how patches are chosen; block: large blocks, after BEiT; grid: all but one of "
        "every four, at --mask_ratio=0.75; default: as in --model, or random",
        None,
        MASK_SAMPLINGS,
    )
    mask_ratio_schedule: str | None = flag(
        "change the mask ratio over the epochs: START:END[:VALUES[:linear|cosine]], "
        "such as 0.5:0.75; VALUES ratios (default: 5), each of which compiles once; "
        "instead of --mask_ratio",
        None,
        instead_of="mask_ratio",
    )
    norm_pix_loss: bool | None = flag(
        "normalize each patch's pixels for the loss; default: as --model does, true "
        "without it or its decoder",
        None,
    )
    crop_scale: float | None = flag(
        "smallest area of a random resized crop, as a fraction of the image; default: "
        "the dataset's",
        None,
    )
    flip: bool | None = flag("random horizontal flips; default: the dataset's", None)
    ema: float | None = ema_flag()
    picture_every: int = flag("draw reconstructions every N epochs", 10)
    pictures: int = flag("number of held-out images to reconstruct", 4)
    validation_images: int = flag(
        "largest number of held-out images to validate on", 512
    )
    probe_every: int | None = flag(
        "evaluate frozen features on labelled images every N epochs, as "
        "linear_probe.py does; default: never",
        None,
    )
    probe_method: str = flag("probing method of --probe_every", "knn", METHODS)
    probe_dataset: str | None = flag(
        "labelled images of --probe_every, named as for --dataset; default: those of "
        "--dataset",
        None,
    )
    num_classes: int | None = flag(
        "number of classes of --probe_every, if its images only number them", None
    )

    def resolved(self, on_tpu=False):
        """Returns a config whose defaults are set, but for those of --model."""
        config = super().resolved(on_tpu)
        if config.model is None:
            fresh = {
                "preset": "mae_tiny",
                "mask_ratio": 0.75,
                "mask_sampling": "random",
                "norm_pix_loss": True,
            }
            if config.mask_ratio_schedule is not None:
                del fresh["mask_ratio"]
            unset = {name for name in fresh if getattr(config, name) is None}
            config = dataclasses.replace(config, **{n: fresh[n] for n in unset})
        return config


def main(config):
    """Pretrains, or only reports for --compile_for and --dry_run."""
    config = config.resolved(on_tpu=config.compile_for is not None)
    if config.compile_for is not None:
        return compile_for(config)
    if config.probe_every is None and config.probe_dataset is not None:
        raise ValueError(
            "probe_dataset needs --probe_every. "
            f"Received: probe_dataset={config.probe_dataset} alone"
        )
    training = Training(
        config,
        at_least_one=(
            *("pictures", "picture_every", "probe_every", "validation_images"),
        ),
        may_differ=MAY_DIFFER,
        not_saved=("compile_for",),
    )
    source = training.weights
    with training.strategy.scope():
        model = build_model(
            config, len(training.source.mean), training.total_steps,
            training.warmup_steps, source=source,
        )  # fmt: skip
    if config.dry_run:
        return print(training.describe(model))
    return train(training, model, source)


def build_model(
    config, channels, total_steps, warmup_steps, rematerialize=None, source=None
):
    """Builds the preset or loads `source`, compiled with the published optimizer."""
    rematerialize = config.rematerialize if rematerialize is None else rematerialize
    options = {
        "preset": config.preset,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "mask_ratio": mask_ratio(config),
        "mask_sampling": config.mask_sampling,
        "norm_pix_loss": config.norm_pix_loss,
        "num_channels": channels,
        "rematerialize": rematerialize,
        "residual_dtype": config.residual_dtype,
        "dtype": config.precision,
        "seed": config.seed,
    }
    options = {name: value for name, value in options.items() if value is not None}
    if source is None:
        model = keras_mae.MAEPretrainer.from_preset(**options)
    else:
        model = load_pretrainer(source, **options)
    schedule = warmup_cosine(
        config.blr * config.batch_size / 256, total_steps, warmup_steps
    )
    optimizer = pretraining_optimizer(schedule, config.weight_decay, config.ema)
    model.compile(optimizer=optimizer, **config.compile_options())
    model.optimizer.build(model.trainable_variables)
    return model


def mask_ratio(config):
    """Returns the mask ratio to build with: of a schedule the one of most memory."""
    if config.mask_ratio_schedule is None:
        return config.mask_ratio
    schedule = parse_schedule(config.mask_ratio_schedule, config.epochs)
    return min(schedule.start, schedule.end)


def compile_for(config):
    """Reports whether the training step compiles and fits on a TPU."""
    from keras_mae.profiling import tpu_check, tpu_report

    check_tensorflow_backend("compile_for")
    topology = tpu_check.parse_topology(config.compile_for)

    def make_model(rematerialize):
        # any number of steps: it changes no shape
        channels = config.num_channels or 3
        return build_model(config, channels, 1000, 100, rematerialize, config.model)

    results = tpu_check.check(
        make_model, topology, config.batch_size, config.accumulation_steps
    )
    print(tpu_report.report(results))


def train(training, model, weights=None):
    """Builds data and callbacks, and fits."""
    config, source, corrupt = training.config, training.source, training.corrupt
    processor = training_processor(
        weights,
        model.encoder.image_size,
        source.mean,
        source.std,
        config.exif_orientation,
    )
    crops = len(source.held_out) * source.repeats
    count = max(min(crops, config.validation_images), config.pictures)
    augmentation = augmentation_of(config, source)
    held_out = data.held_out_images(
        source, processor, count, corrupt, center_crop=augmentation.crops
    )
    validation = validation_batches(held_out, config, training.strategy)
    pictures = ReconstructionPictures(
        processor,
        held_out[: config.pictures],
        training.run.pictures,
        config.picture_every,
    )
    probes = []
    if config.probe_every is not None:
        probes.append(make_probe(training, processor))
    check_mask_ratios(config, model, held_out[:1])

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

    first = []
    if config.mask_ratio_schedule is not None:
        first.append(parse_schedule(config.mask_ratio_schedule, config.epochs))
    training.fit(model, processor, batches, [*probes, pictures], validation, first)
    return model


def augmentation_of(config, source):
    """Returns the dataset's augmentation, changed by --crop_scale and --flip."""
    augmentation = source.augmentation
    if config.crop_scale is not None:
        augmentation = augmentation._replace(scale=(config.crop_scale, 1.0))
    if config.flip is not None:
        augmentation = augmentation._replace(flip=config.flip)
    return augmentation


def make_probe(training, processor):
    """Builds the callback of --probe_every, on the data of linear_probe.py."""
    config, source = training.config, training.source
    if config.probe_dataset is not None:
        source = data.load_source(
            config.probe_dataset,
            data_dir=config.data_dir,
            num_channels=config.num_channels,
        )
        training.read_by_callbacks.append(source)
    try:
        source = data.with_labels(source, config.num_classes)
    except ValueError as error:
        raise ValueError(
            "--probe_every needs labelled images, else give --probe_dataset. "
            f"Received: {error}"
        ) from error
    if len(source.mean) != processor.num_channels:
        raise ValueError(
            f"probe_dataset must have images of {processor.num_channels} channels, as "
            f"--dataset has. Received: {config.probe_dataset}, of {len(source.mean)}"
        )
    # sums are rounded by the size of a batch
    size = LINEAR_PROBING["small"]["batch_size"]
    labelled, held_out = (
        data.evaluation_pipeline(
            source,
            processor,
            size,
            is_training,
            corrupt=training.corrupt,
            center_crop=False,
        ).take(data.evaluation_steps(source, size, is_training))
        for is_training in (True, False)
    )
    return FeatureProbe(
        labelled,
        held_out,
        config.probe_every,
        config.probe_method,
        # of which a resumed run's first `fit` does one
        epochs=config.epochs,
    )


def check_mask_ratios(config, model, image):
    """Fails before training for a mask ratio that masks or keeps no patch."""
    ratios = [model.mask_ratio]
    if config.mask_ratio_schedule is not None:
        schedule = parse_schedule(config.mask_ratio_schedule, config.epochs)
        ratios = [schedule.end, schedule.start]
    for ratio in ratios:
        model.mask_ratio = ratio
        model(image, seed=0)


def validation_batches(images, config, strategy):
    """Returns distributed batches of one shape, and their number."""
    replicas = strategy.num_replicas_in_sync
    whole = config.batch_size * config.steps_per_execution
    # Keras runs whole executions
    count = -(-len(images) // whole) * config.steps_per_execution
    size = len(images) // (count * replicas)
    if not size:
        raise ValueError(
            f"Validation needs a held-out image per replica. Received: {len(images)} "
            f"for {replicas} replicas; raise --validation_images or --pictures"
        )
    # those that do not fill the last batches are dropped
    images = images[: count * replicas * size]
    images = images.reshape(count, replicas, size, *images.shape[1:])

    def share(context):
        local = replicas // context.num_input_pipelines
        first = context.input_pipeline_id * local
        mine = images[:, first : first + local]
        batches = tf.data.Dataset.from_tensor_slices(
            np.ascontiguousarray(mine).reshape(-1, *mine.shape[2:])
        )
        return batches.repeat().with_options(data.pipeline_options())

    return strategy.distribute_datasets_from_function(share), count


def cli():
    """Runs the command line."""
    run_script(exit_on_lost_worker(main), PretrainConfig, __doc__)


if __name__ == "__main__":
    cli()
