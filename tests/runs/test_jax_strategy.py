"""Strategies on JAX: wrong flags, the batches of replicas, a run that is resumed."""

import csv
import shutil
import subprocess

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mae.callbacks.checkpoints import list_checkpoints
from keras_mae.utils.distribution import make_strategy
from tests.scripts import command, environment

pytest.importorskip("jax")

from keras_mae.runs.jax_strategy import JaxStrategy, make_jax_strategy


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("mirrored",), "one of cpu, gpu, data_parallel, model_parallel. Received: 'm"),
        (("cpu", 2), "take replicas. Received: 'cpu', 2"),
        (("data_parallel", 0), "replicas must be at least 1. Received: 0"),
        (("data_parallel", 2, 2), "takes model_shards. Received: 'data_parallel', 2"),
        (("model_parallel", 2), "takes model_shards. Received: 'model_parallel', None"),
        (("cpu", None, None, "local"), "tpu must not be given. Received: 'local'"),
    ],
)
def test_wrong_flags_are_refused(arguments, message):
    with pytest.raises(ValueError) as error:
        make_jax_strategy(*arguments)
    assert message in str(error.value)


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setenv("KERAS_DISTRIBUTION_NUM_PROCESSES", "2")
    with pytest.raises(ValueError, match="one process"):
        make_jax_strategy("data_parallel")


def test_another_backend_has_no_tf_distribute(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(ValueError, match="KERAS_BACKEND=torch"):
        make_strategy("cpu")


def test_batches_of_replicas_are_joined_in_their_order():
    strategy = JaxStrategy()
    strategy.num_replicas_in_sync = 2

    def make(context):
        size = context.get_per_replica_batch_size(6)
        rows = tf.data.Dataset.range(12)
        return rows.map(lambda row: (row, -row)).batch(size, drop_remainder=True)

    first, second = strategy.distribute_datasets_from_function(make)
    np.testing.assert_array_equal(first[0], range(6))
    np.testing.assert_array_equal(second[1], -np.arange(6, 12))


def train(folder, *flags):
    finished = subprocess.run(
        command(
            "training/pretrain.py",
            *("--epochs=2", "--warmup_epochs=1", "--patch_size=16", "--blr=8e-3"),
            *("--pictures=1", "--checkpoint_steps=8", "--keep=9"),
            *(f"--output={folder}", *flags),
        ),
        capture_output=True,
        text=True,
        env={**environment(), "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"},
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    with open(folder / "history.csv") as file:
        rows = list(csv.DictReader(file))
    names = "loss", "val_loss", "learning_rate"
    return [[float(row[name]) for name in names] for row in rows]


@pytest.fixture(scope="module")
def model_parallel_run(tmp_path_factory):
    """A run whose weights two devices share, and its history."""
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("run")
    shared = ("--strategy=model_parallel", "--replicas=1", "--model_shards=2")
    return folder, train(folder, *shared)


@pytest.mark.nightly
def test_tensorflow_reads_what_jax_trained(model_parallel_run):
    folder, history = model_parallel_run
    assert history[1][1] < history[0][1]
    assert list(list_checkpoints(folder / "checkpoints")) == [0, 8, 16, 24, 32, 40, 44]
    model = keras.models.load_model(folder / "model.keras")
    assert int(model.optimizer.iterations) == 44


@pytest.mark.nightly
def test_a_run_goes_on_with_another_strategy(model_parallel_run, tmp_path):
    folder, history = model_parallel_run
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    found = list_checkpoints(tmp_path / "checkpoints")
    for step in (32, 40, 44):
        found[step].unlink()
    resumed = train(tmp_path, "--resume", "--strategy=data_parallel", "--replicas=2")
    np.testing.assert_allclose(resumed, history, rtol=1e-5)
