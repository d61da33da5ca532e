"""Fine-tune a classifier. Run: python training/finetune.py --model=runs/pretrain

--model is a pretraining run, a hub id or a file of PyTorch's; without it weights are
fresh. --recipe names the published numbers (base, large, huge) or ours for small data;
a flag that is given wins over it. Images need labels: digits, a folder of class
folders, TFRecords with `image/class/label`, or a TFDS name.

Writes into --output what pretraining writes, `best.keras`, the epoch of the highest
top-1 accuracy on all held-out images, and `labels.txt`, the names of the classes.
`--eval` measures --model, and writes nothing but `confusion.png`.

Exit codes: as of pretrain.py.
"""

import keras_mae  # first: it imports TensorFlow quietly

# isort: split
import dataclasses
import itertools
from pathlib import Path

import numpy as np

from keras_mae import data
from keras_mae.models.loading import load_model, with_precision
from keras_mae.optimizers.layer_decay import finetuning_optimizer
from keras_mae.optimizers.schedules import warmup_cosine
from keras_mae.preprocessing.pretrained_processor import load_processor
from keras_mae.recipes import FINE_TUNING, apply_recipe
from keras_mae.runs.classification import ClassifierConfig, ClassifierTraining
from keras_mae.runs.training_run import exit_on_lost_worker
from keras_mae.utils.flags import flag, run_script
from keras_mae.visualization.plots import confusion_picture


@dataclasses.dataclass
class FinetuneConfig(ClassifierConfig):
    """The flags of this script; `None` means the recipe's."""

    output: str = flag("folder for everything the run writes", "runs/finetune")
    recipe: str = flag(f"one of {', '.join(FINE_TUNING)}", "small")
    eval: bool = flag("measure --model on held-out images, and stop", False)
    trainable_blocks: int | None = flag(
        "train the last blocks only; default: all", None
    )
    head_dropout_rate: float = flag("dropout of what the head sees", 0.0)
    min_learning_rate: float | None = flag("at the end", None)
    layer_decay: float | None = flag("learning rate from layer to layer", None)
    drop_path_rate: float | None = flag("stochastic depth, the last block's", None)
    magnitude: float | None = flag("RandAugment's, 0 for none of it", None)
    erase: float | None = flag("how often a rectangle is erased", None)
    mixup: float | None = flag("alpha, 0 for none of it", None)
    cutmix: float | None = flag("alpha, 0 for none of it", None)
    smoothing: float | None = flag("label smoothing", None)


def main(config):
    """Runs the whole of it: strategy, data, model, fit; or the evaluation alone."""
    given, config = config, apply_recipe(config, FINE_TUNING).resolved()
    training = ClassifierTraining(config, beginning=("eval",))
    with training.strategy.scope():
        model = build_model(training, given)
    processor = load_processor(
        config.model,
        model.encoder.image_size,
        training.source.mean,
        training.source.std,
    )
    if config.eval:
        return evaluate(training, model, processor)
    if config.dry_run:
        return print(training.describe(model))
    return train(training, model, processor)


def build_model(training, given):
    """Builds the classifier, and compiles it by the recipe."""
    config = training.config
    if config.eval:
        model = load_measured(given, len(training.class_names))
    else:
        model = training.build(
            {"head_dropout_rate": config.head_dropout_rate},
            drop_path_rate=config.drop_path_rate,
            train_positions=True,
        )
    if config.trainable_blocks is not None:
        model.encoder.freeze_but_last(config.trainable_blocks)
    schedule = warmup_cosine(
        training.learning_rate,
        training.total_steps,
        training.warmup_steps,
        config.min_learning_rate,
    )
    optimizer = finetuning_optimizer(
        schedule, config.layer_decay, len(model.encoder.blocks), config.weight_decay
    )
    training.compile(model, optimizer, **config.compile_options())
    return model


def load_measured(config, num_classes):
    """Loads a classifier as it is, for --eval, by the flags that no recipe filled."""
    if config.model is None:
        raise ValueError("--eval needs a --model. Received: none")
    model, _ = load_model(config.model)
    received = getattr(model, "num_classes", "none")
    if not isinstance(model, keras_mae.MAEClassifier) or received != num_classes:
        raise ValueError(
            f"--model must be a classifier of the {num_classes} classes of the data. "
            f"Received: {config.model}, a {type(model).__name__} of {received}"
        )
    size = None if config.image_size is None else (config.image_size,) * 2
    check_measured("image_size", size, model.encoder.image_size)
    check_measured("pooling", config.pooling, model.pooling)
    return with_precision(model, config.precision) if config.precision else model


def check_measured(name, given, own):
    """Refuses a flag that would make another model of the measured one."""
    if given not in (None, own):
        raise ValueError(
            f"--eval measures a model as it is: {name} must be {own}. Received: {given}"
        )


def train(training, model, processor):
    """Fits by the recipe, and keeps the best epoch."""
    config = training.config
    augmentation = data.Augmentation(
        (config.crop_scale, 1.0), config.flip, config.magnitude, config.erase
    )
    mixing = data.Mixing(config.smoothing, config.mixup, config.cutmix)
    best = training.fit_images(model, processor, augmentation, mixing)
    if best is not None:
        print(f"best: {training.run.best}, top-1 {best:.2%}")
    return model


def evaluate(training, model, processor):
    """Measures a classifier on all held-out images."""
    batches, steps = training.evaluation(processor)
    results = model.evaluate(batches, steps=steps, return_dict=True, verbose=0)
    training.corrupt.check()
    results = {name: float(np.mean(value)) for name, value in results.items()}
    print(
        f"{len(training.source.held_out):,} held-out images: top-1 "
        f"{results['top1']:.3%}, top-5 {results['top5']:.3%}, loss "
        f"{results['loss']:.4f}"
    )
    if training.replicas == 1:
        labels, predicted = [], []
        for images, one_hot, weights in itertools.islice(batches, steps):
            real = weights.numpy() > 0
            labels.extend(one_hot.numpy().argmax(axis=-1)[real])
            predicted.extend(model.predict_on_batch(images).argmax(axis=-1)[real])
        path = Path(training.config.output, "confusion.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        confusion_picture(labels, predicted, training.class_names).save(path)
        print(f"Which class is taken for which: {path}")
    return results


def cli():
    """Runs the command line."""
    run_script(exit_on_lost_worker(main), FinetuneConfig, __doc__)


if __name__ == "__main__":
    cli()
