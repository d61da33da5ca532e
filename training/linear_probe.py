"""Ask what frozen features are worth: by a linear head, neighbours, or regression.

Run: python training/linear_probe.py --model=runs/pretrain --method=knn

`linear` trains a batch norm without scale and shift and a linear layer by LARS, by the
published recipe (base, large, huge: random crops and flips, the encoder at each step)
or ours for small data, in which images are taken whole: their features are then
computed once and kept in --output. `knn` and `logistic` always go by such features.

Writes into --output: `model.keras`, the classifier, and `labels.txt`, the names of its
classes (both of `linear`), `features.npz`, and pictures: `confusion.png`,
`features-pca.png` and `features-tsne.png`.

Exit codes: as of pretrain.py.
"""

import keras_mae  # noqa: F401, first: it imports TensorFlow quietly

# isort: split
import dataclasses
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_mae import data
from keras_mae.callbacks.checkpoints import list_checkpoints
from keras_mae.optimizers.lars import LARS
from keras_mae.optimizers.schedules import warmup_cosine
from keras_mae.preprocessing.pretrained_processor import load_processor
from keras_mae.recipes import LINEAR_PROBING, apply_recipe
from keras_mae.runs import probing
from keras_mae.runs.classification import ClassifierConfig, ClassifierTraining
from keras_mae.runs.training_run import exit_on_lost_worker
from keras_mae.utils.class_names import write_labels
from keras_mae.utils.files import replacing
from keras_mae.utils.flags import flag, run_script
from keras_mae.visualization.plots import METHODS, confusion_picture, feature_picture


@dataclasses.dataclass
class ProbeConfig(ClassifierConfig):
    """The flags of this script; `None` means the recipe's."""

    output: str = flag("folder for everything the run writes", "runs/probe")
    recipe: str = flag(f"one of {', '.join(LINEAR_PROBING)}", "small")
    method: str = flag("how to ask", "linear", ("linear", "knn", "logistic"))
    k: int = flag("neighbours of knn", probing.NEIGHBOURS)
    temperature: float = flag("of knn's votes", probing.TEMPERATURE)
    c: float = flag("inverse penalty of logistic regression", 0.1)
    pictures: bool = flag("draw confusion matrix and features", True)


def main(config):
    """Loads data and encoder, asks by the method, and reports."""
    config = apply_recipe(config, LINEAR_PROBING).resolved()
    training = ClassifierTraining(config, may_differ=("pictures",))
    source = training.source
    with training.strategy.scope():
        model = build_model(training)
    processor = load_processor(
        config.model, model.encoder.image_size, source.mean, source.std
    )
    if config.dry_run:
        return print(training.describe(model))
    if config.method == "linear" and (config.crop_scale < 1 or config.flip):
        augmentation = data.Augmentation((config.crop_scale, 1.0), config.flip)
        return training.fit_images(model, processor, augmentation)
    return evaluate_features(training, model, processor)


def build_model(training):
    """Builds the classifier: a frozen encoder, batch norm, a linear head."""
    model = training.build({"batch_norm": True})
    model.encoder.trainable = False
    if model.head_norm is not None:
        model.head_norm.trainable = False
    training.compile(model, make_lars(training), **training.config.compile_options())
    return model


def make_lars(training, steps=None):
    """Makes the published optimizer, with its schedule of `steps` an epoch."""
    config, steps = training.config, steps or training.steps
    schedule = warmup_cosine(
        training.learning_rate, config.epochs * steps, config.warmup_epochs * steps
    )
    return LARS(schedule, weight_decay=config.weight_decay)


def evaluate_features(training, model, processor):
    """Computes the features once, asks them, and draws."""
    config = training.config
    if training.replicas > 1:
        raise ValueError(
            "Features are computed by one device: --strategy=cpu or gpu. "
            f"Received: {config.strategy}"
        )
    folder = Path(config.output)
    if list_checkpoints(training.run.checkpoints):
        # its model.keras would be replaced
        raise ValueError(f"{folder} holds a training run: choose another --output")
    folder.mkdir(parents=True, exist_ok=True)
    features = load_features(training, model, processor)
    ask = {"linear": ask_linear, "knn": ask_neighbours, "logistic": ask_logistic}
    scores = ask[config.method](training, model, features)
    if config.method == "linear":
        with replacing(folder / "model.keras") as part:
            model.save(part)
        processor.save_pretrained(folder)
        write_labels(folder, training.class_names)
    top1, top5 = probing.top_accuracies(scores, features["held_out_labels"])
    print(
        f"{config.method}: {len(scores):,} held-out images, top-1 {top1:.2%}, "
        f"top-5 {top5:.2%}"
    )
    if config.pictures:
        draw(folder, features, scores, training.class_names)
    return top1


def load_features(training, model, processor):
    """Reads the features of training and held-out images, or computes them."""
    config, source = training.config, training.source
    function = tf.function(lambda images: model.pooled(images, training=False))

    def compute():
        arrays = {}
        for name, is_training in (("training", True), ("held_out", False)):
            batches = data.evaluation_pipeline(
                source,
                processor,
                config.batch_size,
                training=is_training,
                corrupt=training.corrupt,
            )
            steps = data.evaluation_steps(source, config.batch_size, is_training)
            features, labels = probing.extract_features(function, batches, steps)
            training.corrupt.check()
            arrays |= {f"{name}_features": features, f"{name}_labels": labels}
        return arrays

    key = probing.fingerprint(
        [*model.encoder.weights, *getattr(model.head_norm, "weights", ())],
        data.describe_contents(source),
        *(config.pooling, config.precision, processor.get_config()),
    )
    return probing.cached(Path(config.output, "features.npz"), key, compute)


def ask_linear(training, model, features):
    """Trains the head on features; returns the logits of held-out images."""
    config, classes = training.config, len(training.class_names)
    head = keras.Sequential(
        [keras.Input((model.encoder.hidden_dim,)), model.batch_norm, model.head]
    )
    # a head so small is compiled longer than it trains
    steps = -(-len(features["training_features"]) // config.batch_size)
    training.compile(head, make_lars(training, steps), jit_compile=False)
    head.fit(
        features["training_features"],
        np.eye(classes, dtype="float32")[features["training_labels"]],
        batch_size=config.batch_size,
        epochs=config.epochs,
        verbose=0,
    )
    return head.predict(features["held_out_features"], verbose=0)


def ask_neighbours(training, model, features):
    """Lets neighbours vote; returns their votes."""
    config = training.config
    return probing.knn_scores(
        features["training_features"],
        features["training_labels"],
        features["held_out_features"],
        len(training.class_names),
        config.k,
        config.temperature,
    )


def ask_logistic(training, model, features):
    """Fits a logistic regression; returns the probabilities of held-out images."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    regression = LogisticRegression(C=training.config.c, max_iter=2000)
    fitted = make_pipeline(StandardScaler(), regression)
    fitted.fit(features["training_features"], features["training_labels"])
    scores = np.zeros((len(features["held_out_labels"]), len(training.class_names)))
    scores[:, fitted.classes_] = fitted.predict_proba(features["held_out_features"])
    return scores


def draw(folder, features, scores, class_names):
    """Draws which class is taken for which, and the held-out features in a plane."""
    labels = features["held_out_labels"]
    picture = confusion_picture(labels, scores.argmax(axis=-1), class_names)
    picture.save(folder / "confusion.png")
    for method in METHODS:
        picture = feature_picture(
            features["held_out_features"], labels, class_names, method
        )
        picture.save(folder / f"features-{method}.png")
    print(f"Pictures: {folder}/confusion.png and features-*.png")


def cli():
    """Runs the command line."""
    run_script(exit_on_lost_worker(main), ProbeConfig, __doc__)


if __name__ == "__main__":
    cli()
