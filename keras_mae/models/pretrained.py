"""Mixin of the models: presets, published weights, and writing both."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

from keras_mae.models.preset_files import is_preset_folder, load_preset, save_to_preset
from keras_mae.presets import PRESETS, preset_sizes
from keras_mae.utils.typing import ArrayLike, PathLike, Size
from keras_mae.weights.checkpoint import Weights
from keras_mae.weights.load_pretrained import build_pretrained
from keras_mae.weights.published import PUBLISHED
from keras_mae.weights.push_to_hub import push_to_hub
from keras_mae.weights.report import PortReport
from keras_mae.weights.save_pretrained import save_pretrained


class Pretrained:
    """Mixin: `from_preset`, `from_pretrained`, `save_to_preset`, `save_pretrained`.

    A model says in `from_sizes` how it is built from a flat dict of sizes.

    Attributes:
        port_report: What `from_pretrained` did, a `keras_mae.weights.PortReport`;
            `None` on any other model.
        has_decoder: Whether it predicts pixels, so that its weights have a decoder's.
        has_head: Whether it classifies, so that its weights may have a head's.
    """

    has_decoder = False
    has_head = False
    port_report: PortReport | None = None

    @classmethod
    def from_sizes(cls, sizes: Mapping[str, Any], overrides: Mapping[str, Any]) -> Self:
        """Builds the model with fresh weights from a flat dict of sizes."""
        raise NotImplementedError

    @classmethod
    def from_preset(
        cls, preset: str, load_weights: bool | None = None, **overrides: Any
    ) -> Self:
        """Builds a size with fresh RANDOM weights, or a saved preset with its own.

        The built-in presets are sizes: unlike KerasHub's, they draw new weights unless
        `load_weights=True` asks for published ones. Any other published weights are
        read by `from_pretrained`.

        Args:
            preset: A name in `keras_mae.PRESETS`, or the path of a folder that
                `save_to_preset` wrote.
            load_weights: Whether weights are loaded: a folder's own, or for `mae_base`,
                `mae_large` and `mae_huge` the published ones from the Hugging Face hub,
                as by `from_pretrained`. By default a folder's are, a size's are fresh.
            **overrides: What replaces the values of a size (a folder's stay as they
                are): `image_size`,
                `patch_size`, `num_channels`, `hidden_dim`, `depth`, `num_heads`,
                `mlp_dim`, `drop_path_rate`, `train_positions`, `dtype`, and what
                `TransformerStack` takes. A pretrainer also
                takes the decoder's sizes with the prefix `decoder_`, `mask_ratio`,
                `mask_sampling` and `norm_pix_loss`; a classifier `num_classes`,
                `pooling`, `batch_norm`, `head_dropout_rate` and `head_range`, also
                around a folder's encoder.

        Returns:
            The model.

        Raises:
            ValueError: If the preset or an override is unknown, a value is wrong, or
                there are no weights to load.

        Example:

        ```python
        model = keras_mae.MAEPretrainer.from_preset(
            "mae_tiny", num_channels=1, decoder_depth=1
        )
        assert model.decoder.patch_dim == 16
        ```
        """
        if preset not in PRESETS and is_preset_folder(preset):
            return load_preset(cls, preset, load_weights is not False, overrides)
        sizes = preset_sizes(preset)
        if not load_weights:
            return cls.from_sizes(sizes, overrides)
        if preset not in PUBLISHED:
            raise ValueError(
                "load_weights must be False for a size without published weights; only "
                f"{', '.join(PUBLISHED)} have them. Received: {preset!r}"
            )
        return cls.from_pretrained(PUBLISHED[preset], **overrides)

    def save_to_preset(self, folder: PathLike) -> None:
        """Writes `config.json` and `model.weights.h5`, which `from_preset` reads.

        Args:
            folder: Path of the folder, made where it is missing.

        Raises:
            ValueError: If the folder is a file, or holds another library's
                configuration, or the model's class is not registered with Keras.

        Example:

        ```python
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            keras_mae.MAEPretrainer.from_preset("mae_tiny").save_to_preset(folder)
            encoder = keras_mae.MAEEncoder.from_preset(folder)
        ```
        """
        save_to_preset(self, folder)

    @classmethod
    def from_pretrained(
        cls,
        source: Weights,
        *,
        allow_missing_decoder: bool = False,
        source_image_size: Size | None = None,
        position_resize: str | None = None,
        channel_merge: str = "sum",
        progress: bool = False,
        filename: str | None = None,
        subfolder: str | None = None,
        state_key: str | None = None,
        ignore: Sequence[str] = (),
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: PathLike | None = None,
        local_files_only: bool = False,
        **overrides: Any,
    ) -> Self:
        """Builds a model around weights of another library, which isn't needed for it.

        Reads what facebookresearch/mae, Hugging Face (with the keys of 4.x and 5.x),
        timm, mmpretrain, solo-learn and lightly write: safetensors, also in shards, and
        PyTorch's pickles, of which nothing is executed. Of Hugging Face's TensorFlow
        classes also `tf_model.h5`, in shards too, and what `save_weights("x.h5")`
        wrote. The format is told from the keys, sizes from the configuration or from
        the shapes. `model.port_report` says what was done.

        Args:
            source: A hub id such as `"facebook/vit-mae-base"`, the path of a folder or
                file, or a dict of arrays.
            allow_missing_decoder: Whether a pretrainer may draw a fresh decoder where
                the source has none.
            source_image_size: The image size, an int or a pair `(height, width)`, that
                the source's positions are for. By default what its configuration says;
                without one `image_size`, where that has as many patches, else a square.
                `port_report` notes what was assumed.
            position_resize: How positions are brought to another `image_size`:
                `"torch"` (plain bicubic) or `"timm"` (antialiased); by default what
                the source's own library does.
            channel_merge: How patch kernels are brought to another `num_channels`:
                `"sum"` keeps the tokens of an image whose channels are all alike,
                `"mean"` gives every channel the average kernel. Predicted pixels are
                averaged in both.
            progress: Whether to show a progress bar.
            filename: The file of weights, where a folder or repository has several or
                one of an unusual name.
            subfolder: The folder inside of a folder or repository.
            state_key: Which of a file's state dicts to read, such as `"model_ema"` or
                `"student.state_dict"`, or what the keys of one of several models in it
                begin with, such as `"teacher.backbone."`. By default the plain weights.
            ignore: Patterns of keys to leave out, such as `("fpn.*", "*.extra")`, as
                the file has them, or behind what `state_key` says that they begin
                with; `port_report.left_out` lists what they met.
            revision: A branch, tag or commit of the hub repository.
            token: The hub's access token; by default the one that is logged in.
            cache_dir: Where downloads are kept; by default the hub's own cache.
            local_files_only: Whether to use nothing but the hub's cache.
            **overrides: As for `from_preset`. `num_heads` (and `decoder_num_heads`)
                must be given where no configuration tells it and the sizes are not the
                paper's; a classifier's `num_classes` where the source has no
                head.

        Returns:
            The model.

        Raises:
            ValueError: If the source can't be reached or read, contradicts itself,
                lacks a key or has one too many; the message names file and key.

        Example:

        ```python
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            keras_mae.MAEPretrainer.from_preset("mae_tiny").save_pretrained(folder)
            encoder = keras_mae.MAEEncoder.from_pretrained(folder)
        print(encoder.port_report)
        ```
        """
        return build_pretrained(
            cls,
            source,
            overrides,
            allow_missing_decoder=allow_missing_decoder,
            source_image_size=source_image_size,
            position_resize=position_resize,
            channel_merge=channel_merge,
            progress=progress,
            filename=filename,
            subfolder=subfolder,
            state_key=state_key,
            ignore=ignore,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )

    def push_to_hub(
        self,
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
        """Uploads the weights, the processor and a model card to the Hugging Face hub.

        Weights of another format, and their `config.json`, are deleted from it.

        Args:
            repo_id: Id of the repository, such as `"me/mae-birds"`; made where it is
                missing.
            processor: The `MAEImageProcessor` of the images.
            license: Id of the licence, such as `"apache-2.0"`. What was fine-tuned from
                facebook's weights is bound to theirs, `"cc-by-nc-4.0"`.
            training: How the model was trained, on what: a text in Markdown.
            picture: Path or `(H, W, 3)` uint8 array of a picture for the card, say one
                that `keras_mae.visualization` draws.
            format: As for `save_pretrained`.
            private: Whether a new repository is private.
            revision: The branch; by default `main`.
            token: The hub's access token; by default the one that is logged in.

        Returns:
            Str, the address of the commit.

        Raises:
            ValueError: If an argument is wrong, or the hub refuses.
        """
        return push_to_hub(
            self,
            repo_id,
            processor,
            license=license,
            training=training,
            picture=picture,
            format=format,
            private=private,
            revision=revision,
            token=token,
        )

    def save_pretrained(
        self, folder: PathLike, format: str = "huggingface", processor: Any = None
    ) -> PortReport:
        """Writes the weights, and a configuration, as another library reads them.

        Args:
            folder: Path of the folder, made where it is missing.
            format: `"huggingface"` (config.json and model.safetensors, for
                transformers), `"timm"` (the same for timm; a decoder is left out),
                `"facebook"`, `"mmpretrain"`, `"solo-learn"` or `"lightly"` (a
                model.pth; needs PyTorch).
            processor: The `MAEImageProcessor` of the images, to be written too: as
                preprocessor_config.json, and for timm into config.json.

        Returns:
            A `keras_mae.weights.PortReport`, which also notes the settings that the
            format doesn't store.

        Raises:
            ValueError: If the format is unknown, can't hold the model, or the folder
                has other weights, a run or a preset.

        Example:

        ```python
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            model = keras_mae.MAEPretrainer.from_preset("mae_tiny")
            report = model.save_pretrained(folder)
        ```
        """
        report = save_pretrained(self, folder, format, processor)
        if processor is not None:
            processor.save_pretrained(folder)
        return report
