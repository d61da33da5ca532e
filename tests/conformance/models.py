"""The models that the conformance suite asks for.

Run: python -m tests.conformance.models FOLDER

Writes `mae` (versions 1 and 2), `classifier`, `echo`, `examples` and `moving` (version
1 each), `models.config` and `monitoring.config`, so that another server than the
embedded one can be tested: docs/serving.md, "Conformance tests".
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
  config {{
    name: "examples" base_path: "{folder}/examples" model_platform: "tensorflow"
  }}
  config {{ name: "moving" base_path: "{folder}/moving" model_platform: "tensorflow" }}
}}
"""
MONITORING = "prometheus_config { enable: true }"
# what the real server and the embedded one are started with, beside ports
FLAGS = (
    "--model_config_file={folder}/models.config",
    # the labels of the first configuration name versions that are still to be loaded
    "--allow_version_labels_for_unavailable_models=true",
    # a version that doesn't load is END at once, not after five minutes
    "--max_num_load_retries=0",
    "--file_system_poll_wait_seconds=1",
    "--enable_grpc_healthcheck_service=true",
    "--monitoring_config_file={folder}/monitoring.config",
)
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

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.bool, "b")])
    def invert(self, b):
        return {"inverted": tf.logical_not(b)}

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.uint8, "n")])
    def small(self, n):
        return {"n": n}

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.float32, "x")])
    def to_half(self, x):
        return {"half": tf.cast(x, tf.float16)}

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.bfloat16, "x")])
    def from_bfloat16(self, x):
        return {"x": tf.cast(x, tf.float32)}

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.float32, "x")])
    def lengths(self, x):
        return {"count": tf.size(x), "x": x, "pairs": tf.reshape(x, (-1, 2))}


def save_echo(path):
    """Writes the SavedModel of `Echo`."""
    echo = Echo()
    signatures = {
        "serving_default": echo.double.get_concrete_function(),
        "text": echo.text.get_concrete_function(),
        "count": echo.count.get_concrete_function(),
        "invert": echo.invert.get_concrete_function(),
        "small": echo.small.get_concrete_function(),
        "to_half": echo.to_half.get_concrete_function(),
        "from_bfloat16": echo.from_bfloat16.get_concrete_function(),
        "lengths": echo.lengths.get_concrete_function(),
    }
    tf.saved_model.save(echo, str(path), signatures=signatures)


class Examples(tf.Module):
    """Signatures on `tf.train.Example`s with a float `x`."""

    def __init__(self):
        super().__init__()
        self.functions = {
            name: tf.function(
                function, input_signature=[tf.TensorSpec((None,), tf.string, "inputs")]
            ).get_concrete_function()
            for name, function in {
                "serving_default": lambda inputs: {"outputs": self.x(inputs)},
                "column": lambda inputs: {"outputs": self.x(inputs)[:, None]},
                "both": lambda inputs: {**self.classes(inputs), **self.scores(inputs)},
                "classes": self.classes,
                "scores": self.scores,
                "flat_scores": lambda inputs: {"scores": self.x(inputs)},
                "wide": lambda inputs: {"outputs": self.scores(inputs)["scores"]},
                "doubles": lambda inputs: {
                    "outputs": tf.cast(self.x(inputs), tf.float64)
                },
                "other": lambda inputs: {"sum": self.x(inputs)},
            }.items()
        }
        renamed = tf.function(
            lambda text: {"outputs": self.x(text)},
            input_signature=[tf.TensorSpec((None,), tf.string, "text")],
        )
        self.functions["renamed"] = renamed.get_concrete_function()

    def x(self, inputs):
        features = {"x": tf.io.FixedLenFeature((), tf.float32)}
        return tf.io.parse_example(inputs, features)["x"]  # (B,)

    def scores(self, inputs):
        x = self.x(inputs)
        return {"scores": tf.stack([x, 1 - x], axis=1)}  # (B, 2)

    def classes(self, inputs):
        x = self.x(inputs)
        names = [tf.fill(tf.shape(x), name) for name in ("größer", "no")]
        return {"classes": tf.stack(names, axis=1)}  # (B, 2)


def save_examples(path):
    """Writes the SavedModel of `Examples`."""
    model = Examples()
    tf.saved_model.save(model, str(path), signatures=model.functions)


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
    save_examples(folder / "examples" / "1")
    (folder / "monitoring.config").write_text(MONITORING)
    (folder / "models.config").write_text(CONFIG.format(folder=folder))
    return folder


if __name__ == "__main__":
    print(build(sys.argv[1]) / "models.config")
