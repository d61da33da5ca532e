"""Compare pretrained features with random ones and raw pixels, by number of labels.

Run: python training/compare.py --output=runs/compare

For each seed an encoder is pretrained on the 1,437 training digits without labels. It,
a random encoder and raw pixels are then evaluated with 1, 5, 20 and all labels of each
class: by fine-tuning (the recipe `small`), logistic regression and k-NN. Accuracies are
those of the last update on 360 held-out digits. Writes `results.json`, `table.md` and
`accuracies.png` into --output; results that are there are not measured again.
"""

import keras_mae  # first: it imports TensorFlow quietly

# isort: split
import dataclasses
import itertools
from pathlib import Path

import keras
import numpy as np

from keras_mae import data
from keras_mae.models.loading import copy_encoder
from keras_mae.ops.neighbors import knn_scores, top_accuracies
from keras_mae.optimizers.layer_decay import finetuning_optimizer
from keras_mae.optimizers.schedules import warmup_cosine
from keras_mae.recipes import FINE_TUNING
from keras_mae.runs import probing
from keras_mae.runs.results_file import format_percent, read_results, write_results
from keras_mae.runs.short_pretraining import (
    make_processor,
    pretrain_encoder,
    source_features,
)
from keras_mae.utils.flags import check_at_least, flag, run_script
from keras_mae.visualization.plots import plot_accuracies

LABELS = (1, 5, 20, None)
PRETRAINED, RANDOM, PIXELS = FEATURES = ("pretrained", "random", "raw pixels")
FINE_TUNED, LINEAR, NEAREST = ("fine-tuning", "linear", "k-NN")


@dataclasses.dataclass
class CompareConfig:
    """Flags of this script."""

    output: str = flag("folder for results, table and plot", "runs/compare")
    seeds: int = flag("repetitions, each with other weights and labels", 3)
    pretrain_epochs: int = flag("pretraining epochs", 100)
    pretrain_batch_size: int = flag("batch size of pretraining", 64)
    updates: int = flag("training steps of each fine-tuning", 300)
    batch_size: int = flag("batch size of fine-tuning", 32)


def main(config):
    """Computes missing results, and writes table and plot."""
    check_at_least(config, 1, *(dataclasses.asdict(config).keys() - {"output"}))
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    settings = dataclasses.asdict(config) | {"output": None, "seeds": None}
    results = Results(folder / "results.json", settings)
    source = data.with_labels(data.load_digits())
    for seed in range(config.seeds):
        wanted = [(seed, *rest) for rest in itertools.product(LABELS, cases())]
        if all(key in results for key in wanted):
            continue
        encoders = {
            PRETRAINED: pretrain_encoder(
                source, seed, config.pretrain_epochs, config.pretrain_batch_size
            )
        }
        keras.utils.set_random_seed(1000 + seed)
        encoders[RANDOM] = keras_mae.MAEEncoder.from_config(
            encoders[PRETRAINED].get_config()
        )
        compare(source, encoders, seed, config, results)
    table = format_table(results)
    (folder / "table.md").write_text(table + "\n")
    names = [text(labels) for labels in LABELS]
    curves = {case: results.over_seeds(case) for case in cases()}
    plot_accuracies(names, curves).save(folder / "accuracies.png")
    print(f"{table}\nPlot saved to {folder / 'accuracies.png'}")


def cases():
    """Lists all `(method, features)`."""
    both = itertools.product((LINEAR, NEAREST), FEATURES)
    return [(FINE_TUNED, PRETRAINED), (FINE_TUNED, RANDOM), *both]


class Results:
    """Accuracies by `(seed, labels, (method, features))`, saved as JSON."""

    def __init__(self, path, settings):
        self.path, self.settings, self.values = path, settings, {}
        for seed, labels, method, features, value in read_results(path, settings):
            self.values[seed, labels, (method, features)] = value

    def __contains__(self, key):
        return key in self.values

    def add(self, key, value):
        """Prints and saves an accuracy."""
        self.values[key] = value
        seed, labels, (method, features) = key
        print(f"seed {seed}, {text(labels):>3} labels per class, {method:11}, "
              f"{features:10}: {value:.1%}", flush=True)  # fmt: skip
        rows = [[s, n, *case, v] for (s, n, case), v in self.values.items()]
        write_results(self.path, self.settings, rows)

    def over_seeds(self, case):
        """Returns the accuracies of all seeds, for each number of labels."""
        return [
            [v for (_, n, c), v in self.values.items() if (n, c) == (labels, case)]
            for labels in LABELS
        ]


def compare(source, encoders, seed, config, results):
    """Computes the missing results of a seed."""
    features = {
        name: source_features(source, encoder, config.batch_size)
        for name, encoder in encoders.items()
    }
    pixels = (source.training, source.held_out)
    features[PIXELS] = [np.stack(x).reshape(len(x), -1) / 255.0 for x in pixels]
    for labels in LABELS:
        few = data.few_labels(source, labels, seed)
        # the chosen images come first, and are then repeated
        count = len(source.class_names) * labels if labels else len(source.training)
        known = {image.tobytes(): i for i, image in enumerate(source.training)}
        chosen = [known[image.tobytes()] for image in few.training[:count]]
        for method, name in cases():
            key = seed, labels, (method, name)
            if key in results:
                continue
            if method == FINE_TUNED:
                value = fine_tune(few, encoders[name], seed, config)
            else:
                training, held_out = features[name]
                classify = {LINEAR: linear, NEAREST: nearest}[method]
                scores = classify(
                    training[chosen], source.training_labels[chosen], held_out
                )
                value, _ = top_accuracies(scores, source.held_out_labels)
            results.add(key, value)


def linear(features, labels, queries):
    """Returns class probabilities of logistic regression."""
    fitted = probing.fit_logistic_regression(features, labels)
    return fitted.predict_proba(queries)


def nearest(features, labels, queries):
    """Returns k-NN class scores."""
    return knn_scores(features, labels, queries, labels.max() + 1)


def fine_tune(source, encoder, seed, config):
    """Fine-tunes a copy of an encoder by the recipe; returns held-out accuracy."""
    recipe = FINE_TUNING["small"]
    keras.utils.set_random_seed(seed)
    encoder = copy_encoder(
        encoder, drop_path_rate=recipe["drop_path_rate"], train_positions=True
    )
    model = keras_mae.MAEClassifier(encoder, len(source.class_names))
    processor = make_processor(source, encoder)
    rate = recipe["blr"] * config.batch_size / 256
    warmup = config.updates // 10
    schedule = warmup_cosine(rate, config.updates, warmup, recipe["min_learning_rate"])
    model.compile(
        finetuning_optimizer(
            schedule,
            recipe["layer_decay"],
            len(encoder.blocks),
            recipe["weight_decay"],
        ),
        loss=keras.losses.CategoricalCrossentropy(from_logits=True),
    )
    batches = data.labelled_pipeline(
        source,
        processor,
        config.batch_size,
        seed,
        data.Augmentation((recipe["crop_scale"], 1.0), recipe["flip"]),
        data.Mixing(recipe["smoothing"], recipe["mixup"], recipe["cutmix"]),
    )
    model.fit(batches, steps_per_epoch=config.updates, verbose=0, shuffle=False)
    images = processor.normalize(np.stack(source.held_out))
    logits = model.predict(images, batch_size=config.batch_size, verbose=0)
    return top_accuracies(logits, source.held_out_labels)[0]


def text(labels):
    """Formats a number of labels."""
    return "all" if labels is None else str(labels)


def format_table(results):
    """Formats mean and standard deviation over seeds as Markdown, in percent."""
    lines = [
        "| method | features | " + " | ".join(map(text, LABELS)) + " |",
        "|---|---|" + "---|" * len(LABELS),
    ]
    for method, features in cases():
        cells = map(format_percent, results.over_seeds((method, features)))
        lines.append(f"| {method} | {features} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main, CompareConfig, __doc__)
