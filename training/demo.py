"""Demo on handwritten digits: pretrain, reconstruct, probe, export, serve, query.

Run: python training/demo.py --output=demo

Pretrains for a few minutes, then reports the error of reconstructed patches on held-out
images, and the accuracy of a linear classifier on the frozen features. Writes `run/`,
`models/`, `reconstructions.png` and `results.json` into --output.
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
from keras_mae.runs.probing import fit_logistic_regression, mean_features
from keras_mae.utils.flags import check_at_least, flag, run_script
from mae_server.process import running

PLAN = """\
This takes about {minutes} minutes on two CPU cores:
  1. pretrain a tiny model on 1,437 handwritten digits, {epochs} epochs
  2. reconstruct masked patches of held-out digits
  3. train a linear classifier on its frozen features
  4. export a SavedModel
  5. serve it, and request the features of a digit"""
ROOT = Path(__file__).resolve().parents[1]
FEW_LABELS = 100


@dataclasses.dataclass
class DemoConfig:
    """Flags of this script."""

    output: str = flag("output folder", "demo")
    epochs: int = flag("pretraining epochs, over 1,437 digits", 50)


def main(config):
    """Runs every step, and prints the results."""
    check_at_least(config, 1, "epochs")
    keras.utils.set_random_seed(0)
    output = Path(config.output)
    # as measured on two cores without AVX-512
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
    with timed("reconstructing"):
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
        timed("serving and querying"),
        # the first request traces the model, which takes long on a slow machine
        running(
            ROOT / "serving/local_server.py", models, "--rest_api_timeout_in_ms=600000"
        ) as (rest, _, _),
    ):
        address = f"http://{rest}/v1/models/mae"
        results["served"] = query(address, source, model, held_out, probe)
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    report(results, output)
    print(f"The demo took {time.monotonic() - begin:.0f} s")


@contextlib.contextmanager
def timed(step):
    """Prints how long a step of the demo took."""
    begin = time.monotonic()
    yield
    print(f"-- {step} took {time.monotonic() - begin:.0f} s", flush=True)


def script(path, *arguments):
    """Runs a script of the project; raises `ValueError` if it fails."""
    command = [sys.executable, ROOT / path, *arguments]
    finished = subprocess.run([str(part) for part in command])
    if finished.returncode:
        raise ValueError(f"{path} failed with exit code {finished.returncode}")


def pretrain(run, epochs):
    """Pretrains a tiny model; small datasets need a high learning rate."""
    script(
        "training/pretrain.py",
        *("--dataset=digits", "--preset=mae_tiny", "--no-norm_pix_loss"),
        *("--blr=8e-3", "--batch_size=64", f"--warmup_epochs={min(5, epochs - 1)}"),
        *(f"--epochs={epochs}", f"--output={run}", "--overwrite"),
        "--jit_compile=on",  # 10 s to compile, then a fifth faster
    )


def compare_errors(model, processor, source, images):
    """MSE on masked patches, pixels in [0, 1], of the model and two baselines."""

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


def compare_probes(model, processor, source):
    """Returns accuracies by features and number of labels, and the pretrained probe."""
    images = [
        processor.normalize(np.stack(x)) for x in (source.training, source.held_out)
    ]
    random = keras_mae.MAEEncoder.from_config(model.encoder.get_config())
    features = {
        "pretrained": [mean_features(model.encoder, x, 256) for x in images],
        "random": [mean_features(random, x, 256) for x in images],
        "raw_pixels": [x.reshape(len(x), -1) for x in images],
    }
    chosen = np.random.default_rng(0).permutation(len(source.training))
    accuracies, probe = {}, None
    for name, (x, x_held_out) in features.items():
        accuracies[name] = {}
        for count in (FEW_LABELS, len(source.training)):
            some = chosen[:count]
            fitted = fit_logistic_regression(x[some], source.training_labels[some])
            score = fitted.score(x_held_out, source.held_out_labels)
            accuracies[name][str(count)] = float(score)
            # in the end that of all labels
            probe = fitted if name == "pretrained" else probe
    return accuracies, probe


def query(address, source, model, held_out, probe):
    """Requests the features of a held-out PNG; compares them with the Keras model's."""
    png = io.BytesIO()
    Image.fromarray(source.held_out[0].squeeze(-1)).save(png, "PNG")
    encoded = base64.b64encode(png.getvalue()).decode()
    body = json.dumps({"instances": [{"b64": encoded}]}).encode()
    # no proxy for loopback, whatever the environment says
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{address}:predict", data=body) as response:
        features = np.array(json.load(response)["predictions"])  # (1, 1 + L, D)
    wanted = np.asarray(model.encoder(held_out[:1]))
    return {
        "address": f"{address}:predict",
        "features_shape": list(features.shape),
        "largest_difference_to_keras": float(np.abs(features - wanted).max()),
        "predicted": int(probe.predict(features[:, 1:].mean(axis=1))[0]),
        "label": int(source.held_out_labels[0]),
    }


def report(results, output):
    """Prints the results, and the files that were written."""
    print("\nMean squared error on masked patches, held-out digits, pixels in [0, 1]:")
    for name, error in results["masked_patch_mse"].items():
        print(f"  {name.replace('_', ' '):14} {error:.4f}")
    print(
        "Logistic regression on frozen features, held-out accuracy by number of labels:"
    )
    for name, scores in results["probe_accuracy"].items():
        line = "   ".join(f"{count}: {score:.1%}" for count, score in scores.items())
        print(f"  {name.replace('_', ' '):14} {line}")
    served = results["served"]
    print(f"POST {served['address']}\n  features of shape {served['features_shape']},")
    print(f"  {served['largest_difference_to_keras']:.1e} from the Keras model's;")
    print(f"  predicted digit {served['predicted']}, label {served['label']}")
    print(
        f"Pictures: {output / 'reconstructions.png'}\n"
        f"Run:      {output / 'run'} (tensorboard --logdir {output / 'run' / 'logs'})\n"
        f"Model:    {output / 'models' / 'mae'} (SavedModel, for TF Serving)\n"
        f"Numbers:  {output / 'results.json'}"
    )


if __name__ == "__main__":
    run_script(main, DemoConfig, __doc__)
