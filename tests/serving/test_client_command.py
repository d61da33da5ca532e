"""serving/client.py: output, files and exit codes."""

import inspect
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests import stand_ins
from tests.scripts import ROOT, command, load, run
from tests.stand_ins import RestStub, grey

from mae_client import Client, flags  # isort: skip

SCRIPT = "serving/client.py"
client = load(SCRIPT)
stub, stub_class = stand_ins.stub, stand_ins.stub_class


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "cat.png"
    Image.fromarray(grey(40)).save(path)
    return path


def ask(stub, name, *arguments):
    """Runs the command's `main` in this process."""
    flags = ["--grpc"] if stub.grpc else []
    client.main([name, f"--address={stub.address}", *flags, *map(str, arguments)])


def test_commands_print_results(stub, picture, tmp_path, capsys):
    ask(stub, "features", picture, picture, "--out", tmp_path / "features.npz")
    assert f"{picture}: mean 40.0000, std 0.0000, 40.0000" in capsys.readouterr().out
    assert np.load(tmp_path / "features.npz")["features"].shape == (2, 5, 2)
    ask(stub, "classify", picture, "--out", tmp_path / "classes")
    assert re.search(r"0\.7500 +7 +Käse", capsys.readouterr().out)
    assert np.load(tmp_path / "classes")["labels"].tolist() == [["Käse", "cat"]]
    ask(stub, "reconstruct", picture, "--seed=5", "--out", tmp_path / "painted.png")
    out = capsys.readouterr().out
    assert f"{picture}: loss 5.0000, 2 of 4 patches masked" in out
    assert Image.open(tmp_path / "painted.png").size == (652, 180)
    ask(stub, "reconstruct", picture, "--seed=5", "--png_folder", tmp_path / "new")
    file = tmp_path / "new" / "cat-reconstruction.png"
    assert capsys.readouterr().out == f"{file}: loss 5.0000\n"
    assert file.read_bytes().startswith(b"\x89PNG")
    np.save(tmp_path / "mask.npy", [1, 0, 0, 0])
    ask(stub, "reconstruct", picture, "--mask", tmp_path / "mask.npy")
    assert "1 of 4 patches masked" in capsys.readouterr().out
    ask(stub, "status")
    assert capsys.readouterr().out == "version 2: AVAILABLE\nversion 3: END torn\n"
    ask(stub, "metadata")
    assert "out  features  float32 (?, 5, 2)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("paint", "{picture}"),
        ("features",),
        ("features", "{missing}"),
        ("features", "{text}"),
        ("features", "{picture}", "--out={missing}/x.npz"),
        ("features", "{picture}", "--timeout=0"),
        ("features", "{picture}", "--version=x"),
        ("features", "{picture}", "--version=1", "--label=a"),
        ("reconstruct", "{picture}", "--mask={text}"),
        ("reconstruct", "{picture}", "--mask={empty}"),
        ("reconstruct", "{picture}", "--mask={zip}"),
        ("reconstruct", "{picture}", "--mask={empty}", "--seed=1"),
        ("reconstruct", "{picture}", "--out={missing}.xyz"),
        ("reconstruct", "{picture}", "--png_folder={text}"),
        ("reconstruct", "{picture}", "--png_folder=x", "--out=y"),
        ("reconstruct", "{picture}", "{picture}", "--png_folder=x"),
        ("status", "{picture}"),
    ],
)
def test_wrong_commands_are_one_line_and_code_2(arguments, picture, capsys):
    names = ("missing", "text", "empty", "zip")
    paths = {name: picture.with_name(name) for name in names}
    paths["text"].write_text("no picture")
    paths["empty"].write_bytes(b"")
    paths["zip"].write_bytes(b"PK\x03\x04 no archive")
    words = [word.format(picture=picture, **paths) for word in arguments]
    with RestStub() as stub, pytest.raises(SystemExit) as stop:
        client.main([*words, *(["--address", stub.address] if words else [])])
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_images_whose_files_would_have_the_same_name_are_told(picture, capsys):
    other = picture.with_suffix(".jpg")
    with pytest.raises(SystemExit):
        client.main(["reconstruct", str(picture), str(other), "--png_folder=x"])
    told = f"Received: {picture} and {other}, both for cat-reconstruction.png"
    assert told in capsys.readouterr().err


def test_a_missing_package_is_one_line_and_code_2(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "mae_client.rpc", raising=False)
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(SystemExit) as stop:
        client.main(["status", "--grpc"])
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.slow
def test_errors_of_the_server_are_one_line_and_code_1(stub, picture):
    flags = ["--grpc"] if stub.grpc else []
    stub.brain.refusals = [("INVALID_ARGUMENT", "Input\nis empty.")]
    finished = run(SCRIPT, "features", picture, "--address", stub.address, *flags)
    assert finished.returncode == 1 and finished.stdout == ""
    (line,) = finished.stderr.splitlines()
    assert line.endswith("error: INVALID_ARGUMENT: Input is empty.")


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 1000])
def test_closed_stdout_exits_with_141(picture, tmp_path, count):
    out = tmp_path / "features.npz"
    with RestStub() as stub:
        process = subprocess.Popen(
            command(
                SCRIPT,
                "features",
                *[picture] * count,
                f"--address={stub.address}",
                f"--out={out}",
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        process.stdout.close()
        assert process.stderr.read() == b""
        process.stderr.close()
        assert process.wait() == 141
    assert len(np.load(out)["features"]) == count


def test_flags_in_the_docs_exist(monkeypatch):
    text = "".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    monkeypatch.setenv("NAME", "token")
    lines = re.findall(r"^python serving/client.py (.*)$", text, re.M)
    assert len(lines) > 4
    for line in lines:
        flags.client_arguments(flags.parse(shlex.split(line, comments=True), ""))
    (table,) = re.findall(r"\| `Client` \| flag(.*?)\n\n", text, re.DOTALL)
    known = inspect.signature(Client).parameters
    for row in table.splitlines()[2:]:
        arguments, named, _ = row.strip("| ").split(" | ")
        for name in re.findall(r"`(\w+)", arguments):
            assert name in known, name
        for flag in re.findall(r"`(-[^`]*)`", named):
            value = [] if flag in SWITCHES or "=" in flag else ["X: y"]
            flags.parse(["status", flag, *value], "")


SWITCHES = ("--tls", "--insecure", "-k", "--gzip")
