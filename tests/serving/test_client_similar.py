"""serving/client.py index and similar: embeddings of a folder, and their ranking."""

import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests import stand_ins
from tests.scripts import ROOT, command, load
from tests.stand_ins import grey

client = load("serving/client.py")
ImageIndex = sys.modules["mae_client.similar"].ImageIndex
stub, stub_class = stand_ins.stub, stand_ins.stub_class


@pytest.fixture
def folder(tmp_path):
    """Greys of levels that are in their names, and what is no image."""
    folder = tmp_path / "pictures"
    for name in ("g000.png", "far/g250.png", "g100.jpg", "far/ü110.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        value = int(re.search(r"\d+", name)[0])
        Image.fromarray(grey(value, (20, 30))).save(folder / name)
    (folder / "torn.jpg").write_bytes(b"no picture")
    (folder / "empty.png").write_bytes(b"")
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "notes.txt").write_text("no picture")
    return folder


def ask(stub, *words):
    flags = ["--grpc"] if stub.grpc else []
    client.main([*map(str, words), f"--address={stub.address}", *flags])


def test_a_folder_is_indexed_and_ranked(stub, folder, tmp_path, capsys):
    out = tmp_path / "index.npz"
    ask(stub, "index", folder, f"--out={out}")
    told = capsys.readouterr()
    assert "4 images" in told.out and "2 skipped" in told.out
    assert sorted(re.findall(r"^skipped (\S+):", told.err, re.M)) == [
        "empty.png",
        "torn.jpg",
    ]
    with np.load(out) as file:
        assert file["paths"].tolist() == [
            *("far/g250.png", "far/ü110.png", "g000.png", "g100.jpg")
        ]
        assert file["embeddings"].shape == (4, 2)
        assert file["embeddings"].dtype == np.float32
        assert (str(file["model"]), int(file["version"])) == ("mae", 2)
        assert str(file["signature"]) == "embed"
    sheet = tmp_path / "sheet.png"
    ask(
        stub,
        *("similar", folder / "g100.jpg", f"--index={out}", "--top=2"),
        f"--out={sheet}",
    )
    first, second, last = capsys.readouterr().out.splitlines()
    # the picture itself is left out
    assert first.endswith("  far/ü110.png") and second.endswith("  g000.png")
    assert float(first.split()[0]) == pytest.approx(np.cos(10 / 255), abs=1e-4)
    assert last == f"Picture saved to {sheet}"
    with Image.open(sheet) as picture:
        assert picture.size == (3 * 168 + 8, 208)
        centres = [picture.getpixel((88 + 168 * n, 104))[0] for n in range(3)]
    np.testing.assert_allclose(centres, [100, 110, 0], atol=1)


def test_the_next_run_asks_only_for_what_is_new(stub, folder, tmp_path, capsys):
    out = tmp_path / "index.npz"
    ask(stub, "index", folder, f"--out={out}")
    stub.brain.calls.clear()
    (folder / "g000.png").unlink()
    Image.fromarray(grey(50)).save(folder / "g100.jpg")
    Image.fromarray(grey(60)).save(folder / "new.png")
    ask(stub, "index", folder, f"--out={out}")
    with np.load(out) as file:
        paths = file["paths"].tolist()
        levels = np.arctan2(*file["embeddings"].T[::-1]) * 255
    assert paths == ["far/g250.png", "far/ü110.png", "g100.jpg", "new.png"]
    np.testing.assert_allclose(levels, [250, 110, 50, 60], atol=1)
    asked = sum(len(call[1]["image_bytes"]) for call in stub.brain.calls)
    # two, and an old one to compare the models
    assert asked == 3
    # of another version nothing is kept
    stub.brain.version = 5
    stub.brain.calls.clear()
    ask(stub, "index", folder, f"--out={out}")
    assert sum(len(call[1]["image_bytes"]) for call in stub.brain.calls) == 4


@pytest.mark.parametrize(
    "other", [lambda rows: rows[:, ::-1], lambda rows: rows[:, [0, 1, 1]]]
)
def test_another_model_of_the_same_version_is_noticed(
    stub, folder, tmp_path, capsys, other
):
    out = tmp_path / "index.npz"
    similar = ("similar", folder / "g000.png", f"--index={out}")
    ask(stub, "index", folder, f"--out={out}")
    answer = stub.brain.answer
    stub.brain.answer = lambda *it: {"embedding": other(answer(*it)["embedding"])}
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        ask(stub, *similar)
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and "the server answers as another mae 2" in line
    ask(stub, "index", folder, f"--out={out}")
    # half precision is no other model
    stub.brain.answer = lambda *it: {
        "embedding": other(answer(*it)["embedding"]).astype("float16").astype("float32")
    }
    stub.brain.calls.clear()
    ask(stub, "index", folder, f"--out={out}")
    assert sum(len(call[1]["image_bytes"]) for call in stub.brain.calls) == 1
    ask(stub, *similar)


def test_one_version_answers_all(stub, folder, tmp_path):
    ask(stub, "index", folder, f"--out={tmp_path / 'index.npz'}")
    for _, _, place in stub.brain.calls:
        if stub.grpc:
            assert place.version.value == 2
        else:
            assert place == "/v1/models/mae/versions/2:predict"


def test_a_refused_image_does_not_cost_the_rest(stub, folder, tmp_path, capsys):
    # bytes that look like a JPEG are sent; the server refuses the whole batch
    (folder / "torn.jpg").write_bytes(b"\xff\xd8\xff torn")
    answer = stub.brain.answer

    def refuse(signature, inputs):
        if any(item.startswith(b"\xff\xd8\xff torn") for item in inputs["image_bytes"]):
            raise stand_ins.Refusal("INVALID_ARGUMENT", "Invalid JPEG")
        return answer(signature, inputs)

    stub.brain.answer = refuse
    ask(stub, "index", folder, f"--out={tmp_path / 'index.npz'}")
    told = capsys.readouterr()
    assert "4 images" in told.out and "skipped torn.jpg: Invalid JPEG" in told.err


def test_a_request_that_is_too_large_does_not_cost_the_rest(stub, folder, tmp_path):
    answer = stub.brain.answer

    def refuse(signature, inputs):
        levels = [stand_ins.level(item) for item in inputs["image_bytes"]]
        if 250 in levels or len(levels) > 2:
            raise stand_ins.Refusal("RESOURCE_EXHAUSTED", "The request is too large")
        return answer(signature, inputs)

    stub.brain.answer = refuse
    ask(stub, "index", folder, f"--out={tmp_path / 'index.npz'}")
    with np.load(tmp_path / "index.npz") as file:
        assert file["paths"].tolist() == ["far/ü110.png", "g000.png", "g100.jpg"]


def test_what_is_no_file_is_skipped(stub, folder, tmp_path, capsys):
    # reading them would never end
    os.mkfifo(folder / "pipe.png")
    (folder / "zeros.png").symlink_to("/dev/zero")
    (folder / "gone.png").symlink_to("missing")
    ask(stub, "index", folder, f"--out={tmp_path / 'index.npz'}")
    told = capsys.readouterr()
    assert "4 images" in told.out and "5 skipped" in told.out
    assert "skipped pipe.png: not a regular file" in told.err
    # with the name, and no object of Python
    assert "Cannot read" in told.err and "0x" not in told.err


def test_the_folder_of_the_index_is_looked_for_first(stub, folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        ask(stub, "index", folder, f"--out={tmp_path / 'missing' / 'index.npz'}")
    assert stop.value.code == 2 and "There is no folder" in capsys.readouterr().err
    assert not stub.brain.calls


def test_an_index_of_one_image_has_nothing_similar(stub, tmp_path, capsys):
    Image.fromarray(grey(9)).save(tmp_path / "one.png")
    ask(stub, "index", tmp_path, f"--out={tmp_path / 'index.npz'}")
    capsys.readouterr()
    ask(stub, "similar", tmp_path / "one.png", f"--index={tmp_path / 'index.npz'}")
    assert "has no other image" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changed",
    [
        {"embeddings": np.full((2, 2), np.nan, "float32")},
        {"embeddings": np.array([["a", "b"], ["c", "d"]])},
        {"embeddings": np.zeros(2, "float32")},
        {"paths": np.arange(2)},
        {"paths": np.array([["a", "b"], ["c", "d"]])},
        {"paths": np.array(["a"])},
        {"stamps": np.zeros((2, 2), "float32")},
        {"version": np.array("new")},
    ],
)
def test_a_broken_index_is_refused(tmp_path, changed):
    whole = {
        "paths": np.array(["a.png", "b.png"]),
        "embeddings": np.ones((2, 2), "float32"),
        "stamps": np.ones((2, 2), "int64"),
        **{"model": "mae", "version": 2, "folder": ".", "signature": "embed"},
    }
    path = tmp_path / "index.npz"
    np.savez(path, **whole)
    assert ImageIndex.load(path).version == 2
    np.savez(path, **{**whole, **changed})
    with pytest.raises(ValueError, match="is not an index file"):
        ImageIndex.load(path)


def test_a_damaged_index_is_refused(tmp_path):
    whole = ImageIndex(
        np.array(["a.png"]),
        np.ones((1, 2), "float32"),
        np.ones((1, 2), "int64"),
        *("mae", 2, "."),
    )
    whole.save(tmp_path / "index.npz")
    data = bytearray((tmp_path / "index.npz").read_bytes())
    # the compression method in the archive's directory: one that Python lacks
    data[data.rfind(b"PK\x01\x02") + 10] = 99
    (tmp_path / "index.npz").write_bytes(data)
    with pytest.raises(ValueError, match="is not an index file"):
        ImageIndex.load(tmp_path / "index.npz")


@pytest.mark.parametrize(
    "names, how", [({"embed_from_pixels_u8"}, " without"), ((), "\n")]
)
def test_a_model_that_embeds_no_files_is_refused(
    names, how, stub, folder, tmp_path, capsys, monkeypatch
):
    signatures = dict.fromkeys(names, stand_ins.SIGNATURES["embed"])
    monkeypatch.setattr(stand_ins, "SIGNATURES", signatures)
    with pytest.raises(SystemExit):
        ask(stub, "index", folder, f"--out={tmp_path / 'index.npz'}")
    assert f"no signature embed; export it again{how}" in capsys.readouterr().err


def test_a_server_that_fails_is_an_error_and_keeps_the_index(stub, folder, tmp_path):
    out = tmp_path / "index.npz"
    ask(stub, "index", folder, f"--out={out}")
    before = out.read_bytes()
    Image.fromarray(grey(60)).save(folder / "new.png")
    stub.brain.refusals = [("NOT_FOUND", "no such version")]
    with pytest.raises(SystemExit) as stop:
        ask(stub, "index", folder, f"--out={out}")
    assert stop.value.code == 1 and out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["index.npz"]


@pytest.mark.parametrize("error", ["server", "interrupt"])
def test_an_interrupted_run_keeps_what_it_has(
    stub, folder, tmp_path, capsys, monkeypatch, error
):
    monkeypatch.setattr(sys.modules["mae_client.similar"], "_WINDOW", 3)
    embed, calls = client.Client.embed, []

    def stop(asked, images):
        if error == "interrupt" and len(calls) == 1:
            raise KeyboardInterrupt
        calls.append(images)
        answer = embed(asked, images)
        stub.brain.refusals = [("NOT_FOUND", "gone")] if error == "server" else []
        return answer

    out = tmp_path / "index.npz"
    (folder / "torn.jpg").unlink()
    (folder / "empty.png").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(client.Client, "embed", stop)
        with pytest.raises(SystemExit) as end:
            ask(stub, "index", folder, f"--out={out}")
    assert end.value.code == {"server": 1, "interrupt": 130}[error]
    assert "kept 3 images" in capsys.readouterr().err
    assert len(ImageIndex.load(out).paths) == 3
    stub.brain.refusals = []
    stub.brain.calls.clear()
    ask(stub, "index", folder, f"--out={out}")
    assert len(ImageIndex.load(out).paths) == 4 and len(stub.brain.calls) == 2


@pytest.mark.slow
def test_a_signal_ends_a_run_that_keeps_what_it_has(stub, tmp_path):
    for index in range(65):
        Image.fromarray(grey(index)).save(tmp_path / f"{index:02}.png")
    gate, asked = stand_ins.Gate(), []

    def hold(inputs):
        asked.extend(inputs["image_bytes"])
        return gate(inputs) if len(asked) > 64 else 0

    stub.brain.hold = hold
    out = tmp_path / "index.npz"
    words = ("index", tmp_path, f"--out={out}", f"--address={stub.address}")
    process = subprocess.Popen(
        command(
            *("serving/client.py", *words, "--timeout=9999"),
            *(["--grpc"] if stub.grpc else []),
        ),
        stderr=subprocess.PIPE,
        text=True,
        # pytest itself may run by nohup
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    assert gate.begun.wait(stand_ins.PATIENCE)
    number = signal.SIGHUP if stub.grpc else signal.SIGTERM
    process.send_signal(number)
    # the request is still on its way
    _, told = process.communicate(timeout=stand_ins.PATIENCE)
    gate.go.set()
    assert process.returncode == 128 + number
    assert told == f"kept 64 images in {out}; run again for the rest\n"
    assert len(ImageIndex.load(out).paths) == 64


def test_a_part_of_the_same_version_keeps_what_is_new(
    stub, folder, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "index.npz"
    ask(stub, "index", folder, f"--out={out}")
    for level in range(5):
        Image.fromarray(grey(level)).save(folder / f"new{level}.png")
    monkeypatch.setattr(sys.modules["mae_client.similar"], "_WINDOW", 3)
    stub.brain.refusals = [None, None, ("NOT_FOUND", "gone")]
    with pytest.raises(SystemExit):
        ask(stub, "index", folder, f"--out={out}")
    # the four, and two of the first three, as one can't be read
    assert "kept 6 images" in capsys.readouterr().err
    assert len(ImageIndex.load(out).paths) == 6


def test_a_part_does_not_replace_a_whole_index(
    stub, folder, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "index.npz"
    ask(stub, "index", folder, f"--out={out}")
    before = out.read_bytes()
    monkeypatch.setattr(sys.modules["mae_client.similar"], "_WINDOW", 3)
    stub.brain.version = 3
    stub.brain.refusals = [None, ("NOT_FOUND", "gone")]
    capsys.readouterr()
    with pytest.raises(SystemExit):
        ask(stub, "index", folder, f"--out={out}")
    assert "stays as it was, of version 2" in capsys.readouterr().err
    assert out.read_bytes() == before


def test_an_index_of_other_images_is_not_written_over(stub, folder, tmp_path, capsys):
    out = tmp_path / "index.npz"
    ask(stub, "index", folder, f"--out={out}")
    before = out.read_bytes()
    stub.brain.calls.clear()
    capsys.readouterr()
    for asked in ((folder / "far",), (folder, "--model=m")):
        with pytest.raises(SystemExit) as stop:
            ask(stub, "index", *asked, f"--out={out}")
        (line,) = capsys.readouterr().err.splitlines()
        assert stop.value.code == 2
        assert f"index of {folder} by model mae; give another --out" in line
    assert out.read_bytes() == before and not stub.brain.calls


def test_a_place_that_cannot_be_written_is_refused_first(stub, folder, capsys):
    with pytest.raises(SystemExit) as stop:
        ask(stub, "index", folder, "--out=/proc/index.npz")
    assert stop.value.code == 2 and "/proc" in capsys.readouterr().err
    assert not stub.brain.calls


def test_indexes_of_other_models_are_refused(stub, folder, tmp_path, capsys):
    out = tmp_path / "index.npz"
    ask(stub, "index", folder, f"--out={out}")
    stub.brain.version = 3
    (tmp_path / "other.npz").write_bytes(b"no archive")
    np.savez(tmp_path / "features.npz", features=np.zeros(3))
    for words, message in (
        ((out,), "embeddings of model mae 2, by embed; the server answers as mae 3"),
        ((out, "--model=m"), "answers as m 3"),
        ((tmp_path / "other.npz",), "is not an index file"),
        ((tmp_path / "features.npz",), "is not an index file"),
        ((tmp_path / "missing.npz",), "No such file"),
        ((out, "--top=0"), "--top must be at least 1"),
    ):
        capsys.readouterr()
        path, *flags = words
        with pytest.raises(SystemExit) as stop:
            ask(stub, "similar", folder / "g100.jpg", f"--index={path}", *flags)
        (line,) = capsys.readouterr().err.splitlines()
        assert stop.value.code == 2 and message in line


def test_folders_without_images(stub, tmp_path, capsys):
    for folder, message in (
        (tmp_path, "has no image that can be read"),
        (tmp_path / "missing", "There is no folder"),
    ):
        with pytest.raises(SystemExit) as stop:
            ask(stub, "index", folder, f"--out={tmp_path / 'index.npz'}")
        (line,) = capsys.readouterr().err.splitlines()
        assert stop.value.code == 2 and message in line
    # another file isn't written over
    notes = tmp_path / "notes.npz"
    notes.write_text("mine")
    with pytest.raises(SystemExit):
        ask(stub, "index", tmp_path, f"--out={notes}")
    assert notes.read_text() == "mine"


def test_the_index_moves_with_its_folder(stub, folder, tmp_path, capsys):
    ask(stub, "index", folder, f"--out={tmp_path / 'index.npz'}")
    moved = tmp_path / "moved"
    moved.mkdir()
    folder.rename(moved / "pictures")
    (tmp_path / "index.npz").rename(moved / "index.npz")
    query = moved / "pictures" / "g000.png"
    assert_finds_others(stub, query, moved / "index.npz", capsys)


def assert_finds_others(stub, query, index, capsys):
    """Asserts that an image's neighbours are drawn, and that it is none of them."""
    sheet = query.parents[1] / "sheet.png"
    ask(stub, "similar", query, f"--index={index}", f"--out={sheet}")
    assert query.name not in capsys.readouterr().out
    with Image.open(sheet) as picture:
        np.testing.assert_allclose(picture.getpixel((256, 104))[0], 100, atol=1)


@pytest.mark.parametrize("linked", ["index's folder", "pictures", "index"])
def test_an_index_behind_a_link_finds_its_images(
    stub, folder, tmp_path, capsys, linked
):
    far = tmp_path / "disk" / "data" / "far"
    far.mkdir(parents=True)
    out, pictures = tmp_path / "index.npz", folder
    if linked == "index's folder":
        (tmp_path / "runs").symlink_to(far)
        out = tmp_path / "runs" / "index.npz"
    elif linked == "pictures":
        folder.rename(far / "pictures")
        pictures = tmp_path / "link"
        pictures.symlink_to(far / "pictures")
    ask(stub, "index", pictures, f"--out={out}")
    stub.brain.calls.clear()
    ask(stub, "index", pictures, f"--out={out}")
    # one image, to compare the models
    assert sum(len(call[1]["image_bytes"]) for call in stub.brain.calls) == 1
    if linked == "index":
        out = far / "index.npz"
        out.symlink_to(tmp_path / "index.npz")
    capsys.readouterr()
    assert_finds_others(stub, pictures / "g000.png", out, capsys)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_images(folder, tmp_path):
    large = np.random.default_rng(0).integers(0, 256, (500, 600, 3), "uint8")
    Image.fromarray(large).save(tmp_path / "large.png")
    data = (tmp_path / "large.png").read_bytes()
    for index in range(400):
        (folder / f"{index}.png").write_bytes(data)
    code = (
        "import sys, client\n"
        "client.main(sys.argv[1:])\n"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
    )
    with stand_ins.RestStub() as stub:
        out = tmp_path / "index.npz"
        words = ["index", folder, f"--out={out}", f"--address={stub.address}"]
        stub.brain.answer = lambda _, inputs: {
            "embedding": np.ones((len(inputs["image_bytes"]), 2))
        }
        finished = subprocess.run(
            [sys.executable, "-c", code, *map(str, words)],
            capture_output=True,
            text=True,
            cwd=ROOT / "serving",
        )
    assert finished.returncode == 0, finished.stderr
    told, peak = finished.stdout.splitlines()
    assert told.startswith("404 images")
    # all pictures together are 360 MB
    assert len(data) * 400 > 350e6 and int(peak) < 300e3
