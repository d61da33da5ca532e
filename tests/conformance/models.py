"""The models that the conformance suite asks for.

Run: python -m tests.conformance.models FOLDER

Writes `mae` (versions 1 and 2), `classifier`, `echo` and `moving` (version 1 each) and
`models.config`, so that another server than the embedded one can be tested:

    tensorflow_model_server --port=8500 --rest_api_port=8501 \
        --allow_version_labels_for_unavailable_models=true \
        --model_config_file=FOLDER/models.config
    pytest tests/conformance --endpoint=localhost:8500 \
        --rest-endpoint=localhost:8501 --models=FOLDER
"""

import shutil
import sys
from pathlib import Path

import keras
import tensorflow as tf

import keras_mae
from keras_mae.export import export_savedmodel

LABELS = ["cat", "dog", "größer"]
CONFIG = """\
model_config_list {{
  config {{
    name: "mae" base_path: "{folder}/mae" model_platform: "tensorflow"
    model_version_policy {{ all {{}} }}
    version_labels {{ key: "stable" value: 1 }}
    version_labels {{ key: "canary" value: 2 }}
  }}
  config {{
    name: "classifier" base_path: "{folder}/classifier" model_platform: "tensorflow"
  }}
  config {{ name: "echo" base_path: "{folder}/echo" model_platform: "tensorflow" }}
  config {{ name: "moving" base_path: "{folder}/moving" model_platform: "tensorflow" }}
}}
"""
SIZES = {"patch_size": 8, "depth": 1}


def pretrainer():
    """Builds the model behind `mae`; the same one in every process."""
    keras.utils.set_random_seed(0)
    return keras_mae.MAEPretrainer.from_preset("mae_tiny", decoder_depth=1, **SIZES)


def classifier():
    """Builds the model behind `classifier`; the same one in every process."""
    keras.utils.set_random_seed(1)
    return keras_mae.MAEClassifier.from_preset(
        "mae_tiny", num_classes=len(LABELS), head_range=0.5, **SIZES
    )


def processor():
    """Builds the image processor of both."""
    return keras_mae.MAEImageProcessor(image_size=32)


class Echo(tf.Module):
    """Answers what it is asked, whatever the numbers."""

    @tf.function(input_signature=[tf.TensorSpec((None, 2), tf.float32, "x")])
    def double(self, x):
        return {"doubled": 2 * x, "row_sum": tf.reduce_sum(x, axis=1)}

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, "text")])
    def text(self, text):
        return {"text": text, "text_bytes": text}

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.int64, "n")])
    def count(self, n):
        return {"n": n}


def save_echo(path):
    """Writes the SavedModel of `Echo`."""
    echo = Echo()
    signatures = {
        "serving_default": echo.double.get_concrete_function(),
        "text": echo.text.get_concrete_function(),
        "count": echo.count.get_concrete_function(),
    }
    tf.saved_model.save(echo, str(path), signatures=signatures)


def build(folder):
    """Writes all models and the configuration that serves them."""
    folder = Path(folder).absolute()
    export_savedmodel(
        pretrainer(), processor(), folder / "mae" / "1", warmup_batch_sizes=()
    )
    shutil.copytree(folder / "mae" / "1", folder / "mae" / "2")
    export_savedmodel(
        classifier(),
        processor(),
        folder / "classifier" / "1",
        labels=LABELS,
        warmup_batch_sizes=(),
    )
    for name in ("echo", "moving"):
        save_echo(folder / name / "1")
    (folder / "models.config").write_text(CONFIG.format(folder=folder))
    return folder


if __name__ == "__main__":
    print(build(sys.argv[1]) / "models.config")
