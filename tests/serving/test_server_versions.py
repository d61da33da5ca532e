"""serving/mae_server/versions.py: incomplete and broken model folders."""

import contextlib
import shutil
import threading

import numpy as np
import pytest
import tensorflow as tf

from mae_server.errors import RequestError
from mae_server.versions import ModelConfig, Models
from tests.conformance.models import save_echo

WARM_UP = "assets.extra/tf_serving_warmup_requests"


@pytest.fixture(scope="module")
def echo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("echo")
    save_echo(folder)
    return folder


@pytest.fixture
def follow(tmp_path, echo):
    """Serves version 1 in a folder `mae`; gives the models and that folder."""
    shutil.copytree(echo, tmp_path / "mae" / "1")
    with contextlib.closing(Models([ModelConfig("mae", tmp_path / "mae")])) as models:
        yield models, tmp_path / "mae"


def states(models):
    return {number: state for number, state, _ in models.status("mae")}


@pytest.mark.nightly
def test_incomplete_version_is_retried(follow, echo):
    models, folder = follow
    (folder / "2").mkdir()
    shutil.copy2(echo / "saved_model.pb", folder / "2")
    models.poll()
    assert states(models) == {1: "AVAILABLE", 2: "END"}
    models.poll()
    shutil.copytree(echo / "variables", folder / "2" / "variables")
    models.poll()
    assert states(models) == {1: "END", 2: "AVAILABLE"}


@pytest.mark.slow
def test_invalid_warmup_requests_fail_the_version(follow, echo):
    models, folder = follow
    shutil.copytree(echo, folder / "2")
    (folder / "2" / WARM_UP).parent.mkdir()
    with tf.io.TFRecordWriter(str(folder / "2" / WARM_UP)) as writer:
        writer.write(b"\xff\xff no request")
    models.poll()
    assert states(models) == {1: "AVAILABLE", 2: "END"}
    assert "warm-up request failed" in models.status("mae", 2)[0][2]


def test_polling_survives_unexpected_errors(follow, capfd):
    models, _ = follow
    polls = threading.Semaphore(0)

    def fail():
        polls.release()
        raise KeyError("unforeseen")

    thread = models.keep_polling(0.01, fail)
    for _ in range(2):
        assert polls.acquire(timeout=10)
    assert thread.is_alive()
    assert "unforeseen" in capfd.readouterr().err


@pytest.mark.slow
def test_rejected_configuration_keeps_the_old_one(follow, echo, tmp_path):
    models, folder = follow
    shutil.copytree(echo, tmp_path / "other" / "1")
    config = ModelConfig("mae", tmp_path / "other", labels={"stable": 7})
    with pytest.raises(RequestError, match="label stable"):
        models.configure([config])
    assert models._versions["mae"][1].path == folder / "1"
    with models.use("mae") as (number, bundle):
        assert number == 1
        assert bundle.run("serving_default", {"x": np.ones((1, 2), "float32")})
