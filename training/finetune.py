"""Fine-tune a classifier. Run: python training/finetune.py --model=runs/pretrain

--model is a pretraining run, a Hugging Face hub id or a PyTorch checkpoint; without it
the weights are random. --recipe names the published hyperparameters (base, large, huge)
or ours for small datasets; flags that are given override it. The dataset needs labels:
digits, a folder of class folders, TFRecords with `image/class/label`,
tfds:NAME, hf:NAME, or tar files of webdataset:GLOB.

Writes into --output what pretrain.py writes, `best.keras` (the epoch of the highest
top-1 accuracy on the held-out images) and `labels.txt` (class names). --eval evaluates
--model, and writes only `confusion.png`, or nothing with --no-pictures. Exit codes are
those of pretrain.py.
"""

import keras_mae  # first: it imports TensorFlow quietly

# isort: split
import dataclasses
import itertools
from pathlib import Path

import numpy as np

from keras_mae import data
from keras_mae.data.damaged_records import naming_damaged_files
from keras_mae.models.loading import load_model, with_precision
from keras_mae.optimizers.layer_decay import finetuning_optimizer
from keras_mae.optimizers.schedules import warmup_cosine
from keras_mae.preprocessing.pretrained_processor import training_processor
from keras_mae.recipes import FINE_TUNING, apply_recipe
from keras_mae.runs.classification import (
    ClassifierConfig,
    ClassifierTraining,
    recipe_flag,
)
from keras_mae.runs.run_folder import flag_of_run
from keras_mae.runs.training_config import ema_flag
from keras_mae.runs.training_run import exit_on_lost_worker
from keras_mae.utils.flags import flag, run_script
from keras_mae.visualization.plots import check_can_plot, plot_confusion_matrix


@dataclasses.dataclass
class FinetuneConfig(ClassifierConfig):
    """Flags of this script."""

    output: str = flag("output folder of the run", "runs/finetune")
    recipe: str = flag(
        f"hyperparameters: one of {', '.join(FINE_TUNING)}; other flags override them",
        "small",
        fills=FINE_TUNING,
    )
    eval: bool = flag("evaluate --model on the held-out images, and exit", False)
    pictures: bool = flag("draw the confusion matrix of --eval", True)
    trainable_blocks: int | None = flag(
        "train only the last N transformer blocks and the head; default: all", None
    )
    lora_rank: int | None = flag(
        "LoRA: freeze the encoder, and train updates of this rank of its query, key "
        "and value projections beside the head; default: off",
        None,
    )
    head_dropout_rate: float = flag("dropout rate before the head", 0.0)
    min_learning_rate: float | None = recipe_flag("final learning rate of the schedule")
    layer_decay: float | None = recipe_flag(
        "layer-wise learning rate decay, per block from the head down"
    )
    drop_path_rate: float | None = recipe_flag(
        "stochastic depth rate of the last block"
    )
    magnitude: float | None = recipe_flag("RandAugment magnitude, 0: off")
    erase: float | None = recipe_flag("random erasing probability")
    mixup: float | None = recipe_flag("mixup alpha, 0: off")
    cutmix: float | None = recipe_flag("CutMix alpha, 0: off")
    smoothing: float | None = recipe_flag("label smoothing")
    ema: float | None = ema_flag()


def main(config):
    """Fine-tunes; or only evaluates, or reports for --dry_run."""
    given, config = config, apply_recipe(as_trained(config), FINE_TUNING).resolved()
    training = ClassifierTraining(
        config, not_saved=("eval", "pictures"), trains=not config.eval
    )
    with training.strategy.scope():
        model = build_model(training, given)
    processor = training_processor(
        config.model if config.eval else training.weights,
        model.encoder.image_size,
        training.source.mean,
        training.source.std,
        config.exif_orientation,
    )
    if config.dry_run:
        return print(training.describe(model))
    if config.eval:
        with naming_damaged_files(training.source):
            return evaluate(training, model, processor)
    return train(training, model, processor)


def as_trained(config):
    """Sets what --eval was not told of the held-out images as of --model's run."""
    if not config.eval or config.model is None:
        return config
    names = ["crop_scale"]
    if flag_of_run(config.model, "dataset") == config.dataset:
        names.append("held_out")
    unset = [name for name in names if getattr(config, name) is None]
    return dataclasses.replace(
        config, **{name: flag_of_run(config.model, name) for name in unset}
    )


def build_model(training, given):
    """Builds and compiles the classifier, or loads the one to evaluate."""
    config = training.config
    if None not in (config.lora_rank, config.trainable_blocks):
        raise ValueError(
            "Give one of --lora_rank and --trainable_blocks. Received: both"
        )
    if config.eval:
        model = load_evaluated(given, training)
    else:
        model = training.build(
            {"head_dropout_rate": config.head_dropout_rate},
            drop_path_rate=config.drop_path_rate,
            train_positions=True,
        )
    if config.trainable_blocks is not None:
        model.encoder.freeze_but_last(config.trainable_blocks)
    if config.lora_rank is not None and not config.eval:
        model.encoder.enable_lora(config.lora_rank)
    schedule = warmup_cosine(
        training.learning_rate,
        training.total_steps,
        training.warmup_steps,
        config.min_learning_rate,
    )
    optimizer = finetuning_optimizer(
        schedule,
        config.layer_decay,
        len(model.encoder.blocks),
        config.weight_decay,
        config.ema,
    )
    training.compile(model, optimizer, **config.compile_options())
    return model


def load_evaluated(config, training):
    """Loads --model unchanged, for --eval; `config` holds the flags that were given."""
    num_classes, channels = len(training.class_names), len(training.source.mean)
    if config.model is None:
        raise ValueError("--eval needs --model")
    model, _ = load_model(config.model)
    received = getattr(model, "num_classes", "none")
    if not isinstance(model, keras_mae.MAEClassifier) or received != num_classes:
        raise ValueError(
            f"--model must be a classifier of the {num_classes} classes of "
            f"--dataset={config.dataset}. Received: {config.model}, "
            f"a {type(model).__name__} of {received}"
        )
    other = training.other_classes(config.model)
    if other:
        raise ValueError(
            f"--model must be a classifier of the classes of --dataset="
            f"{config.dataset}. Received: {config.model}, of {other}"
        )
    size = None if config.image_size is None else (config.image_size,) * 2
    check_unchanged("image_size", size, model.encoder.image_size)
    check_unchanged("num_channels", channels, model.encoder.num_channels)
    check_unchanged("pooling", config.pooling, model.pooling)
    own = model.encoder.get_config()["residual_dtype"]
    check_unchanged("residual_dtype", config.residual_dtype, own)
    return with_precision(model, config.precision) if config.precision else model


def check_unchanged(name, given, own):
    """Raises if a flag would change the model that --eval evaluates."""
    if given not in (None, own):
        raise ValueError(
            f"--eval cannot change the model: {name} must be {own}. Received: {given}"
        )


def train(training, model, processor):
    """Fits, and keeps the best epoch."""
    config = training.config
    augmentation = data.Augmentation(
        (config.crop_scale, 1.0), config.flip, config.magnitude, config.erase
    )
    mixing = data.Mixing(config.smoothing, config.mixup, config.cutmix)
    best = training.fit_images(model, processor, augmentation, mixing)
    if best is not None:
        print(f"Best epoch saved to {training.run.best}: top-1 {best:.2%}")
    return model


def evaluate(training, model, processor):
    """Evaluates a classifier on all held-out images, and draws a confusion matrix."""
    config = training.config
    draws = config.pictures and training.replicas == 1
    if draws:
        check_can_plot()  # before what may take hours
    batches, steps = training.evaluation(processor)
    results = model.evaluate(batches, steps=steps, return_dict=True, verbose=0)
    training.corrupt.check()
    results = {name: float(np.mean(value)) for name, value in results.items()}
    # of each corrupt image the log has a line
    count = len(training.source.held_out) - training.corrupt.count
    print(
        f"{count:,} held-out images: top-1 {results['top1']:.3%}, top-5 "
        f"{results['top5']:.3%}, loss {results['loss']:.4f}",
        flush=True,
    )
    if draws:
        labels, predicted = [], []
        for images, one_hot, weights in itertools.islice(batches, steps):
            real = weights.numpy() > 0
            labels.extend(one_hot.numpy().argmax(axis=-1)[real])
            # JAX's steps don't take the tensors of tf.data
            logits = model.predict_on_batch(images.numpy())
            predicted.extend(logits.argmax(axis=-1)[real])
        path = Path(config.output, "confusion.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        plot_confusion_matrix(labels, predicted, training.class_names).save(path)
        print(f"Confusion matrix saved to {path}")
    return results


def cli():
    """Runs the command line."""
    run_script(exit_on_lost_worker(main), FinetuneConfig, __doc__)


if __name__ == "__main__":
    cli()
