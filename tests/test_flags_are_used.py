"""Every flag of every script is explained, and named where the script could use it."""

import dataclasses
import re

import pytest

from tests.scripts import ROOT, config_class

SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for folder in ("training", "serving")
    for path in (ROOT / folder).glob("*.py")
    if re.search(r"^ +(flags\.)?run_script\(", path.read_text(), re.MULTILINE)
)


def test_the_scripts_are_found():
    assert {"training/pretrain.py", "serving/export.py"} < set(SCRIPTS)
    assert len(SCRIPTS) > 12


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_is_explained_and_used(script):
    texts = [(ROOT / script).read_text()]
    if (
        "keras_mae.runs.training_run" in texts[0]
        or "keras_mae.runs.classification" in texts[0]
    ):
        # what all trainings share, their flags among it
        shared = (
            "runs/training_config",
            "runs/training_run",
            "runs/classification",
            "recipes",
        )
        texts += [(ROOT / f"keras_mae/{name}.py").read_text() for name in shared]
    for field in dataclasses.fields(config_class(script)):
        assert field.metadata["help"].strip(), field.name
        use = rf"\b(config|given|self)\.{field.name}\b"
        if field.name != "config":  # parse_flags reads it
            assert re.search(use, "\n".join(texts)), field.name
