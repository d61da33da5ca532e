"""Masked Autoencoders in Keras: pretrain, fine-tune, reconstruct, export, serve."""

import importlib
from typing import TYPE_CHECKING, Any

# isort: off
from keras_mae.utils import triton_first as _triton_first  # noqa: F401
from keras_mae.utils import quiet_import as _quiet_import  # noqa: F401

# isort: on
from keras_mae import (
    layers,
    models,
    ops,
    optimizers,
    preprocessing,
    visualization,
    weights,
)
from keras_mae._version import __version__ as __version__
from keras_mae.models import (
    MAEClassifier,
    MAEDecoder,
    MAEEncoder,
    MAEPretrainer,
    MAESegmenter,
)
from keras_mae.ops import (
    normalize_patches,
    patchify,
    resize_positions,
    sincos_positions,
    unpatchify,
)
from keras_mae.optimizers import (
    LARS,
    FineTuningAdamW,
    MatrixDecayAdamW,
    finetuning_optimizer,
    pretraining_optimizer,
    warmup_cosine,
)
from keras_mae.preprocessing import MAEImageProcessor
from keras_mae.presets import PRESETS
from keras_mae.visualization import draw_reconstructions

__all__ = [
    "LARS",
    "PRESETS",
    "FineTuningAdamW",
    "MAEClassifier",
    "MAEDecoder",
    "MAEEncoder",
    "MAEImageProcessor",
    "MAEPretrainer",
    "MAESegmenter",
    "MatrixDecayAdamW",
    "callbacks",
    "convert",
    "data",
    "draw_reconstructions",
    "export",
    "finetuning_optimizer",
    "layers",
    "models",
    "normalize_patches",
    "ops",
    "optimizers",
    "patchify",
    "preprocessing",
    "pretraining_optimizer",
    "resize_positions",
    "sincos_positions",
    "unpatchify",
    "visualization",
    "warmup_cosine",
    "weights",
]


# what needs TensorFlow, or is rarely needed, is imported when it is first used
_LAZY = ("callbacks", "convert", "data", "export")

if TYPE_CHECKING:
    from keras_mae import callbacks, convert, data, export
else:

    def __getattr__(name: str) -> Any:
        if name in _LAZY:
            return importlib.import_module(f"keras_mae.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *_LAZY})
