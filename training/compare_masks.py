"""Compare mask sampling strategies as the paper's table 1f does, on the digits.

Run: python training/compare_masks.py --output=runs/masks

For each seed and each strategy (random 75 %, block-wise 50 % and 75 %, grid-wise 75 %)
`mae_tiny` with two blocks, and one in the decoder, is pretrained on the 1,437 training
digits without labels. Its frozen features are then classified by logistic regression
on all labels, and by k-NN. Accuracies are those on 360 held-out digits. Writes
`results.json` and `table.md` into --output, and `masks.png`, the masks of photographs
as in the paper's figure 6. Results that are there are not measured again.
"""

import keras_mae  # first: it imports TensorFlow quietly

# isort: split
import dataclasses
import time
from pathlib import Path

import numpy as np

from keras_mae import data
from keras_mae.ops.neighbors import knn_scores, top_accuracies
from keras_mae.runs import probing
from keras_mae.runs.results_file import format_percent, read_results, write_results
from keras_mae.runs.short_pretraining import pretrain_encoder, source_features
from keras_mae.utils.flags import check_at_least, flag, run_script
from keras_mae.visualization import draw_masks

# the paper's top-1 of ViT-L on ImageNet-1K: fine-tuning, linear probing (table 1f)
PAPER = {
    ("random", 0.75): (84.9, 73.5),
    ("block", 0.5): (83.9, 72.3),
    ("block", 0.75): (82.8, 63.9),
    ("grid", 0.75): (84.0, 66.0),
}


@dataclasses.dataclass
class CompareMasksConfig:
    """Flags of this script."""

    output: str = flag("folder for results, table and picture", "runs/masks")
    seeds: int = flag("repetitions, each with other weights and masks", 3)
    epochs: int = flag("pretraining epochs", 20)
    batch_size: int = flag("batch size of pretraining", 64)


def main(config):
    """Pretrains and probes by every strategy; writes results, table and picture."""
    check_at_least(config, 1, "seeds", "epochs", "batch_size")
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    source = data.with_labels(data.load_digits())
    if not (folder / "masks.png").exists():
        draw(folder / "masks.png")
    path = folder / "results.json"
    settings = {"epochs": config.epochs, "batch_size": config.batch_size}
    rows, start = read_results(path, settings), time.perf_counter()
    for seed in range(config.seeds):
        for mask_sampling, mask_ratio in PAPER:
            choice = [mask_sampling, mask_ratio, seed]
            if any(row[:3] == choice for row in rows):
                continue
            linear, nearest = measure(source, mask_sampling, mask_ratio, seed, config)
            rows.append([*choice, linear, nearest])
            write_results(path, settings, rows)
            minutes = (time.perf_counter() - start) / 60
            print(
                f"seed {seed}, {mask_sampling:6} {mask_ratio:.0%}: linear {linear:.1%},"
                f" k-NN {nearest:.1%} ({minutes:.1f} min)",
                flush=True,
            )
    table = format_table(rows)
    (folder / "table.md").write_text(table + "\n")
    print(table)


def measure(source, mask_sampling, mask_ratio, seed, config):
    """Pretrains once; returns the accuracies of logistic regression and k-NN."""
    encoder = pretrain_encoder(
        source,
        seed,
        config.epochs,
        config.batch_size,
        mask_sampling=mask_sampling,
        mask_ratio=mask_ratio,
        jit_compile="auto",  # XLA would compile longer than so short a training takes
        depth=2,
        decoder_depth=1,
    )
    training, held_out = source_features(source, encoder, config.batch_size)
    labels = source.training_labels
    scores = (
        probing.fit_logistic_regression(training, labels).predict_proba(held_out),
        knn_scores(training, labels, held_out, source.num_classes),
    )
    return [top_accuracies(one, source.held_out_labels)[0] for one in scores]


def format_table(rows):
    """Formats mean and standard deviation over seeds as Markdown, in percent."""
    lines = [
        "| mask sampling | mask ratio | digits: linear | digits: k-NN | paper: linear "
        "| paper: fine-tuning |",
        "|---|---|---|---|---|---|",
    ]
    for choice, (finetuned, linear) in PAPER.items():
        values = [row[3:] for row in rows if tuple(row[:2]) == choice]
        cells = map(format_percent, zip(*values, strict=True))
        name, ratio = choice
        lines.append(
            f"| {name} | {ratio} | {' | '.join(cells)} | {linear} | {finetuned} |"
        )
    return "\n".join(lines)


def draw(path):
    """Draws the masks of three photographs, in 14x14 patches."""
    source = data.load_photos()
    processor = keras_mae.MAEImageProcessor(224, source.mean, source.std)
    images = np.concatenate([processor(photo) for photo in source.held_out])
    draw_masks(processor, images, 16, [*PAPER]).save(path)


if __name__ == "__main__":
    run_script(main, CompareMasksConfig, __doc__)
