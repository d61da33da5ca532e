"""Hot reload: new and removed versions under load, and new configurations.

These write into the folder of the server's models, so another server than the embedded
one needs `--models`.
"""

import shutil
import threading
import time

import grpc
import numpy as np
import pytest
from google.protobuf import text_format
from tensorflow.core.protobuf import error_codes_pb2
from tensorflow_serving.apis import get_model_status_pb2, model_management_pb2
from tensorflow_serving.config import model_server_config_pb2

from tests.conformance.calls import fill
from tests.conformance.sources import case, source

X = {"x": np.ones((1, 2), "float32")}


@pytest.fixture(scope="module")
def folder(server):
    if server.folder is None:
        pytest.skip("--models names no folder that both see")
    return server.folder


def wait_for(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing changed"
        time.sleep(0.05)


def put(source, target):
    """Copies a version aside and renames it into place, as an export does."""
    aside = target.with_name(f"part-{target.name}")
    shutil.copytree(source, aside)
    aside.rename(target)


def newest(path):
    return max(int(folder.name) for folder in path.iterdir() if folder.name.isdigit())


@source("core/availability_preserving_policy.cc: GetNextAction")
def test_a_new_version_takes_over_without_a_failed_request(caller, folder):
    path = folder / "moving"
    old = newest(path)
    stop, seen, errors = threading.Event(), set(), []

    def ask():
        while not stop.is_set():
            try:
                seen.add(caller.predict("moving", X)[1].model_spec.version.value)
            except grpc.RpcError as error:
                errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: old in seen)
        put(path / str(old), path / str(old + 1))
        wait_for(lambda: old + 1 in seen)
        wait_for(lambda: caller.status("moving").get(old) in ("END", None))
        time.sleep(0.3)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not errors and seen == {old, old + 1}
    with pytest.raises(grpc.RpcError) as caught:
        caller.predict("moving", X, version=old)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


@source(
    "core/availability_preserving_policy.cc: GetNextAction",
    "core/loader_harness.cc: max_num_load_retries",
    "tensorflow/cc/saved_model/reader.cc: ReadSavedModel",
)
def test_a_version_that_does_not_load_leaves_the_old_one(caller, folder):
    path = folder / "moving"
    old = newest(path)
    broken = path / str(old + 1)
    put(path / str(old), broken.with_name("part-broken"))
    (broken.with_name("part-broken") / "saved_model.pb").write_bytes(b"broken")
    broken.with_name("part-broken").rename(broken)
    try:
        wait_for(lambda: caller.status("moving").get(old + 1) == "END")
        assert caller.predict("moving", X)[1].model_spec.version.value == old
        status, answer = caller.get(f"moving/versions/{old + 1}")
        assert status == 200
        (row,) = answer["model_version_status"]
        assert row["state"] == "END"
        assert row["status"]["error_code"] == "DATA_LOSS"
        assert "as binary proto" in row["status"]["error_message"]
        request = get_model_status_pb2.GetModelStatusRequest()
        fill(request.model_spec, "moving", version=old + 1)
        (found,) = caller.models.GetModelStatus(request).model_version_status
        assert found.status.error_code == error_codes_pb2.DATA_LOSS
        assert found.status.error_message == row["status"]["error_message"]
    finally:
        shutil.rmtree(broken)


@source("sources/storage_path/file_system_storage_path_source.cc: ParseVersionNumber")
def test_other_folders_are_ignored(caller, folder):
    path = folder / "moving"
    before = caller.predict("moving", X)[1].model_spec.version.value
    for name in ("part-99", "latest", "v7"):
        (path / name).mkdir(exist_ok=True)
    (path / "README").write_text("no version")
    time.sleep(1.5)
    assert caller.predict("moving", X)[1].model_spec.version.value == before


@source(
    "sources/storage_path/file_system_storage_path_source.cc: PollFileSystemForServable"
)
def test_removed_model_folder_keeps_the_loaded_version(caller, folder):
    path = folder / "moving"
    aside = path.with_name("moving-aside")
    path.rename(aside)
    try:
        time.sleep(1.5)
        assert caller.predict("moving", X)[0]["doubled"].tolist() == [[2, 2]]
    finally:
        aside.rename(path)


def reload(caller, text):
    config = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    request = model_management_pb2.ReloadConfigRequest(config=config)
    return caller.models.HandleReloadConfigRequest(request, timeout=300)


@pytest.fixture
def configuration(caller, folder):
    text = (folder / "models.config").read_text()
    yield text
    assert reload(caller, text).status.error_code == 0


@source(
    "model_servers/server_core.cc: UpdateModelVersionLabelMap",
    "model_servers/server_core.cc: AddModelsViaModelConfigList",
)
def test_labels_move_and_models_come_and_go(caller, folder, configuration):
    moved = configuration.replace('"stable" value: 1', '"stable" value: 2')
    extra = (
        f'config {{ name: "again" base_path: "{folder}/echo" '
        'model_platform: "tensorflow" }\n}'
    )
    response = reload(caller, moved.rstrip().removesuffix("}") + extra)
    assert response.status.error_code == 0
    _, answer = caller.predict(
        "mae", {"image_bytes": np.zeros(0, "S1")}, label="stable"
    )
    assert answer.model_spec.version.value == 2
    assert caller.predict("again", X)[0]["row_sum"].tolist() == [2]
    reload(caller, configuration)
    with pytest.raises(grpc.RpcError) as caught:
        caller.predict("again", X)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


CORE = "model_servers/server_core.cc: "


@pytest.mark.parametrize(
    "change, code, message",
    [
        case(CORE + "UpdateModelVersionLabelMap",
             lambda text: text.replace('"stable" value: 1', '"stable" value: 9'), 9,
             "Request to assign label to version 9 of model mae, which is not "
             "currently available for inference", id="label of no version"),
        case(CORE + "ValidateModelConfigList",
             lambda text: text.replace('"moving" base', '"echo" base'), 3,
             "Illegal to list model echo multiple times in config list",
             id="listed twice"),
        case("model_servers/model_service_impl.cc: HandleReloadConfigRequest",
             lambda text: "custom_model_config {}", 3,
             "Only ModelConfigList is currently supported", id="custom"),
        case(CORE + "GetPlatform",
             lambda text: text.replace(' model_platform: "tensorflow"', "", 1), 3,
             "neither ModelServerConfig::model_type", id="no platform"),
        case(CORE + "ValidateNoModelsChangePlatforms",
             lambda text: text.replace('"tensorflow"', '"other"', 1), 3,
             "Illegal to change a model's platform. For model mae platform was "
             "tensorflow and new platform requested is other", id="other platform"),
        case(CORE + "CreateStoragePathRoutes",
             lambda text: text.replace('"moving"', '"new"').replace(
                 '/moving" model_platform: "tensorflow"',
                 '/moving" model_platform: "other"'), 3,
             "Model new requests unsupported platform other", id="unknown platform"),
        case(CORE + "UriIsRelativePath",
             lambda text: text.replace('base_path: "/', 'base_path: "', 1), 3,
             "to have an absolute path or URI; got base_path()=", id="relative path"),
    ],
)  # fmt: skip
def test_invalid_configuration_is_rejected(
    caller, configuration, change, code, message
):
    with pytest.raises(grpc.RpcError) as caught:
        reload(caller, change(configuration))
    assert caught.value.code().value[0] == code
    assert message in caught.value.details()
    assert caller.predict("echo", X)[0]["row_sum"].tolist() == [2]
    assert caller.status("mae") == {1: "AVAILABLE", 2: "AVAILABLE"}


@pytest.mark.parametrize("version, code", [(2, 0), (9, 9)])
@source("model_servers/server_core.cc: UpdateModelVersionLabelMap")
def test_a_label_answers_while_it_moves(caller, configuration, version, code):
    """Whether the move is taken or refused, no request of the label fails."""
    stop, errors, answers = threading.Event(), [], []

    def ask():
        empty = {"image_bytes": np.zeros(0, "S1")}
        while not stop.is_set():
            try:
                caller.predict("mae", empty, label="stable")
                answers.append(1)
            except grpc.RpcError as error:
                errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        moved = configuration.replace('"stable" value: 1', f'"stable" value: {version}')
        for text in (moved, configuration) * 2:
            before = len(answers)
            wait_for(lambda before=before: len(answers) > before or errors)
            try:
                reload(caller, text)
            except grpc.RpcError as error:
                assert error.code().value[0] == code
    finally:
        stop.set()
        thread.join()
    assert not errors


@source("model_servers/server_core.cc: WaitUntilModelsAvailable")
def test_a_new_model_that_does_not_load_is_an_unknown_error(
    caller, folder, configuration
):
    broken = folder / "broken" / "1"
    broken.mkdir(parents=True, exist_ok=True)
    (broken / "saved_model.pb").write_bytes(b"broken")
    extra = (
        f'config {{ name: "broken" base_path: "{broken.parent}" '
        'model_platform: "tensorflow" }\n}'
    )
    with pytest.raises(grpc.RpcError) as caught:
        reload(caller, configuration.rstrip().removesuffix("}") + extra)
    assert caught.value.code() == grpc.StatusCode.UNKNOWN
    assert "1 model(s) did not become available" in caught.value.details()
    assert caller.predict("echo", X)[0]["row_sum"].tolist() == [2]
