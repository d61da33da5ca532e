"""Image processor: decode, resize, rescale and normalize images, and undo it."""

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np
from keras import ops
from PIL import Image

from keras_mae.ops.patches import as_pair
from keras_mae.preprocessing.image_decoding import decode_image
from keras_mae.utils.text import shorten
from keras_mae.utils.typing import Images, PathLike, Size, Tensor
from keras_mae.weights.hub import PROCESSOR_FILE, Location
from keras_mae.weights.image_settings import read_image_settings

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_RESAMPLE = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}

# raised by a configuration that lacks keys
_MALFORMED = (AttributeError, KeyError, TypeError)


class MAEImageProcessor:
    """Turns images into the normalized batch that the models take.

    An image is converted to the wanted number of channels (alpha is dropped, colour
    becomes luma by ITU-R 601, grey is repeated), resized to `image_size` by Pillow's
    antialiased resampling, without regard to the aspect ratio, multiplied by 1/255, and
    normalized by channel. The defaults are those of the published weights. As there,
    EXIF's orientation is not applied, unless asked for: a photo whose pixels lie
    sideways in the file stays sideways. Of an animation the first frame is taken.

    Args:
        image_size: Int or pair `(height, width)`, in pixels.
        image_mean: Sequence of floats, a mean for each channel, in [0, 1].
        image_std: Sequence of floats, a deviation for each channel.
        resample: `"bilinear"` or `"bicubic"`.
        exif_orientation: Bool, whether images are turned or mirrored as the EXIF of a
            JPEG, PNG or WebP says, also in the `tf.data` pipelines and in what is
            exported with this processor. Malformed EXIF is ignored, and orientation
            that stands in XMP alone.

    Call arguments:
        images: A PIL image, a path, encoded bytes, an array, or a list of these. Arrays
            are `(H, W)`, `(H, W, C)` or `(B, H, W, C)`; integers in [0, 255] or floats
            in [0, 1].

    Returns:
        `(B, H, W, C)` float32 array; one image makes a batch of one.

    Raises:
        ValueError: If an argument is wrong, or an image is empty, corrupt, or of a
            shape, type or range that can't be read as an image.

    Example:

    ```python
    processor = MAEImageProcessor(image_size=224)
    pixels = processor(Image.new("RGB", (640, 480), "red"))
    assert pixels.shape == (1, 224, 224, 3)
    assert processor.to_uint8(pixels)[0, 0, 0].tolist() == [255, 0, 0]
    ```
    """

    def __init__(
        self,
        image_size: Size = 224,
        image_mean: Iterable[float] = IMAGENET_MEAN,
        image_std: Iterable[float] = IMAGENET_STD,
        resample: str = "bilinear",
        exif_orientation: bool = False,
    ) -> None:
        self.image_size = as_pair(image_size, "image_size")
        try:
            self.image_mean = tuple(float(value) for value in image_mean)
            self.image_std = tuple(float(value) for value in image_std)
        except (OverflowError, TypeError, ValueError) as error:
            raise ValueError(
                "image_mean and image_std must be sequences of floats. "
                f"Received: {image_mean!r} and {image_std!r}"
            ) from error
        if len(self.image_mean) != len(self.image_std) or not self.image_mean:
            raise ValueError(
                "image_mean and image_std must have one value for each channel. "
                f"Received: {image_mean} and {image_std}"
            )
        if min(self.image_std) <= 0:
            raise ValueError(f"image_std must be positive. Received: {image_std}")
        if not all(map(math.isfinite, self.image_mean + self.image_std)):
            raise ValueError(
                "image_mean and image_std must be finite. "
                f"Received: {image_mean} and {image_std}"
            )
        if resample not in _RESAMPLE:
            raise ValueError(
                f"resample must be one of {', '.join(_RESAMPLE)}. "
                f"Received: {resample!r}"
            )
        if not isinstance(exif_orientation, bool):
            raise ValueError(
                f"exif_orientation must be a bool. Received: {exif_orientation!r}"
            )
        self.resample = resample
        self.exif_orientation = exif_orientation

    @property
    def num_channels(self) -> int:
        """Int, the channels of a processed image."""
        return len(self.image_mean)

    def __call__(self, images: Images) -> np.ndarray:
        if isinstance(images, (list, tuple)):
            batch = list(images)
        elif hasattr(images, "__array__") and not isinstance(images, Image.Image):
            images = np.asarray(images)
            batch = list(images) if images.ndim == 4 else [images]
        else:
            batch = [images]
        if not batch:
            return np.zeros((0, *self.image_size, self.num_channels), "float32")
        return self.normalize(
            np.stack([self._decode_and_resize(image) for image in batch])
        )

    def normalize(self, images: Tensor) -> Tensor:
        """Rescales and normalizes images that already have the right size.

        Args:
            images: `(..., C)` array of grey levels in [0, 255], or a float32 tensor of
                them, also inside a graph.

        Returns:
            `(..., C)` float32 array or tensor.

        Example:

        ```python
        processor = MAEImageProcessor(image_mean=(0.5,), image_std=(0.5,))
        assert processor.normalize(np.array([[0], [255]])).tolist() == [[-1.0], [1.0]]
        ```
        """
        if not hasattr(images, "dtype") or isinstance(images, np.ndarray):
            images = np.asarray(images, "float32")
        mean, std = np.array([self.image_mean, self.image_std], "float32")
        return (images / np.float32(255) - mean) / std

    def denormalize(self, pixels: Tensor) -> Tensor:
        """Undoes `normalize`, without rounding or clipping.

        Args:
            pixels: `(..., C)` float32 array or tensor, normalized.

        Returns:
            `(..., C)` float32 array or tensor of grey levels.

        Example:

        ```python
        processor = MAEImageProcessor(image_mean=(0.5,), image_std=(0.5,))
        levels = processor.denormalize(np.float32([[-1.0], [1.0]]))
        assert levels.tolist() == [[0.0], [255.0]]
        ```
        """
        mean, std = np.array([self.image_mean, self.image_std], "float32")
        return (pixels * std + mean) * np.float32(255)

    def to_uint8(self, pixels: Tensor) -> np.ndarray:
        """Turns normalized pixels into uint8 images for display.

        Args:
            pixels: `(..., C)` array or tensor, normalized.

        Returns:
            `(..., C)` uint8 array, rounded and clipped to [0, 255].

        Example:

        ```python
        processor = MAEImageProcessor()
        picture = np.random.randint(0, 256, (1, 224, 224, 3), dtype="uint8")
        restored = processor.to_uint8(processor(picture))
        np.testing.assert_array_equal(restored, picture)
        ```
        """
        levels = self.denormalize(np.asarray(ops.convert_to_numpy(pixels), "float32"))
        return np.rint(np.clip(levels, 0, 255)).astype("uint8")

    def _decode_and_resize(self, image):
        """Decodes one image to `(H, W, C)` uint8 of the wanted size."""
        image = decode_image(image, self.num_channels, self.exif_orientation)
        height, width = self.image_size
        channels = [
            Image.fromarray(np.ascontiguousarray(channel)).resize(
                (width, height), _RESAMPLE[self.resample]
            )
            for channel in np.moveaxis(image, -1, 0)
        ]
        return np.stack(channels, axis=-1)  # (H, W, C)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments as a dict."""
        return {
            "image_size": self.image_size,
            "image_mean": self.image_mean,
            "image_std": self.image_std,
            "resample": self.resample,
            "exif_orientation": self.exif_orientation,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Builds a processor from what `get_config` returned."""
        return cls(**config)

    def save_pretrained(self, folder: PathLike) -> None:
        """Writes `preprocessor_config.json`, in the format that the hub uses.

        Args:
            folder: Path of an existing folder.

        Example:

        ```python
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            MAEImageProcessor(image_size=96).save_pretrained(folder)
            assert MAEImageProcessor.from_pretrained(folder).image_size == (96, 96)
        ```
        """
        height, width = self.image_size
        config = {
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "exif_orientation": self.exif_orientation,
            "image_mean": self.image_mean,
            "image_std": self.image_std,
            "resample": int(_RESAMPLE[self.resample]),
            "rescale_factor": 1 / 255,
            "size": {"height": height, "width": width},
        }
        path = Path(os.path.expanduser(folder), PROCESSOR_FILE)
        path.write_text(json.dumps(config, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, source: PathLike, **reading: Any) -> Self:
        """Reads `preprocessor_config.json` from a folder or from the Hugging Face hub.

        Without one, the `pretrained_cfg` in timm's `config.json` is read. Where timm
        would crop images, which are resized whole here, one printed line says so.

        Args:
            source: Path of a folder that `save_pretrained` wrote to, or of a file in
                it, or a hub id such as `"facebook/vit-mae-base"`.
            **reading: `subfolder`, and for a hub id `revision`, `token`, `cache_dir`
                and `local_files_only`.

        Returns:
            A `MAEImageProcessor`.

        Raises:
            ValueError: If the file is missing, invalid or unsupported.
        """
        path, config = read_image_settings(Location(source, **reading))
        try:
            _check_supported(config)
            names = {int(code): name for name, code in _RESAMPLE.items()}
            size = config["size"]
            if isinstance(size, dict):
                if not {"height", "width"} <= size.keys():
                    raise ValueError(
                        "size must be a height and a width: images are resized whole. "
                        f"Received: {size}"
                    )
                size = (size["height"], size["width"])
            # an absent one is transformers' default
            resample = config.get("resample", int(_RESAMPLE["bilinear"]))
            return cls(
                image_size=size,
                image_mean=config["image_mean"],
                image_std=config["image_std"],
                resample=names.get(resample, resample),
                # a key of ours, which published configurations don't have
                exif_orientation=config.get("exif_orientation", False),
            )
        except _MALFORMED as error:
            raise ValueError(
                f"{path} is not a valid image processor configuration: "
                f"{shorten(repr(error))}"
            ) from error
        except ValueError as error:
            raise ValueError(f"{path}: {shorten(str(error))}") from error


def _check_supported(config):
    """Raises if a configuration asks for other steps than this processor's."""
    for key, only in {
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_center_crop": False,
        "do_pad": False,
        "offset": False,
        # it would put transparent images on white; here alpha is dropped
        "do_convert_rgb": False,
    }.items():
        # an absent or null key means the published configuration's value
        if config.get(key) not in (None, only):
            raise ValueError(f"{key} must be {only}. Received: {config[key]}")
    if config.get("crop_pct") not in (None, 1):
        raise ValueError(
            "crop_pct must be 1 or absent: images are resized whole, not cropped. "
            f"Received: {config['crop_pct']}"
        )
    factor = config.get("rescale_factor") or 1 / 255
    if abs(factor * 255 - 1) > 1e-6:
        raise ValueError(f"rescale_factor must be 1/255. Received: {factor}")
