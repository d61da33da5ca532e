"""training/write_tfrecords.py, and training/benchmark_data.py."""

import itertools
import os
import re

import pytest
import tensorflow as tf

from keras_mae import data
from tests import pictures
from tests.scripts import load, run

SCRIPT = "training/write_tfrecords.py"
COUNT = 10


@pytest.fixture(scope="module")
def script():
    return load(SCRIPT)


@pytest.fixture
def folder(tmp_path):
    pictures.write_folder(tmp_path / "pictures", range(COUNT))
    return tmp_path / "pictures"


def write(script, folder, output, **flags):
    script.main(script.WriteConfig(str(folder), str(output), **flags))


def examples(output):
    """Reads all examples, shard by shard."""
    for path in sorted(output.glob("*.tfrecord")):
        records = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
        yield [tf.train.Example.FromString(r).features.feature for r in records]


def text(features, key="image/filename"):
    return features[key].bytes_list.value[0].decode()


@pytest.mark.slow
def test_shards_hold_the_files_bytes_and_classes(folder, tmp_path):
    output = tmp_path / "shards"
    flags = (f"--folder={folder}", f"--output={output}", "--shards=3", "--name=cats")
    finished = run(SCRIPT, *flags)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout.startswith("10 images in 3 shards, 0 left out")
    shards = [f"cats-{shard:05}-of-00003.tfrecord" for shard in range(3)]
    assert sorted(path.name for path in output.iterdir()) == [
        *shards,
        "classes-cats.txt",
    ]
    assert (output / "classes-cats.txt").read_text() == "a\nb\n"
    found = list(examples(output))
    assert [len(shard) for shard in found] == [4, 3, 3]
    for features in itertools.chain(*found):
        name = text(features)
        content = features["image/encoded"].bytes_list.value[0]
        assert content == (folder / name).read_bytes()
        assert features["image/class/label"].int64_list.value[0] == "ab".index(name[0])
    # the line it ends with is what reads them
    name = re.search(r"--dataset='(.*)'", finished.stdout).group(1)
    assert data.load_source(name, held_out="photos").epoch_size == COUNT
    with pytest.raises(ValueError, match=r"holds shards already, such as .*00000-of"):
        write(load(SCRIPT), folder, output, name="cats", shards=2)


@pytest.mark.slow
def test_the_seed_decides_the_order(script, folder, tmp_path):
    orders = []
    for number, seed in enumerate((0, 0, 1)):
        output = tmp_path / str(number)
        write(script, folder, output, shards=2, seed=seed)
        orders.append([text(f) for f in itertools.chain(*examples(output))])
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) != orders[0]


@pytest.mark.slow
def test_flat_folders_have_no_classes(script, folder, tmp_path):
    write(script, folder / "a", tmp_path / "flat", shards=1)
    (shard,) = examples(tmp_path / "flat")
    assert {*shard[0]} == {"image/encoded", "image/filename"}
    assert [path.suffix for path in (tmp_path / "flat").iterdir()] == [".tfrecord"]


@pytest.mark.slow
def test_a_picture_in_no_class_folder_is_named(script, folder, tmp_path, capsys):
    write(script, folder, tmp_path / "all", shards=1)
    assert "\n2 classes\n" in capsys.readouterr().out
    min((folder / "a").iterdir()).rename(folder / "cover.jpg")
    write(script, folder, tmp_path / "some", shards=1)
    line = "Without classes: 'cover.jpg' is in no class folder"
    assert line in capsys.readouterr().out
    assert not list((tmp_path / "some").glob("classes*"))


def test_folders_below_a_class_are_part_of_it(script, folder, tmp_path):
    (folder / "a").rename(tmp_path / "left")
    (folder / "a" / "patient").mkdir(parents=True)
    (tmp_path / "left").rename(folder / "a" / "patient" / "left")
    write(script, folder, tmp_path / "nested", shards=1)
    (shard,) = examples(tmp_path / "nested")
    for features in shard:
        label = features["image/class/label"].int64_list.value[0]
        assert label == "ab".index(text(features)[0])


@pytest.mark.slow
def test_train_and_val_are_written_one_by_one(script, folder, tmp_path):
    pictures.write_folder(tmp_path / "pets" / "val", range(4))
    (tmp_path / "pets" / "cat").mkdir()
    with pytest.raises(ValueError, match=r"Received: val, and folders in val$"):
        write(script, tmp_path / "pets", tmp_path / "shards", shards=2)
    folder.rename(tmp_path / "pets" / "train")
    with pytest.raises(ValueError, match="either training or held-out") as error:
        write(script, tmp_path / "pets", tmp_path / "shards", shards=2)
    assert not (tmp_path / "shards").exists()
    commands = re.findall(r"--folder=(\S+) --name=(\w+)", str(error.value))
    for path, name in commands:
        write(script, path, tmp_path / "shards", name=name, shards=2)
    shards = f"tfrecord:{tmp_path}/shards/"
    source = data.load_source(f"{shards}train-*", held_out=f"{shards}val-*")
    assert (len(source.training), len(source.held_out)) == (COUNT, 4)
    assert data.with_labels(source).class_names == ("a", "b")


@pytest.mark.slow
def test_unreadable_files_are_reported_and_left_out(script, folder, tmp_path, caplog):
    bad = folder / "a" / "notes.jpg"
    bad.write_text("no picture")
    write(script, folder, tmp_path / "some", shards=2)
    names = {text(f) for f in itertools.chain(*examples(tmp_path / "some"))}
    assert len(names) == COUNT and "a/notes.jpg" not in names
    assert str(bad) in caplog.text
    with pytest.raises(ValueError, match=r"At most 0 corrupt.*notes\.jpg"):
        write(script, folder, tmp_path / "none", shards=2, corrupt_limit=0)
    assert not list((tmp_path / "none").iterdir())


def test_names_need_not_be_utf8(script, tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9s")
    pictures.write_folder(folder, range(4))
    name = os.fsdecode(b"a/caf\xe9.jpg")
    (folder / "a" / "00.png").rename(folder / name)
    write(script, folder, tmp_path / "shards", shards=1)
    (found,) = examples(tmp_path / "shards")
    names = {f["image/filename"].bytes_list.value[0] for f in found}
    assert os.fsencode(name) in names and len(names) == 4


def test_wrong_flags_are_refused(script, folder, tmp_path):
    output = tmp_path / "shards"
    with pytest.raises(ValueError, match=r"at most the 10 images .* Received: 11"):
        write(script, folder, output, shards=11)
    with pytest.raises(ValueError, match=r"shards must be at least 1. Received: 0"):
        write(script, folder, output, shards=0)
    with pytest.raises(ValueError, match=r"a file name prefix. Received: 'a/b'"):
        write(script, folder, output, name="a/b")
    with pytest.raises(ValueError, match=r"must be a folder. Received: nowhere"):
        write(script, "nowhere", output)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"must contain images. Received: .*empty"):
        write(script, tmp_path / "empty", output)
    assert not output.exists() or not list(output.iterdir())


@pytest.mark.nightly
def test_data_benchmark_reads_files_and_tfrecords(capsys):
    pytest.importorskip("skimage")
    benchmark = load("training/benchmark_data.py")
    small = {"images": 48, "image_size": 32, "batch_size": 8, "batches": 2}
    benchmark.main(benchmark.DataConfig(**small, repeats=2))
    printed = capsys.readouterr().out
    rates = re.findall(r"^(\w+), 32 pixels.*: (\d+) images/s", printed, re.M)
    assert [name for name, _ in rates] == ["folder", "tfrecord"]
    assert all(int(rate) > 0 for _, rate in rates)
    with pytest.raises(ValueError, match=r"repeats must be at least 1. Received: 0"):
        benchmark.main(benchmark.DataConfig(repeats=0))
