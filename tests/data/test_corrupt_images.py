"""Corrupt images: skipped, logged, counted, and an error at the limit."""

import itertools
import logging

import numpy as np
import pytest
import tensorflow as tf

from keras_mae import data
from keras_mae.data import CorruptImages
from tests import pictures
from tests.pictures import processor_for

JPEG = pictures.encode(pictures.picture(9), "jpg")
BAD = {
    "truncated": JPEG[: len(JPEG) * 2 // 3],
    "nearly": JPEG[:-2],
    "text": b"this is no picture, whatever its name says",
    "empty": b"",
    "no_window": b"\xff\xd8\xff\xd9",
}
COUNT = 16


def jpeg(number):
    # full colour, so that the picture's number can be read
    return pictures.encode(pictures.picture(number), "jpg", quality=95, subsampling=0)


def write(folder, bad):
    """Writes good pictures, some of which are then spoilt."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(COUNT):
        content = jpeg(number)
        (folder / f"{number:02}.jpg").write_bytes(content)
    spoil(folder, bad)


def spoil(folder, bad):
    for number, content in bad.items():
        (folder / f"{number:02}.jpg").write_bytes(content)


def write_records(folder, bad):
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(2):
        with tf.io.TFRecordWriter(str(folder / f"{shard}.tfrecord")) as writer:
            for number in range(shard, COUNT, 2):
                content = jpeg(number)
                content = bad.get(number, content)
                writer.write(pictures.example("image", content))


def batches(source, count, batch_size=4, **arguments):
    pipeline = data.training_pipeline(
        source, processor_for(source), batch_size, seed=0, **arguments
    )
    return np.stack(list(itertools.islice(pipeline.as_numpy_iterator(), count)))


def compare(clean, found, bad, source):
    """Checks that good rows stay, and that others hold good rows of their batch."""
    for before, after in zip(clean, found, strict=True):
        rows = np.array([number in bad for number in pictures.numbers(source, before)])
        np.testing.assert_array_equal(after[~rows], before[~rows])
        for row in np.flatnonzero(rows):
            assert any(np.array_equal(after[row], good) for good in before[~rows])


@pytest.mark.slow
def test_corrupt_files_move_no_other_image(tmp_path, caplog):
    write(tmp_path / "train", {})
    pictures.write_folder(tmp_path / "val", range(2))
    source = data.load_source(f"folder:{tmp_path}")
    clean = batches(source, 8)
    bad = dict(zip((1, 4, 8, 11, 14), BAD.values(), strict=True))
    spoil(tmp_path / "train", bad)
    (tmp_path / "train" / "05.jpg").unlink()
    bad[5] = None
    corrupt = CorruptImages(limit=len(bad))
    with caplog.at_level(logging.WARNING, "keras_mae"):
        found = batches(source, 8, corrupt=corrupt)
    compare(clean, found, bad, source)
    wanted = [f"{tmp_path}/train/{number:02}.jpg" for number in bad]
    assert corrupt.count == len(bad) and sorted(corrupt.names) == sorted(wanted)
    for path in wanted:  # each once, although two epochs met it
        assert caplog.text.count(path) == 1
    corrupt.check()
    later = batches(source, 2, first_step=5, corrupt=CorruptImages())
    np.testing.assert_array_equal(later, found[5:7])


@pytest.mark.slow
def test_corrupt_records_move_no_other_image(tmp_path):
    bad = dict(zip((0, 5, 6, 9, 12), BAD.values(), strict=True))
    write_records(tmp_path / "clean", {})
    write_records(tmp_path / "spoilt", bad)
    sources = [
        data.load_source(f"tfrecord:{tmp_path}/{name}/*", held_out="photos")
        for name in ("clean", "spoilt")
    ]
    clean = batches(sources[0], 8)
    corrupt = CorruptImages()
    found = batches(sources[1], 8, corrupt=corrupt)
    compare(clean, found, bad, sources[0])
    # a file and a record's number there
    assert sorted(corrupt.names) == [
        f"{tmp_path}/spoilt/0.tfrecord:0",
        f"{tmp_path}/spoilt/0.tfrecord:3",
        f"{tmp_path}/spoilt/0.tfrecord:6",
        f"{tmp_path}/spoilt/1.tfrecord:2",
        f"{tmp_path}/spoilt/1.tfrecord:4",
    ]


def test_too_many_stop_at_the_check(tmp_path, caplog):
    write(tmp_path / "train", dict.fromkeys((2, 3, 7, 9), b""))
    source = data.load_source(f"folder:{tmp_path}", held_out="photos")
    corrupt = CorruptImages(limit=2)
    batches(source, 4, corrupt=corrupt)
    with pytest.raises(ValueError, match=r"At most 2 corrupt.* Received: 4: .*jpg"):
        corrupt.check()
    assert caplog.text.count("Skipped") == 3  # up to the one that was too many
    CorruptImages(limit=4).check()


@pytest.mark.slow
def test_too_many_stop_a_pipeline_that_nobody_checks(tmp_path):
    write(tmp_path, {})
    for number in range(105):
        (tmp_path / f"{number}.png").touch()
    source = data.load_source(f"folder:{tmp_path}", held_out="photos")
    with pytest.raises(tf.errors.OpError, match=r"At most 100 corrupt images"):
        batches(source, 3, batch_size=len(source.training) // 2)


@pytest.mark.slow
@pytest.mark.parametrize("checked", [True, False])
def test_a_batch_of_nothing_good_stops(checked, tmp_path):
    write(tmp_path, dict.fromkeys(range(COUNT), b""))
    source = data.load_source(f"folder:{tmp_path}", held_out="photos")
    corrupt = CorruptImages()
    if checked:
        batches(source, 1, corrupt=corrupt)
        with pytest.raises(ValueError, match=r"No image of a batch .*\d\d\.jpg"):
            corrupt.check()
    else:
        with pytest.raises(tf.errors.OpError, match=r"No image of a batch"):
            batches(source, 1)


@pytest.mark.slow
def test_corrupt_held_out_images_are_left_out(tmp_path):
    write(tmp_path / "val", dict.fromkeys((0, 3), b""))
    write(tmp_path / "train", {})
    source = data.load_source(f"folder:{tmp_path}")
    corrupt = CorruptImages()
    processor = processor_for(source)
    images = data.held_out_images(source, processor, count=14, corrupt=corrupt)
    good = sorted(set(range(COUNT)) - {0, 3})
    assert sorted(pictures.numbers(source, images)) == good
    assert corrupt.count == 2
    with pytest.raises(ValueError, match=r"At most 1 corrupt images"):
        data.held_out_images(source, processor, corrupt=CorruptImages(limit=1))
    spoil(tmp_path / "val", dict.fromkeys(range(COUNT), b""))
    with pytest.raises(ValueError, match=r"None of the 16 held-out images.*val/"):
        data.held_out_images(source, processor)


def test_limits_are_not_negative():
    with pytest.raises(ValueError, match=r"limit must not be negative. Received: -1"):
        CorruptImages(limit=-1)
