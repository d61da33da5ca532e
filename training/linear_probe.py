"""Evaluate frozen features by linear probing, k-NN or logistic regression.

Run: python training/linear_probe.py --model=runs/pretrain --method=knn

`linear` trains batch norm (without scale and shift) and a linear layer by LARS, with
the published recipes (base, large, huge: random crops and flips, so the encoder runs at
each step) or ours for small datasets, where the features of whole images are computed
once. `knn` and `logistic` always use such features, which are cached in --output.

With random crops or flips it writes what finetune.py writes; else into --output:
`features.npz`, the plots `confusion.png`, `features-pca.png` and
`features-tsne.png`, and for `linear` the classifier `model.keras` and `labels.txt`
(class names). Exit codes are those of pretrain.py.
"""

import keras_mae  # noqa: F401, first: it imports TensorFlow quietly

# isort: split
import dataclasses
from pathlib import Path

import keras
import numpy as np

from keras_mae import data
from keras_mae.callbacks.checkpoints import list_checkpoints
from keras_mae.data.damaged_records import naming_damaged_files
from keras_mae.models.features import PooledFeatures, extract_features
from keras_mae.models.fingerprint import fingerprint
from keras_mae.ops.neighbors import (
    KNN_NEIGHBORS,
    KNN_TEMPERATURE,
    knn_scores,
    top_accuracies,
)
from keras_mae.optimizers.lars import LARS
from keras_mae.optimizers.schedules import warmup_cosine
from keras_mae.preprocessing.pretrained_processor import training_processor
from keras_mae.recipes import LINEAR_PROBING, apply_recipe
from keras_mae.runs import probing
from keras_mae.runs.classification import ClassifierConfig, ClassifierTraining
from keras_mae.runs.training_run import exit_on_lost_worker
from keras_mae.utils.files import atomic_write
from keras_mae.utils.flags import flag, run_script
from keras_mae.utils.labels_file import LABELS_FILE, write_labels
from keras_mae.visualization.plots import (
    METHODS,
    check_can_plot,
    plot_confusion_matrix,
    plot_features,
)


@dataclasses.dataclass
class ProbeConfig(ClassifierConfig):
    """Flags of this script."""

    output: str = flag("output folder of the run", "runs/probe")
    recipe: str = flag(
        f"hyperparameters: one of {', '.join(LINEAR_PROBING)}; other flags override "
        "them",
        "small",
        fills=LINEAR_PROBING,
    )
    method: str = flag("probing method", "linear", ("linear", "knn", "logistic"))
    k: int = flag("number of neighbors of knn", KNN_NEIGHBORS)
    temperature: float = flag("softmax temperature of knn's votes", KNN_TEMPERATURE)
    c: float = flag("inverse L2 regularization strength of logistic", 0.1)
    pictures: bool = flag(
        "plot the confusion matrix, PCA, and t-SNE of at most 3,000 images", True
    )


def main(config):
    """Probes by --method, and reports top-1 and top-5 accuracy."""
    config = apply_recipe(config, LINEAR_PROBING).resolved()
    on_images = config.method == "linear" and (config.crop_scale < 1 or config.flip)
    if not on_images and (config.callback or config.wandb or config.mlflow):
        raise ValueError(
            "callback, wandb and mlflow are for a head that is trained on images: "
            "--method=linear with --recipe=base, large or huge. "
            f"Received: method={config.method}, recipe={config.recipe}"
        )
    training = ClassifierTraining(config, may_differ=("pictures",), trains=on_images)
    source = training.source
    with training.strategy.scope():
        model = build_model(training)
    processor = training_processor(
        training.weights,
        model.encoder.image_size,
        source.mean,
        source.std,
        config.exif_orientation,
    )
    if config.dry_run:
        return print(training.describe(model))
    if on_images:
        augmentation = data.Augmentation(
            (config.crop_scale, 1.0), config.flip, clip_sides=True
        )
        return training.fit_images(model, processor, augmentation)
    return evaluate_features(training, model, processor)


def build_model(training):
    """Builds the classifier: a frozen encoder, batch norm, a linear head."""
    # fine-tuning may have dropped parts of what the probe shall see whole
    rates = ("drop_path_rate", "dropout_rate", "attention_dropout_rate")
    model = training.build({"batch_norm": True}, **dict.fromkeys(rates, 0.0))
    model.encoder.trainable = False
    if model.head_norm is not None:
        model.head_norm.trainable = False
    training.compile(model, make_lars(training), **training.config.compile_options())
    return model


def make_lars(training, steps=None, **options):
    """Builds the published optimizer, with `steps` per epoch in its schedule."""
    config, steps = training.config, steps or training.steps
    schedule = warmup_cosine(
        training.learning_rate, config.epochs * steps, config.warmup_epochs * steps
    )
    return LARS(schedule, weight_decay=config.weight_decay, **options)


def evaluate_features(training, model, processor):
    """Computes or reads the features, classifies them, and plots."""
    config = training.config
    if training.replicas > 1:
        raise ValueError(
            "Features are computed on one device: --strategy must be cpu or gpu. "
            f"Received: {config.strategy}"
        )
    # before what may take hours
    if config.method == "logistic":
        probing.check_scikit_learn()
    if config.pictures:
        check_can_plot()
    folder = Path(config.output)
    if list_checkpoints(training.run.checkpoints):
        # model.keras of that run would be overwritten
        raise ValueError(f"{folder} holds a training run: choose another --output")
    if config.method == "linear":
        check_output(folder)
    folder.mkdir(parents=True, exist_ok=True)
    features = load_features(training, model, processor)
    classify = {"linear": linear, "knn": knn, "logistic": logistic}
    scores = classify[config.method](training, model, features)
    if config.method == "linear":
        write_labels(folder, training.class_names)
        processor.save_pretrained(folder)
        with atomic_write(folder / "model.keras") as part:
            model.save(part)
    top1, top5 = top_accuracies(scores, features["held_out_labels"])
    print(
        f"{config.method}: {len(scores):,} held-out images, top-1 {top1:.2%}, "
        f"top-5 {top5:.2%}"
    )
    if config.pictures:
        draw(folder, features, scores, training.class_names)
    return top1


def check_output(folder):
    """Raises `ValueError` if a folder's `model.keras` isn't this script's."""
    model = folder / "model.keras"
    for name in ("features.npz", LABELS_FILE):
        if model.exists() and not (folder / name).exists():
            raise ValueError(
                f"{folder} may hold another model: choose another --output. "
                f"Received: {model} without {name}, which linear_probe.py writes too"
            )


def load_features(training, model, processor):
    """Returns features and labels of training and held-out images, cached on disk."""
    config, source = training.config, training.distinct
    pooled = PooledFeatures(model.encoder, config.pooling, model.head_norm)
    whole = {"center_crop": False}

    def compute():
        arrays = {}
        for name, is_training in (("training", True), ("held_out", False)):
            batches = data.evaluation_pipeline(
                source,
                processor,
                config.batch_size,
                training=is_training,
                corrupt=training.corrupt,
                **whole,
            )
            steps = data.evaluation_steps(source, config.batch_size, is_training)
            with naming_damaged_files(source):
                features, labels = extract_features(
                    pooled.predict_on_batch, batches, steps
                )
            training.corrupt.check()
            if not len(labels):
                raise ValueError(
                    f"None of the {name.replace('_', '-')} images can be read: "
                    f"{', '.join(training.corrupt.names[:5])}"
                )
            arrays |= {f"{name}_features": features, f"{name}_labels": labels}
        return arrays

    key = fingerprint(
        [*model.encoder.weights, *getattr(model.head_norm, "weights", ())],
        data.dataset_fingerprint(source),
        *(config.pooling, config.precision, config.residual_dtype),
        processor.get_config(),
        whole,
    )
    return probing.cached(Path(config.output, "features.npz"), key, compute)


def linear(training, model, features):
    """Trains the head on features; returns logits of the held-out images."""
    config, classes = training.config, len(training.class_names)
    images, labels = features["training_features"], features["training_labels"]
    if config.labels_per_class is not None:
        # as many updates as with all labels
        turns = np.resize(np.arange(len(labels)), len(training.source.training))
        images, labels = images[turns], labels[turns]
    head = keras.Sequential(
        [keras.Input((model.encoder.hidden_dim,)), model.batch_norm, model.head]
    )
    steps = -(-len(images) // config.batch_size)
    # a Keras model's compile has no clip_norm
    optimizer = make_lars(training, steps, global_clipnorm=config.clip_norm)
    # XLA would take longer to compile so small a head than it trains
    training.compile(head, optimizer, jit_compile=False)
    head.fit(
        images,
        np.eye(classes, dtype="float32")[labels],
        batch_size=config.batch_size,
        epochs=config.epochs,
        verbose=0,
    )
    return head.predict(features["held_out_features"], verbose=0)


def knn(training, model, features):
    """Returns k-NN class scores of the held-out images."""
    config = training.config
    return knn_scores(
        features["training_features"],
        features["training_labels"],
        features["held_out_features"],
        len(training.class_names),
        config.k,
        config.temperature,
    )


def logistic(training, model, features):
    """Fits logistic regression; returns probabilities of the held-out images."""
    fitted = probing.fit_logistic_regression(
        features["training_features"], features["training_labels"], training.config.c
    )
    scores = np.zeros((len(features["held_out_labels"]), len(training.class_names)))
    scores[:, fitted.classes_] = fitted.predict_proba(features["held_out_features"])
    return scores


def draw(folder, features, scores, class_names):
    """Plots the confusion matrix, and the held-out features in two dimensions."""
    labels = features["held_out_labels"]
    picture = plot_confusion_matrix(labels, scores.argmax(axis=-1), class_names)
    picture.save(folder / "confusion.png")
    if len(labels) < 3:
        return print(
            f"Plot saved to {folder}: confusion.png. PCA and t-SNE need at least 3 "
            f"held-out images. Received: {len(labels)}"
        )
    for method in METHODS:
        picture = plot_features(
            features["held_out_features"], labels, class_names, method
        )
        picture.save(folder / f"features-{method}.png")
    print(f"Plots saved to {folder}: confusion.png, features-*.png")


def cli():
    """Runs the command line."""
    run_script(exit_on_lost_worker(main), ProbeConfig, __doc__)


if __name__ == "__main__":
    cli()
