"""Strategies: several replicas and workers train as one does; wrong settings."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from keras_mae.callbacks.checkpoints import list_checkpoints
from keras_mae.utils.distribution import make_strategy, read_tf_config
from tests.scripts import ROOT, run

# a process of its own: logical devices must be set before TensorFlow's first operation
TRAIN = """
import json, sys
import keras, numpy as np, tensorflow as tf
import keras_mae
from keras_mae.utils.distribution import make_strategy

name, replicas, options = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
strategy = make_strategy(name, None if name == "cpu" else replicas)
keras.utils.set_random_seed(0)
images = np.random.default_rng(0).standard_normal((24, 16, 16, 3)).astype("float32")
dataset = tf.data.Dataset.from_tensor_slices(images).batch(12, drop_remainder=True)
with strategy.scope():
    model = keras_mae.MAEPretrainer.from_preset(
        "mae_tiny", image_size=16, depth=1, decoder_depth=1, seed=3
    )
    kernel = model.encoder.blocks[0].attention.qkv.kernel
    kernel.regularizer = keras.regularizers.L2(0.001)
    # plain SGD shows a wrong gradient scale, which Adam would hide
    optimizer = keras.optimizers.SGD(0.05)
    if options.pop("scaled", False):
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.compile(optimizer=optimizer, **options)
history = model.fit(
    dataset, epochs=3, validation_data=dataset, verbose=0, shuffle=False
).history
losses = {key: [float(np.mean(v)) for v in values] for key, values in history.items()}
weights = {}
for weight in model.trainable_weights:
    value = weight.numpy()
    if weight.path.endswith("qkv/bias"):
        # a shift of all scores changes nothing: the key's gradient is rounding alone
        value = np.delete(value, np.s_[len(value) // 3 : 2 * len(value) // 3])
    weights[weight.path] = value.ravel().tolist()
print(json.dumps([strategy.num_replicas_in_sync, losses, weights]))
"""


def train(strategy, replicas, options=None):
    arguments = [strategy, str(replicas), json.dumps(options or {})]
    finished = subprocess.run(
        [sys.executable, "-c", TRAIN, *arguments],
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


def test_only_a_strategy_of_several_workers_counts_those_of_tf_config(
    make_model, monkeypatch
):
    """Elsewhere it may be of another job, and a resumed epoch's metrics are its own."""
    cluster = {"worker": ["a:1", "b:1"]}
    config = {"cluster": cluster, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    model = make_model(depth=1)
    monkeypatch.setattr(model, "_is_distributed", lambda: True)  # as by mirrored
    assert model.count_workers() == 1


@pytest.fixture(scope="module")
def one_replica():
    return train("cpu", 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "replicas, options",
    [
        (2, {}),
        pytest.param(
            *(3, {"jit_compile": True, "accumulation_steps": 2}),
            marks=pytest.mark.nightly,
        ),
        pytest.param(4, {"accumulation_steps": 3}, marks=pytest.mark.nightly),
        pytest.param(2, {"scaled": True}, marks=pytest.mark.nightly),
    ],
)
def test_mirrored_replicas_equal_one(replicas, options, one_replica):
    _, losses, weights = one_replica
    count, mirrored_losses, mirrored_weights = train("mirrored", replicas, options)
    assert count == replicas
    for name, values in losses.items():
        np.testing.assert_allclose(mirrored_losses[name], values, atol=1e-6)
    assert set(mirrored_weights) == set(weights)
    for path, wanted in weights.items():
        np.testing.assert_allclose(
            mirrored_weights[path], wanted, atol=1e-6, err_msg=path
        )


@pytest.mark.nightly
def test_replicas_are_clipped_as_one():
    options = {"clip_norm": 0.05}
    _, losses, weights = train("cpu", 1, options)
    _, mirrored_losses, mirrored_weights = train("mirrored", 2, options)
    np.testing.assert_allclose(mirrored_losses["loss"], losses["loss"], atol=1e-6)
    for path, wanted in weights.items():
        np.testing.assert_allclose(mirrored_weights[path], wanted, atol=1e-6)


# the script itself, which then leaves its weights for the test
WORKER = """
import os
import sys
import numpy as np
from keras_mae.utils.flags import parse_flags
from keras_mae.runs.training_run import exit_on_lost_worker
from tests.scripts import load

pretrain = load("training/pretrain.py")
config = parse_flags(pretrain.PretrainConfig, "", sys.argv[2:])
try:
    model = exit_on_lost_worker(pretrain.main)(config)
except ValueError as error:
    print(error, file=sys.stderr, flush=True)
    # a farewell would wait for the others
    os._exit(2)
np.savez(sys.argv[1], *[v.numpy() for v in model.trainable_variables])
"""
FLAGS = ("--dataset=digits", "--epochs=2", "--warmup_epochs=1", "--patch_size=8",
         "--blr=8e-3", "--validation_images=64", "--batch_size=128")  # fmt: skip


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


def start_workers(folder, *flags, outputs=("run", "run")):
    """Starts a process for each worker, as an engine with `TF_CONFIG` does."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(len(outputs))]
    processes = []
    for index, output in enumerate(outputs):
        task = {"type": "worker", "index": index}
        cluster = {"cluster": {"worker": addresses}, "task": task}
        arguments = [f"{folder}/{index}.npz", "--strategy=multiworker", *FLAGS, *flags]
        with open(folder / f"{index}.log", "w") as log:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    WORKER,
                    *arguments,
                    f"--output={folder / output}",
                ],
                env={**os.environ, "TF_CONFIG": json.dumps(cluster)},
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        processes.append(process)
    return processes


def weights_of(folder, index):
    with np.load(folder / f"{index}.npz") as file:
        return [file[name] for name in file.files]


@pytest.mark.slow
def test_two_workers_train_as_one_and_write_once(tmp_path):
    pytest.importorskip("sklearn")
    workers = start_workers(tmp_path, outputs=("chief", "other"))
    for index, process in enumerate(workers):
        assert process.wait() == 0, (tmp_path / f"{index}.log").read_text()
    chief, other = (weights_of(tmp_path, index) for index in range(2))
    for mine, theirs in zip(chief, other, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert (tmp_path / "chief" / "model.keras").exists()
    assert not (tmp_path / "other").exists()
    finished = run("training/pretrain.py", *FLAGS, f"--output={tmp_path / 'one'}")
    assert finished.returncode == 0, finished.stderr
    rows = [
        list(csv.DictReader((tmp_path / name / "history.csv").open()))
        for name in ("chief", "one")
    ]
    for mine, alone in zip(*rows, strict=True):
        for name in ("loss", "val_loss", "gradient_norm"):
            assert float(mine[name]) == pytest.approx(float(alone[name]), abs=1e-6)


@pytest.mark.nightly
def test_workers_fail_together_where_one_fails(tmp_path):
    pytest.importorskip("sklearn")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "step-000000001.keras").touch()
    for process in start_workers(tmp_path):
        # not 75, which would start them again and again
        assert process.wait(timeout=600) == 2
    logs = [(tmp_path / f"{index}.log").read_text() for index in range(2)]
    assert "holds a run already" in logs[0]
    assert "Another worker failed; its log says why" in logs[1]


@pytest.mark.nightly
def test_workers_that_see_other_checkpoints_refuse(tmp_path):
    pytest.importorskip("sklearn")
    (tmp_path / "other" / "checkpoints").mkdir(parents=True)
    (tmp_path / "other" / "checkpoints" / "step-000000005.keras").touch()
    for process in start_workers(tmp_path, "--resume", outputs=("run", "other")):
        assert process.wait(timeout=600) == 2
    for index in range(2):
        log = (tmp_path / f"{index}.log").read_text()
        assert "in a folder that they share. Received the steps [0, 5]" in log


@pytest.mark.nightly
def test_a_killed_worker_comes_back_and_the_run_goes_on(tmp_path):
    pytest.importorskip("sklearn")
    whole = tmp_path / "whole"
    whole.mkdir()
    for process in start_workers(whole):
        assert process.wait() == 0
    flags = ("--checkpoint_steps=2", "--resume")
    chief, other = start_workers(tmp_path, *flags)
    deadline = time.monotonic() + 600
    while not max(list_checkpoints(tmp_path / "run/checkpoints"), default=0) >= 6:
        assert chief.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    other.kill()
    assert other.wait() == -signal.SIGKILL
    # "run it again", rather than waiting for ever
    assert chief.wait(timeout=600) == 75, (tmp_path / "0.log").read_text()
    assert not (tmp_path / "0.npz").exists()
    for process in start_workers(tmp_path, *flags):
        assert process.wait() == 0
    for index in range(2):
        for mine, wanted in zip(
            weights_of(tmp_path, index), weights_of(whole, 0), strict=True
        ):
            np.testing.assert_allclose(mine, wanted, atol=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "{}",
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
        '{"cluster": {"worker": "a:1"}, "task": {"type": "worker", "index": "x"}}',
    ],
)
def test_an_invalid_tf_config_is_refused(text, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match="TF_CONFIG must look like"):
        make_strategy("multiworker")


def test_one_cpu_is_the_default_strategy():
    # whose data sets need no iterator that copies to a device
    assert make_strategy("cpu") is tf.distribute.get_strategy()
    assert make_strategy(None) is tf.distribute.get_strategy()


def test_a_gpu_is_taken_unless_told_otherwise(monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [kind])
    for name, device in ((None, "GPU:0"), ("gpu", "GPU:0"), ("cpu", "CPU:0")):
        (found,) = make_strategy(name).extended.worker_devices
        assert found.endswith(device)


def test_workers_behind_a_chief_are_counted_on(monkeypatch):
    config = {
        "cluster": {"chief": ["a:1"], "worker": ["b:1", "c:1"]},
        "task": {"type": "worker", "index": 1},
    }
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    assert read_tf_config() == (["a:1", "b:1", "c:1"], 2)
    alone = {"cluster": {"chief": ["a:1"]}, "task": {"type": "chief", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(alone))
    assert read_tf_config() == (["a:1"], 0)


def test_a_worker_without_a_cluster_says_so(monkeypatch, caplog):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", lambda: "one")
    assert read_tf_config() == ([None], 0)
    assert make_strategy("multiworker") == "one"
    assert "TF_CONFIG is not set" in caplog.text


@pytest.mark.parametrize("address", [None, "no-such-tpu", "grpc://127.0.0.1:9"])
def test_a_missing_tpu_is_one_clear_error(address):
    with pytest.raises(ValueError, match="strategy 'tpu' needs a TPU") as error:
        make_strategy("tpu", tpu=address)
    assert len(str(error.value).splitlines()) == 1


def test_unknown_and_impossible_strategies_are_refused():
    with pytest.raises(
        ValueError, match=r"one of cpu, gpu, mirrored, .*tpu. Received: 'moon'"
    ):
        make_strategy("moon")
    with pytest.raises(ValueError, match="needs a GPU"):
        make_strategy("gpu")
    with pytest.raises(ValueError, match="Only strategy 'mirrored' takes replicas"):
        make_strategy("cpu", replicas=2)
    with pytest.raises(ValueError, match="Only strategy 'tpu' takes tpu"):
        make_strategy("cpu", tpu="mine")
    with pytest.raises(ValueError, match="replicas must be in"):
        make_strategy("mirrored", replicas=0)
