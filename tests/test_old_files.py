"""Files that version 0.1 wrote are read, resumed and served by every later one."""

import csv
import json
import shutil
import urllib.request

import keras
import numpy as np
import pytest

import keras_mae
from tests.fixtures.make_fixtures import FLAGS, FOLDER, presets
from tests.scripts import ROOT, load

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def answers():
    with np.load(FOLDER / "answers.npz") as file:
        return dict(file)


@pytest.mark.backends
def test_a_keras_file_loads_with_its_optimizer(answers):
    model = keras.models.load_model(FOLDER / "run/model.keras")
    outputs = model(answers["pixels"], noise=answers["noise"])
    for name in ("loss", "logits", "mask"):
        value = keras.ops.convert_to_numpy(outputs[name])
        np.testing.assert_allclose(value, answers[name], **TOLERANCE)
    features = keras.ops.convert_to_numpy(model.encoder(answers["pixels"]))
    np.testing.assert_allclose(features, answers["features"], **TOLERANCE)
    assert int(model.optimizer.iterations) == 22


@pytest.mark.slow
def test_a_run_goes_on_to_the_same_end(answers, tmp_path):
    run = shutil.copytree(FOLDER / "run", tmp_path / "run")
    assert json.loads((run / "config.json").read_text())["epochs"] == 3
    pretrain = load("training/pretrain.py")
    flags = {**FLAGS, "output": str(run), "resume": True}
    with presets():
        pretrain.main(pretrain.PretrainConfig(**flags))
    rows = list(csv.DictReader((run / "history.csv").open()))
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert float(rows[-1]["loss"]) == pytest.approx(float(answers["last_loss"]), 1e-3)


def test_a_savedmodel_answers_as_its_model(answers, tmp_path):
    tf = pytest.importorskip("tensorflow")
    shutil.unpack_archive(FOLDER / "savedmodel.zip", tmp_path)
    served = tf.saved_model.load(str(tmp_path / "1"))
    features = served.signatures["features_from_pixels"](
        pixels=tf.constant(answers["pixels"])
    )["features"]
    np.testing.assert_allclose(features, answers["features"], **TOLERANCE)


def test_a_processor_of_a_run_is_read():
    processor = keras_mae.MAEImageProcessor.from_pretrained(FOLDER / "run")
    assert processor.num_channels == 1


@pytest.mark.slow
def test_a_savedmodel_is_served(answers, tmp_path):
    for package in ("starlette", "uvicorn", "grpc", "tensorflow_serving"):
        pytest.importorskip(package)
    from mae_server.process import running

    shutil.unpack_archive(FOLDER / "savedmodel.zip", tmp_path)
    body = json.dumps(
        {
            "signature_name": "features_from_pixels",
            "inputs": {"pixels": answers["pixels"].tolist()},
        }
    )
    with running(ROOT / "serving/local_server.py", f"--model_base_path={tmp_path}") as (
        rest, _, _,
    ):  # fmt: skip
        url = f"http://{rest}/v1/models/mae:predict"
        with urllib.request.urlopen(url, body.encode()) as response:
            features = json.load(response)["outputs"]
    np.testing.assert_allclose(features, answers["features"], **TOLERANCE)
