"""hf:PATH: Hugging Face's datasets: saved, Parquet, folders; columns, labels."""

import os
import sys

import numpy as np
import pytest
import tensorflow as tf

from keras_mae import data
from tests import pictures
from tests.pictures import processor_for

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def table(numbers, **columns):
    """Makes a data set of pictures, whose class is the parity of their number."""
    columns = columns or {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=["even", "odd"]),
    }
    image, label = columns
    rows = {
        image: [
            {"bytes": pictures.encoded_picture(n)[1], "path": None} for n in numbers
        ],
        label: [n % 2 for n in numbers],
    }
    if columns[image] is None:  # as bytes alone
        rows[image] = [row["bytes"] for row in rows[image]]
        columns[image] = datasets.Value("binary")
    return datasets.Dataset.from_dict(rows, datasets.Features(columns))


def load(path, cache=None, **arguments):
    return data.load_source(f"hf:{path}", data_dir=cache, **arguments)


def shown(source, images):
    return pictures.numbers(source, images)


def batches(source, count, batch_size=4, **arguments):
    pipeline = data.training_pipeline(
        source, processor_for(source), batch_size, seed=0, **arguments
    )
    return np.stack(list(pipeline.take(count).as_numpy_iterator()))


def saved(folder):
    splits = datasets.DatasetDict(train=table(range(12)), test=table(range(12, 15)))
    splits.save_to_disk(folder, num_shards={"train": 3, "test": 1})


def parquet(folder):
    (folder / "data").mkdir(parents=True)
    for part in range(2):
        path = folder / "data" / f"train-0000{part}-of-00002.parquet"
        table(range(6 * part, 6 * part + 6)).to_parquet(path)
    table(range(12, 15)).to_parquet(folder / "data" / "test-00000-of-00001.parquet")


def folder_of_images(folder):
    for split, numbers in (("train", range(12)), ("test", range(12, 15))):
        for number in numbers:
            ending, content = pictures.encoded_picture(number)
            path = folder / split / ["even", "odd"][number % 2]
            path.mkdir(parents=True, exist_ok=True)
            (path / f"{number:02}.{ending}").write_bytes(content)


@pytest.mark.parametrize("write", [saved, parquet, folder_of_images])
def test_splits_and_classes_are_found(write, tmp_path):
    write(tmp_path / "birds")
    source = data.with_labels(load(tmp_path / "birds", tmp_path / "cache"))
    assert source.class_names == ("even", "odd")
    parts = ((source.training, range(12)), (source.held_out, range(12, 15)))
    for part, numbers in parts:
        contents = [part.encoded(tf.constant(n)).numpy() for n in range(len(part))]
        wanted = {pictures.encoded_picture(n)[1]: n % 2 for n in numbers}
        assert dict(zip(contents, part.labels, strict=True)) == wanted


@pytest.mark.nightly
def test_order_is_of_seed_and_position(tmp_path):
    parquet(tmp_path / "birds")
    source = load(tmp_path / "birds", tmp_path / "cache")
    assert (source.epoch_size, len(source.held_out)) == (12, 3)
    found = batches(source, 6)
    for epoch in (found[:3], found[3:]):
        assert sorted(shown(source, np.concatenate(epoch))) == [*range(12)]
    np.testing.assert_array_equal(batches(source, 2, first_step=4), found[4:])
    shares = [
        batches(source, 6, input_context=tf.distribute.InputContext(2, worker, 2))
        for worker in range(2)
    ]
    np.testing.assert_array_equal(np.concatenate(shares, axis=1), found)
    images = data.held_out_images(source, processor_for(source))
    assert sorted(shown(source, images)) == [12, 13, 14]
    labelled = data.with_labels(source)
    steps = data.labelled_pipeline(labelled, processor_for(source), 12, seed=0)
    images, labels = next(iter(steps))
    parities = np.array(shown(source, images)) % 2
    np.testing.assert_array_equal(labels.numpy().argmax(-1), parities)


def test_two_percent_are_held_out_where_no_split_is(tmp_path):
    # as image folders are: by class
    table([*range(0, 31, 2), *range(1, 31, 2)] * 10).save_to_disk(tmp_path)
    source = load(tmp_path)
    assert (len(source.training), len(source.held_out)) == (304, 6)
    training, held_out = (set(part.keys) for part in (source.training, source.held_out))
    assert not training & held_out and len(training | held_out) == 310
    labels = data.with_labels(source).held_out.labels
    assert set(labels) == {0, 1}
    other = load(tmp_path, held_out="photos")
    assert (len(other.training), len(other.held_out)) == (310, 3)


def test_a_glob_names_parquet_files(tmp_path):
    parquet(tmp_path)
    source = load(f"{tmp_path}/data/*-00000-of-*.parquet", tmp_path / "cache")
    assert len(source.training) + len(source.held_out) == 9
    one = f"hf:{tmp_path}/data/test-00000-of-00001.parquet"
    first = load(f"{tmp_path}/data/train-*.parquet", tmp_path / "cache", held_out=one)
    assert (len(first.training), len(first.held_out)) == (12, 3)


def test_columns_are_found_by_their_types(tmp_path):
    image, names = datasets.Image(), datasets.ClassLabel(names=["even", "odd"])
    number, integer = datasets.ClassLabel(num_classes=2), datasets.Value("int32")
    for turn, (columns, suffix, classes) in enumerate(
        [
            ({"photo": image, "kind": names}, "", ("even", "odd")),
            ({"image": image, "label": integer}, "", ("0", "1")),
            ({"jpg": None, "cls": number}, "", ("0", "1")),
            ({"jpg": None, "cls": integer}, "?label=cls", ("0", "1")),
            ({"a": image, "b": names}, "?image=a&label=b", ("even", "odd")),
        ]
    ):
        table(range(3), **columns).save_to_disk(tmp_path / str(turn))
        source = load(f"{tmp_path}/{turn}{suffix}", held_out="photos")
        labelled = data.with_labels(source._replace(held_out=source.training), 2)
        assert labelled.class_names == classes
        assert labelled.training.labels.tolist() == [0, 1, 0]
        content = source.training.encoded(tf.constant(2))
        assert content == pictures.encoded_picture(2)[1]


def test_text_is_a_class_by_name(tmp_path):
    rows = table(range(4)).remove_columns("label")
    rows = rows.add_column("label", ["cat", "ape", "cat", "bee"])
    rows.save_to_disk(tmp_path)
    source = data.with_labels(load(tmp_path))
    assert source.class_names == ("ape", "bee", "cat")
    labels = np.concatenate([source.training.labels, source.held_out.labels])
    assert sorted(labels) == [0, 1, 2, 2]


@pytest.mark.parametrize(
    ("change", "suffix", "message"),
    [
        (
            lambda t: t,
            "?image=picture",
            r"image=picture for image \(Image\), label \(Cl",
        ),
        (
            lambda t: t,
            "?image=label",
            r"single column of images.*image=label for image",
        ),
        (
            lambda t: t,
            "?label=image",
            r"ClassLabel, integers or text. .*label=image for",
        ),
        (lambda t: t, "?size=3", r"followed by config=..., .*joined by &. .*'size=3'"),
        (lambda t: t, "?", r"must be followed by config=\.\.\., .*Received: ''"),
        (
            lambda t: datasets.concatenate_datasets(
                [
                    t.rename_column("image", "a"),
                    t.select_columns(["image"]).rename_column("image", "b"),
                ],
                axis=1,
            ),
            "",
            r"one named 'image', or \?image=COLUMN. Received: a \(Image\), label",
        ),
        (lambda t: t.remove_columns("image"), "", r"Received: label \(ClassLabel\)$"),
        (lambda t: t.select([0]), "", r"at least two images, one of them held out"),
        (
            lambda t: datasets.DatasetDict(test=t),
            "",
            r"must have a split 'train' with images. Received: test$",
        ),
    ],
)
def test_columns_that_do_not_fit_are_listed(change, suffix, message, tmp_path):
    change(table(range(4))).save_to_disk(tmp_path)
    with pytest.raises(ValueError, match=message):
        load(f"{tmp_path}{suffix}")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, r"must have a label: .*label=COLUMN. Received: image \(Image\)$"),
        ([0, None, 1, 1], r"a label for each image. Received: none in row 1"),
        ([0, 1, -1, 1], r"must be in \[0, 2\).* Received: -1"),
    ],
)
def test_missing_labels_are_told(labels, message, tmp_path):
    rows = table(range(4)).remove_columns("label")
    if labels is not None:
        rows = rows.add_column("label", labels)
    rows.save_to_disk(tmp_path)
    source = load(tmp_path, held_out="photos")
    source = source._replace(held_out=source.training)
    with pytest.raises(ValueError, match=message):
        data.with_labels(source, num_classes=2)


@pytest.mark.slow
def test_corrupt_images_are_named_and_move_no_other(tmp_path):
    contents = [{"bytes": pictures.encoded_picture(n)[1]} for n in range(12)]
    spoilt = {3: {"bytes": b"no picture"}, 7: None}
    sources = []
    for name, changes in (("clean", {}), ("spoilt", spoilt)):
        rows = {"image": [changes.get(n, contents[n]) for n in range(12)]}
        features = datasets.Features({"image": datasets.Image()})
        datasets.Dataset.from_dict(rows, features).save_to_disk(tmp_path / name)
        sources.append(load(tmp_path / name, held_out="photos"))
    clean = batches(sources[0], 6)
    corrupt = data.CorruptImages()
    found = batches(sources[1], 6, corrupt=corrupt)
    row = f"of hf:{tmp_path}/spoilt, split train"
    assert sorted(corrupt.names) == [f"row 3 {row}", f"row 7 {row}"]
    for before, after in zip(clean, found, strict=True):
        good = ~np.isin(shown(sources[0], before), (3, 7))
        np.testing.assert_array_equal(after[good], before[good])
        for image in after[~good]:
            assert any(np.array_equal(image, other) for other in before[good])


@pytest.mark.slow
def test_images_that_are_files_are_named_by_path(tmp_path):
    folder_of_images(tmp_path / "birds")
    source = load(tmp_path / "birds", tmp_path / "cache")
    path = tmp_path / "birds" / "train" / "odd" / "05.jpg"
    path.unlink()
    corrupt = data.CorruptImages()
    assert 5 not in shown(source, batches(source, 1, 12, corrupt=corrupt)[0])
    assert corrupt.names == [str(path)]


def test_fingerprints_change_with_files(tmp_path):
    def describe(**arguments):
        source = load(tmp_path / "birds", tmp_path / "cache", **arguments)
        return data.dataset_fingerprint(data.with_labels(source))

    folder_of_images(tmp_path / "birds")
    first = describe()
    assert describe() == first
    os.utime(tmp_path / "birds" / "train" / "odd" / "01.jpg", ns=(0, 0))
    assert describe() != first


@pytest.mark.parametrize("stream", ["", "&streaming=true"])
def test_fingerprints_change_with_the_columns_that_are_read(stream, tmp_path):
    front, back = table(range(12)), table(range(12)[::-1])
    back = back.rename_columns({"image": "back", "label": "other"})
    rows = datasets.concatenate_datasets([front, back], axis=1)
    (tmp_path / "birds").mkdir()
    for split in ("train", "test"):
        rows.to_parquet(tmp_path / "birds" / f"{split}-00000-of-00001.parquet")

    def describe(columns):
        source = load(f"{tmp_path}/birds?{columns}{stream}", tmp_path / "cache")
        return data.dataset_fingerprint(data.with_labels(source))

    columns = ("image=image", "image=back", "image=image&label=other")
    assert len({describe(column) for column in columns}) == 3
    assert describe("image=back") == describe("image=back&label=label")


def test_held_out_images_are_left_out_of_training(tmp_path):
    saved(tmp_path)
    with pytest.raises(ValueError, match="must leave images for training"):
        load(tmp_path / "train", held_out=f"hf:{tmp_path}/train?label=label")
    source = load(tmp_path / "train", held_out=f"hf:{tmp_path}/test")
    assert (len(source.training), len(source.held_out)) == (12, 3)


@pytest.mark.parametrize(
    ("name", "held_out"),
    [
        ("data/*.parquet", "data/test-*.parquet"),
        ("data/train-*.parquet?streaming=true", "data/train-*.parquet"),
        ("data/train-*.parquet", "data/train-*1-of-*.parquet?streaming=true"),
    ],
)
def test_what_cannot_be_left_out_of_training_is_refused(name, held_out, tmp_path):
    parquet(tmp_path)
    with pytest.raises(ValueError, match=r"other files than dataset.*both with .*0"):
        load(f"{tmp_path}/{name}", tmp_path / "c", held_out=f"hf:{tmp_path}/{held_out}")


def test_a_folder_and_hf_do_not_share_files(tmp_path):
    folder_of_images(tmp_path)
    names = [f"{kind}:{tmp_path}/train" for kind in ("folder", "hf")]
    for name, held_out in (names, names[::-1]):
        with pytest.raises(ValueError, match=r"other files than dataset.*both with"):
            data.load_source(name, held_out=held_out, data_dir=tmp_path / "cache")
    other = data.load_source(
        names[0], held_out=f"hf:{tmp_path}/test", data_dir=tmp_path / "cache"
    )
    assert (len(other.training), len(other.held_out)) == (12, 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere/to/be/found", r"no name of the hub, and no such file exists"),
        ("./nowhere", r"no name of the hub, and no such file exists"),
        ("owner/birds", r"hf:owner/birds could not be loaded: .*owner/birds"),
        ("empty", r"hf:empty could not be loaded: "),
        ("text.parquet", r"hf:text.parquet could not be loaded: "),
        ("cut.parquet", r"hf:cut.parquet could not be loaded: "),
    ],
)
def test_names_of_nothing_are_refused(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.parquet").write_text("no table")
    table(range(2)).to_parquet(tmp_path / "cut.parquet")
    content = (tmp_path / "cut.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=message) as refused:
        load(name, tmp_path / "cache")
    assert len(str(refused.value)) < 500 and "\n" not in str(refused.value)


def test_what_is_not_installed_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'keras-mae\[hf\]'"):
        data.load_source("hf:owner/birds")


@pytest.mark.nightly
@pytest.mark.parametrize("workers", [1, 2])
def test_streams_keep_their_order_too(workers, tmp_path):
    parquet(tmp_path / "birds")
    name, cache = f"{tmp_path}/birds?streaming=true", tmp_path / "cache"
    source = data.with_labels(load(name, cache))
    assert (source.epoch_size, len(source.held_out)) == (12, 3)
    assert source.class_names == ("even", "odd")

    def read(steps, **arguments):
        return batches(source, steps, **arguments)

    found = read(6)
    for epoch in (found[:3], found[3:]):
        assert sorted(shown(source, np.concatenate(epoch))) == [*range(12)]
    assert not np.array_equal(found[:3], found[3:])
    if workers == 1:
        np.testing.assert_array_equal(read(2, first_step=4), found[4:])
        images = data.held_out_images(source, processor_for(source))
        assert shown(source, images) == [12, 13, 14]
        steps = data.labelled_pipeline(source, processor_for(source), 12, seed=0)
        images, labels = next(iter(steps))
        parities = np.array(shown(source, images)) % 2
        np.testing.assert_array_equal(labels.numpy().argmax(-1), parities)
        return
    shares = [
        read(2, first_step=4, input_context=tf.distribute.InputContext(2, worker, 2))
        for worker in range(2)
    ]
    np.testing.assert_array_equal(np.concatenate(shares, axis=1), found[4:])


@pytest.mark.slow
def test_streams_name_corrupt_images_and_miss_none(tmp_path):
    rows = {"image": [{"bytes": pictures.encoded_picture(n)[1]} for n in range(6)]}
    rows["image"][2:4] = [{"bytes": b"no picture"}, {"path": "/nowhere/3.png"}]
    rows["label"] = [0, 1] * 3
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.Value("int64")}
    )
    path = tmp_path / "train-0.parquet"
    arrow = datasets.Dataset.from_dict(rows, features)
    import pyarrow.parquet

    pyarrow.parquet.write_table(arrow.data.table, path)
    source = load(f"{path}?streaming=true", tmp_path / "cache", held_out="photos")
    corrupt = data.CorruptImages()
    first = batches(source, 1, 6, corrupt=corrupt)[0]
    assert not set(shown(source, first)) & {2, 3}
    name = f"row 2 of shard 0 of hf:{path}, split train"
    assert sorted(corrupt.names) == ["/nowhere/3.png", name]
    short = source._replace(training=data.hf_stream.ImageStream(
        source.training._dataset, "short", ("image", "label"), 7, None))  # fmt: skip
    with pytest.raises(tf.errors.FailedPreconditionError, match="contain 7 elements"):
        batches(short, 2, 6, corrupt=corrupt)
    short = data.with_labels(short._replace(held_out=short.training), num_classes=2)
    held_out = data.evaluation_pipeline(short, processor_for(short), 8, corrupt=corrupt)
    with pytest.raises(tf.errors.FailedPreconditionError, match="contain 7 elements"):
        next(iter(held_out))


def test_streams_ask_for_what_they_cannot_know(tmp_path):
    cache = tmp_path / "cache"
    table(range(4)).to_parquet(tmp_path / "train-0.parquet")
    name = f"{tmp_path}/train-0.parquet?streaming=true"
    with pytest.raises(ValueError, match=r"val or .* or testing to be streamed"):
        load(name, cache)
    table(range(4)).to_parquet(tmp_path / "val-0.parquet")
    source = load(name, cache, held_out=f"hf:{tmp_path}/val-0.parquet")
    labelled = data.with_labels(source)
    with pytest.raises(ValueError, match="not TFRecords or streams"):
        data.few_labels(labelled, 1, seed=0)
    before = data.dataset_fingerprint(labelled)
    table(range(5)).to_parquet(tmp_path / "train-0.parquet")
    other = data.with_labels(load(name, cache, held_out="photos")._replace(
        held_out=labelled.held_out))  # fmt: skip
    assert data.dataset_fingerprint(other) != before
    folder_of_images(tmp_path / "birds")
    with pytest.raises(ValueError, match="needs the number of images in 'train'"):
        load(f"{tmp_path}/birds?streaming=true", cache)
    with pytest.raises(ValueError, match=r"or streaming=true.*'streaming=yes'"):
        load(f"{tmp_path}/birds?streaming=yes", cache)
