"""serving/mae_server/versions.py: incomplete and broken model folders."""

import contextlib
import shutil
import threading

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.config import model_server_config_pb2

from mae_server import versions
from mae_server.bundle import Bundle, LoadOptions
from mae_server.calls import Call
from mae_server.errors import LoadError, RequestError
from mae_server.service import read_config
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
    return {number: state for number, state, *_ in models.status("mae")}


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
    assert "warm-up request failed" in models.status("mae", 2)[0].error


# tensorflow/cc/saved_model/reader.cc: ReadSavedModel, FindMetaGraphDef
@pytest.mark.parametrize(
    "content, tags, code, message",
    [
        (None, ("serve",), "NOT_FOUND", "Could not find SavedModel .pb or .pbtxt at"),
        (b"broken", ("serve",), "DATA_LOSS", "Can't parse .* as binary proto"),
        (b"", ("other",), "NOT_FOUND", r"matching supplied tags: \{ other \}"),
    ],
)
def test_a_failed_load_has_the_code_of_the_real_loader(
    tmp_path, content, tags, code, message
):
    if content is not None:
        (tmp_path / "saved_model.pb").write_bytes(content)
    with pytest.raises(LoadError, match=message) as caught:
        Bundle(tmp_path, LoadOptions(tags))
    assert caught.value.code == code


def test_a_failed_load_without_a_message_is_named_by_its_error(tmp_path, monkeypatch):
    def load(*_):
        raise tf.errors.DataLossError(None, None, "")

    monkeypatch.setattr(tf.compat.v1.saved_model, "load", load)
    with pytest.raises(LoadError, match="DataLossError") as caught:
        Bundle(tmp_path)
    assert caught.value.code == "DATA_LOSS"


@pytest.mark.slow
def test_damaged_variables_have_the_code_of_the_operation(tmp_path):
    variables = tf.Module()
    variables.weight = tf.Variable(1.0)
    variables.__call__ = tf.function(
        lambda x: {"y": x + variables.weight},
        input_signature=[tf.TensorSpec((None,), tf.float32, "x")],
    )
    signature = variables.__call__.get_concrete_function()
    tf.saved_model.save(variables, str(tmp_path), signatures=signature)
    (data,) = (tmp_path / "variables").glob("*.data-*")
    data.write_bytes(bytes(data.stat().st_size))
    with pytest.raises(LoadError) as caught:
        Bundle(tmp_path)
    assert caught.value.code == "DATA_LOSS"


@pytest.mark.parametrize("damage", ["no nodes", "variables", "saver"])
def test_a_graph_that_is_damaged_ends_its_version_alone(follow, echo, damage):
    """TensorFlow's loader raises KeyError, DecodeError and TypeError."""
    models, folder = follow
    shutil.copytree(echo, folder / "2")
    file = folder / "2" / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    graph = saved.meta_graphs[0]
    if damage == "no nodes":
        graph.graph_def.ClearField("node")
    elif damage == "variables":
        graph.collection_def["variables"].bytes_list.value.append(b"\xff\xff")
    else:
        graph.saver_def.filename_tensor_name = "nothing:0"
    file.write_bytes(saved.SerializeToString())
    models.poll()
    assert states(models) == {1: "AVAILABLE", 2: "END"}
    assert models.status("mae", 2)[0].code == "INVALID_ARGUMENT"


def test_polling_survives_unexpected_errors(follow, capfd):
    models, _ = follow
    polls = threading.Semaphore(0)

    def fail():
        polls.release()
        raise KeyError("unforeseen")

    thread = models.keep_polling(0.01, fail)
    for _ in range(2):
        assert polls.acquire(timeout=300)
    assert thread.is_alive()
    assert "unforeseen" in capfd.readouterr().err


# sources/storage_path/file_system_storage_path_source.cc: PollFileSystemForServable;
# core/availability_preserving_policy.cc: GetNextAction
@pytest.mark.slow
def test_versions_are_unloaded_when_they_are_gone_or_the_newest_stays(follow, echo):
    models, folder = follow
    folder.rename(folder.with_name("aside"))
    models.poll()
    assert states(models) == {1: "AVAILABLE"}
    folder.with_name("aside").rename(folder)
    models.configure([ModelConfig("mae", folder, versions=())])
    shutil.copytree(echo, folder / "2")
    models.poll()
    for number in (1, 2):
        shutil.rmtree(folder / str(number))
    (folder / "3").mkdir()  # fails to load
    models.poll()
    assert states(models) == {1: "END", 2: "AVAILABLE", 3: "END"}
    (folder / "3").rmdir()
    models.poll()
    assert states(models) == {1: "END", 2: "END", 3: "END"}
    with pytest.raises(RequestError, match="Servable not found"), models.use("mae"):
        pass


def test_closing_does_not_wait_for_a_load(follow, echo, monkeypatch):
    models, folder = follow
    begun, go = threading.Event(), threading.Event()

    def slow_load(*_):
        begun.set()
        assert go.wait(600)
        raise LoadError("UNKNOWN", "stopped")

    monkeypatch.setattr(versions, "Bundle", slow_load)
    shutil.copytree(echo, folder / "2")
    polling = threading.Thread(target=models.poll, daemon=True)
    polling.start()
    assert begun.wait(300)
    assert not models.close(seconds=0.05)
    # a request in hand is waited for
    with models.use("mae"):
        closing = threading.Thread(target=models.close, args=(0.05,))
        closing.start()
        closing.join(0.3)
        assert closing.is_alive()
    closing.join(300)
    assert not closing.is_alive()
    go.set()
    polling.join()
    assert models.close()


@pytest.mark.slow
def test_rejected_configuration_keeps_the_old_one(follow, echo, tmp_path):
    models, folder = follow
    shutil.copytree(echo, tmp_path / "other" / "1")
    config = ModelConfig("mae", tmp_path / "other", labels={"stable": 7})
    # tensorflow_serving/model_servers/server_core.cc, UpdateModelVersionLabelMap
    message = "assign label to version 7 of model mae, which is not currently available"
    with pytest.raises(RequestError, match=message):
        models.configure([config])
    assert models._versions["mae"][1].path == folder / "1"
    with models.use("mae") as (number, bundle):
        assert number == 1
        x = {"x": np.ones((1, 2), "float32")}
        assert bundle.run("serving_default", x, (), Call())


# tensorflow_serving/core/aspired_versions_manager.cc: SetAspiredVersions
@pytest.mark.slow
def test_a_new_base_path_loads_only_new_version_numbers(follow, echo, tmp_path):
    models, folder = follow
    other = tmp_path / "other"
    shutil.copytree(echo, other / "1")
    moved = ModelConfig("mae", other)
    models.configure([moved])
    assert models._versions["mae"][1].path == folder / "1"
    shutil.copytree(echo, other / "2")
    models.poll()
    assert states(models) == {1: "END", 2: "AVAILABLE"}
    assert models._versions["mae"][2].path == other / "2"
    # a model that was away is loaded from where it is then
    models.configure([])
    models.configure([moved._replace(versions=(1,))])
    assert models._versions["mae"][1].path == other / "1"
    assert states(models)[1] == "AVAILABLE"


def labelled(models, label):
    with models.use("mae", label=label) as (number, _):
        return number


@pytest.mark.slow
def test_a_label_moves_only_to_an_available_version(follow, echo):
    models, folder = follow
    models.configure([ModelConfig("mae", folder, labels={"stable": 1})])
    assert labelled(models, "stable") == 1
    shutil.copytree(echo, folder / "2")
    both = ModelConfig("mae", folder, versions=(), labels={"stable": 2})
    # of the same reload: server_core.cc updates labels before it loads
    with pytest.raises(RequestError, match="not currently available") as caught:
        models.configure([both])
    assert caught.value.code == "FAILED_PRECONDITION"
    assert labelled(models, "stable") == 1 and states(models) == {1: "AVAILABLE"}
    models.configure([both._replace(labels={"stable": 1})])
    models.configure([both])
    assert labelled(models, "stable") == 2
    assert states(models) == {1: "AVAILABLE", 2: "AVAILABLE"}


@pytest.mark.slow
def test_a_label_answers_while_a_move_is_asked_for(follow, echo, monkeypatch):
    models, folder = follow
    models.configure([ModelConfig("mae", folder, labels={"stable": 1})])
    shutil.copytree(echo, folder / "2")
    seen = []
    load = versions.Bundle

    def slow_load(*arguments):
        seen.append(labelled(models, "stable"))
        return load(*arguments)

    monkeypatch.setattr(versions, "Bundle", slow_load)
    both = ModelConfig("mae", folder, versions=(), labels={"stable": 1})
    models.configure([both])
    models.configure([both._replace(labels={"stable": 2})])
    assert seen == [1] and labelled(models, "stable") == 2


@pytest.mark.slow
def test_new_labels_may_wait_and_others_may_not(echo, tmp_path):
    shutil.copytree(echo, tmp_path / "mae" / "1")
    config = ModelConfig("mae", tmp_path / "mae", labels={"stable": 1})
    with pytest.raises(ValueError, match="not currently available"):
        Models([config])  # a first configuration is no exception
    with contextlib.closing(Models([config], labels_may_wait=True)) as models:
        assert labelled(models, "stable") == 1
        with pytest.raises(RequestError, match="version 2 of model mae"):
            models.configure([config._replace(labels={"stable": 2})])
        models.configure([config._replace(labels={"stable": 1, "canary": 2})])
        with pytest.raises(RequestError, match="Servable not found") as caught:
            labelled(models, "canary")
        assert caught.value.code == "NOT_FOUND"


@pytest.mark.slow
def test_a_model_that_does_not_load_is_an_answer_and_others_go_on(follow, tmp_path):
    """As server_core.cc's WaitUntilModelsAvailable: the configuration holds."""
    models, folder = follow
    (tmp_path / "broken" / "3").mkdir(parents=True)
    mae = ModelConfig("mae", folder)
    with pytest.raises(RequestError, match="did not become available") as caught:
        models.configure([mae, ModelConfig("broken", tmp_path / "broken")])
    assert caught.value.code == "UNKNOWN"
    assert "{name: broken version: 3} due to error: " in str(caught.value)
    assert [row.state for row in models.status("broken")] == ["END"]
    assert states(models) == {1: "AVAILABLE"}
    # it is no longer new
    models.configure([mae, ModelConfig("broken", tmp_path / "broken")])


def test_versions_beyond_int64_are_ignored(tmp_path):
    for name in (2**63, 2**63 - 1, 10**30, 3):
        (tmp_path / str(name)).mkdir()
    every = ModelConfig("mae", tmp_path, versions=())
    assert set(every.aspired()) == {2**63 - 1, 3}
    assert set(ModelConfig("mae", tmp_path).aspired()) == {2**63 - 1}


# tensorflow_serving/sources/storage_path/file_system_storage_path_source.cc:
# ParseVersionNumber, IndexChildrenByVersion, AspireAllVersions
def test_version_folders_with_leading_zeros_and_signs(tmp_path):
    for name in ("001", "01", "7", "00012", "-3", "+5", "part-9", "1_0", "٤", "1.5"):
        (tmp_path / name).mkdir()
    (tmp_path / "11").touch()  # a file too; it will fail to load
    newest = ModelConfig("mae", tmp_path, latest=3)
    assert newest.aspired() == {12: "00012", 11: "11", 7: "7"}
    every = ModelConfig("mae", tmp_path, versions=())
    assert every.aspired() == {
        **{-3: "-3", 1: "001", 5: "+5", 7: "7", 11: "11", 12: "00012"}
    }
    some = ModelConfig("mae", tmp_path, versions=(1, 12, 2))
    assert some.aspired() == {1: "01", 12: "00012"}
    assert ModelConfig("mae", tmp_path / "none").aspired() is None


def test_a_version_is_served_from_a_folder_with_leading_zeros(tmp_path, echo):
    shutil.copytree(echo, tmp_path / "007")
    models = Models([ModelConfig("mae", tmp_path)])
    with models.use("mae") as (version, bundle):
        assert version == 7 and "count" in bundle.signatures
    assert models._versions["mae"][7].path == tmp_path / "007"
    models.close()


# tensorflow_serving/model_servers/server_core.cc: ValidateModelConfigList, GetPlatform,
# CreateStoragePathRoutes
@pytest.mark.parametrize(
    "fields, message",
    [
        ('base_path: "/m"', "Illegal setting neither ModelServerConfig::model_type"),
        (
            'base_path: "/m" model_platform: "tensorflow" model_type: TENSORFLOW',
            "Illegal setting both",
        ),
        ('base_path: "/m" model_type: OTHER', "model_type choice 2 not supported"),
        ('base_path: "/m" model_platform: "x"', "mae requests unsupported platform x"),
        (
            'base_path: "models/mae" model_platform: "tensorflow"',
            r"absolute path or URI; got base_path\(\)=models/mae",
        ),
        ('model_platform: "tensorflow"', "absolute path or URI"),
    ],
)
def test_what_production_refuses_is_refused(fields, message):
    with pytest.raises(RequestError, match=message) as caught:
        read_config(parsed(fields))
    assert caught.value.code == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    "fields",
    [
        'base_path: "/m" model_platform: "tensorflow"',
        'base_path: "/m" model_type: TENSORFLOW',
        'base_path: "gs://bucket/m" model_platform: "tensorflow"',
    ],
)
def test_what_production_takes_is_taken(fields):
    (config,) = read_config(parsed(fields))
    assert config.name == "mae"


def parsed(fields):
    text = f'model_config_list {{ config {{ name: "mae" {fields} }} }}'
    return text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
