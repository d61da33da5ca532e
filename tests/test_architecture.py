"""Architecture: examples run, imports go one way, foreign names stay in their room."""

import ast
import importlib
import inspect
import os
import pkgutil
import re
import sys

import keras
import numpy as np
import pytest
from PIL import Image

import keras_mae
from tests.scripts import ROOT

MODULES = [
    importlib.import_module(info.name)
    for info in pkgutil.walk_packages(keras_mae.__path__, "keras_mae.")
]


def documented(module):
    """Yields `(name, object)` for every public class, function and method of it."""
    for name, item in vars(module).items():
        if name.startswith("_") or getattr(item, "__module__", "") != module.__name__:
            continue
        if inspect.isclass(item) or inspect.isfunction(item):
            yield f"{module.__name__}.{name}", item
        if inspect.isclass(item):
            for key, member in vars(item).items():
                member = getattr(member, "__func__", member)
                if inspect.isfunction(member) and not key.startswith("_"):
                    yield f"{module.__name__}.{name}.{key}", member


PUBLIC = {
    id(getattr(package, name))
    for package in (keras_mae, keras_mae.layers, keras_mae.data)
    for name in package.__all__
}


def tier(name, item, block):
    """Says when an example runs: at once, with the slow tests, or at night."""
    module, _, owner = name.rpartition(".")[0].rpartition(".")
    is_method = id(getattr(sys.modules.get(module), owner, None)) in PUBLIC
    if id(item) in PUBLIC:
        return pytest.mark.nightly if "fit(" in block else ()
    return pytest.mark.slow if is_method else pytest.mark.nightly


EXAMPLES = {
    f"{name}[{index}]": (block, module, tier(name, item, block))
    for module in MODULES
    for name, item in documented(module)
    for index, block in enumerate(
        re.findall(
            r"```python\n(.*?)```", inspect.cleandoc(item.__doc__ or ""), re.DOTALL
        )
    )
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=marks) for name, (_, _, marks) in EXAMPLES.items()],
)
def test_examples_run(name, tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    pytest.importorskip("skimage")
    monkeypatch.chdir(tmp_path)
    block, module, _ = EXAMPLES[name]
    scope = {"keras": keras, "keras_mae": keras_mae, "np": np, "Image": Image}
    # dataclasses look their module up by name
    exec(block, {**scope, **vars(module), "__name__": module.__name__})


# the others are for the package's own scripts
PUBLIC_ROOMS = (
    "callbacks",
    "convert",
    "data",
    "export",
    "layers",
    "models",
    "ops",
    "optimizers",
    "preprocessing",
    "visualization",
    "weights",
)


def takes_arguments(item):
    try:
        return bool(inspect.signature(item).parameters)
    except ValueError:  # exceptions have no signature
        return True


@pytest.mark.parametrize("room", ["", *PUBLIC_ROOMS])
def test_public_names_have_docstrings_with_examples(room):
    package = importlib.import_module(f"keras_mae.{room}".rstrip("."))
    for name in package.__all__:
        item = getattr(package, name)
        if not (inspect.isclass(item) or inspect.isfunction(item)):
            continue  # a room or a constant
        assert "Example:" in item.__doc__, name
        assert "Args:" in item.__doc__ or not takes_arguments(item), name
        if inspect.isfunction(item) and inspect.signature(item).return_annotation:
            assert "Returns:" in item.__doc__, name


ROOMS = re.findall(
    r"^\| `(\w+)` \|", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE
)


def imported(file):
    """Yields the modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
            yield from (
                [f"{node.module}.{name}" for name in names]
                if node.module == "keras_mae"
                else [node.module]
            )


def test_imports_go_up_the_list_of_rooms():
    package = ROOT / "keras_mae"
    there = {path.stem for path in package.iterdir() if not path.stem.startswith("_")}
    assert set(ROOMS) == there - {"py"}
    for file in package.rglob("*.py"):
        room = file.relative_to(package).parts[0].removesuffix(".py")
        if room not in ROOMS or file.name == "__main__.py":
            continue
        for name in imported(file):
            if name.startswith("keras_mae"):
                wanted = f"{file} is in {room}, and imports {name}"
                other = name.split(".")[1] if "." in name else ""
                assert other in ROOMS, wanted
                assert ROOMS.index(other) <= ROOMS.index(room), wanted


@pytest.mark.parametrize(
    "place", ["layers", "models", "ops/patches.py", "ops/positions.py"]
)
def test_layers_and_models_know_no_backend(place):
    path = ROOT / "keras_mae" / place
    for file in path.rglob("*.py") if path.is_dir() else [path]:
        for name in imported(file):
            root = name.split(".")[0]
            allowed = {"keras", "keras_mae", "numpy", *sys.stdlib_module_names}
            assert root in allowed, (file, name)


def test_foreign_names_stay_under_weights():
    foreign = re.compile(
        r"\bvit\.|layernorm_before|decoder_pred|ViTMAE|attn\.qkv|id2label|label_names"
    )
    for file in (ROOT / "keras_mae").rglob("*.py"):
        if not {"weights", "convert"} & set(file.parts):
            assert not foreign.search(file.read_text()), file


def test_scripts_use_what_the_package_makes_public():
    for file in [*(ROOT / "training").glob("*.py"), *(ROOT / "serving").glob("*.py")]:
        text = file.read_text()
        assert "sys.path" not in text, file
        assert not re.search(
            r"from keras_mae[.\w]* import _|keras_mae\._(?!_)", text
        ), file
        assert not re.search(
            r"^(from|import) (keras_mae_)?(training|serving)", text, re.M
        )


def test_the_tests_of_a_file_share_a_process(request):
    if "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.skip("one process runs all tests")
    # else each process makes the fixtures of a file again: see pytest in setup.cfg
    assert request.node.nodeid.endswith("@tests/test_architecture.py")
