"""Two stages on a folder of your own. Run: python training/own_images.py --folder=pets

The folder has a folder of pictures for each class: `pets/cat/1.jpg`. Stage 1 pretrains
an encoder without the labels, stage 2 fine-tunes it on them, and the same classifier
from scratch is trained beside it. Both are measured on a fifth of the pictures, which
no training sees. Writes `reconstructions.png`, `pretrained/`, `classifier/` and curves
as `.csv` into --output. The `# %%` cells open as a notebook, in VS Code, and in Jupyter
by jupytext.
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
from keras_mae.data.pretraining_pipeline import options
from keras_mae.preprocessing.image_processor import IMAGENET_MEAN, IMAGENET_STD
from keras_mae.utils.class_names import write_labels
from keras_mae.utils.flags import flag, run_script

# %% [markdown]
# ## Choose
#
# Pictures of 64 pixels and a tiny encoder are for a laptop; the steps are the same for
# larger ones. Crops and mirror images suit photographs, and do harm where they change
# what is seen, as with digits: `crop_scale=1.0, flip=False` takes pictures as they are.


# %%
@dataclasses.dataclass
class OwnImagesConfig:
    """The flags of this script."""

    folder: str = flag("folder with a folder of pictures for each class")
    output: str = flag("folder for everything the script writes", "runs/own_images")
    image_size: int = flag("pixels, a multiple of 8", 64)
    norm_pix_loss: bool = flag("normalize what is painted patch by patch", True)
    pretrain_epochs: int = flag("passes of stage 1", 100)
    epochs: int = flag("passes of stage 2", 40)
    batch_size: int = flag("images an update", 32)
    labels_per_class: int | None = flag("fine-tune on so many images a class", None)
    crop_scale: float = flag("least share of the area of a crop", 0.4)
    flip: bool = flag("mirror half of the images", True)
    seed: int = flag("of weights, shuffling and all that is random", 0)


# %% [markdown]
# ## Read the folder
#
# The classes are the folders. Each picture is decoded once, at twice the size that the
# model sees, so that a random crop of it is still sharp, and stays in memory.


# %%
def read_folder(folder, size, seed):
    """Reads pictures and labels, and holds every fifth of each class out."""
    files, _ = load_folder(folder, divide=False)
    source = data.Source(files, files, IMAGENET_MEAN, IMAGENET_STD, crop=True)
    source = data.with_labels(source)
    labels, counts = source.training.labels, np.bincount(source.training.labels)
    if len(counts) < 2 or counts.min() < 5:
        raise ValueError(
            f"{folder} must have two or more folders of five or more pictures. "
            f"Received: {len(counts)}, the smallest of {counts.min()}"
        )
    reader = keras_mae.MAEImageProcessor(2 * size)
    with ThreadPoolExecutor() as pool:
        pictures = [reader.to_uint8(p) for (p,) in pool.map(reader, files.paths)]
    mixed = np.random.default_rng(seed).permutation(len(labels))
    by_class = mixed[np.argsort(labels[mixed], kind="stable")]
    held_out, training = by_class[::5], np.delete(by_class, np.s_[::5])
    return source._replace(
        training=[pictures[index] for index in training],
        training_labels=labels[training],
        held_out=[pictures[index] for index in held_out],
        held_out_labels=labels[held_out],
    )


# %% [markdown]
# ## Stage 1: pretrain without labels
#
# The model hides three quarters of the patches and learns to paint them. It brings its
# loss along, so `compile` needs an optimizer only. `training_pipeline` mixes pictures
# and crops them at random, without end: `steps_per_epoch` says what an epoch is.
# Normalized patches make better features, plain pixels (`norm_pix_loss=False`) pictures
# that are easier to read.


# %%
def pretrain(config, source, processor, held_out):
    """Pretrains a tiny model, of 8 times 8 patches; returns the `MAEPretrainer`."""
    batches = data.training_pipeline(
        source, processor, config.batch_size, config.seed, augmentation=crops(config)
    )
    size = config.image_size
    model = keras_mae.MAEPretrainer.from_preset(
        "mae_tiny",
        image_size=size,
        patch_size=size // 8,
        norm_pix_loss=config.norm_pix_loss,
    )
    # for 256 images an update; few images and small models want a high rate
    rate = schedule(8e-3, config, source, config.pretrain_epochs)
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
    """Makes batches to evaluate on, whose end no thread of tf.data delays."""
    batches = tf.data.Dataset.from_tensor_slices(held_out).batch(config.batch_size)
    return batches.with_options(options())


def crops(config):
    """Says how pictures are changed at random, in both stages."""
    return data.Augmentation((config.crop_scale, 1.0), config.flip)


def schedule(base_rate, config, source, epochs):
    """Makes the learning rate's course: linear warm-up, then half a cosine."""
    total = epochs * (source.epoch_size // config.batch_size)
    peak = base_rate * config.batch_size / 256
    return keras_mae.warmup_cosine(peak, total, warmup_steps=total // 10)


def callbacks(config, name):
    """Makes callbacks: one stops at a loss that is no number, one writes curves."""
    path = Path(config.output, f"{name}.csv")
    return [StopOnNonFiniteLoss(), keras.callbacks.CSVLogger(path)]


# %% [markdown]
# ## Stage 2: fine-tune on the labels
#
# The decoder is left behind; a linear head classifies the mean of the encoder's tokens.
# `layer_decay` lets the lower layers of a pretrained encoder learn more slowly, as they
# have something to keep; one from scratch has not, and all of it learns at full rate.


# %%
def fine_tune(config, name, encoder, source, processor, held_out):
    """Trains encoder and head; returns the `MAEClassifier` and its accuracy."""
    keras.utils.set_random_seed(config.seed)  # the same head for both encoders
    batches = data.labelled_pipeline(
        source, processor, config.batch_size, config.seed, crops(config)
    )
    classifier = keras_mae.MAEClassifier(encoder, len(source.class_names))
    classifier.compile(
        optimizer=keras_mae.finetuning_optimizer(
            schedule(4e-3, config, source, config.epochs),
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
# ## All together
#
# Neither stage trains on the held-out pictures, and nothing is chosen by them: what
# counts is the last epoch.


# %%
def main(config):
    """Runs both stages, compares, and keeps the models."""
    keras.utils.set_random_seed(config.seed)
    if config.image_size % 8:
        raise ValueError(
            f"image_size must be a multiple of 8. Received: {config.image_size}"
        )
    processor = keras_mae.MAEImageProcessor(config.image_size, resample="bicubic")
    source = read_folder(config.folder, config.image_size, config.seed)
    images = processor(source.held_out)  # (B, H, W, 3)
    labels = keras.utils.to_categorical(source.held_out_labels)  # (B, K)
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)

    print(f"Stage 1: pretrain on {len(source.training)} pictures")
    model = pretrain(config, source, processor, images)
    # they lie class by class
    some = images[:: -(-len(images) // 4)]
    drawn = keras_mae.draw_reconstructions(model, processor, some, seed=0)
    drawn.save(output / "reconstructions.png")
    keep(model, processor, output / "pretrained")

    source = data.few_labels(source, config.labels_per_class, config.seed)
    fresh = keras_mae.MAEEncoder.from_config(model.encoder.get_config())
    accuracies = {}
    for name, encoder in (("scratch", fresh), ("pretrained", model.encoder)):
        print(f"Stage 2: fine-tune, {name}")
        classifier, accuracies[name] = fine_tune(
            config, name, encoder, source, processor, (images, labels)
        )
    keep(classifier, processor, output / "classifier")
    write_labels(output / "classifier", source.class_names)

    print(f"\nAccuracy on {len(images)} held-out pictures:")
    for name, accuracy in accuracies.items():
        print(f"  {name:10} {accuracy:.1%}")
    print(f"Pictures: {output / 'reconstructions.png'}")
    print(f"Look:     python training/visualize.py --model={output / 'pretrained'}")
    print(f"Serve:    python serving/export.py --model={output / 'classifier'}")
    return accuracies


def keep(model, processor, folder):
    """Saves a model as `.keras`, and beside it how its pictures are prepared."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save(folder / "model.keras")
    processor.save_pretrained(folder)


# %% [markdown]
# In a notebook, name your folder here, and what else should differ.

# %%
if "get_ipython" in globals():
    main(OwnImagesConfig("pets"))
elif __name__ == "__main__":
    run_script(main, OwnImagesConfig, __doc__)
