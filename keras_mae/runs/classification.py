"""What fine-tuning and probing share: labelled data, and classifiers trained on it."""

import dataclasses

import keras

from keras_mae import data
from keras_mae.callbacks.checkpoints import BestCheckpoint
from keras_mae.models import MAEClassifier
from keras_mae.models.loading import load_classifier
from keras_mae.runs.training_run import Training, TrainingConfig
from keras_mae.utils.class_names import write_labels
from keras_mae.utils.flags import flag


@dataclasses.dataclass
class ClassifierConfig(TrainingConfig):
    """The flags of every script that trains a classifier; `None`: the recipe's."""

    model: str | None = flag("pretrained: a run, .keras, hub id, folder or .pth", None)
    preset: str = flag("sizes where there is no --model", "mae_tiny")
    num_classes: int | None = flag("where the data can't tell", None)
    labels_per_class: int | None = flag("train on so many images a class", None)
    image_size: int | None = flag("pixels; default: the model's", None)
    pooling: str | None = flag("what the head sees", None, ("mean", "cls"))
    epochs: int | None = flag("passes over the data", None)
    warmup_epochs: int | None = flag("epochs of linear warm-up", None)
    batch_size: int | None = flag("images an update: all replicas, all parts", None)
    blr: float | None = flag("base learning rate, for 256 images an update", None)
    weight_decay: float | None = flag("decay of matrices", None)
    crop_scale: float | None = flag("least share of the area of a crop", None)
    flip: bool | None = flag("mirror half of the images", None)


class ClassifierTraining(Training):
    """A training on labelled images, and its evaluation on all held-out ones.

    Args:
        config: A `ClassifierConfig` whose recipe is filled in.
        **kwargs: Those of `Training`.

    Attributes:
        class_names: Tuple of str.

    Raises:
        ValueError: As `Training`, and if labels are missing or wrong.

    Example:

    ```python
    config = ClassifierConfig(epochs=2, warmup_epochs=1, batch_size=64, blr=1e-3)
    assert ClassifierTraining(config).class_names == tuple("0123456789")
    ```
    """

    def __init__(self, config, **kwargs):
        super().__init__(config, **kwargs)
        source = data.with_labels(self.source, config.num_classes)
        self.source = data.few_labels(source, config.labels_per_class, config.seed)
        self.class_names = source.class_names

    def build(self, head, **changes):
        """Puts a classifier around the pretrained encoder, or around a fresh one.

        Args:
            head: Dict of constructor arguments of `MAEClassifier`.
            **changes: Constructor arguments of the encoder.

        Returns:
            A `MAEClassifier`.

        Raises:
            ValueError: If the source of weights can't be read, or doesn't fit.
        """
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
        if config.model is not None:
            return load_classifier(
                config.model, classes, config.pooling, head, **changes
            )
        head = {"num_classes": classes, "pooling": config.pooling, **head}
        return MAEClassifier.from_preset(config.preset, **head, **changes)

    def compile(self, model, optimizer, **options):
        """Compiles a classifier: cross-entropy, top-1 and top-5 accuracy.

        Args:
            model: A Keras model that returns logits.
            optimizer: A `keras.optimizers.Optimizer`.
            **options: Other arguments of `compile`.
        """
        top5 = min(5, len(self.class_names))
        model.compile(
            optimizer=optimizer,
            loss=keras.losses.CategoricalCrossentropy(from_logits=True),
            weighted_metrics=[
                keras.metrics.CategoricalAccuracy(name="top1"),
                keras.metrics.TopKCategoricalAccuracy(top5, name="top5"),
            ],
            **options,
        )
        model.optimizer.build(model.trainable_variables)

    def evaluation(self, processor):
        """Makes the batches of all held-out images.

        Args:
            processor: A `MAEImageProcessor`.

        Returns:
            A tuple: the distributed batches, and their number.
        """
        size, several = self.config.batch_size, self.config.steps_per_execution
        batches = self.strategy.distribute_datasets_from_function(
            lambda context: data.evaluation_pipeline(
                self.source,
                processor,
                size,
                multiple_of=several,
                input_context=context,
                corrupt=self.corrupt,
            )
        )
        return batches, data.evaluation_steps(self.source, size, multiple_of=several)

    def fit_images(self, model, processor, augmentation, mixing=None):
        """Trains a classifier on images, keeps its best epoch and its class names.

        Args:
            model: A `MAEClassifier` that `compile` has compiled.
            processor: A `MAEImageProcessor`.
            augmentation: A `keras_mae.data.Augmentation`.
            mixing: A `keras_mae.data.Mixing`, or `None`.

        Returns:
            Float, the best top-1 accuracy on held-out images; `None` on a worker that
            writes nothing.
        """

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
