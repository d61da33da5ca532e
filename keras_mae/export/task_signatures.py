"""Signatures of a pretrainer (reconstruct) and of a classifier (classify)."""

import tempfile
from collections.abc import Sequence

import keras
import tensorflow as tf

from keras_mae.export.image_decoding import (
    DEFAULT_MAX_PIXELS,
    decode_examples,
    encode_pngs,
)
from keras_mae.export.signatures import (
    PIXELS,
    ModelSignatures,
    Signature,
    assert_all,
    assert_rows,
    fits_32_bits,
)
from keras_mae.layers import seeded_noise
from keras_mae.models import MAEClassifier, MAEEncoder, MAEPretrainer
from keras_mae.preprocessing.image_processor import MAEImageProcessor
from keras_mae.utils.devices import check_tensorflow_backend
from keras_mae.utils.labels_file import write_labels

CLASSIFY_METHOD = tf.saved_model.CLASSIFY_METHOD_NAME


class PretrainerSignatures(ModelSignatures):
    """Signatures of a `MAEPretrainer`: features, embeddings and reconstructions."""

    def all_signatures(self):
        row = (None, self.encoder.num_patches)
        seed = tf.TensorSpec((None,), tf.int64, "seed")
        mask = tf.TensorSpec(row, tf.float32, "mask")
        noise = tf.TensorSpec(row, tf.float32, "noise")
        made = super().all_signatures()
        for name, function, extra in (
            ("reconstruct", self.reconstruct, seed),
            ("reconstruct_with_mask", self.reconstruct_with_mask, mask),
            ("reconstruct_with_noise", self.reconstruct_with_noise, noise),
        ):
            made |= self.by_kind_of_images(name, function, self.in_levels, extra)
        if self.takes_encoded_images:
            made |= self.by_kind_of_images(
                "reconstruct_png_bytes", self.reconstruct, self.as_png, seed
            )
        return made

    def computations(self):
        return {
            **super().computations(),
            "reconstruct": (self.reconstruct_unchecked, (PIXELS, "noise")),
        }

    def reconstruct(self, pixels, seed):
        """Masks the model's share of patches, by a seed for each image."""
        seed = tf.ensure_shape(seed, (None,))
        checks = [
            assert_all(fits_32_bits(seed), "seed must fit into 32 bits"),
            assert_rows(seed, pixels, "seed"),
        ]
        # each image is row 0 of its seed, as in a call with that image alone
        with tf.control_dependencies(checks):
            pairs = tf.stack([seed, tf.zeros_like(seed)], axis=-1)  # (B, 2)
        noise = seeded_noise(pairs, tf.zeros_like(seed), self.encoder.num_patches)
        return self._reconstruct(pixels, noise=noise)

    def reconstruct_with_mask(self, pixels, mask):
        """Masks the patches with 1 in `mask`, `(B, L)`."""
        length = self.encoder.num_patches
        mask = tf.ensure_shape(mask, (None, length))
        valid = tf.logical_or(tf.equal(mask, 0.0), tf.equal(mask, 1.0))
        removed = tf.reduce_sum(mask, axis=1)
        checks = [
            assert_rows(mask, pixels, "mask"),
            assert_all(valid, "mask must hold only 0 (visible) and 1 (removed)"),
            assert_all(
                tf.equal(removed, removed[:1]),
                "every row of mask must keep the same number of patches",
            ),
            assert_all(removed > 0, "mask must remove at least one patch"),
            assert_all(removed < length, "mask must keep at least one patch"),
        ]
        with tf.control_dependencies(checks):
            mask = tf.identity(mask)
        return self._reconstruct(pixels, mask=mask)

    def reconstruct_with_noise(self, pixels, noise):
        """Keeps the patches with the smallest noise, by the model's mask ratio."""
        noise = tf.ensure_shape(noise, (None, self.encoder.num_patches))
        numbers = tf.logical_not(tf.math.is_nan(noise))
        checks = [
            assert_rows(noise, pixels, "noise"),
            assert_all(numbers, "noise must hold numbers, not NaN"),
        ]
        with tf.control_dependencies(checks):
            noise = tf.identity(noise)
        return self._reconstruct(pixels, noise=noise)

    def reconstruct_unchecked(self, pixels, noise):
        """As `reconstruct_with_noise`, without checks, which few runtimes know."""
        return self.in_levels(self._reconstruct(pixels, noise=noise))

    def _reconstruct(self, pixels, **masking):
        return self.model.reconstruct(self.check_pixel_shape(pixels), **masking)

    def in_levels(self, outputs):
        """Returns the reconstruction in grey levels, beside what goes with it."""
        levels = self._levels(outputs["reconstruction"])
        return {"reconstruction": levels, **self._beside(outputs)}

    def as_png(self, outputs):
        """Returns the reconstruction under the visible patches as PNG files."""
        files = encode_pngs(self._levels(outputs["pasted"]))
        return {"png_bytes": files, **self._beside(outputs)}

    def _levels(self, pixels):
        return tf.clip_by_value(self.processor.denormalize(pixels), 0.0, 255.0)

    def _beside(self, outputs):
        # one row an image, as in REST's row format
        count = tf.shape(outputs["mask"])[0]
        sizes = tf.tile([self.encoder.patch_size], (count, 1))  # (B, 2)
        return {"mask": outputs["mask"], "loss": outputs["loss"], "patch_size": sizes}


class ClassifierSignatures(ModelSignatures):
    """Signatures of a `MAEClassifier`: pooled features, classes, all scores."""

    def __init__(
        self,
        model,
        processor,
        max_pixels=DEFAULT_MAX_PIXELS,
        embedding=None,
        normalize_embedding=True,
        batching=False,
        labels=None,
        top_k=5,
    ):
        options = (max_pixels, embedding, normalize_embedding, batching)
        super().__init__(model, processor, *options)
        if labels is None:
            labels = [str(number) for number in range(model.num_classes)]
        if len(labels) != model.num_classes:
            raise ValueError(
                f"labels must name each of the {model.num_classes} classes. "
                f"Received: {len(labels)} labels"
            )
        if not all(labels):
            # TensorFlow's lookup table takes no empty line
            raise ValueError(f"labels must not be empty. Received: {tuple(labels)}")
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1. Received: {top_k}")
        self.top_k = min(top_k, model.num_classes)
        # an asset: the SavedModel has a copy of the file, which users can read
        self._folder = tempfile.TemporaryDirectory()
        lines = tf.lookup.TextFileInitializer(
            str(write_labels(self._folder.name, labels)),
            *(tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER),
            *(tf.string, tf.lookup.TextFileIndex.WHOLE_LINE),
        )
        self._names = tf.lookup.StaticHashTable(lines, default_value="")
        self.resources = [self._names]

    def choose_embedding(self, embedding):
        if embedding is not None:
            raise ValueError(
                "embedding is for a pretrainer or an encoder: a classifier's is what "
                f"its head takes. Received: {embedding!r}"
            )
        return self.model.pooling

    def all_signatures(self):
        made = super().all_signatures()
        made |= self.by_kind_of_images("classify", self.probabilities, self.classify)
        if self.takes_encoded_images:
            made["classify_examples"] = Signature(
                self.probabilities,
                self.score,
                tf.TensorSpec((None,), tf.string, "inputs"),
                self._decode_examples,
                method=CLASSIFY_METHOD,
            )
        return made

    def computations(self):
        return {
            **super().computations(),
            "classify": (self.probabilities, (PIXELS,)),
        }

    def _decode_examples(self, examples):
        return decode_examples(examples, self.processor, self.max_pixels)

    def features(self, pixels):
        """Returns the pooled features that the head takes."""
        pooled = self.model.pooled(self.check_pixel_shape(pixels))  # (B, D)
        return {"features": tf.cast(pooled, tf.float32)}

    def probabilities(self, pixels):
        """Returns the probabilities of all classes, in their order."""
        logits = self.model(self.check_pixel_shape(pixels))
        return {"probabilities": tf.nn.softmax(tf.cast(logits, tf.float32))}  # (B, N)

    def classify(self, outputs):
        """Returns the top k classes, the most probable first; -1 of NaN."""
        probabilities, ids = tf.math.top_k(outputs["probabilities"], self.top_k)
        missing = tf.math.is_nan(probabilities)
        ids = tf.where(missing, tf.constant(-1, tf.int64), tf.cast(ids, tf.int64))
        return {
            "class_ids": ids,  # (B, K)
            "probabilities": probabilities,
            "labels": self.names_of(ids),
        }

    def score(self, outputs):
        """Returns the names and scores of all classes, in their order."""
        scores = outputs["probabilities"]  # (B, N)
        ids = tf.zeros_like(scores, tf.int64) + tf.range(
            self.model.num_classes, dtype=tf.int64
        )
        return {"classes": self.names_of(ids), "scores": scores}

    def names_of(self, ids):
        """Looks up the names of classes: int64 to strings."""
        return self._names.lookup(ids)


def build_signatures(
    model: keras.Model,
    processor: MAEImageProcessor,
    labels: Sequence[str] | None = None,
    top_k: int = 5,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    embedding: str | None = None,
    normalize_embedding: bool = True,
    batching: bool = False,
) -> ModelSignatures:
    """Builds the signatures that a model's SavedModel has.

    Args:
        model: A `MAEPretrainer`, `MAEClassifier` or `MAEEncoder`.
        processor: The `MAEImageProcessor` of its images.
        labels: Sequence of str, the names of a classifier's classes; by default their
            numbers.
        top_k: Int, how many classes a classifier's `classify` returns; all if there
            are fewer.
        max_pixels: Int, how many pixels an encoded image may announce.
        embedding: `"mean"` of the patches' features, or `"cls"`; by default the mean. A
            classifier's is what its head takes, and can't be chosen.
        normalize_embedding: Whether embeddings have length 1, for similarities.
        batching: Whether to leave out what one client's request could fail for others
            whose requests a server runs with it: only packed pixels remain.

    Returns:
        An object whose method `signatures()` returns a dict from name to signature.

    Raises:
        ValueError: If the model has another class, an argument doesn't fit it, or
            Keras runs on another backend than TensorFlow.

    Example:

    ```python
    model = MAEPretrainer.from_preset("mae_tiny")
    served = build_signatures(model, keras_mae.MAEImageProcessor(image_size=32))
    assert "reconstruct_with_noise" in served.signatures()
    ```
    """
    check_tensorflow_backend("An export")
    options = (max_pixels, embedding, normalize_embedding, batching)
    arguments = (model, processor, *options)
    if isinstance(model, MAEClassifier):
        return ClassifierSignatures(*arguments, labels, top_k)
    if labels is not None:
        raise ValueError(
            "labels need a MAEClassifier. Received: labels for a "
            f"{type(model).__name__}"
        )
    if isinstance(model, MAEPretrainer):
        return PretrainerSignatures(*arguments)
    if isinstance(model, MAEEncoder):
        return ModelSignatures(*arguments)
    raise ValueError(
        "An exported model must be a MAEPretrainer, MAEClassifier or MAEEncoder. "
        f"Received: {type(model).__name__}"
    )
