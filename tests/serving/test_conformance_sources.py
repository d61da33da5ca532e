"""tests/conformance: every test cites TF Serving's source."""

import importlib
import os
import re
from pathlib import Path

import pytest

from tests.conformance import models, record
from tests.scripts import ROOT

NAMES = sorted(file.stem for file in (ROOT / "tests/conformance").glob("test_*.py"))
# a clone of tensorflow/serving, to look the places up
CLONE = os.environ.get("TF_SERVING_SOURCE")


def cited(marks):
    """Returns the places in `source` marks, and in those of rows of parameters.

    `None` stands for a row that cites nothing.
    """
    own = [place for mark in marks if mark.name == "source" for place in mark.args]
    rows = [row for mark in marks if mark.name == "parametrize" for row in mark.args[1]]
    for row in rows:
        places = cited(getattr(row, "marks", ()))
        own += places or ([] if own else [None])
    return own


def places_in(name):
    """Yields name and places of each test in a file."""
    module = importlib.import_module(f"tests.conformance.{name}")
    for key, test in vars(module).items():
        if key.startswith("test_"):
            yield key, cited(getattr(test, "pytestmark", ()))


@pytest.mark.parametrize("name", NAMES)
def test_every_test_cites_its_source(name):
    for key, places in places_in(name):
        assert places and None not in places, f"{name}.py: {key} cites no source"
        for place in places:
            assert re.fullmatch(r"[\w/]+\.(cc|h|proto): [\w:]+", place), place


@pytest.mark.skipif(CLONE is None, reason="TF_SERVING_SOURCE names no clone of it")
@pytest.mark.parametrize("name", NAMES)
def test_the_places_exist(name):
    for key, places in places_in(name):
        for place in places:
            path, word = place.split(": ")
            if not path.startswith("tensorflow/"):
                text = (Path(CLONE) / "tensorflow_serving" / path).read_text()
                assert word in text, f"{name}.py: {key}: {place}"


def test_flags_of_the_suite_are_those_of_the_real_server():
    """tensorflow_serving/model_servers/main.cc; its file where a clone is."""
    text = (ROOT / "docs/serving.md").read_text().partition("## Conformance tests")[2]
    (command,) = re.findall(r"tensorflow_model_server (.*?)\n\w", text, re.DOTALL)
    documented = re.findall(r"--(\w+)", command)
    assert [flag.partition("=")[0][2:] for flag in models.FLAGS] == documented[2:]
    assert documented[:2] == ["port", "rest_api_port"]
    for flag in models.FLAGS:
        assert flag.format(folder="/tmp/models") in command
    if CLONE:
        main = Path(CLONE) / "tensorflow_serving/model_servers/main.cc"
        for name in documented:
            assert f'tensorflow::Flag("{name}"' in re.sub(
                r"\(\s+", "(", main.read_text()
            )


def test_the_embedded_server_is_never_recorded(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(record.Caller, "raw", lambda *_: (200, "text/html", b""))
    words = ["--endpoint=x:1", "--rest-endpoint=x:2", "--server-version=1"]
    with pytest.raises(SystemExit):
        record.main([*words, f"--out={tmp_path / 'recorded.json'}"])
    assert "this is the embedded server" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
