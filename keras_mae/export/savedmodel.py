"""Models as SavedModels for TF Serving: written aside, compared, moved into place."""

import functools
import os
import shutil
import tempfile
from pathlib import Path

import tensorflow as tf

from keras_mae.export.signatures import PREDICT_METHOD
from keras_mae.export.task_signatures import serve
from keras_mae.export.verification import verify
from keras_mae.export.warmup import check_warmup, write_warmup


def export(
    model,
    processor,
    path,
    overwrite=False,
    labels=None,
    top_k=5,
    warmup_batch_sizes=(1, 8),
):
    """Writes a SavedModel aside, checks it and renames it into place.

    A failure leaves `path` as it was. Replacing a version takes two renames; a kill
    between them leaves the older one beside it, as `old-part-...`.

    Args:
        model: A `MAEPretrainer`, `MAEClassifier` or `MAEEncoder`.
        processor: The `MAEImageProcessor` that its images went through.
        path: Path of the version folder.
        overwrite: Whether an existing version is replaced.
        labels: Sequence of str, the names of a classifier's classes; by default their
            numbers.
        top_k: Int, how many classes a classifier's `classify` names.
        warmup_batch_sizes: Sequence of ints, the sizes of the requests of each
            signature that a server answers at first; none if it is empty.

    Raises:
        ValueError: If the version exists and `overwrite` is false, an argument doesn't
            fit the model, or the SavedModel answers otherwise than the model.

    Example:

    ```python
    encoder = keras_mae.MAEEncoder.from_preset("mae_tiny", depth=1)
    processor = keras_mae.MAEImageProcessor(image_size=32)
    export(encoder, processor, "models/mae/1", warmup_batch_sizes=[1])
    serve = tf.saved_model.load("models/mae/1").signatures["serving_default"]
    picture = tf.io.encode_png(np.zeros((40, 50, 3), "uint8"))
    assert serve(image_bytes=picture[None])["features"].shape == (1, 65, 128)
    ```
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists already: give --overwrite or another version")
    check_warmup(warmup_batch_sizes)
    served = serve(model, processor, labels, top_k)
    path.parent.mkdir(parents=True, exist_ok=True)
    # not a number, or a server would pick up the half-written folder
    aside = Path(tempfile.mkdtemp(prefix=f"part-{path.name}-", dir=path.parent))
    try:
        aside.chmod(0o755)  # mkdtemp's 0700 would shut a server's user out
        _write(served, aside)
        write_warmup(aside, served.signatures(), warmup_batch_sizes, path.parent.name)
        verify(aside, served)
        _move_into_place(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write(served, folder):
    """Writes signatures, each weight once, and what else they need."""
    signatures = served.signatures()
    share = functools.cache(functools.partial(tf.function, autograph=False))
    traced = {name: signature.trace(share) for name, signature in signatures.items()}
    name = "features" if served.takes_pictures else "features_from_pixels"
    # a bare module: a Keras model would bring its own functions and weights along
    module = tf.Module()
    module.weights = [weight.value for weight in served.model.weights]
    module.resources = served.resources
    tf.saved_model.save(
        module, folder, signatures={"serving_default": traced[name], **traced}
    )
    # TensorFlow writes every signature as one of Predict
    updater = tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater(
        str(folder)
    )
    others = [key for key in signatures if signatures[key].method != PREDICT_METHOD]
    for key in others:
        updater.replace_method_name(key, signatures[key].method, tags="serve")
    if others:
        updater.save()


def _move_into_place(aside, path):
    """Renames a folder to `path`, and what was there out of its way."""
    if not path.exists():
        os.rename(aside, path)
        return
    old = aside.with_name(f"old-{aside.name}")
    os.rename(path, old)
    try:
        os.rename(aside, path)
    except OSError:
        os.rename(old, path)
        raise
    shutil.rmtree(old)
