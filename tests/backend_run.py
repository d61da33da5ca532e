"""What test_backends.py runs on each backend: the same work, its numbers in a file.

Run: KERAS_BACKEND=jax python -m tests.backend_run FOLDER
"""

import sys
from pathlib import Path

import keras
import numpy as np

import keras_mae

LOSS = {"from_logits": True}


def images(count=8):
    """Makes images far enough apart that no class hangs on rounding."""
    noise = np.random.default_rng(0).standard_normal((count, 32, 32, 3))
    waves = np.sin(np.arange(32 * 32 * 3) * np.linspace(0.1, 2, count)[:, None])
    return (0.3 * noise + waves.reshape(noise.shape)).astype("float32")


def values(model):
    """Returns a model's weights by path, without the states of random generators."""
    return {
        weight.path: keras.ops.convert_to_numpy(weight)
        for weight in model.weights
        if "seed_generator" not in weight.path
    }


def ported(folder):
    """Reads a published checkpoint; reconstructs by it."""
    model = keras_mae.MAEPretrainer.from_pretrained(folder)
    outputs = model(images(2), seed=3)
    pictures = model.reconstruct(images(2), seed=3)
    return {**outputs, **pictures, "tokens": model.encoder(images(2))}


def pretrained(folder):
    """Pretrains for four updates, in parts and clipped; evaluates and predicts."""
    model = keras_mae.MAEPretrainer.from_pretrained(folder, norm_pix_loss=True)
    model.encoder.masking.seed_generator.state.assign([5, 0])
    model.compile(
        optimizer=keras_mae.pretraining_optimizer(1e-3),
        accumulation_steps=2,
        clip_norm=0.5,
    )
    history = model.fit(images(), batch_size=4, epochs=2, shuffle=False, verbose=0)
    predicted = model.predict(images(), batch_size=4, verbose=0)
    return {
        **history.history,
        **values(model),
        "evaluated": model.evaluate(images(), batch_size=4, verbose=0),
        "logits": predicted["logits"],
    }


def finetuned(folder):
    """Fine-tunes with all that the paper's recipe draws at random."""
    model = keras_mae.MAEClassifier.from_pretrained(
        folder, num_classes=3, drop_path_rate=0.3
    )
    model.head.kernel.assign(np.random.default_rng(1).standard_normal((16, 3)))
    model.encoder.stochastic_depth.seed_generator.state.assign([5, 0])
    model.compile(
        optimizer=keras_mae.finetuning_optimizer(1e-3, layer_decay=0.75, depth=2),
        loss=keras.losses.SparseCategoricalCrossentropy(**LOSS),
        metrics=["accuracy"],
        accumulation_steps=2,
    )
    history = model.fit(
        images(),
        np.arange(8) % 3,
        sample_weight=np.linspace(0.5, 1, 8),
        batch_size=4,
        epochs=2,
        shuffle=False,
        verbose=0,
    )
    evaluated = model.evaluate(images(), np.arange(8) % 3, verbose=0, return_dict=True)
    return {
        **history.history,
        **values(model),
        **{f"evaluated {name}": value for name, value in evaluated.items()},
        "logits": model.predict(images(), verbose=0),
    }


def main(folder):
    """Runs all; says so where TensorFlow was imported by us."""
    if keras.backend.backend() != "tensorflow":
        assert "tensorflow" not in sys.modules, "import keras_mae imports TensorFlow"
    for part in (ported, pretrained, finetuned):
        results = part(folder / "checkpoint")
        results = {
            # slashes would make folders of an archive's names
            name.replace("/", "."): keras.ops.convert_to_numpy(value)
            for name, value in results.items()
        }
        file = folder / f"{keras.backend.backend()}-{part.__name__}.npz"
        np.savez(file, **results)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
