"""Every flag of every script is read by what the script runs, and explained."""

import dataclasses
import re

import pytest

from tests.flag_reads import read_script
from tests.scripts import ROOT, config_class

SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for folder in ("training", "serving", "keras_mae")
    for path in (ROOT / folder).rglob("*.py")
    if re.search(r"^ +(flags\.)?run_script\(", path.read_text(), re.MULTILINE)
    and path.name != "flags.py"
)


def test_the_scripts_are_found():
    for script in ("training/pretrain.py", "serving/export.py"):
        assert script in SCRIPTS
    assert "keras_mae/weights/__main__.py" in SCRIPTS and len(SCRIPTS) > 12


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_is_read_and_explained(script):
    flags = read_script((ROOT / script).read_text())
    assert flags.fields
    assert flags.unread == set()
    assert flags.unexplained == set()


PRETRAIN = (ROOT / "training/pretrain.py").read_text()
FIELD = '    unused: int = flag("of no use", 1)\n'


def test_the_fields_are_those_of_the_dataclass():
    wanted = [f.name for f in dataclasses.fields(config_class("training/finetune.py"))]
    found = read_script((ROOT / "training/finetune.py").read_text()).fields
    assert sorted(found) == sorted(wanted)


def with_flag(script, where="", line=""):
    """Adds a flag to a script, and a line behind another one."""
    text = (ROOT / script).read_text()
    text, count = re.subn(r"(    output: str.*\n)", rf"\1{FIELD}", text)
    assert count == 1
    if where:
        assert text.count(where) == 1, where
        text = text.replace(where, where + line)
    return text


MAY_DIFFER = 'MAY_DIFFER = ("picture_every", "pictures", "validation_images")\n'
# what is no read: where it is put, and what
NO_READS = {
    "nothing": ("", ""),
    "a comment": ("def main(config):\n", "    # config.unused\n"),
    "a text": ("def main(config):\n", '    "config.unused"\n'),
    "an assignment": ("def main(config):\n", "    config.unused = 2\n"),
    "a name": ("def main(config):\n", "    unused = 2\n    print(unused)\n"),
    "something else's": ("def main(config):\n", "    print(keras_mae.unused)\n"),
    "another config's": ("def main(config):\n", "    print(keras_mae.config.unused)\n"),
    "a check": (
        "def main(config):\n",
        "    if config.unused < 1:\n        raise ValueError(config.unused)\n",
    ),
    "all of them": ("def main(config):\n", "    print(dataclasses.asdict(config))\n"),
    "nobody's function": (MAY_DIFFER, "def f(config): config.unused\n"),
    "another's function": (
        MAY_DIFFER,
        "def f(config): config.unused\nf(1)\n",
    ),
    "a method that nobody calls": (
        '    """The flags of this script."""\n',
        "    def f(self): return self.unused\n",
    ),
}


@pytest.mark.parametrize("case", NO_READS)
def test_a_flag_that_nothing_reads_is_found(case):
    text = with_flag("training/pretrain.py", *NO_READS[case])
    assert read_script(text).unread == {"unused"}


READS = {
    "main": ("def main(config):\n", "    print(config.unused)\n"),
    "a function of the script": (
        '    """Builds the preset and compiles it with the published optimizer and '
        'schedule."""\n',
        "    print(config.unused)\n",
    ),
    "what keeps the flags": (
        '    """Prepares data and pictures, and fits."""\n',
        "    print(training.config.unused)\n",
    ),
    "a closure": (
        "    def batches(context, step):\n",
        "        print(config.unused)\n",
    ),
    "by name": (
        "def main(config):\n",
        '    for name in ("seed", "unused"): print(getattr(config, name))\n',
    ),
    "another name": ("def main(config):\n", "    c = config\n    print(c.unused)\n"),
    "a copy": (
        "def main(config):\n",
        "    print(dataclasses.replace(config, seed=1).unused)\n",
    ),
}


@pytest.mark.parametrize("case", READS)
def test_reads_are_found(case):
    text = with_flag("training/pretrain.py", *READS[case])
    assert read_script(text).unread == set()


def test_a_flag_that_is_no_longer_read_is_found():
    text = PRETRAIN.replace("config.mask_ratio", "0.75")
    assert read_script(text).unread == {"mask_ratio"}
    text = PRETRAIN.replace("config.compile_options()", "{}")
    assert {"jit_compile", "clip_norm"} <= read_script(text).unread


def test_a_flag_without_a_word_is_found():
    text = with_flag("training/pretrain.py").replace('"of no use"', '" "')
    assert read_script(text).unexplained == {"unused"}
