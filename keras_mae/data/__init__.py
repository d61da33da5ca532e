"""Data sets, and `tf.data` pipelines for pretraining and fine-tuning.

`load_source` finds images by name: `digits`, `photos`, `folder:PATH`,
`tfrecord:GLOB`, `tfds:NAME`, `hf:NAME`, `hf:PATH` or `webdataset:GLOB`.
`training_pipeline` yields them without end, in an order that depends only on the seed
and the batch's number: a run that resumes, or has several workers, sees the same
batches as one uninterrupted worker. As published, EXIF's orientation is
not applied, unless the processor's `exif_orientation` is true.
"""

from keras_mae.data.augmentation import (
    PRETRAINING,
    Augmentation,
    random_resized_crop,
    resize,
)
from keras_mae.data.builtin import SOURCES, load_digits, load_photos
from keras_mae.data.classification_pipeline import (
    Mixing,
    evaluation_pipeline,
    evaluation_steps,
    labelled_pipeline,
)
from keras_mae.data.corrupt_images import CorruptImages
from keras_mae.data.fingerprint import dataset_fingerprint
from keras_mae.data.labels import few_labels, with_labels
from keras_mae.data.mixup_cutmix import mix, smoothed_one_hot
from keras_mae.data.pipeline import pipeline_options
from keras_mae.data.pretraining_pipeline import held_out_images, training_pipeline
from keras_mae.data.registry import load_source
from keras_mae.data.source import Source

__all__ = [
    "PRETRAINING",
    "SOURCES",
    "Augmentation",
    "CorruptImages",
    "Mixing",
    "Source",
    "dataset_fingerprint",
    "evaluation_pipeline",
    "evaluation_steps",
    "few_labels",
    "held_out_images",
    "labelled_pipeline",
    "load_digits",
    "load_photos",
    "load_source",
    "mix",
    "pipeline_options",
    "random_resized_crop",
    "resize",
    "smoothed_one_hot",
    "training_pipeline",
    "with_labels",
]
