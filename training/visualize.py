"""Look at what an MAE paints. Run: python training/visualize.py --image=cat.jpg

Hides patches of a picture, has a model paint them back, and writes original | masked |
reconstruction | pasted as one picture. --model is a pretraining run, a .keras file, a
hub id, or a folder or file of PyTorch's. The `# %%` cells are those of a notebook: VS
Code opens this file as one, and so does Jupyter with jupytext.
"""

import keras_mae  # first: it imports TensorFlow quietly

# isort: split
import dataclasses
from pathlib import Path

import keras
import numpy as np

from keras_mae import data
from keras_mae.models.loading import load_model
from keras_mae.preprocessing.pretrained_processor import default_processor
from keras_mae.utils.flags import flag, run_script

# %% [markdown]
# ## Choose
#
# The default model is the paper's ViT-Base from the Hugging Face hub, 450 MB that are
# downloaded once. Paper and model hide three quarters of the patches; try 0.5 or 0.9.


# %%
@dataclasses.dataclass
class VisualizeConfig:
    """The flags of this script."""

    image: str | None = flag("picture to look at; default: a photograph", None)
    model: str = flag(
        "pretrained: a run, .keras, hub id, folder or .pth", "facebook/vit-mae-base"
    )
    mask_ratio: float | None = flag("share of patches; default: its own", None)
    seed: int = flag("of the mask", 0)
    out: str = flag("picture to write", "reconstruction.png")
    show: bool = flag("open the picture in a window as well", False)


# %% [markdown]
# ## Load a picture and a model
#
# The photograph is one of scikit-image's. Weights with a decoder make a
# `MAEPretrainer`, which is what paints; others can only encode.


# %%
def find_picture(path):
    """Returns the path of a picture that is there, or a photograph as an array."""
    if path is None:
        return data.load_photos().held_out[0]
    if not Path(path).is_file():
        raise ValueError(f"image must be a picture's file. Received: {path}")
    return path


def load_painter(source):
    """Loads a `MAEPretrainer`, and the `MAEImageProcessor` that prepares for it."""
    model, processor = load_model(source)
    if not isinstance(model, keras_mae.MAEPretrainer):
        raise ValueError(
            "--model must have a decoder, which paints. "
            f"Received: {source}, a {type(model).__name__}"
        )
    return model, processor or default_processor(source, model)


# %% [markdown]
# ## Hide patches and paint them back
#
# The same seed hides the same patches each time. The loss counts removed patches only;
# a number is best read beside that of a painter who answers 0 everywhere: the mean
# colour, or, where pixels were normalized patch by patch, each patch's own mean.


# %%
def report_loss(model, images, outputs):
    """Prints the loss on removed patches, and what a flat answer would score."""
    mask = keras.ops.convert_to_numpy(outputs["mask"])  # (1, L), 1 = removed
    flat = np.zeros((*mask.shape, model.encoder.patch_dim), "float32")  # (1, L, P)
    flat_loss = model.loss_per_image(images, flat, mask)
    print(
        f"{int(mask.sum())} of {mask.size} patches removed. Loss on these: "
        f"{float(outputs['loss'][0]):.4f}; a flat answer: {float(flat_loss[0]):.4f}"
    )
    if model.norm_pix_loss:
        print(
            "The model paints patches without their brightness and contrast. The "
            "picture takes both from the original: partly, it is given away"
        )


# %% [markdown]
# ## All together
#
# `mask_ratio` is an attribute of the model. `draw_reconstructions` hides the same
# patches again, as the seed is the same, and sets the four pictures side by side.


# %%
def main(config):
    """Paints, prints the loss, and writes the picture."""
    picture = find_picture(config.image)
    model, processor = load_painter(config.model)
    if config.mask_ratio is not None:
        model.mask_ratio = config.mask_ratio
    images = processor(picture)  # (1, H, W, C), squashed to the model's size
    outputs = model.reconstruct(images, seed=config.seed)
    report_loss(model, images, outputs)
    drawn = keras_mae.draw_reconstructions(model, processor, images, seed=config.seed)
    Path(config.out).parent.mkdir(parents=True, exist_ok=True)
    drawn.save(config.out)
    print(f"Picture: {config.out}")
    if config.show:
        drawn.show()
    return drawn


# %% [markdown]
# In a notebook, say here what should differ: `VisualizeConfig(image="cat.jpg")`.

# %%
if "get_ipython" in globals():
    from IPython.display import display

    display(main(VisualizeConfig()))
elif __name__ == "__main__":
    run_script(main, VisualizeConfig, __doc__)
