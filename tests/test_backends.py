"""Each backend of Keras gives TensorFlow's numbers: ported, pretrained, fine-tuned."""

import os
import subprocess
import sys

import numpy as np
import pytest

import keras_mae
from tests.scripts import ROOT

PARTS = "ported", "pretrained", "finetuned"


def run(backend, folder):
    finished = subprocess.run(
        [sys.executable, "-m", "tests.backend_run", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "KERAS_BACKEND": backend},
    )
    assert finished.returncode == 0, finished.stderr


def felt(name, value):
    """Leaves out the bias of keys: softmax doesn't feel it."""
    if not name.endswith("qkv.bias"):
        return value
    query, _, values = np.split(value, 3)
    return np.concatenate([query, values])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A published kind of checkpoint, and what TensorFlow makes of it."""
    folder = tmp_path_factory.mktemp("backends")
    small = {"hidden_dim": 16, "depth": 2, "num_heads": 2, "mlp_dim": 32}
    decoder = {"decoder_hidden_dim": 8, "decoder_depth": 1, "decoder_num_heads": 2}
    model = keras_mae.MAEPretrainer.from_preset(
        "mae_tiny", patch_size=8, decoder_mlp_dim=16, **small, **decoder
    )
    model.save_pretrained(folder / "checkpoint")
    run("tensorflow", folder)
    return folder


@pytest.mark.nightly
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_a_backend_gives_the_same_numbers(backend, folder):
    pytest.importorskip(backend)
    run(backend, folder)
    for part in PARTS:
        tolerance = 1e-5 if part == "ported" else 5e-5  # AdamW magnifies rounding
        wanted = np.load(folder / f"tensorflow-{part}.npz")
        got = np.load(folder / f"{backend}-{part}.npz")
        assert sorted(got) == sorted(wanted)
        for name in wanted:
            mine, theirs = (felt(name, archive[name]) for archive in (got, wanted))
            scale = max(np.abs(theirs).max(), 1e-3)
            error = np.abs(mine - theirs).max()
            assert error < tolerance * scale, (part, name, error, scale)
