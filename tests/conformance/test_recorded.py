"""Answers equal those that were recorded of TF Serving, where somebody did."""

import copy
import json

import pytest

from tests.conformance import record
from tests.conformance.sources import source

CALLS = (*record.GRPC, *record.REST)
SERVICES = (
    "apis/prediction_service.proto: PredictionService",
    "apis/model_service.proto: ModelService",
    "model_servers/http_rest_api_handler.cc: ProcessRequest",
)


@pytest.fixture(scope="module")
def recorded():
    if not record.FILE.exists():
        pytest.skip("TF Serving is not recorded: python -m tests.conformance.record")
    return json.loads(record.FILE.read_text())["answers"]


@source(*SERVICES)
@pytest.mark.parametrize("name", CALLS)
def test_the_answer_is_as_recorded(caller, recorded, name):
    if name not in recorded:
        pytest.skip("recorded before this call was listed")
    difference = record.difference(recorded[name], record.ask(caller, name))
    assert not difference, "\n".join([name, *difference])


@source(*SERVICES)
def test_two_recordings_of_a_server_are_equal(caller, tmp_path):
    first = record.record(caller, "a server")
    assert set(first["answers"]) == set(CALLS) and first["server"] == "a server"
    file = tmp_path / "recorded.json"
    file.write_text(json.dumps(first))
    answers = json.loads(file.read_text())["answers"]
    for name in CALLS:
        assert not record.difference(answers[name], record.ask(caller, name)), name


@source(*SERVICES)
def test_a_changed_answer_is_a_readable_difference(caller):
    answer = record.ask(caller, "regress unknown model")
    assert answer["code"] == "NOT_FOUND"
    changed = {**copy.deepcopy(answer), "code": "UNKNOWN"}
    lines = record.difference(changed, answer)
    assert lines[:2] == ["--- TF Serving", "+++ this server"]
    assert '- "code": "UNKNOWN",' in lines and '+ "code": "NOT_FOUND",' in lines
