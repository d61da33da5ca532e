"""A TFRecord whose checksum is wrong ends a run in one line that names its file."""

import pytest

from keras_mae import data
from keras_mae.data.damaged_records import naming_damaged_files
from keras_mae.data.tfrecord_reader import record_offsets
from tests.data.test_labels import data_processor, write_records
from tests.scripts import refusal


@pytest.fixture
def shards(tmp_path):
    for name in ("a", "b", "c"):
        write_records(tmp_path / f"{name}.tfrecord", [0, 1] * 4)
    return f"tfrecord:{tmp_path}/*.tfrecord"


def damage(path, number, place):
    """Flips one bit, `place` bytes after a record begins."""
    content = bytearray(path.read_bytes())
    content[[*record_offsets(str(path))][number] + place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("place", [9, 60])  # in the length's checksum, in the image
def test_what_reads_a_source_names_the_file(place, shards, tmp_path):
    damage(tmp_path / "b.tfrecord", 3, place)
    source = data.load_source(shards)
    message = "b.tfrecord must be a whole.* The checksum of record 3 is wrong"
    with pytest.raises(ValueError, match=message), naming_damaged_files(source):
        list(source.training.held_out_items())


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 3])
def test_what_is_read_before_training_names_the_file(number, shards, tmp_path):
    source = data.load_source(shards)
    damage(tmp_path / "c.tfrecord", number, 60)
    with pytest.raises(ValueError, match=f"c.tfrecord must.* record {number} is wrong"):
        data.held_out_images(source, data_processor())
    damage(tmp_path / "a.tfrecord", number, 60)
    message = f"a.tfrecord must.* record {number} is wrong"
    with pytest.raises(ValueError, match=message):
        source = data.load_source(shards)  # reads the first record
        data.with_labels(source, 2)


@pytest.mark.parametrize(
    "script, flags",
    [
        pytest.param(
            "training/pretrain.py",
            ("--epochs=1", "--warmup_epochs=0", "--patch_size=8", "--image_size=16"),
            marks=pytest.mark.nightly,
        ),
        pytest.param(
            "training/linear_probe.py",
            ("--method=knn", "--num_classes=2", "--image_size=32"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_scripts_end_in_one_line(script, flags, shards, tmp_path):
    damage(tmp_path / "b.tfrecord", 3, 60)
    names = (f"--dataset={shards}", f"--output={tmp_path / 'run'}")
    line = refusal(script, *names, "--batch_size=4", *flags)
    assert "b.tfrecord must be a whole" in line and "record 3 is wrong" in line
