"""Signatures of a classifier: classes, their names, TF Serving's Classify API."""

import io
import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import keras_mae
from keras_mae.data.tfrecord import image_example
from keras_mae.export import build_signatures, export_savedmodel, verify_savedmodel
from keras_mae.models.loading import find_labels
from keras_mae.utils.labels_file import read_labels, write_labels
from tests.scripts import load, run

LABELS = ("cat", "dog", "gr\u00fcn", "a b", " ", "cat")
NAMES = {
    *("serving_default", "classify_examples"),
    *(
        name + suffix
        for name in ("features", "embed", "classify")
        for suffix in ("", "_from_pixels", "_from_pixels_u8")
    ),
}


def make_classifier(num_classes=6, **options):
    encoder = keras_mae.MAEEncoder.from_preset("mae_tiny", patch_size=8, depth=1)
    return keras_mae.MAEClassifier(encoder, num_classes, head_range=1.0, **options)


@pytest.fixture(scope="module")
def processor():
    return keras_mae.MAEImageProcessor(image_size=32)


@pytest.fixture(scope="module")
def served(processor, tmp_path_factory):
    """Exports a classifier, moves the folder, and loads it."""
    keras.utils.set_random_seed(0)
    model = make_classifier()
    folder = tmp_path_factory.mktemp("models")
    export_savedmodel(model, processor, folder / "part" / "1", labels=LABELS, top_k=3)
    shutil.move(folder / "part", folder / "moved")
    yield model, folder / "moved" / "1", tf.saved_model.load(folder / "moved" / "1")


def pictures(count=4):
    rng = np.random.default_rng(0)
    sizes = rng.integers(20, 60, (count, 2))
    return [rng.integers(0, 256, (*size, 3), "uint8") for size in sizes]


def encode(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.mark.slow
def test_the_likeliest_classes_come_first_with_their_names(served, processor):
    model, _, loaded = served
    assert set(loaded.signatures) == NAMES
    pixels = processor(pictures())
    scores = np.asarray(tf.nn.softmax(model(pixels)))
    order = np.argsort(-scores, axis=1)[:, :3]
    for name, inputs in {
        "classify": {"image_bytes": tf.constant([encode(p) for p in pictures()])},
        "classify_from_pixels": {"pixels": tf.constant(pixels)},
    }.items():
        got = loaded.signatures[name](**inputs)
        assert got["class_ids"].dtype == tf.int64
        np.testing.assert_array_equal(got["class_ids"], order)
        wanted = np.take_along_axis(scores, order, axis=1)
        np.testing.assert_allclose(got["probabilities"], wanted, atol=1e-5)
        names = [[LABELS[index].encode() for index in row] for row in order]
        assert got["labels"].numpy().tolist() == names


@pytest.mark.slow
def test_features_are_what_the_head_sees(served, processor):
    model, _, loaded = served
    pixels = processor(pictures())
    got = loaded.signatures["features_from_pixels"](pixels=tf.constant(pixels))
    np.testing.assert_allclose(got["features"], model.pooled(pixels), atol=1e-5)


@pytest.mark.slow
def test_examples_are_answered_by_the_classify_method(served, processor):
    model, path, _ = served
    examples = [image_example(encode(picture)) for picture in pictures()]
    # as TF Serving loads it
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        graph = tf.compat.v1.saved_model.load(session, ["serve"], str(path))
        methods = {
            name: signature.method_name
            for name, signature in graph.signature_def.items()
            if name in NAMES
        }
        signature = graph.signature_def["classify_examples"]
        outputs = {name: info.name for name, info in signature.outputs.items()}
        asked = signature.inputs["inputs"].name
        got = session.run(outputs, {asked: examples})
        empty = session.run(outputs, {asked: np.array([], object)})
        with pytest.raises(tf.errors.InvalidArgumentError, match="image/encoded"):
            session.run(outputs, {asked: [tf.train.Example().SerializeToString()]})
    assert methods.pop("classify_examples") == "tensorflow/serving/classify"
    assert set(methods.values()) == {"tensorflow/serving/predict"}
    assert set(signature.inputs) == {"inputs"}
    scores = tf.nn.softmax(model(processor(pictures())))
    np.testing.assert_allclose(got["scores"], scores, atol=1e-5)
    assert got["classes"].tolist() == [[label.encode() for label in LABELS]] * 4
    assert empty["classes"].shape == empty["scores"].shape == (0, len(LABELS))


@pytest.mark.slow
def test_the_names_lie_in_the_asset(served):
    _, path, _ = served
    assert read_labels(path / "assets" / "labels.txt") == LABELS


@pytest.mark.slow
def test_without_names_classes_are_numbers_and_few_classes_are_all_named(processor):
    answers = build_signatures(make_classifier(num_classes=2), processor)
    got = answers.classify(answers.probabilities(tf.zeros((3, 32, 32, 3))))
    assert got["labels"].shape == (3, 2)
    assert {*got["labels"].numpy().ravel()} == {b"0", b"1"}


@pytest.mark.slow
def test_wrong_names_and_counts_are_refused(processor, tmp_path):
    model = make_classifier()
    with pytest.raises(ValueError, match=r"each of the 6 classes. Received: 2"):
        build_signatures(model, processor, labels=["cat", "dog"])
    with pytest.raises(ValueError, match=r"labels must not be empty. Received: \('a"):
        build_signatures(make_classifier(2), processor, labels=["a", ""])
    with pytest.raises(ValueError, match=r"top_k must be at least 1. Received: 0"):
        build_signatures(model, processor, top_k=0)
    with pytest.raises(ValueError, match=r"for a MAEEncoder"):
        build_signatures(model.encoder, processor, labels=["cat"])
    with pytest.raises(ValueError, match=r"Received: Dense"):
        build_signatures(keras.layers.Dense(1), processor)
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    with pytest.raises(ValueError, match=r"names.txt must have a line for .* 6 cl"):
        read_labels(tmp_path / "names.txt", 6)
    (tmp_path / "names.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"names.txt must be text in UTF-8"):
        read_labels(tmp_path / "names.txt")


@pytest.mark.nightly
def test_verification_notices_another_head_and_other_names(served, processor):
    model, path, _ = served
    other = keras_mae.MAEClassifier(model.encoder, len(LABELS), head_range=1.0)
    with pytest.raises(ValueError, match=r"must equal the model's"):
        verify_savedmodel(path, build_signatures(other, processor, LABELS, top_k=3))
    names = [*LABELS[1:], "other"]
    with pytest.raises(ValueError, match=r"labels must equal the model's"):
        verify_savedmodel(path, build_signatures(model, processor, names, top_k=3))


@pytest.mark.slow
def test_names_are_written_one_a_line(tmp_path):
    write_labels(tmp_path, ["caf\udce9", "é"])  # the first as of a folder in Latin-1
    assert read_labels(tmp_path / "labels.txt", 2) == ("caf?", "é")
    write_labels(tmp_path, ["two\nlines", "\u2028 is no end", " blanks "])
    wanted = ("two lines", "\u2028 is no end", " blanks ")
    assert read_labels(tmp_path / "labels.txt", 3) == wanted
    (tmp_path / "labels.txt").write_bytes("\ufeffcat\r\ndog".encode())
    assert read_labels(tmp_path / "labels.txt") == ("cat", "dog")


@pytest.mark.slow
def test_names_are_found_beside_a_run_and_in_a_configuration(tmp_path):
    pytest.importorskip("safetensors")
    model = make_classifier(num_classes=2, pooling="cls")
    theirs = tmp_path / "theirs"
    model.save_pretrained(theirs)
    # LABEL_0 and LABEL_1 are nobody's names
    assert find_labels(theirs, 2) is None
    path = theirs / "config.json"
    names = {"id2label": {"0": "cat", "1": "dog"}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **names}))
    assert find_labels(theirs, 2) == ("cat", "dog")
    assert find_labels(theirs / "model.safetensors", 2) == ("cat", "dog")
    # of another number of classes they say nothing of these
    assert find_labels(theirs, 3) is find_labels(theirs, 1) is None
    assert (
        keras_mae.MAEClassifier.from_pretrained(theirs, num_classes=1).class_names
        is None
    )
    model.save(tmp_path / "model.keras")
    assert find_labels(tmp_path, 2) is None
    write_labels(tmp_path, ["a", "b"])
    assert find_labels(tmp_path / "model.keras", 2) == ("a", "b")
    with pytest.raises(ValueError, match="must have a line for each of the 3"):
        find_labels(tmp_path, 3)


@pytest.mark.nightly
def test_a_fine_tuned_run_serves_the_names_of_its_class_folders(tmp_path):
    pytest.importorskip("tensorboard")
    for name in ("big cat", "dog"):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        for index, picture in enumerate(pictures(24)):
            Image.fromarray(picture).save(folder / f"{index}.png")
    finished = run(
        "training/finetune.py",
        f"--dataset=folder:{tmp_path / 'images'}",
        f"--output={tmp_path / 'run'}",
        *("--epochs=1", "--warmup_epochs=0", "--batch_size=16", "--image_size=32"),
    )
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "run" / "labels.txt").read_text() == "big cat\ndog\n"
    script = load("serving/export.py")
    script.main(
        script.ExportConfig(
            model=str(tmp_path / "run" / "best.keras"), out=str(tmp_path / "models")
        )
    )
    labels = tmp_path / "models" / "1" / "assets" / "labels.txt"
    assert labels.read_text() == "big cat\ndog\n"
