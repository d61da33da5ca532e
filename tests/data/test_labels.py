"""Class labels: where they come from, whether they agree, and few of them."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_mae import data
from keras_mae.data.image_table import ImageTable, Table

pytest.importorskip("sklearn")


def write_image(path, shade):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((20, 20, 3), shade, "uint8")).save(path)


@pytest.fixture
def folder(tmp_path):
    """Three classes: shade / 10 tells the class."""
    for split, count in (("train", 4), ("val", 2)):
        for number, name in enumerate(("ape", "bee", "cat")):
            for index in range(count):
                path = tmp_path / split / name / f"{index}.png"
                write_image(path, 10 * number + index)
    return tmp_path


def write_records(path, labels):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for label in labels:
            image = np.full((9, 9, 3), 10 * label, "uint8")
            png = tf.train.BytesList(value=[tf.io.encode_png(image).numpy()])
            number = tf.train.Int64List(value=[label])
            feature = {
                "image/encoded": tf.train.Feature(bytes_list=png),
                "image/class/label": tf.train.Feature(int64_list=number),
            }
            features = tf.train.Features(feature=feature)
            writer.write(tf.train.Example(features=features).SerializeToString())


def pairs(source, batch_size=4, steps=3):
    """Reads some training images; returns their mean shades and labels."""
    processor = data_processor()
    batches = data.labelled_pipeline(source, processor, batch_size, seed=0)
    shades, labels = [], []
    for images, one_hot in batches.take(steps):
        shades += list(processor.denormalize(images.numpy()).mean(axis=(1, 2, 3)))
        labels += list(one_hot.numpy().argmax(axis=-1))
    return np.array(shades), np.array(labels)


def data_processor():
    import keras_mae

    return keras_mae.MAEImageProcessor(8)


def test_held_out_classes_without_train_are_refused(folder):
    for name in ("ape", "bee", "cat"):
        (folder / "train" / name).rename(folder / name)
    (folder / "train").rmdir()
    source = data.load_source(f"folder:{folder}")
    with pytest.raises(ValueError, match=r"bee, cat, val, and folders in val$"):
        data.with_labels(source)


def test_a_split_is_no_class(folder):
    (folder / "val").rename(folder / "Dev")
    source = data.load_source(f"folder:{folder}")
    with pytest.raises(ValueError, match=r"Dev, train, and folders in train$"):
        data.with_labels(source)


def test_a_class_of_a_split_may_have_a_splits_name(folder):
    (folder / "train" / "cat").rename(folder / "train" / "train")
    (folder / "val" / "cat").rename(folder / "val" / "train")
    for file in sorted((folder / "train" / "train").iterdir()):
        (file.parent / "sub").mkdir(exist_ok=True)
        file.rename(file.parent / "sub" / file.name)
    source = data.with_labels(data.load_source(f"folder:{folder}"))
    assert source.class_names == ("ape", "bee", "train")


def test_a_single_class_is_refused(folder):
    (folder / "train" / "images").mkdir()
    for name in ("ape", "bee", "cat"):
        (folder / "train" / name).rename(folder / "train" / "images" / name)
    source = data.load_source(f"folder:{folder}/train")
    message = r"train must have two or more classes: .* at the top. Received: images$"
    with pytest.raises(ValueError, match=message):
        data.with_labels(source)
    with pytest.raises(ValueError, match=r"two or more classes.*Received: 0$"):
        labelled_tables([0, 0], [0], num_classes=1)
    one = data.load_digits()
    one = one._replace(
        training_labels=0 * one.training_labels, held_out_labels=0 * one.held_out_labels
    )
    with pytest.raises(ValueError, match=r"two or more classes.*Received: 0$"):
        data.with_labels(one)


def test_folders_are_classes(folder):
    source = data.with_labels(data.load_source(f"folder:{folder}"))
    assert source.class_names == ("ape", "bee", "cat")
    shades, labels = pairs(source)
    np.testing.assert_array_equal(np.round(shades) // 10, labels)
    assert set(labels) == {0, 1, 2}


def test_folders_below_a_class_are_part_of_it(folder):
    """As in Keras's and torchvision's: one folder for each patient, say."""
    for split in ("train", "val"):
        write_image(folder / split / "bee" / "patient 1" / "left" / "9.png", 19)
    source = data.with_labels(data.load_source(f"folder:{folder}"))
    assert source.class_names == ("ape", "bee", "cat")
    number = source.held_out.names.index("bee/patient 1/left/9.png")
    assert source.held_out.labels[number] == 1
    assert source.training.labels.tolist() == [0] * 4 + [1] * 5 + [2] * 4
    few = data.few_labels(source, 4, seed=0)
    assert len({*few.training.names}) == 12


def test_divided_files_share_the_classes_of_their_folder(folder):
    source = data.with_labels(data.load_source(f"folder:{folder / 'train'}"))
    assert source.class_names == ("ape", "bee", "cat")
    shades, labels = pairs(source)
    np.testing.assert_array_equal(np.round(shades) // 10, labels)


@pytest.mark.slow
def test_records_bring_numbers_and_a_file_their_names(tmp_path):
    write_records(tmp_path / "train-00000-of-00002.tfrecord", [0, 1, 2] * 4)
    write_records(tmp_path / "train-00001-of-00002.tfrecord", [2, 1, 0])
    name = f"tfrecord:{tmp_path}/train-*.tfrecord"
    with pytest.raises(ValueError, match="num_classes must be given"):
        data.with_labels(data.load_source(name))
    source = data.with_labels(data.load_source(name), num_classes=3)
    assert source.class_names == ("0", "1", "2")
    shades, labels = pairs(source)
    np.testing.assert_array_equal(np.round(shades) // 10, labels)
    (tmp_path / "classes-train.txt").write_text("")
    assert data.with_labels(data.load_source(name), 3).class_names == ("0", "1", "2")
    (tmp_path / "classes-train.txt").write_text("ape\nbee\ncat\n")
    assert data.with_labels(data.load_source(name)).class_names[1] == "bee"
    with pytest.raises(ValueError, match=r"num_classes must be 3, .*Received: 4"):
        data.with_labels(data.load_source(name), num_classes=4)


def test_a_label_out_of_range_is_found_before_training(tmp_path):
    # counted from 1, as many ImageNet records are
    write_records(tmp_path / "a.tfrecord", [1, 2, 3])
    write_records(tmp_path / "b.tfrecord", [1, 2, 3])
    source = data.load_source(f"tfrecord:{tmp_path}/*.tfrecord")
    with pytest.raises(ValueError, match=r"a.tfrecord must be in \[0, 3\).*: 3, of im"):
        data.with_labels(source, num_classes=3)


@pytest.mark.slow
def test_a_label_out_of_range_in_a_later_file_counts_as_corrupt(tmp_path):
    write_records(tmp_path / "a.tfrecord", [0, 1, 2])
    write_records(tmp_path / "b.tfrecord", [0, 9])
    write_records(tmp_path / "c.tfrecord", [0])
    source = data.with_labels(data.load_source(f"tfrecord:{tmp_path}/*.tfrecord"), 3)
    corrupt = data.CorruptImages(limit=3)
    batches = data.labelled_pipeline(source, data_processor(), 5, 0, corrupt=corrupt)
    _, labels = next(iter(batches))
    assert labels.shape == (5, 3)
    assert [name.rsplit("/", 1)[-1] for name in corrupt.names] == ["b.tfrecord:1"]


def test_different_class_lists_are_refused(folder):
    write_image(folder / "val" / "dog" / "0.png", 0)
    with pytest.raises(ValueError, match=r"Only in the first: none; .*second: dog"):
        data.with_labels(data.load_source(f"folder:{folder}"))


def test_an_empty_class_folder_is_refused(folder):
    (folder / "train" / "dog").mkdir()
    with pytest.raises(ValueError, match=r"must hold images. Received: dog"):
        data.with_labels(data.load_source(f"folder:{folder}"))


def test_a_file_without_a_class_is_refused(folder):
    write_image(folder / "train" / "stray.png", 0)
    with pytest.raises(ValueError, match=r"a folder for each class. .*stray.png"):
        data.with_labels(data.load_source(f"folder:{folder}"))


def test_images_without_labels_are_refused(tmp_path):
    pytest.importorskip("skimage")
    with pytest.raises(ValueError, match="has no labels"):
        data.with_labels(data.load_photos())


def test_labels_of_arrays_and_of_files_are_not_mixed(folder):
    for names in (("digits", f"folder:{folder}"), (f"folder:{folder}", "digits")):
        source = data.load_source(names[0], held_out=names[1])
        with pytest.raises(ValueError, match="must both be arrays, or both be files"):
            data.with_labels(source)


def test_a_record_without_a_label_names_its_file(tmp_path):
    write_records(tmp_path / "b.tfrecord", [0])
    with tf.io.TFRecordWriter(str(tmp_path / "a.tfrecord")) as writer:
        for label in (0, None):
            writer.write(data.tfrecord.image_example(b"", label=label))
    source = data.load_source(f"tfrecord:{tmp_path}/*.tfrecord")
    message = r"a.tfrecord must have an integer image/class/label in each record"
    with pytest.raises(ValueError, match=message):
        data.with_labels(source, 1)


class Labels(Table):
    """Images of which only the labels are of interest."""

    stats = ()

    def __init__(self, place, values):
        self.place, self.label_values = place, values

    def __len__(self):
        return len(self.label_values)


def labelled_tables(training, held_out, num_classes=None):
    training = ImageTable(Labels("training", training))
    held_out = ImageTable(Labels("held_out", held_out))
    source = data.Source(training, held_out, (0.5,) * 3, (0.5,) * 3, crop=True)
    return data.with_labels(source, num_classes)


@pytest.mark.parametrize("swapped", [False, True])
def test_numbers_are_names_where_other_labels_are_text(swapped):
    """Names are sorted as text: `10` comes before `2`."""
    names = tuple(sorted(map(str, range(12))))
    parts = [str(number) for number in range(12)], list(range(12))[::-1]
    source = labelled_tables(*parts[:: -1 if swapped else 1])
    assert source.class_names == names
    for part in (source.training, source.held_out):
        for images in (part, part.chosen(range(12))):
            found = [names[label] for label in images.labels]
            assert found == [str(value) for value in part.table.label_values]


@pytest.mark.parametrize("swapped", [False, True])
def test_numbers_that_are_not_all_of_the_names_are_refused(swapped):
    parts = ["1", "2", "10", "none"], [1, 2, 10]
    with pytest.raises(ValueError, match=r"must be the same. Received: 1, 10, 2.* and"):
        labelled_tables(*parts[:: -1 if swapped else 1])


def test_built_in_labels_are_checked():
    digits = data.load_digits()
    wrong = digits._replace(held_out_labels=digits.held_out_labels + 1)
    with pytest.raises(ValueError, match=r"\[0, 10\), .*Received: 10"):
        data.with_labels(wrong)


@pytest.mark.parametrize("kind", ["digits", "folder"])
def test_few_labels_are_as_many_of_each_class(kind, folder):
    name = "digits" if kind == "digits" else f"folder:{folder}"
    source = data.with_labels(data.load_source(name))
    few = data.few_labels(source, 2, seed=0)
    assert few.epoch_size == source.epoch_size
    if kind == "digits":
        chosen = {(image.tobytes(), n) for image, n in zip(few.training,
                  few.training_labels, strict=True)}  # fmt: skip
        labels = [label for _, label in chosen]
    else:
        chosen = set(few.training.names)
        labels = [source.class_names.index(name.split("/")[0]) for name in chosen]
    assert np.bincount(labels).tolist() == [2] * len(source.class_names)
    other = data.few_labels(source, 2, seed=1)
    same = data.few_labels(source, 2, seed=0)
    if kind == "folder":
        assert same.training.names == few.training.names != other.training.names
    once = data.few_labels(source, 2, seed=0, repeat=False)
    assert len(once.training) == len(chosen)
    assert data.dataset_fingerprint(few) != data.dataset_fingerprint(once)
    with pytest.raises(ValueError, match=r"labels_per_class must be in \[1, "):
        data.few_labels(source, 0, seed=0)
    assert data.few_labels(source, None, seed=0) is source


def test_a_source_without_classes_is_refused():
    with pytest.raises(ValueError, match="with_labels"):
        data.few_labels(data.load_digits(), 2, seed=0)
