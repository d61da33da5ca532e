"""Replicas whose shares of a batch differ give one device's numbers."""

import json
import subprocess
import sys

import numpy as np
import pytest

# a process of its own: logical devices must be set before TensorFlow's first operation
CODE = """
import json, sys
import keras, numpy as np, tensorflow as tf
import keras_mae
from keras_mae.utils.distribution import make_strategy

replicas = int(sys.argv[1])
strategy = make_strategy("mirrored" if replicas > 1 else "cpu", replicas)
keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)
images = rng.standard_normal((11, 16, 16, 3)).astype("float32")
labels, weights = rng.integers(0, 3, 11), rng.uniform(0.1, 3.0, 11).astype("float32")

def batches(*arrays, size=4):
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.OFF
    )
    dataset = tf.data.Dataset.from_tensor_slices(arrays if arrays[1:] else arrays[0])
    return dataset.batch(size).with_options(options)

sizes = {"image_size": 16, "depth": 1, "seed": 3}
with strategy.scope():
    pretrainer = keras_mae.MAEPretrainer.from_preset(
        "mae_tiny", decoder_depth=1, **sizes
    )
    pretrainer.compile(optimizer=keras.optimizers.SGD(0.05))
    classifier = keras_mae.MAEClassifier.from_preset(
        "mae_tiny", num_classes=3, head_range=0.5, **sizes
    )
    classifier.compile(
        optimizer=keras.optimizers.SGD(0.05),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.SparseCategoricalAccuracy("accuracy")],
        weighted_metrics=[keras.metrics.SparseCategoricalAccuracy("weighted")],
    )
data = batches(images)
labelled = batches(images, labels, weights)
results = {
    "predict": pretrainer.predict(data, verbose=0)["mask"].tolist(),
    "evaluate": pretrainer.evaluate(data, verbose=0),
    "fit": pretrainer.fit(data, epochs=2, shuffle=False, verbose=0).history["loss"],
    "classifier evaluate": classifier.evaluate(labelled, verbose=0),
    "classifier predict": classifier.predict(data, verbose=0).tolist(),
}
# in twos, the last batch leaves a replica without an image
for size in (2, 6):
    evaluated = pretrainer.evaluate(batches(images, size=size), verbose=0)
    results[f"evaluate by {size}"] = evaluated
# each replica's compiled gradients must follow a change of the mask ratio
pretrainer.compile(optimizer=keras.optimizers.SGD(0.05), jit_compile=True)
for ratio in (0.75, 0.5):
    pretrainer.mask_ratio = ratio
    fitted = pretrainer.fit(batches(images[:8]), shuffle=False, verbose=0)
    results[f"fit at {ratio}"] = fitted.history["loss"]
history = classifier.fit(labelled, epochs=2, shuffle=False, verbose=0).history
del history["gradient_norm"]
# float8's scales and ranges are no gradient, of which replicas have shares
with strategy.scope():
    quantized = keras_mae.MAEClassifier.from_config(classifier.get_config())
    quantized.set_weights(classifier.get_weights())
    quantized.quantize("float8")
    quantized.compile(
        optimizer=keras.optimizers.SGD(0.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
quantized.fit(labelled.take(1), verbose=0)
embedding = quantized.encoder.patch_embedding.projection
for name in ("inputs_scale", "inputs_amax_history", "kernel_amax_history"):
    results[f"float8 {name}"] = getattr(embedding, name).numpy().ravel()[:1].tolist()
print(json.dumps({**results, **history}))
"""


def run(replicas):
    finished = subprocess.run(
        [sys.executable, "-c", CODE, str(replicas)], capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


@pytest.mark.nightly
def test_eleven_images_on_two_replicas_are_as_on_one():
    one, two = run(1), run(2)
    assert one.keys() == two.keys() and {"loss", "accuracy", "weighted"} < set(one)
    for name, wanted in one.items():
        np.testing.assert_allclose(
            two[name], wanted, rtol=1e-5, atol=1e-6, err_msg=name
        )
    assert two["evaluate by 2"] == pytest.approx(two["evaluate by 6"], rel=1e-5)
    masks = np.array(two["predict"][:4])
    assert len(np.unique(masks, axis=0)) == 4
