"""The main job on real data: pretrain, look, probe, export, serve, query.

Run: python training/demo.py --output=demo

Pretrains on handwritten digits for a few minutes, then says how well patches that were
removed are painted back on held-out images, and what the frozen features are worth to
a linear classifier. Writes `run/`, `models/`, `reconstructions.png` and
`results.json` into --output.
"""

import keras_mae  # first: it imports TensorFlow quietly

# isort: split
import base64
import contextlib
import dataclasses
import io
import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import keras
import numpy as np
from PIL import Image

from keras_mae import data
from keras_mae.export import export_savedmodel
from keras_mae.ops.patches import patchify
from keras_mae.utils import flags
from keras_mae.utils.flags import flag
from mae_server.process import running

PLAN = """\
This takes about {minutes} minutes on two CPU cores:
  1. pretrain a tiny model on 1,437 handwritten digits, {epochs} epochs
  2. paint removed patches of digits that it never saw
  3. probe its frozen features by a linear classifier
  4. export a SavedModel
  5. serve it, and ask for the features of a digit"""
ROOT = Path(__file__).resolve().parents[1]
FEW_LABELS = 100


@dataclasses.dataclass
class DemoConfig:
    """The flags of this script."""

    output: str = flag("folder for everything the demo writes", "demo")
    epochs: int = flag("passes over the 1,437 training digits", 50)


def main(config):
    """Runs every step and prints what came of it."""
    if config.epochs < 1:
        raise ValueError(f"epochs must be at least 1. Received: {config.epochs}")
    keras.utils.set_random_seed(0)
    output = Path(config.output)
    # as two cores without AVX-512 took
    minutes = round(1 + config.epochs / 15, 1)
    print(PLAN.format(epochs=config.epochs, minutes=minutes), flush=True)
    begin = time.monotonic()
    with timed("pretraining"):
        pretrain(output / "run", config.epochs)
    source = data.load_digits()
    model = keras.models.load_model(output / "run" / "model.keras", compile=False)
    processor = keras_mae.MAEImageProcessor.from_pretrained(output / "run")
    held_out = data.held_out_images(source, processor)
    results = {}
    with timed("painting removed patches"):
        picture = keras_mae.draw_reconstructions(model, processor, held_out[:4], seed=0)
        picture.save(output / "reconstructions.png")
        errors = compare_errors(model, processor, source, held_out)
        results["masked_patch_mse"] = errors
    with timed("probing"):
        results["probe_accuracy"], probe = compare_probes(model, processor, source)
    with timed("exporting"):
        export_savedmodel(
            model,
            processor,
            output / "models" / "mae" / "1",
            overwrite=True,
            warmup_batch_sizes=(),
        )
    models = f"--model_base_path={output / 'models' / 'mae'}"
    with (
        timed("serving and asking"),
        running(ROOT / "serving/local_server.py", models) as (rest, _, _),
    ):
        address = f"http://{rest}/v1/models/mae"
        results["served"] = query(address, source, model, held_out, probe)
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    report(results, output)
    print(f"All of it took {time.monotonic() - begin:.0f} s")


@contextlib.contextmanager
def timed(part):
    """Prints how long a part of the demo took."""
    begin = time.monotonic()
    yield
    print(f"-- {part} took {time.monotonic() - begin:.0f} s", flush=True)


def script(path, *arguments):
    """Runs a script of the project; its error becomes ours."""
    command = [sys.executable, ROOT / path, *arguments]
    finished = subprocess.run([str(part) for part in command])
    if finished.returncode:
        raise ValueError(f"{path} failed with exit code {finished.returncode}")


def pretrain(run, epochs):
    """Pretrains a tiny model; small images and few of them want a high rate."""
    script(
        "training/pretrain.py",
        *("--dataset=digits", "--preset=mae_tiny", "--no-norm_pix_loss"),
        *("--blr=8e-3", "--batch_size=64", f"--warmup_epochs={min(5, epochs - 1)}"),
        *(f"--epochs={epochs}", f"--output={run}", "--overwrite"),
        "--jit_compile=on",  # 10 s to compile, a fifth of each epoch less
    )


def compare_errors(model, processor, source, images):
    """Measures the error on removed patches of held-out images against two baselines.

    Args:
        model: A `MAEPretrainer` without `norm_pix_loss`.
        processor: The `MAEImageProcessor` that made `images`.
        source: The `Source` of the training images.
        images: `(B, H, W, C)` float array, held out.

    Returns:
        Dict of mean squared errors, pixels in [0, 1]: of the `model`, of the
        `training_mean` of each patch, and of each image's `visible_mean` patch.
    """

    def pixels(normalized):
        grey = processor.denormalize(np.asarray(normalized)) / 255
        return np.asarray(patchify(grey, model.encoder.patch_size))  # (B, L, P)

    outputs = model.reconstruct(images, seed=0)
    mask = np.asarray(outputs["mask"])  # (B, L)
    wanted = pixels(images)
    training = pixels(processor.normalize(np.stack(source.training)))
    visible = (wanted * (1 - mask)[..., None]).sum(axis=1, keepdims=True)
    guesses = {
        "model": pixels(outputs["reconstruction"]),
        "training_mean": training.mean(axis=0, keepdims=True),
        "visible_mean": visible / (1 - mask).sum(axis=1)[:, None, None],
    }
    return {
        name: float((((guess - wanted) ** 2).mean(axis=-1) * mask).sum() / mask.sum())
        for name, guess in guesses.items()
    }


def mean_features(encoder, images):
    """Encodes whole images and averages their patch tokens: `(B, D)`."""
    tokens = encoder.predict(images, batch_size=256, verbose=0)
    return tokens[:, 1:].mean(axis=1)


def compare_probes(model, processor, source):
    """Fits the same linear classifier on several frozen features.

    Args:
        model: The pretrained `MAEPretrainer`.
        processor: Its `MAEImageProcessor`.
        source: A `Source` with labels.

    Returns:
        A tuple: dict from features to `{labels used: held-out accuracy}`, and the
        classifier fitted on the pretrained features with all labels.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    training = processor.normalize(np.stack(source.training))
    held_out = processor.normalize(np.stack(source.held_out))
    random = keras_mae.MAEEncoder.from_config(model.encoder.get_config())
    features = {
        "pretrained": [mean_features(model.encoder, x) for x in (training, held_out)],
        "random": [mean_features(random, x) for x in (training, held_out)],
        "raw_pixels": [x.reshape(len(x), -1) for x in (training, held_out)],
    }
    chosen = np.random.default_rng(0).permutation(len(training))
    accuracies, probe = {}, None
    for name, (x, x_held_out) in features.items():
        accuracies[name] = {}
        for count in (FEW_LABELS, len(training)):
            # a ridge strong enough for 128 features from 100 labels
            classifier = LogisticRegression(C=0.1, max_iter=2000)
            fitted = make_pipeline(StandardScaler(), classifier)
            fitted.fit(x[chosen[:count]], source.training_labels[chosen[:count]])
            score = fitted.score(x_held_out, source.held_out_labels)
            accuracies[name][str(count)] = float(score)
            probe = fitted if name == "pretrained" else probe
    return accuracies, probe


def query(address, source, model, held_out, probe):
    """Sends a held-out digit as PNG and reads its features back.

    Returns:
        Dict: what the probe reads in the served features, the true label, and how far
        the served features lie from the Keras model's.
    """
    png = io.BytesIO()
    Image.fromarray(source.held_out[0].squeeze(-1)).save(png, "PNG")
    encoded = base64.b64encode(png.getvalue()).decode()
    body = json.dumps({"instances": [{"b64": encoded}]}).encode()
    # loopback needs no proxy, whatever the environment says
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{address}:predict", data=body) as response:
        features = np.array(json.load(response)["predictions"])  # (1, 1 + L, D)
    wanted = np.asarray(model.encoder(held_out[:1]))
    return {
        "address": f"{address}:predict",
        "features_shape": list(features.shape),
        "largest_difference_to_keras": float(np.abs(features - wanted).max()),
        "probe_reads": int(probe.predict(features[:, 1:].mean(axis=1))[0]),
        "label": int(source.held_out_labels[0]),
    }


def report(results, output):
    """Prints the numbers and where everything lies."""
    print("\nMean squared error on removed patches, held-out digits, pixels in [0, 1]:")
    for name, error in results["masked_patch_mse"].items():
        print(f"  {name.replace('_', ' '):14} {error:.4f}")
    print("Linear probe on frozen features, held-out accuracy by number of labels:")
    for name, scores in results["probe_accuracy"].items():
        line = "   ".join(f"{count}: {score:.1%}" for count, score in scores.items())
        print(f"  {name.replace('_', ' '):14} {line}")
    served = results["served"]
    print(f"POST {served['address']}\n  answered features {served['features_shape']},")
    print(f"  {served['largest_difference_to_keras']:.1e} away from the Keras model's;")
    print(f"  the probe reads a {served['probe_reads']}, it is a {served['label']}")
    print(
        f"Pictures: {output / 'reconstructions.png'}\n"
        f"Run:      {output / 'run'} (tensorboard --logdir {output / 'run' / 'logs'})\n"
        f"Model:    {output / 'models' / 'mae'} (SavedModel, for TF Serving)\n"
        f"Numbers:  {output / 'results.json'}"
    )


if __name__ == "__main__":
    flags.run_script(main, DemoConfig, __doc__)
