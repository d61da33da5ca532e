"""A SavedModel refuses what announces too many pixels, before it costs anything."""

import io
import resource
import time

import pytest
import tensorflow as tf
from PIL import Image

import keras_mae
from keras_mae.export import build_signatures, export_savedmodel
from tests.scripts import load, refusal

SCRIPT = "serving/export.py"


def encoder():
    return keras_mae.MAEEncoder.from_preset("mae_tiny", patch_size=8, depth=1)


@pytest.fixture
def processor():
    return keras_mae.MAEImageProcessor(image_size=32)


def png(width, height):
    file = io.BytesIO()
    Image.new("L", (width, height)).save(file, "PNG", compress_level=9)
    return file.getvalue()


@pytest.mark.slow
def test_bombs_cost_neither_time_nor_memory(processor, tmp_path):
    export_savedmodel(
        encoder(),
        processor,
        tmp_path / "1",
        warmup_batch_sizes=(1,),
        max_pixels=50 * 40,
    )
    serve = tf.saved_model.load(tmp_path / "1").signatures["serving_default"]
    assert serve(image_bytes=tf.constant([png(50, 40)]))["features"].shape[0] == 1
    with pytest.raises(tf.errors.InvalidArgumentError, match="at most 2000 pixels"):
        serve(image_bytes=tf.constant([png(50, 41)]))
    bomb = png(13300, 13300)
    assert len(bomb) < 200_000
    time_before = time.process_time()
    memory_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(tf.errors.InvalidArgumentError, match="at most 2000 pixels"):
        serve(image_bytes=tf.constant([bomb] * 10))
    # decoded, they would take 150 seconds and 531 MB each
    assert time.process_time() - time_before < 20
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory_before
    assert grown < 200 * 1024  # KiB


def test_a_limit_below_the_models_size_is_refused(processor):
    with pytest.raises(
        ValueError, match="max_pixels must be at least the model's 1024"
    ):
        build_signatures(encoder(), processor, max_pixels=1023)


@pytest.mark.parametrize("version", [2**63, 10**30])
def test_versions_that_no_server_reads_are_refused(processor, tmp_path, version):
    with pytest.raises(ValueError, match=f"at most {2**63 - 1}. Received: {version}"):
        export_savedmodel(encoder(), processor, tmp_path / str(version))
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_the_script_takes_the_limit(tmp_path):
    assert load(SCRIPT).ExportConfig("run").max_pixels == 50_000_000
    assert "max_pixels must be" in refusal(SCRIPT, "--model=x", "--max_pixels=0")
