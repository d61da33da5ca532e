"""Semantic segmentation of handwritten digits, with pretrained and random encoders.

Run: python training/segment.py --output=runs/segment

Each canvas shows several digits of scikit-learn; the classes of its pixels are
background and 0 to 9. The encoder is pretrained on canvases without labels, or comes
from a digits run of pretrain.py (--model=RUN); the same encoder with random weights is
fine-tuned beside it. Both are evaluated on canvases of held-out digits. Writes
`results.json`, `segmenter.keras` and `segmentation.png` (input | truth | predictions)
into --output.
"""

import keras_mae  # first: it imports TensorFlow quietly

# isort: split
import dataclasses
import json
from pathlib import Path

import keras
import numpy as np
from PIL import Image

from keras_mae import data
from keras_mae.callbacks.stopping import StopOnNonFiniteLoss
from keras_mae.models.loading import load_run
from keras_mae.utils.flags import check_at_least, flag, run_script
from keras_mae.visualization.reconstructions import draw_panels

CLASSES = 11
# RGB of the background, then of each digit
COLORS = "000000e6194b3cb44bffe1190082c8f58231911eb446f0f0f032e6d2f53cfabed4"
# pixels: a canvas of 32 x 32 takes one to four digits, mostly two
DIGIT_SIZE = 16
# pixels between possible places: finer shifts take longer to learn
GRID_STEP = 4
# grey level from which a pixel belongs to the digit
INK = 96
PRETRAINING_RATE = 1e-3
DRAWN = 6


@dataclasses.dataclass
class SegmentConfig:
    """Flags of this script."""

    output: str = flag("output folder", "runs/segment")
    model: str | None = flag(
        "pretraining run to start from; default: random weights", None
    )
    pretrain_epochs: int | None = flag(
        "pretraining epochs on unlabelled canvases; default: 15, or 0 with --model",
        None,
    )
    unlabelled: int = flag("number of canvases to pretrain on", 4000)
    labelled: int = flag("number of canvases to fine-tune on", 200)
    held_out: int = flag("number of canvases to evaluate on", 500)
    epochs: int = flag("fine-tuning epochs", 40)
    batch_size: int = flag("batch size of fine-tuning", 16)
    learning_rate: float = flag("peak learning rate of fine-tuning", 1e-3)
    seed: int = flag("random seed of canvases, weights and masks", 0)


def main(config):
    """Pretrains, fine-tunes from pretrained and random weights, and evaluates."""
    names = ("unlabelled", "labelled", "held_out", "epochs", "batch_size")
    check_at_least(config, 1, *names)
    if (config.pretrain_epochs or 0) < 0:
        raise ValueError(
            f"pretrain_epochs must be at least 0. Received: {config.pretrain_epochs}"
        )
    keras.utils.set_random_seed(config.seed)
    source = data.load_digits()
    model, processor = load_model(config.model, source)
    size = model.encoder.image_size
    known = source.training, source.training_labels
    unknown = source.held_out, source.held_out_labels
    rngs = [np.random.default_rng([config.seed, part]) for part in range(3)]
    unlabelled, _ = make_canvases(*known, config.unlabelled, size, rngs[0])
    labelled = make_canvases(*known, config.labelled, size, rngs[1])
    held_out = make_canvases(*unknown, config.held_out, size, rngs[2])
    encoders = make_encoders(config, model, processor.normalize(unlabelled))
    predictions = {"all background": np.zeros_like(held_out[1])}
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    for name, encoder in encoders.items():
        print(f"Fine-tuning from {name} weights")
        segmenter = fine_tune(
            config, encoder, processor.normalize(labelled[0]), labelled[1]
        )
        logits = segmenter.predict(processor.normalize(held_out[0]), verbose=0)
        predictions[name] = logits.argmax(axis=-1)  # (B, H, W)
        if name == next(iter(encoders)):
            segmenter.save(output / "segmenter.keras")
    write(output, *held_out, predictions)


def load_model(path, source):
    """Loads the `MAEPretrainer` and processor of a run, or builds new ones."""
    if path is None:
        model = keras_mae.MAEPretrainer.from_preset("mae_tiny", num_channels=1)
        size = model.encoder.image_size
        return model, keras_mae.MAEImageProcessor(size, source.mean, source.std)
    model, processor = load_run(path)
    if not isinstance(model, keras_mae.MAEPretrainer) or processor.num_channels != 1:
        raise ValueError(
            "--model must be a pretraining run on grayscale images. Received: a "
            f"{type(model).__name__} for {processor.num_channels} channel(s)"
        )
    return model, processor


def make_canvases(digits, labels, count, size, rng):
    """Pastes digits without overlap; returns images, and classes `(count, H, W)`."""
    if min(size) < DIGIT_SIZE:
        raise ValueError(
            f"A canvas must be at least {DIGIT_SIZE} pixels high and wide. "
            f"Received: the encoder's image_size={size}"
        )
    images = np.zeros((count, *size), "uint8")
    classes = np.zeros((count, *size), "int32")  # 0: background
    tries = 4 * size[0] * size[1] // DIGIT_SIZE**2
    for image, truth in zip(images, classes, strict=True):
        taken = np.zeros(size, bool)
        for index in rng.integers(len(digits), size=tries):
            places = [(extent - DIGIT_SIZE) // GRID_STEP + 1 for extent in size]
            top, left = rng.integers(places) * GRID_STEP
            place = np.s_[top : top + DIGIT_SIZE, left : left + DIGIT_SIZE]
            if not taken[place].any():
                taken[place] = True
                digit = Image.fromarray(digits[index][..., 0])
                image[place] = digit.resize((DIGIT_SIZE, DIGIT_SIZE))
                truth[place] = (image[place] >= INK) * (1 + labels[index])
    return images[..., None], classes


def make_encoders(config, model, unlabelled):
    """Pretrains if asked to; returns encoders by name, pretrained and random."""
    random = keras_mae.MAEEncoder.from_config(model.encoder.get_config())
    epochs = config.pretrain_epochs
    if epochs is None:
        epochs = 15 if config.model is None else 0
    if epochs:
        print(f"Pretraining on {len(unlabelled)} canvases without labels")
        # masked canvases take less memory
        batch_size = 2 * config.batch_size
        fit(model, unlabelled, None, PRETRAINING_RATE, epochs, batch_size)
    if epochs or config.model is not None:
        return {"pretrained": model.encoder, "random": random}
    return {"random": random}


def fine_tune(config, encoder, images, classes):
    """Trains encoder and head on labelled canvases; returns an `MAESegmenter`."""
    # the same initial head and order of batches for every encoder
    keras.utils.set_random_seed(config.seed)
    layers = (len(encoder.blocks) // 2, -1)
    segmenter = keras_mae.MAESegmenter(encoder, CLASSES, layers)
    rate, epochs = config.learning_rate, config.epochs
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    fit(segmenter, images, classes, rate, epochs, config.batch_size, loss=loss)
    return segmenter


def fit(model, images, classes, rate, epochs, batch_size, **options):
    """Trains with the published optimizer and schedule."""
    steps = epochs * -(-len(images) // batch_size)
    schedule = keras_mae.warmup_cosine(rate, steps, warmup_steps=steps // 10)
    optimizer = keras_mae.pretraining_optimizer(schedule)
    model.compile(optimizer=optimizer, **options)
    stop = StopOnNonFiniteLoss()
    model.fit(images, classes, batch_size, epochs, verbose=2, callbacks=[stop])


def score(truth, predicted):
    """Returns `pixel_accuracy` and `mean_iou` of classes `(B, H, W)`."""
    pairs = np.bincount((truth * CLASSES + predicted).ravel(), minlength=CLASSES**2)
    pairs = pairs.reshape(CLASSES, CLASSES)  # (true, predicted)
    both = np.diag(pairs)
    either = pairs.sum(axis=0) + pairs.sum(axis=1) - both
    # classes that occur in neither are left out of the mean
    iou = both[either > 0] / either[either > 0]
    accuracy = both.sum() / pairs.sum()
    return {"pixel_accuracy": float(accuracy), "mean_iou": float(iou.mean())}


def write(output, images, truth, predictions):
    """Prints and saves scores and pictures."""
    palette = np.frombuffer(bytes.fromhex(COLORS), "uint8").reshape(CLASSES, 3)
    panels = {"input": np.repeat(images, 3, axis=-1), "truth": palette[truth]}
    results = {}
    print("\nHeld-out canvases  pixel accuracy  mean IoU")
    for name, classes in predictions.items():
        results[name] = score(truth, classes)
        accuracy, iou = results[name].values()
        print(f"  {name:16} {accuracy:14.1%} {iou:9.1%}")
        if name != "all background":
            panels[name] = palette[classes]
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    rows = [panel[:DRAWN] for panel in panels.values()]
    picture = draw_panels(rows, [*panels], "Held-out digits.")
    picture.save(output / "segmentation.png")
    print(f"Pictures saved to {output / 'segmentation.png'}")


if __name__ == "__main__":
    run_script(main, SegmentConfig, __doc__)
