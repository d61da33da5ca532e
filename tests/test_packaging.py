"""The package as others get it: built, installed elsewhere, asked what it is, typed."""

import configparser
import email
import importlib.metadata
import inspect
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import keras
import pytest

import keras_mae
import keras_mae.data
from keras_mae import __main__ as command
from tests.scripts import ROOT, environment, load

TOUR = re.search(
    r"^## Five minutes\n.*?^```python\n(.*?)^```",
    (ROOT / "docs/getting-started.md").read_text(),
    re.DOTALL | re.MULTILINE,
)[1]


@pytest.mark.nightly
def test_version_is_told_by_command_and_nothing_else():
    finished = subprocess.run(
        [sys.executable, "-m", "keras_mae", "--version"],
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert finished.returncode == 0 and finished.stderr == ""
    told = dict(line.split(" ", 1) for line in finished.stdout.splitlines())
    assert told["keras_mae"] == keras_mae.__version__
    assert told["keras"] == keras.__version__
    assert told["tensorflow"].endswith("(the backend)")
    assert {"jax", "torch"} <= told.keys()


@pytest.mark.slow
@pytest.mark.parametrize("first", ["", "tensorflow, "])
def test_triton_is_imported_before_tensorflow_or_not_at_all(first, tmp_path):
    (tmp_path / "triton.py").write_text(
        "import sys; late = 'tensorflow' in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", f"import sys, {first}keras_mae, tensorflow\n"
         "triton = sys.modules.get('triton')\n"
         f"assert triton is None if {first!r} else not triton.late"],
        env={**environment(), "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        check=True,
    )  # fmt: skip


def test_a_missing_backend_is_told(monkeypatch):
    def version(name):
        if name == "jax":
            raise command.importlib.metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(command.importlib.metadata, "version", version)
    assert "jax is not installed" in command.versions().splitlines()


COMMANDS = [
    f"keras-mae-{name}"
    for name in (
        "client",
        "convert",
        "export",
        "finetune",
        "pretrain",
        "probe",
        "serve",
    )
]


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(["--help"])
    assert stop.value.code == 0
    listed = re.findall(r"^  (keras-mae-\w+)$", capsys.readouterr().out, re.MULTILINE)
    assert listed == COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_what_it_is_called(name):
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name=name)
    assert callable(entry.load())


@pytest.mark.nightly
def test_a_command_says_what_it_takes_and_nothing_else():
    path = Path(sys.executable).with_name("keras-mae-pretrain")
    finished = subprocess.run(
        [path, "--help"], capture_output=True, text=True, env=environment()
    )
    assert finished.returncode == 0 and finished.stderr == ""
    assert finished.stdout.startswith("usage: keras-mae-pretrain")


def test_a_server_that_is_not_installed_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_serving", None)
    monkeypatch.delitem(sys.modules, "tensorflow_serving.config", raising=False)
    with pytest.raises(SystemExit, match=r"pip install 'keras-mae\[serve\]'"):
        load("serving/local_server.py")


def test_every_package_is_installed():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    rooms = {
        str(path.parent.relative_to(ROOT)).replace(os.sep, ".")
        for path in (ROOT / "keras_mae").rglob("__init__.py")
    }
    beside = {"keras_mae_serving", "keras_mae_training", "mae_client", "mae_server"}
    assert listed == rooms | beside


def test_a_wrong_flag_is_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(["--versoin"])
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_changelog_begins_with_this_version():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(r"^## (\d\S*)", text, re.MULTILINE)[1] == keras_mae.__version__


def signatures():
    """Yields `(name, function)` for what a user calls of the public names."""
    items = [getattr(keras_mae, name) for name in keras_mae.__all__]
    modules = [item for item in items if inspect.ismodule(item)]
    rooms = [module for module in modules if hasattr(module, "__all__")]
    for place in (keras_mae, *rooms):
        for name in place.__all__:
            item = getattr(place, name)
            if inspect.isfunction(item):
                yield f"{place.__name__}.{name}", item
            for key, member in vars(item).items() if inspect.isclass(item) else ():
                member = getattr(member, "fget", getattr(member, "__func__", member))
                # what is inherited, or made by a decorator, is not written here
                ours = getattr(member, "__module__", "") == item.__module__
                public = not key.startswith("_") or key in ("__init__", "__call__")
                if inspect.isfunction(member) and ours and public:
                    yield f"{place.__name__}.{name}.{key}", member


def test_public_signatures_are_typed():
    bare = []
    for name, function in signatures():
        signature = inspect.signature(function)
        wanted = list(signature.parameters.values())
        # a method's first one says nothing
        wanted = wanted[wanted[0].name in ("self", "cls") :] if wanted else []
        bare += [f"{name}: {p.name}" for p in wanted if p.annotation is p.empty]
        if signature.return_annotation is signature.empty:
            bare.append(f"{name}: what it returns")
    assert bare == []


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Builds a source distribution, and a wheel out of it."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", f"--outdir={folder}", ROOT],
        check=True,
        capture_output=True,
    )
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


@pytest.mark.slow
def test_source_distribution_holds_what_git_tracks(built):
    listed = subprocess.run(
        ["git", "ls-tree", "-r", "--name-only", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("not a clone")
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}
    assert "training/pretrain.py" in tracked and tracked - names == set()


@pytest.mark.slow
def test_wheel_holds_packages_and_commands_alone(built):
    with zipfile.ZipFile(built[1]) as archive:
        names = set(archive.namelist())
        (about,) = (name for name in names if name.endswith("/METADATA"))
        about = email.message_from_bytes(archive.read(about))
    information = f"keras_mae-{keras_mae.__version__}.dist-info"
    places = {
        "keras_mae": "keras_mae",
        "keras_mae_serving": "serving",
        "keras_mae_training": "training",
        "mae_client": "serving/mae_client",
        "mae_server": "serving/mae_server",
    }
    assert {name.split("/")[0] for name in names} == {*places, information}
    wanted = {
        f"{package}/{path.relative_to(ROOT / place)}"
        for package, place in places.items()
        for path in (ROOT / place).rglob("*.py")
        if package == "keras_mae" or path.parent == ROOT / place
    }
    wanted |= {"keras_mae/py.typed"} | {
        f"keras_mae_serving/{path.relative_to(ROOT / 'serving')}"
        for folder in ("page", "config")
        for path in (ROOT / "serving" / folder).iterdir()
    }
    assert wanted - names == set()
    assert about["Version"] == keras_mae.__version__
    # both pages are shown where the package is published
    text = about.get_payload()
    assert "\n## Quickstart\n" in text and f"\n## {about['Version']} (" in text


@pytest.mark.slow
def test_the_installed_server_has_its_page(built, tmp_path):
    pytest.importorskip("starlette")
    pytest.importorskip("tensorflow_serving")
    with zipfile.ZipFile(built[1]) as archive:
        archive.extractall(tmp_path)
    code = (
        "from types import SimpleNamespace; "
        "from keras_mae_serving.local_server import PAGE, make_app; "
        "make_app(SimpleNamespace(max_threads=1), (), PAGE, 1); print(PAGE)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**environment(), "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert finished.stdout.strip() == str(tmp_path / "keras_mae_serving/page")


@pytest.mark.nightly
def test_the_tour_runs_where_only_the_wheel_lies(built, tmp_path):
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*install, f"--target={site}", built[1]], check=True)
    finished = subprocess.run(
        [sys.executable, "-c", f"{TOUR}\nprint(keras_mae.__file__)"],
        cwd=work,
        env={**environment(), "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines()[-1] == str(site / "keras_mae/__init__.py")
    assert {"look.png", "mae.keras"} <= set(os.listdir(work))
