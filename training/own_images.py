"""Tutorial: pretrain and fine-tune on your own image folder, with and without labels.

Run: python training/own_images.py --folder=pets

The folder holds a folder of images for each class: `pets/cat/1.jpg`. Stage 1 pretrains
an encoder without labels; stage 2 fine-tunes it with labels, beside the same classifier
trained from scratch. Both are evaluated on the folder `val` beside `train`
(`pets/train/cat/1.jpg`, `pets/val/cat/2.jpg`), else on a fifth of the images, held out
from both stages. --model starts stage 1 from weights that are pretrained already, of
PyTorch or a `tf_model.h5` of Hugging Face's TensorFlow classes. Writes
`reconstructions.png`, `pretrained/`, `classifier/` and training curves (`.csv`) into
--output. The `# %%` cells open as a notebook in VS Code, and in Jupyter with jupytext.
"""

import keras_mae  # first: it imports TensorFlow quietly

# isort: split
import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_mae import data
from keras_mae.callbacks.stopping import StopOnNonFiniteLoss
from keras_mae.data.folder import load_folder
from keras_mae.preprocessing.image_processor import IMAGENET_MEAN, IMAGENET_STD
from keras_mae.preprocessing.pretrained_processor import training_processor
from keras_mae.utils.flags import check_at_least, flag, run_script
from keras_mae.utils.labels_file import write_labels

# %% [markdown]
# ## Settings
#
# Images of 64 pixels and a tiny encoder suit a laptop; larger ones take the same steps.
# Random crops and flips suit photographs, but not images whose meaning they change,
# such as digits: `crop_scale=1.0, flip=False` switches both off.


# %%
@dataclasses.dataclass
class OwnImagesConfig:
    """Flags of this script."""

    folder: str = flag(
        "image folder, with a folder of images per class, or `train` and `val` of such"
    )
    output: str = flag("output folder", "runs/own_images")
    model: str | None = flag(
        "weights to start stage 1 from: hub id, folder, .pth or tf_model.h5; default: "
        "random weights",
        None,
    )
    image_size: int = flag("image size in pixels, a multiple of 8", 64)
    norm_pix_loss: bool = flag("normalize each patch's pixels for the loss", True)
    pretrain_epochs: int = flag("epochs of stage 1, pretraining", 100)
    epochs: int = flag("epochs of stage 2, fine-tuning", 40)
    batch_size: int = flag("batch size of both stages", 32)
    labels_per_class: int | None = flag(
        "labelled images per class to fine-tune on; default: all", None
    )
    crop_scale: float = flag(
        "smallest area of a random resized crop, as a fraction of the image", 0.4
    )
    flip: bool = flag("random horizontal flips", True)
    seed: int = flag("random seed of weights, shuffling and augmentation", 0)


# %% [markdown]
# ## Read the folder
#
# The classes are the folders, at the top or in `train` and `val`. Each image is decoded
# once and kept in memory, at twice the model's size, so that random crops stay sharp.


# %%
def read_folder(folder, size, seed, exif_orientation=False):
    """Reads images and labels; held out are those of `val`, else every fifth."""
    files, others = load_folder(folder, divide=False)
    source = data.Source(files, others or files, IMAGENET_MEAN, IMAGENET_STD, crop=True)
    source = data.with_labels(source)
    training, held_out = source.training, source.held_out
    fewest = np.bincount(training.labels).min()
    if fewest < 5:
        raise ValueError(
            f"{training.root} must have five or more images in each class folder. "
            f"Received: {fewest}"
        )
    if others is None:
        training, held_out = every_fifth(training, seed)
    reader = keras_mae.MAEImageProcessor(2 * size, exif_orientation=exif_orientation)
    with ThreadPoolExecutor() as pool:
        images, held_out_images = (
            [reader.to_uint8(p) for (p,) in pool.map(reader, part.paths)]
            for part in (training, held_out)
        )
    return source._replace(
        training=images,
        training_labels=training.labels,
        held_out=held_out_images,
        held_out_labels=held_out.labels,
    )


def every_fifth(files, seed):
    """Divides files: for training, and every fifth of a class to hold out."""
    shuffled = np.random.default_rng(seed).permutation(len(files))
    by_class = shuffled[np.argsort(files.labels[shuffled], kind="stable")]
    return files.chosen(np.delete(by_class, np.s_[::5])), files.chosen(by_class[::5])


# %% [markdown]
# ## Stage 1: pretrain without labels
#
# The model masks three quarters of the patches and learns to reconstruct them. It has
# its own loss: `compile` needs only an optimizer. `training_pipeline` yields shuffled,
# augmented batches without end; `steps_per_epoch` says how long an epoch is. Normalized
# patches make better features, plain pixels (`norm_pix_loss=False`) reconstructions
# that are easier to look at.


# %%
def build(config):
    """Builds a tiny model of 8 x 8 patches, or one around the weights of --model."""
    options = {"image_size": config.image_size, "norm_pix_loss": config.norm_pix_loss}
    if config.model is None:
        patch_size = config.image_size // 8
        return keras_mae.MAEPretrainer.from_preset(
            "mae_tiny", patch_size=patch_size, **options
        )
    model = keras_mae.MAEPretrainer.from_pretrained(
        config.model, num_channels=3, allow_missing_decoder=True, **options
    )
    print(model.port_report)
    return model


def pretrain(config, source, processor, held_out):
    """Pretrains the model; returns the `MAEPretrainer`."""
    model = build(config)
    batches = data.training_pipeline(
        source, processor, config.batch_size, config.seed, augmentation=crops(config)
    )
    # base rate for batches of 256; small models and datasets need a high one, weights
    # that are trained already the paper's
    base_rate = 8e-3 if config.model is None else 1.5e-4
    rate = schedule(base_rate, config, source, config.pretrain_epochs)
    model.compile(optimizer=keras_mae.pretraining_optimizer(rate))
    model.fit(
        batches,
        steps_per_epoch=source.epoch_size // config.batch_size,
        epochs=config.pretrain_epochs,
        validation_data=batched(held_out, config),
        callbacks=callbacks(config, "pretraining"),
        shuffle=False,  # the pipeline does
        verbose=2,
    )
    return model


def batched(held_out, config):
    """Returns batches to evaluate on."""
    batches = tf.data.Dataset.from_tensor_slices(held_out).batch(config.batch_size)
    return batches.with_options(data.pipeline_options())


def crops(config):
    """Returns the augmentation of both stages."""
    return data.Augmentation((config.crop_scale, 1.0), config.flip)


def schedule(base_rate, config, source, epochs):
    """Returns the learning rate schedule: linear warmup, then cosine decay."""
    total = epochs * (source.epoch_size // config.batch_size)
    peak = base_rate * config.batch_size / 256
    return keras_mae.warmup_cosine(peak, total, warmup_steps=total // 10)


def callbacks(config, name):
    """Returns callbacks: stop when the loss is NaN or infinite, and log to CSV."""
    path = Path(config.output, f"{name}.csv")
    return [StopOnNonFiniteLoss(), keras.callbacks.CSVLogger(path)]


# %% [markdown]
# ## Stage 2: fine-tune on the labels
#
# The decoder is dropped; a linear head classifies the mean of the encoder's tokens.
# `layer_decay` gives lower layers of the pretrained encoder smaller learning rates; the
# one from scratch trains all layers at the full rate.


# %%
def fine_tune(config, name, encoder, source, processor, held_out):
    """Fine-tunes; returns the `MAEClassifier` and its held-out accuracy."""
    keras.utils.set_random_seed(config.seed)  # the same head for both encoders
    batches = data.labelled_pipeline(
        source, processor, config.batch_size, config.seed, crops(config)
    )
    classifier = keras_mae.MAEClassifier(encoder, len(source.class_names))
    # as in stage 1: high for a small model, the paper's for one of --model
    base_rate = 4e-3 if config.model is None else 5e-4
    classifier.compile(
        optimizer=keras_mae.finetuning_optimizer(
            schedule(base_rate, config, source, config.epochs),
            layer_decay=0.75 if name == "pretrained" else 1.0,
            depth=len(encoder.blocks),
        ),
        loss=keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=0.1
        ),
        metrics=["accuracy"],
    )
    classifier.fit(
        batches,
        steps_per_epoch=source.epoch_size // config.batch_size,
        epochs=config.epochs,
        validation_data=batched(held_out, config),
        callbacks=callbacks(config, f"tuning-{name}"),
        shuffle=False,  # the pipeline does
        verbose=2,
    )
    scores = classifier.evaluate(*held_out, verbose=0, return_dict=True)
    return classifier, scores["accuracy"]


# %% [markdown]
# ## Run both stages
#
# Held-out images are not trained on in either stage, nor used to choose an epoch: the
# accuracy is that of the last one.


# %%
def main(config):
    """Runs both stages, compares accuracies, and saves the models."""
    check_at_least(config, 1, "pretrain_epochs", "epochs")
    keras.utils.set_random_seed(config.seed)
    if config.model is None and config.image_size % 8:
        raise ValueError(
            f"image_size must be a multiple of 8. Received: {config.image_size}"
        )
    processor = training_processor(
        config.model, config.image_size, IMAGENET_MEAN, IMAGENET_STD
    )
    source = read_folder(
        config.folder, config.image_size, config.seed, processor.exif_orientation
    )
    # here, so that a wrong number ends the run before stage 1
    labelled = data.few_labels(source, config.labels_per_class, config.seed)
    images = processor(source.held_out)  # (B, H, W, 3)
    labels = keras.utils.to_categorical(source.held_out_labels)  # (B, K)
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)

    print(
        f"Stage 1: pretrain on {len(source.training)} images of {source.num_classes} "
        f"classes, with {len(images)} held out"
    )
    model = pretrain(config, source, processor, images)
    # sorted by class: take four across all classes
    some = images[:: -(-len(images) // 4)]
    drawn = keras_mae.draw_reconstructions(model, processor, some, seed=0)
    drawn.save(output / "reconstructions.png")
    save(model, processor, output / "pretrained")

    fresh = keras_mae.MAEEncoder.from_config(model.encoder.get_config())
    accuracies = {}
    for name, encoder in (("scratch", fresh), ("pretrained", model.encoder)):
        print(f"Stage 2: fine-tune, {name}")
        classifier, accuracies[name] = fine_tune(
            config, name, encoder, labelled, processor, (images, labels)
        )
    save(classifier, processor, output / "classifier")
    write_labels(output / "classifier", source.class_names)

    print(f"\nAccuracy on {len(images)} held-out images:")
    for name, accuracy in accuracies.items():
        print(f"  {name:10} {accuracy:.1%}")
    print(f"Reconstructions: {output / 'reconstructions.png'}")
    print(f"Try it: python training/visualize.py --model={output / 'pretrained'}")
    print(f"Export: python serving/export.py --model={output / 'classifier'}")
    return accuracies


def save(model, processor, folder):
    """Saves a model and its image processor."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save(folder / "model.keras")
    processor.save_pretrained(folder)


# %% [markdown]
# In a notebook, set your folder here, and any other flags.

# %%
if "get_ipython" in globals():
    main(OwnImagesConfig("pets"))
elif __name__ == "__main__":
    run_script(main, OwnImagesConfig, __doc__)
