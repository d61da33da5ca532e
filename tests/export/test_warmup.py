"""Warm-up requests: the SavedModel answers each of them."""

import numpy as np
import pytest
import tensorflow as tf

import keras_mae
from keras_mae.export import WARMUP_PATH, build_signatures, export_savedmodel
from keras_mae.export.warmup import MOST_RECORDS, check_warmup, write_warmup

prediction_log_pb2 = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2")


def make(kind):
    options = {"patch_size": 8, "depth": 1}
    if kind == "pretrainer":
        return keras_mae.MAEPretrainer.from_preset(
            "mae_tiny", decoder_depth=1, **options
        )
    encoder = keras_mae.MAEEncoder.from_preset("mae_tiny", **options)
    return encoder if kind == "encoder" else keras_mae.MAEClassifier(encoder, 3)


@pytest.fixture
def processor():
    return keras_mae.MAEImageProcessor(image_size=32)


@pytest.fixture
def unoptimized():
    """Spares TensorFlow's work on each signature, which takes longer than its runs."""
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    yield
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False})


def read(folder):
    path = str(folder / WARMUP_PATH)
    for record in tf.data.TFRecordDataset(path).as_numpy_iterator():
        yield prediction_log_pb2.PredictionLog.FromString(record), len(record)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    ["pretrainer", pytest.param("classifier", marks=pytest.mark.nightly), "encoder"],
)
def test_every_request_is_answered(kind, processor, tmp_path, unoptimized):
    folder = tmp_path / "mae" / "1"
    export_savedmodel(make(kind), processor, folder, warmup_batch_sizes=(1, 3))
    signatures = tf.saved_model.load(folder).signatures
    asked = []
    for log, size in read(folder):
        if log.HasField("classify_log"):
            request = log.classify_log.request
            examples = request.input.example_list.examples
            inputs = {"inputs": [e.SerializeToString() for e in examples]}
        else:
            request = log.predict_log.request
            inputs = {
                name: tf.make_ndarray(value) for name, value in request.inputs.items()
            }
        assert request.model_spec.name == "mae"
        name = request.model_spec.signature_name
        assert (name == "classify_examples") == log.HasField("classify_log")
        answer = signatures[name](**{k: tf.constant(v) for k, v in inputs.items()})
        (rows,) = {len(value) for value in answer.values()}
        # images of the right size: no row is NaN
        floats = [value for value in answer.values() if value.dtype == tf.float32]
        assert all(np.isfinite(value).all() for value in floats), name
        asked.append((name, rows))
        # a batch of pixels holds one number or row, as all are alike
        assert size < 2_000 + 32 * 32 * 3
    names = set(signatures) - {"serving_default"}
    wanted = [(name, 1) for name in names]
    wanted += [(name, 3) for name in names if "_from_pixels" not in name]
    assert sorted(asked) == sorted(wanted)


@pytest.mark.slow
def test_no_sizes_are_no_file(processor, tmp_path):
    export_savedmodel(make("encoder"), processor, tmp_path / "1", warmup_batch_sizes=[])
    assert not (tmp_path / "1" / "assets.extra").exists()


def test_what_a_server_refuses_is_not_written(processor, tmp_path):
    encoder = make("encoder")
    with pytest.raises(ValueError, match=r"at least 1. Received: \[0\]"):
        export_savedmodel(
            encoder, processor, tmp_path / "a" / "1", warmup_batch_sizes=[0]
        )
    assert not (tmp_path / "a").exists()
    signatures = build_signatures(encoder, processor).signatures()
    sizes = np.arange(1, MOST_RECORDS // len(signatures) + 2)
    check_warmup(sizes[:-1].tolist(), len(signatures))
    with pytest.raises(ValueError, match="TF Serving takes 1000 warm-up requests"):
        write_warmup(tmp_path, signatures, sizes.tolist())
    assert not any(tmp_path.iterdir())
