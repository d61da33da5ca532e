"""Training runs of classifiers: flags, labelled data, evaluation, best epoch."""

import dataclasses

import keras

from keras_mae import data
from keras_mae.callbacks.checkpoints import BestCheckpoint
from keras_mae.models import MAEClassifier
from keras_mae.models.classifier import POOLINGS
from keras_mae.models.loading import load_classifier
from keras_mae.runs.run_folder import class_names_of_run
from keras_mae.runs.training_config import TrainingConfig
from keras_mae.runs.training_run import Training
from keras_mae.utils.flags import flag
from keras_mae.utils.labels_file import write_labels
from keras_mae.utils.text import first_names


def recipe_flag(text, choices=None):
    """A flag whose default is the value of the recipe."""
    return flag(f"{text}; default: the recipe's", None, choices)


@dataclasses.dataclass
class ClassifierConfig(TrainingConfig):
    """Flags of every script that trains a classifier."""

    model: str | None = flag(
        "pretrained weights: run folder, .keras file, hub id, checkpoint folder, .pth, "
        ".safetensors or tf_model.h5; default: random weights",
        None,
    )
    preset: str = flag("model size where --model is not given", "mae_tiny")
    num_classes: int | None = flag(
        "number of classes, if the dataset only numbers them", None
    )
    labels_per_class: int | None = flag(
        "labelled training images per class; default: all", None
    )
    image_size: int | None = flag("image size in pixels; default: the model's", None)
    pooling: str | None = recipe_flag(
        "head input: mean of the patch tokens or the class token", POOLINGS
    )
    epochs: int | None = recipe_flag("training epochs")
    warmup_epochs: int | None = recipe_flag("epochs of linear learning rate warmup")
    batch_size: int | None = recipe_flag(
        "global batch size, summed over replicas and accumulation steps"
    )
    blr: float | None = recipe_flag(
        "base learning rate; learning rate = blr * batch_size / 256"
    )
    weight_decay: float | None = recipe_flag("weight decay")
    crop_scale: float | None = recipe_flag(
        "smallest area of a random resized crop, as a fraction of the image (1: off)"
    )
    flip: bool | None = recipe_flag("random horizontal flips")


class ClassifierTraining(Training):
    """A `Training` on labelled images, and its evaluation on all held-out images."""

    def __init__(self, config, **kwargs):
        super().__init__(config, **kwargs)
        source = data.with_labels(self.source, config.num_classes)
        self._labelled = source
        self.source = data.few_labels(source, config.labels_per_class, config.seed)
        self.class_names = source.class_names

    @property
    def distinct(self):
        """The source with each training image once, of which features are computed."""
        few = self.config.labels_per_class, self.config.seed
        return data.few_labels(self._labelled, *few, repeat=False)

    def build(self, head, **changes):
        """Returns an `MAEClassifier` around the pretrained, or a fresh, encoder."""
        config, classes = self.config, len(self.class_names)
        changes = {
            "num_channels": len(self.source.mean),
            "rematerialize": config.rematerialize,
            "dtype": config.precision,
            "seed": config.seed,
            **changes,
        }
        if config.image_size is not None:
            changes["image_size"] = config.image_size
        if config.residual_dtype is not None:
            changes["residual_dtype"] = config.residual_dtype
        if self.weights is not None:
            other = self.other_classes(self.weights)
            if other:
                print(f"The head of {self.weights} is left out: it is for {other}")
            return load_classifier(
                self.weights, classes, config.pooling, head, not other, **changes
            )
        head = {"num_classes": classes, "pooling": config.pooling, **head}
        return MAEClassifier.from_preset(config.preset, **head, **changes)

    def other_classes(self, model):
        """Says which classes of a model's run are others than the data's, or `""`."""
        own, names = class_names_of_run(model), self.class_names
        # of data that only numbers them
        numbers = tuple(map(str, range(len(names))))
        if own is None or len(own) != len(names) or numbers in (own, names):
            return ""
        pairs = [pair for pair in zip(own, names, strict=True) if len({*pair}) == 2]
        return " instead of ".join(map(first_names, zip(*pairs, strict=True)))

    def compile(self, model, optimizer, **options):
        """Compiles with cross-entropy, top-1 and top-5 accuracy."""
        top5 = min(5, len(self.class_names))
        model.compile(
            optimizer=optimizer,
            # over the images that can be read: those of weight 0 don't count
            loss=keras.losses.CategoricalCrossentropy(
                from_logits=True, reduction="mean_with_sample_weight"
            ),
            weighted_metrics=[
                keras.metrics.CategoricalAccuracy(name="top1"),
                keras.metrics.TopKCategoricalAccuracy(top5, name="top5"),
            ],
            **options,
        )
        model.optimizer.build(model.trainable_variables)

    def evaluation(self, processor):
        """Returns distributed batches of all held-out images, and their number."""
        # raises if none of them can be read
        data.held_out_images(self.source, processor, 1, self.corrupt)
        size, several = self.config.batch_size, self.config.steps_per_execution
        crops = data.Augmentation((self.config.crop_scale, 1.0)).crops
        batches = self.strategy.distribute_datasets_from_function(
            lambda context: data.evaluation_pipeline(
                self.source,
                processor,
                size,
                multiple_of=several,
                input_context=context,
                corrupt=self.corrupt,
                center_crop=crops,
            )
        )
        return batches, data.evaluation_steps(self.source, size, multiple_of=several)

    def fit_images(self, model, processor, augmentation, mixing=None):
        """Trains on images; returns the best top-1 accuracy (`None` off the chief)."""

        def batches(context, step):
            return data.labelled_pipeline(
                self.source,
                processor,
                self.config.batch_size,
                self.config.seed,
                augmentation,
                mixing or data.Mixing(),
                first_step=step,
                input_context=context,
                corrupt=self.corrupt,
            )

        best = BestCheckpoint(self.run.best, monitor="val_top1")
        names = keras.callbacks.LambdaCallback(
            on_train_begin=lambda logs: write_labels(self.run.path, self.class_names)
        )
        self.fit(model, processor, batches, [best, names], self.evaluation(processor))
        return best.best
