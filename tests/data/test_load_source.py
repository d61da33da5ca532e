"""load_source: files, TFRecords, TensorFlow Datasets; what is found, what refused."""

import os
import resource
import shutil
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import keras_mae
from keras_mae import data
from keras_mae.preprocessing.image_processor import IMAGENET_MEAN, IMAGENET_STD
from tests import pictures
from tests.pictures import processor_for


def names(images):
    return [os.path.basename(path) for path in images.paths]


def held_out_numbers(source, **arguments):
    images = data.held_out_images(source, processor_for(source), **arguments)
    return pictures.numbers(source, images)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "val",
        *(pytest.param(n, marks=pytest.mark.nightly) for n in ("validation", "test")),
    ],
)
def test_a_folder_beside_train_is_held_out(name, tmp_path):
    pictures.write_folder(tmp_path / "train", range(5))
    pictures.write_folder(tmp_path / name, range(5, 9))
    source = data.load_source(f"folder:{tmp_path}")
    assert len(source.training) == source.epoch_size == 5
    assert (source.mean, source.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert sorted(held_out_numbers(source)) == [5, 6, 7, 8]


@pytest.mark.parametrize(
    "splits",
    [
        ("train", "valid", "test"),
        ("Train", "Val"),
        ("TRAIN", "Test"),
        ("Training", "Testing"),
    ],
)
def test_splits_have_other_common_names(splits, tmp_path):
    for split in splits:
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / f"{split}.jpg").touch()
    source = data.with_labels(data.load_source(f"folder:{tmp_path}"))
    assert source.class_names == ("cat", "dog")
    assert names(source.training) == [f"{splits[0]}.jpg"] * 2
    assert names(source.held_out) == [f"{splits[1]}.jpg"] * 2


def test_two_percent_are_held_out_of_other_folders(tmp_path):
    folders = [tmp_path / "one" / "flat", tmp_path / "two"]
    for folder in folders:
        folder.mkdir(parents=True)
        for number in range(100):
            (folder / f"{number}.jpg").touch()
    first, second = [data.load_source(f"folder:{folder}") for folder in folders]
    assert (len(first.training), len(first.held_out)) == (98, 2)
    assert not set(names(first.training)) & set(names(first.held_out))
    # the same files wherever the folder lies
    assert names(first.held_out) == names(second.held_out)
    for number in range(3, 100):
        (folders[1] / f"{number}.jpg").unlink()
    assert len(data.load_source(f"folder:{folders[1]}").held_out) == 1


@pytest.mark.slow
@pytest.mark.parametrize("exif_orientation", [False, True])
def test_files_are_read_as_grey(exif_orientation, tmp_path):
    for folder in ("colours", "luma"):
        (tmp_path / folder).mkdir()
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 256, (20, 20, 3), "uint8")
        image = Image.fromarray(pixels)
        image.save(tmp_path / f"colours/{index}.png")
        image.convert("L").save(tmp_path / f"luma/{index}.png")
    found = []
    for folder in ("colours", "luma"):
        source = data.load_source(f"folder:{tmp_path / folder}", num_channels=1)
        processor = keras_mae.MAEImageProcessor(
            16, source.mean, source.std, exif_orientation=exif_orientation
        )
        batches = data.training_pipeline(source, processor, 2, seed=0)
        held_out = data.held_out_images(source, processor)
        found.append([next(iter(batches)), held_out])
    for colours, luma in zip(*found, strict=True):
        assert colours.shape[1:] == (16, 16, 1)
        np.testing.assert_array_equal(colours, luma)


def test_only_files_are_read_as_grey_or_rgb(tmp_path):
    with pytest.raises(ValueError, match=r"must be 1 for digits. Received: 3"):
        data.load_source("digits", num_channels=3)
    with pytest.raises(ValueError, match=r"must be 1 or 3 for folder:.* Received: 4"):
        data.load_source(f"folder:{tmp_path}", num_channels=4)


def test_a_class_may_be_called_train(tmp_path):
    for name in ("bus", "train"):
        pictures.write_folder(tmp_path / name, range(3))
    source = data.load_source(f"folder:{tmp_path}")
    assert len(source.training) + len(source.held_out) == 6
    shutil.rmtree(tmp_path / "bus")
    (tmp_path / "notes.jpg").touch()  # beside the split, in neither
    source = data.load_source(f"folder:{tmp_path}")
    assert len(source.training) + len(source.held_out) == 3


def test_folders_are_searched_for_images_and_nothing_else(tmp_path):
    for name in ("a.JPEG", "b/c/d.webp", "b/e.bmp", "b/f.Png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for name in ("notes.txt", "._a.jpg", "b/g.gif"):
        (tmp_path / name).touch()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "h.jpg").touch()
    (tmp_path / "b" / "back").symlink_to(tmp_path)
    source = data.load_source(f"folder:{tmp_path}", held_out="photos")
    assert sorted(names(source.training)) == ["a.JPEG", "d.webp", "e.bmp", "f.Png"]


def test_images_of_other_formats_are_counted(tmp_path, caplog):
    pictures.write_folder(tmp_path, range(4))
    data.load_source(f"folder:{tmp_path}")
    assert not caplog.records
    for name in ("a/1.gif", "a/2.TIFF", "b/3.heic", "b/notes.txt", "b/.4.gif"):
        (tmp_path / name).touch()
    assert len(data.load_source(f"folder:{tmp_path}").training) == 3
    (record,) = caplog.records
    wanted = f"Left out 3 image(s) of other formats in {tmp_path}: only .bmp"
    assert record.getMessage().startswith(wanted)


@pytest.mark.slow
def test_held_out_images_may_come_from_elsewhere(tmp_path):
    pictures.write_folder(tmp_path / "all", range(8))
    pictures.write_folder(tmp_path / "other", range(8, 11))
    pictures.write_shards(tmp_path / "shards", range(11, 15), shards=2)
    folder = f"folder:{tmp_path}/all"
    source = data.load_source(folder, held_out=f"folder:{tmp_path}/other")
    assert source.epoch_size == 8  # none of its own is held out
    assert sorted(held_out_numbers(source)) == [8, 9, 10]
    source = data.load_source(folder, held_out=f"tfrecord:{tmp_path}/shards/*")
    assert sorted(held_out_numbers(source)) == [11, 12, 13, 14]
    source = data.load_source(f"tfrecord:{tmp_path}/shards/0*", held_out=folder)
    assert (source.epoch_size, len(source.held_out)) == (2, 8)
    source = data.load_source("photos", held_out=folder)
    assert (source.epoch_size, len(source.held_out)) == (640, 8)


def test_held_out_images_are_left_out_of_training(tmp_path):
    pictures.write_folder(tmp_path / "all", range(8))
    pictures.write_shards(tmp_path / "shards", range(9), shards=3)
    folder = f"folder:{tmp_path}/all"
    source = data.load_source(folder, held_out=f"{folder}/a")
    assert (source.epoch_size, len(source.held_out)) == (4, 4)
    shards = f"tfrecord:{tmp_path}/shards/"
    source = data.load_source(f"{shards}*", held_out=f"{shards}0*")
    assert (source.epoch_size, len(source.held_out)) == (6, 3)
    with pytest.raises(ValueError, match=r"leave images for training. Received: folde"):
        data.load_source(f"{folder}/a", held_out=folder)
    assert data.load_source(folder, held_out=folder).epoch_size == 7  # its own rule


@pytest.mark.nightly
def test_names_need_not_be_utf_8(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    for first, name in ((0, "été".encode()), (4, b"\xe9t\xe9")):
        try:
            numbers = range(first, first + 4)
            pictures.write_folder(folder / os.fsdecode(name), numbers)
        except OSError:
            pytest.skip("this file system takes UTF-8 alone")
    source = data.load_source(f"folder:{folder}")
    assert (len(source.training), len(source.held_out)) == (7, 1)
    shown = [*held_out_numbers(source)]
    for batch in data.training_pipeline(source, processor_for(source), 7, 0).take(1):
        shown += pictures.numbers(source, batch)
    assert set(shown) == {*range(8)}
    labelled = data.with_labels(source)
    assert labelled.class_names == ("été", "?t?")
    batches = data.labelled_pipeline(labelled, processor_for(source), 7, 0)
    images, labels = next(iter(batches))
    numbers = np.array(pictures.numbers(source, images))
    np.testing.assert_array_equal(labels.numpy().argmax(-1), numbers // 4)


def test_names_in_utf_8_keep_their_order():
    """The same files are held out as ever."""
    images = data.folder.ImageFiles("photos", ["a.png", "é.png", "ü/日本.png", "z.png"])
    assert images.divided()[1].names == ["é.png"]


@pytest.mark.slow
def test_held_out_images_are_the_middles_of_some(tmp_path):
    pictures.write_folder(tmp_path / "train", range(2))
    for number in range(3):
        pictures.write_folder(tmp_path / "val" / str(number), range(2 + number, 12))
    source = data.load_source(f"folder:{tmp_path}")
    few = held_out_numbers(source, count=6)
    assert few == held_out_numbers(source)[:6]
    assert len(set(few)) > 2  # not the first folder's first files
    assert len(held_out_numbers(source)) == 27
    assert held_out_numbers(source, count=30)[27:] == few[:3]
    with pytest.raises(ValueError, match=r"count must be at least 1. Received: 0"):
        held_out_numbers(source, count=0)


@pytest.mark.slow
def test_held_out_images_are_capped_where_there_are_many(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "val").mkdir()
    content = pictures.encode(pictures.picture(3)[:8, :8])
    for number in range(520):
        (tmp_path / "val" / f"{number}.png").write_bytes(content)
    (tmp_path / "train" / "0.png").write_bytes(content)
    assert len(held_out_numbers(data.load_source(f"folder:{tmp_path}"))) == 512


@pytest.mark.parametrize("size", [(16, 16), (8, 24), (24, 8)])
@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (7, 90), (5, 5)])
def test_the_middle_is_centred_and_not_distorted(size, shape):
    ramps = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij")
    photo = np.stack([127.5 + 100 * ramp for ramp in ramps] * 2, axis=-1)[..., :3]
    middle = data.augmentation.center_crop(photo.round().astype("uint8"), size)
    assert middle.shape == (*size, 3)
    levels = middle.numpy().mean(axis=(0, 1))
    # half a pixel off where the margins are odd
    np.testing.assert_allclose(levels, 127.5, atol=1 + 110 / min(size))
    # the same share of grey levels per pixel in both directions, shape for shape
    slopes = [np.ptp(middle[:, size[1] // 2, 0]), np.ptp(middle[size[0] // 2, :, 1])]
    pixels = [slopes[axis] * shape[axis] / (size[axis] - 1) for axis in range(2)]
    if min(shape) > 7:
        assert abs(pixels[0] / pixels[1] - 1) < 0.1
        share = max(slopes) / 200
        assert 0.8 < share < 0.9  # the side that fits shows 7/8 of it


@pytest.mark.parametrize(("side", "share"), [(224, 0.875), (225, 1.0), (384, 1.0)])
def test_larger_evaluations_take_the_whole_shorter_side(side, share):
    ramp = np.linspace(0, 250, 500)[None, :, None].repeat(500, 0).repeat(3, 2)
    middle = data.augmentation.center_crop(ramp.round().astype("uint8"), (side, side))
    assert abs(np.ptp(middle[side // 2, :, 0]) / 250 - share) < 0.01


def test_a_line_of_pixels_does_not_fill_the_memory():
    """Resized as a whole, it would be 768,000 pixels wide, and 10 GB."""
    line = np.full((1, 3000, 3), 77, "uint8")
    data.augmentation.center_crop(line[:, :9], (224, 224))  # what it takes at first
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (data.augmentation.center_crop(line, (224, 224)).numpy() == 77).all()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 500 * 1024  # KiB


def test_the_last_shard_is_held_out(tmp_path):
    pictures.write_shards(tmp_path, range(10), shards=4, key="image")
    (tmp_path / ".part-4.tfrecord").touch()
    source = data.load_source(f"tfrecord:{tmp_path}/*")
    assert source.epoch_size == 8
    assert held_out_numbers(source) == [3, 7]
    with pytest.raises(ValueError, match=r"held_out names others. .*which matches"):
        data.load_source(f"tfrecord:{tmp_path}/2*")


@pytest.mark.parametrize("cut", [1, 30, 10**4])
def test_broken_shards_are_refused(cut, tmp_path):
    pictures.write_shards(tmp_path, range(4), shards=2)
    path = tmp_path / "0.tfrecord"
    content = path.read_bytes()
    path.write_bytes(content[: max(5, len(content) - cut)])
    with pytest.raises(ValueError, match=r"0\.tfrecord must be a whole, uncompressed"):
        data.load_source(f"tfrecord:{tmp_path}/*")


def test_class_names_that_are_no_text_name_their_file(tmp_path):
    pictures.write_shards(tmp_path, range(4), shards=2)
    (tmp_path / "classes-0.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(ValueError, match=r"classes-0\.txt must be text in UTF-8"):
        data.load_source(f"tfrecord:{tmp_path}/*.tfrecord")


def test_shards_without_images_are_refused(tmp_path):
    for name in ("0", "1"):
        with tf.io.TFRecordWriter(str(tmp_path / name)) as writer:
            writer.write(pictures.example("picture", b"content"))
    with pytest.raises(ValueError, match=r"image/encoded or image. Received: picture"):
        data.load_source(f"tfrecord:{tmp_path}/*")
    with tf.io.TFRecordWriter(str(tmp_path / "0")) as writer:
        writer.write(b"\xff\xff no message")
    with pytest.raises(ValueError, match=r"tf.train.Example messages"):
        data.load_source(f"tfrecord:{tmp_path}/*")
    (tmp_path / "1").write_bytes(b"")
    with pytest.raises(ValueError, match=r"Received: .*/1, which has none"):
        data.load_source(f"tfrecord:{tmp_path}/*")


@pytest.mark.slow
def test_prepared_data_sets_are_read_by_name(tmp_path):
    pictures.prepare_tfds(tmp_path, train=range(6), validation=range(6, 10))
    source = data.load_source("tfds:mini_pictures", data_dir=tmp_path)
    assert source.epoch_size == 6
    assert sorted(held_out_numbers(source)) == [6, 7, 8, 9]
    assert (source.mean, source.std) == (IMAGENET_MEAN, IMAGENET_STD)
    with pytest.raises(ValueError, match=r"or one in data_dir.* 'mini_pictures:7.0.0'"):
        data.load_source("tfds:mini_pictures:7.0.0", data_dir=tmp_path)
    with pytest.raises(ValueError, match=r"or one in data_dir.* Received: 'cats_too'"):
        data.load_source("tfds:cats_too", data_dir=tmp_path)
    with pytest.raises(
        ValueError, match=r"or one in .*'mnist:9.9.9'.*version 9.9.9, on"
    ):
        data.load_source("tfds:mnist:9.9.9", data_dir=tmp_path)


def test_tfds_that_is_not_installed_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'keras-mae\[tfds\]'"):
        data.load_source("tfds:cifar10")


@pytest.mark.nightly
def test_the_end_of_train_is_held_out_where_nothing_else_is(tmp_path):
    pictures.prepare_tfds(tmp_path, name="trains", key="photo", train=range(30))
    source = data.load_source("tfds:trains", data_dir=tmp_path)
    assert (source.epoch_size, len(source.held_out)) == (29, 1)
    pipeline = data.training_pipeline(source, processor_for(source), 29, seed=0)
    seen = pictures.numbers(source, next(iter(pipeline)))
    assert sorted(seen + held_out_numbers(source)) == list(range(30))
    pictures.write_folder(tmp_path / "others", range(30, 34))
    names = "tfds:trains", f"folder:{tmp_path}/others"
    for dataset, held_out, sizes in ((*names, (30, 4)), (*names[::-1], (4, 30))):
        source = data.load_source(dataset, held_out, data_dir=tmp_path)
        assert (source.epoch_size, len(source.held_out)) == sizes


def test_data_sets_without_images_for_training_are_refused(tmp_path):
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict({"length": tfds.features.Scalar(np.int64)})
    tfds.dataset_builders.store_as_tfds_dataset(
        name="lengths",
        version="1.0.0",
        features=features,
        split_datasets={"train": [(0, {"length": 1})]},
        data_dir=tmp_path,
    )
    with pytest.raises(ValueError, match=r"must have a feature 'image'.* length"):
        data.load_source("tfds:lengths", data_dir=tmp_path)
    pictures.prepare_tfds(tmp_path, name="tests", test=range(4))
    with pytest.raises(ValueError, match=r"a split 'train' with images. .* test"):
        data.load_source("tfds:tests", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cats", r"dataset must be one of digits, .*GLOB.* Received: 'cats'"),
        ("folder:", r"dataset must be one of .* Received: 'folder:'"),
        ("zip:cats.zip", r"dataset must be one of .* Received: 'zip:cats.zip'"),
        ("folder:nowhere", r"must be a folder of images. Received: nowhere"),
        ("folder:empty", r"empty must hold images .* Received: none"),
        ("folder:single", r"must hold at least two images.* Received: 1"),
        ("tfrecord:empty/*", r"must match files. Received: empty/\*"),
    ],
)
def test_names_of_nothing_are_refused(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "single").mkdir()
    (tmp_path / "single" / "a.jpg").touch()
    with pytest.raises(ValueError, match=message):
        data.load_source(name)
    if name != "folder:single":  # as held-out images one is enough
        with pytest.raises(ValueError, match=message):
            data.load_source("digits", held_out=name)
