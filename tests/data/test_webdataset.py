"""webdataset:GLOB: tar shards, read by position; labels; damaged and odd files."""

import io
import itertools
import json
import re
import tarfile

import numpy as np
import pytest
import tensorflow as tf

from keras_mae import data
from tests import pictures
from tests.pictures import processor_for


def sample(number, label=None, key=None):
    """Returns a sample's members: a picture, and its number's parity as a class."""
    ending, content = pictures.encoded_picture(number)
    key = key or f"{number:02}"
    members = [(f"{key}.{ending}", content)]
    return members if label is None else [*members, (f"{key}.{label[0]}", label[1])]


def parity(number):
    return sample(number, ("cls", b"%d" % (number % 2)))


def write_tar(path, members):
    """Writes `(name, bytes)` members; folders of the path as needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def write_shards(folder, numbers, shards=3, make=parity):
    for shard in range(shards):
        numbers_of_shard = list(numbers)[shard::shards]
        write_tar(
            folder / f"train-{shard:03}.tar",
            itertools.chain.from_iterable(map(make, numbers_of_shard)),
        )


def batches(source, count, batch_size=4, **arguments):
    pipeline = data.training_pipeline(
        source, processor_for(source), batch_size, seed=0, **arguments
    )
    return np.stack(list(pipeline.take(count).as_numpy_iterator()))


def load(name, **arguments):
    return data.load_source(f"webdataset:{name}", **arguments)


@pytest.mark.nightly
def test_order_is_of_seed_and_position(tmp_path):
    write_shards(tmp_path, range(12))
    write_tar(tmp_path / "val.tar", parity(12) + parity(13))
    name = f"{tmp_path}/train-{{000..002}}.tar"
    source = load(name, held_out=f"webdataset:{tmp_path}/val.tar")
    assert source.epoch_size == 12
    found = batches(source, 6)
    for epoch in (found[:3], found[3:]):
        assert sorted(pictures.numbers(source, np.concatenate(epoch))) == [*range(12)]
    later = batches(source, 2, first_step=4)
    np.testing.assert_array_equal(later, found[4:])
    shares = [
        batches(source, 6, input_context=tf.distribute.InputContext(2, worker, 2))
        for worker in range(2)
    ]
    np.testing.assert_array_equal(np.concatenate(shares, axis=1), found)
    images = data.held_out_images(source, processor_for(source))
    assert sorted(pictures.numbers(source, images)) == [12, 13]


def test_the_same_images_are_held_out_wherever_shards_lie(tmp_path):
    keys = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        write_shards(folder, range(12))
        source = load(f"{folder}/*.tar")
        assert (len(source.training), len(source.held_out)) == (11, 1)
        assert not set(source.training.keys) & set(source.held_out.keys)
        keys.append(source.held_out.keys)
    assert keys[0] == keys[1]
    both = load(f"{folder}/*.tar", held_out=f"webdataset:{folder}/train-001.tar")
    assert (len(both.training), len(both.held_out)) == (8, 4)


def test_braces_and_wildcards_name_shards(tmp_path):
    write_shards(tmp_path, range(24), shards=12)
    for pattern, count in {
        "train-{000..011}.tar": 24,
        "train-{008..010}.tar": 6,
        "train-00{0,5}.tar": 4,
        "train-0{0{1,2},1?}.tar": 8,
        "{train-000,train-0*}.tar": 24,  # each once
    }.items():
        source = load(f"{tmp_path}/{pattern}", held_out="photos")
        assert source.epoch_size == count, pattern


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (parity, None),
        (lambda n: sample(n, ("cls", [b"ape\n", b"bee"][n % 2])), ("ape", "bee")),
        (lambda n: sample(n, ("json", b'{"label": %d}' % (n % 2))), None),
        (lambda n: sample(n, ("JSON", b'{"class": "k%d"}' % (n % 2))), ("k0", "k1")),
        (lambda n: sample(n, ("cls", [b"7", b"ape"][n % 2])), ("7", "ape")),
    ],
)
def test_labels_are_beside_images(make, names, tmp_path):
    write_shards(tmp_path, range(8), make=make)
    source = load(f"{tmp_path}/*.tar")
    if names is None:
        with pytest.raises(ValueError, match="num_classes must be given"):
            data.with_labels(source)
        with pytest.raises(ValueError, match=r"must be in \[0, 1\), .*Received: 1"):
            data.with_labels(source, num_classes=1)
    labelled = data.with_labels(source, num_classes=2)
    assert labelled.class_names == (names or ("0", "1"))
    for part in (labelled.training, labelled.held_out):
        numbers = [int(re.search(rb":(..)\.", key)[1]) for key in part.keys]
        np.testing.assert_array_equal(part.labels, np.array(numbers) % 2)
    few = data.few_labels(labelled, 1, seed=0)
    assert len({*few.training.keys}) == 2 and few.epoch_size == 7


@pytest.mark.slow
def test_batches_have_the_labels_of_their_images(tmp_path):
    write_shards(tmp_path, range(8))
    source = load(f"{tmp_path}/*.tar")
    labelled = data.with_labels(source, num_classes=2)
    steps = data.labelled_pipeline(labelled, processor_for(source), 7, seed=0)
    images, labels = next(iter(steps))
    parities = np.array(pictures.numbers(source, images)) % 2
    np.testing.assert_array_equal(labels.numpy().argmax(-1), parities)


def test_held_out_shards_have_the_same_classes(tmp_path):
    write_tar(tmp_path / "a.tar", sample(0, ("cls", b"ape")) + sample(1, ("cls", b"x")))
    write_tar(tmp_path / "b.tar", sample(2, ("cls", b"ape")) + sample(3, ("cls", b"y")))
    source = load(f"{tmp_path}/a.tar", held_out=f"webdataset:{tmp_path}/b.tar")
    with pytest.raises(ValueError, match="ape, x and ape, y"):
        data.with_labels(source)


@pytest.mark.slow
def test_corrupt_images_are_named_and_move_no_other(tmp_path):
    write_shards(tmp_path, range(12))
    path = tmp_path / "train-001.tar"
    source = load(f"{tmp_path}/*.tar", held_out="photos")
    clean = batches(source, 6)
    with tarfile.open(path) as tar:
        begin = tar.getmember("04.png").offset_data
    content = path.read_bytes()
    path.write_bytes(content[:begin] + b"no picture" + content[begin + 10 :])
    corrupt = data.CorruptImages()
    found = batches(source, 6, corrupt=corrupt)
    assert corrupt.names == [f"{path}:04.png"]
    for before, after in zip(clean, found, strict=True):
        good = np.array(pictures.numbers(source, before)) != 4
        np.testing.assert_array_equal(after[good], before[good])
        for row in after[~good]:
            assert any(np.array_equal(row, other) for other in before[good])
    path.unlink()
    corrupt = data.CorruptImages()
    batches(source, 6, corrupt=corrupt)
    lost = ("01.jpg", "04.png", "07.bmp", "10.webp")
    assert sorted(corrupt.names) == [f"{path}:{name}" for name in lost]


@pytest.mark.slow
def test_tar_files_of_every_kind_are_read(tmp_path):
    """Long names, folders, links, hidden files; what belongs to no sample."""
    long = "a" * 120 + "/" + "é" * 90
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in [
            ("./._0.jpg", b"a Mac's"),
            ("README", b"no sample"),
            *sample(1, key=f"./{long}"),
            *sample(2, key="v1.0/2"),
            ("v1.0/2.txt", b"a caption"),
        ]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        member = tarfile.TarInfo("link.png")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member)
    with tarfile.open(tmp_path / "b.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        (name, content), *_ = sample(3, key=long)
        member = tarfile.TarInfo(name.upper())
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    source = load(f"{tmp_path}/?.tar", held_out="photos")
    assert sorted(pictures.numbers(source, batches(source, 1, 3)[0])) == [1, 2, 3]


@pytest.mark.slow
def test_shards_may_lie_in_remote_storage(tmp_path):
    write_shards(tmp_path, range(6))
    for shard in range(3):
        content = (tmp_path / f"train-{shard:03}.tar").read_bytes()
        with tf.io.gfile.GFile(f"ram://shards/{shard}.tar", "wb") as file:
            file.write(content)
    source = load("ram://shards/{0..2}.tar", held_out="photos")
    local = load(f"{tmp_path}/*.tar", held_out="photos")
    np.testing.assert_array_equal(batches(source, 3), batches(local, 3))
    labels = data.with_labels(load("ram://shards/*.tar"), num_classes=2)
    assert data.dataset_fingerprint(labels) == data.dataset_fingerprint(labels)


def test_fingerprints_change_with_shards(tmp_path):
    def describe(**options):
        source = load(f"{tmp_path}/*.tar", **options)
        return data.dataset_fingerprint(data.with_labels(source, 2))

    write_shards(tmp_path, range(8))
    first = describe()
    assert describe() == first
    others = [describe(held_out=f"webdataset:{tmp_path}/train-000.tar")]
    write_shards(tmp_path, range(9))
    others.append(describe())
    assert len({first, *others}) == 3


@pytest.mark.parametrize("cut", [0, 300, 511, 1024, 1500, 5000, 10**5])
def test_truncated_shards_are_refused(cut, tmp_path):
    path = tmp_path / "a.tar"
    write_tar(path, itertools.chain.from_iterable(map(parity, range(6))))
    with tarfile.open(path) as tar:
        tar.getmembers()
        end = tar.offset  # of the last member
    path.write_bytes(path.read_bytes()[: max(0, end - cut)])
    with pytest.raises(ValueError, match=r"a\.tar must be a whole, uncompressed tar"):
        load(path)


def test_damaged_shards_are_refused(tmp_path):
    path = tmp_path / "a.tar"
    write_tar(path, parity(0) + parity(4))
    with tarfile.open(path) as tar:
        begins = [member.offset for member in tar]
    content = path.read_bytes()
    damages = [
        (begin + byte, b"\xff" * 8) for begin in begins for byte in (0, 128, 345)
    ]
    for begin, damage in damages:
        path.write_bytes(content[:begin] + damage + content[begin + len(damage) :])
        with pytest.raises(ValueError, match=r"a\.tar must be a whole"):
            load(path)
    # sizes that are negative, or larger than any file, in a header that is right else
    for size in (b"\x80" + b"\xff" * 11, b"\xff" * 12, b"77777777777\0"):
        header = bytearray(content[:512])
        header[124:136] = size
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        path.write_bytes(bytes(header) + content[512:])
        with pytest.raises(ValueError, match=r"a\.tar must be a whole"):
            load(path)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("0.cls", b"1")], r"a\.tar must have an image \(jpg, .*: '0' with cls"),
        (parity(0) + parity(0), r"one member of each name. Received: '00.png', a sec"),
        ([("README", b"")], r"a\.tar must have images .*Received: none, in 1 shard"),
        (sample(0), r"at least two images, one of them held out.* Received: 1"),
    ],
)
def test_samples_that_are_none_are_refused(members, message, tmp_path):
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "a.tar")


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (None, r"a\.tar must have a label \(cls or json\) .*Received: '01.jpg', with"),
        (("cls", b" \n"), r"a\.tar:01.cls must hold a class.* Received: b' \\n'"),
        (("cls", b"\xff"), r"a\.tar:01.cls must hold a class"),
        (("cls", b"x" * 70_000), r"Received: b'xxx.{,80}$"),
        (("json", b'{"caption": 1}'), r"under label, cls, class. Received: b'{\"cap"),
        (("json", b'{"label": 99999999999}'), r"must hold a class"),
        (("json", b'{"label": true}'), r"must hold a class"),
        (("json", b"[" * 30_000), r"must hold a class"),
    ],
)
def test_labels_that_are_none_are_refused(label, message, tmp_path):
    write_tar(tmp_path / "a.tar", parity(0) + sample(1, label) + parity(2))
    with pytest.raises(ValueError, match=message):
        data.with_labels(load(tmp_path / "a.tar"), num_classes=2)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("a-{0..3}.tar", r"exist. Received: a-\{0..3\}.tar; no file is a-1.tar and 2 "),
        ("*.tgz", r"exist. Received: \*.tgz; no file is \*.tgz$"),
        ("shards", r"such as shards/\*.tar. Received: shards; shards is a folder"),
        ("a-{0..999999999}.tar", r"at most 100000 shards"),
        ("a-{2..0}.tar", r"ascending numbers, .*Received: \{2\.\.0\} in a-\{2"),
        ("text.tar", r"text.tar must be a whole, uncompressed tar file"),
        ("a.tar.gz", r"a.tar.gz must be a whole, uncompressed tar file"),
        ("empty.tar", r"empty.tar must be a whole, uncompressed tar file"),
    ],
)
def test_names_of_no_shards_are_refused(pattern, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shards").mkdir()
    write_tar(tmp_path / "a-0.tar", parity(0))
    (tmp_path / "text.tar").write_text("no tar file " * 100)
    (tmp_path / "empty.tar").touch()
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("0.png"))
    with pytest.raises(ValueError, match=message) as refused:
        load(pattern)
    assert len(str(refused.value).splitlines()) == 1
    assert re.match("[a-z]", str(refused.value)) and json.dumps(str(refused.value))
