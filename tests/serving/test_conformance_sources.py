"""tests/conformance: every test cites TF Serving's source."""

import ast
import os
import re
from pathlib import Path

import pytest

from tests.scripts import ROOT

FILES = sorted((ROOT / "tests/conformance").glob("test_*.py"))
# a clone of tensorflow/serving, to look the places up
CLONE = os.environ.get("TF_SERVING_SOURCE")


def cited(node):
    """Returns the places in calls of `source` and `case` below a syntax node."""
    places = []
    for call in ast.walk(node):
        name = getattr(getattr(call, "func", None), "id", None)
        if isinstance(call, ast.Call) and name in ("source", "case"):
            texts = call.args if name == "source" else call.args[:1]
            places += [ast.literal_eval(text) for text in texts]
    flat = [[place] if isinstance(place, str) else place for place in places]
    return [place for group in flat for place in group]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_test_cites_its_source(file):
    tree = ast.parse(file.read_text())
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            places = cited(node)
            assert places, f"{file.name}: {node.name} cites no source"
    for place in cited(tree):
        assert re.fullmatch(r"[\w/]+\.(cc|h|proto|md): [\w:.*~-]+", place), place


@pytest.mark.skipif(CLONE is None, reason="TF_SERVING_SOURCE names no clone of it")
def test_the_places_exist():
    for file in FILES:
        for place in cited(ast.parse(file.read_text())):
            path, name = place.split(": ")
            if path.startswith("tensorflow/"):
                continue
            text = (Path(CLONE) / "tensorflow_serving" / path).read_text()
            assert name.rpartition("::")[2] in text, f"{file.name}: {place}"
