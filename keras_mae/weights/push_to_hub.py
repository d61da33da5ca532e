"""`push_to_hub`: uploads a model, with its card, to the Hugging Face hub."""

import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
from PIL import Image

from keras_mae.utils.typing import ArrayLike, PathLike
from keras_mae.weights.checkpoint import PortError
from keras_mae.weights.checkpoint_reader import WEIGHT_FILES
from keras_mae.weights.config_writers import not_stored
from keras_mae.weights.hub import CONFIG_FILE, hub_errors
from keras_mae.weights.state_dict import contents_of, encoder_of, sizes_of

_PICTURE = "reconstruction.png"
# format -> the hub's name of the library that reads it
_LIBRARIES = {"huggingface": "transformers", "timm": "timm"}


def push_to_hub(
    model: keras.Model,
    repo_id: str,
    processor: Any = None,
    *,
    license: str,
    training: str,
    picture: PathLike | ArrayLike | None = None,
    format: str = "huggingface",
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> str:
    """See `Pretrained.push_to_hub`."""
    import huggingface_hub

    for name, text in (("license", license), ("training", training)):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{name} must be a text. Received: {text!r}")
    api = huggingface_hub.HfApi(token=token)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.save_pretrained(folder, format, processor)
        if picture is not None:
            _write_picture(picture, folder / _PICTURE)
        if format == "timm" and "decoder" in contents_of(model).parts:
            model = encoder_of(model)  # what is uploaded
        card = _card(model, repo_id, license, training, format, picture is not None)
        (folder / "README.md").write_text(card, encoding="utf-8")
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                revision=revision,
                # what is written anew is not deleted; the rest would be read instead
                delete_patterns=[*WEIGHT_FILES, CONFIG_FILE],
                commit_message=f"Upload {type(model).__name__}",
            )
        except hub_errors() as error:
            raise PortError(f"{repo_id} can't be uploaded: {error}") from error
    return commit.commit_url


def _write_picture(picture, path):
    if hasattr(picture, "__array__"):
        Image.fromarray(np.asarray(picture)).save(path)
    else:
        with Image.open(picture) as image:
            image.save(path)


def _card(model, repo_id, license, training, format, with_picture):
    """Writes the model card: what it is, how it was trained, how to load it."""
    kind = type(model).__name__
    sizes, parts = sizes_of(model), contents_of(model).parts
    height, width = sizes["image_size"]
    about = {
        "parameters": f"{model.count_params():,}",
        "image size": f"{height}x{width}, {sizes['num_channels']} channels",
        "patch size": "x".join(map(str, sizes["patch_size"])),
        "encoder": f"{sizes['depth']} blocks, {sizes['hidden_dim']} wide, "
        f"{sizes['num_heads']} heads",
    }
    if "decoder" in parts:
        about["mask ratio"] = str(sizes["mask_ratio"])
        target = "normalized pixels" if sizes["norm_pix_loss"] else "pixels"
        about["predicts"] = target
    rows = "\n".join(f"| {name} | {value} |" for name, value in about.items())
    image = (
        f"\n![original, masked, reconstruction]({_PICTURE})\n" if with_picture else ""
    )
    library = _LIBRARIES.get(format)
    head = [f"license: {license}", "tags:", "- masked-autoencoder", "- keras"]
    if library:
        head.append(f"library_name: {library}")
    front = "\n".join(head)
    call, missing = f'"{repo_id}"', not_stored(sizes, format)
    if missing:
        lines = (f"    {name}={value!r},\n" for name, value in missing.items())
        call = f"\n    {call},\n{''.join(lines)}"
    return f"""---
{front}
---

# {repo_id.rpartition("/")[2]}

A masked autoencoder ([He et al., 2021](https://arxiv.org/abs/2111.06377)), `{kind}`.
{image}
| | |
|---|---|
{rows}

## Training

{training.strip()}

## Use

```python
import keras_mae

model = keras_mae.{kind}.from_pretrained({call})
```
"""
