"""dataset_fingerprint: it changes when the data set does, and only then."""

import os

from keras_mae import data
from tests import pictures
from tests.data.test_labels import write_records

describe = data.dataset_fingerprint


def load(name, **options):
    return data.with_labels(data.load_source(name), **options)


def test_files_are_told_by_path_size_and_time(tmp_path):
    name = f"folder:{tmp_path}"
    for split in ("train", "val"):
        pictures.write_folder(tmp_path / split, range(4))
    first = describe(load(name))
    assert describe(load(name)) == first
    path = tmp_path / "val" / "a" / "00.png"
    os.utime(path, ns=(0, 0))
    touched = describe(load(name))
    path.write_bytes(path.read_bytes() + b"0")
    os.utime(path, ns=(0, 0))
    longer = describe(load(name))
    path.rename(path.with_name("01.png"))
    renamed = describe(load(name))
    pictures.write_folder(tmp_path / "train", range(6))
    more = describe(load(name))
    assert len({first, touched, longer, renamed, more}) == 5


def test_a_class_that_came_changes_all(tmp_path):
    for split in ("train", "val"):
        pictures.write_folder(tmp_path / split, range(4))
    first = describe(load(f"folder:{tmp_path}"))
    for split in ("train", "val"):
        (tmp_path / split / "0").mkdir()
        (tmp_path / split / "a" / "00.png").rename(tmp_path / split / "0" / "00.png")
    assert describe(load(f"folder:{tmp_path}")) != first


def test_a_file_that_is_gone_is_no_error(tmp_path):
    for split in ("train", "val"):
        pictures.write_folder(tmp_path / split, range(4))
    source = load(f"folder:{tmp_path}")
    first = describe(source)
    (tmp_path / "train" / "a" / "00.png").unlink()
    assert describe(source) != first


def test_shards_are_told_by_path_size_and_time(tmp_path):
    for name in ("a", "b"):
        write_records(tmp_path / f"{name}.tfrecord", [0, 1])
    name = f"tfrecord:{tmp_path}/*.tfrecord"
    source = load(name, num_classes=2)
    first = describe(source)
    assert describe(load(name, num_classes=2)) == first
    assert describe(load(name, num_classes=3)) != first
    os.utime(source.training.shards[0].path, ns=(0, 0))
    assert describe(load(name, num_classes=2)) != first


def test_arrays_are_told_by_pixels_and_labels():
    source = load("digits")
    first = describe(source)
    assert describe(load("digits")) == first
    labels = source.held_out_labels.copy()
    labels[0] += 1
    assert describe(source._replace(held_out_labels=labels)) != first
    images = [source.training[0] // 2, *source.training[1:]]
    assert describe(source._replace(training=images)) != first
