"""Tutorial: mask and reconstruct an image.

Run: python training/visualize.py --image=cat.jpg

Masks patches of an image, reconstructs them, and writes original | masked |
reconstruction | reconstruction + visible as one picture. --model is a pretraining run,
a .keras file, a Hugging Face hub id, a PyTorch checkpoint or a tf_model.h5. The `# %%`
cells open as a notebook in VS Code, and in Jupyter with jupytext.
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
# ## Settings
#
# The default model is the paper's ViT-Base from the Hugging Face hub, 450 MB that are
# downloaded once. It was trained with a mask ratio of 0.75; try 0.5 or 0.9.


# %%
@dataclasses.dataclass
class VisualizeConfig:
    """Flags of this script."""

    image: str | None = flag("image file; default: a scikit-image photograph", None)
    model: str = flag(
        "pretrained model: run folder, .keras file, hub id, checkpoint folder, .pth or "
        "tf_model.h5",
        "facebook/vit-mae-base",
    )
    mask_ratio: float | None = flag(
        "fraction of patches to mask; default: the model's", None
    )
    seed: int = flag("random seed of the mask", 0)
    out: str = flag("picture to write", "reconstruction.png")
    show: bool = flag("open the picture in a window as well", False)


# %% [markdown]
# ## Load an image and a model
#
# Weights with a decoder load as a `MAEPretrainer`, which reconstructs; others can only
# encode.


# %%
def find_image(path):
    """Returns the path of an image file, or a photograph as an array."""
    if path is None:
        return data.load_photos().held_out[0]
    if not Path(path).is_file():
        raise ValueError(f"--image must be an image file. Received: {path}")
    return path


def load_pretrainer(source):
    """Loads a `MAEPretrainer` and its `MAEImageProcessor`."""
    model, processor = load_model(source)
    if not isinstance(model, keras_mae.MAEPretrainer):
        raise ValueError(
            "--model must have a decoder, to reconstruct images. "
            f"Received: {source}, a {type(model).__name__}"
        )
    return model, processor or default_processor(source, model)


# %% [markdown]
# ## Mask patches and reconstruct them
#
# The same seed masks the same patches each time. The loss covers masked patches only.
# Compare it with that of a constant prediction of 0: the mean color of the dataset or,
# with `norm_pix_loss`, of each patch.


# %%
def report_loss(model, images, outputs):
    """Prints the loss, and that of a constant prediction."""
    mask = keras.ops.convert_to_numpy(outputs["mask"])  # (1, L), 1 = masked
    zeros = np.zeros((*mask.shape, model.encoder.patch_dim), "float32")  # (1, L, P)
    baseline = model.loss_per_image(images, zeros, mask)
    print(
        f"{int(mask.sum())} of {mask.size} patches masked. Loss: "
        f"{float(outputs['loss'][0]):.4f}; of a constant prediction: "
        f"{float(baseline[0]):.4f}"
    )
    if model.norm_pix_loss:
        print(
            "The model predicts normalized patches (norm_pix_loss). The picture shows "
            "them with the brightness and contrast of the original patches"
        )


# %% [markdown]
# ## Put it together
#
# `mask_ratio` is an attribute of the model. `draw_reconstructions` masks the same
# patches, as the seed is the same, and draws the four images side by side.


# %%
def main(config):
    """Reconstructs, prints the loss, and writes the picture."""
    image = find_image(config.image)
    model, processor = load_pretrainer(config.model)
    if config.mask_ratio is not None:
        model.mask_ratio = config.mask_ratio
    images = processor(image)  # (1, H, W, C), resized without keeping proportions
    outputs = model.reconstruct(images, seed=config.seed)
    report_loss(model, images, outputs)
    drawn = keras_mae.draw_reconstructions(model, processor, images, seed=config.seed)
    Path(config.out).parent.mkdir(parents=True, exist_ok=True)
    drawn.save(config.out)
    print(f"Picture saved to {config.out}")
    if config.show:
        drawn.show()
    return drawn


# %% [markdown]
# In a notebook, set flags here: `VisualizeConfig(image="cat.jpg")`.

# %%
if "get_ipython" in globals():
    from IPython.display import display

    display(main(VisualizeConfig()))
elif __name__ == "__main__":
    run_script(main, VisualizeConfig, __doc__)
