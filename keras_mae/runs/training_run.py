"""What the training scripts share: flags, the run's folder, strategies, resuming.

A script has a dataclass of flags, a subclass of `TrainingConfig`, and makes a
`Training` of it: this checks what can be checked, then trains a compiled model batch by
batch, so that a run that is killed, told to stop or left alone goes on bit-equal.
"""

import dataclasses
import json
import os
import sys

import keras
import tensorflow as tf

from keras_mae import data
from keras_mae.callbacks import checkpoints
from keras_mae.callbacks.stopping import StopOnCorruptImages, StopOnNonFiniteLoss
from keras_mae.callbacks.tensorboard import TensorBoardScalars
from keras_mae.callbacks.throughput import Throughput
from keras_mae.callbacks.validation import Validation
from keras_mae.callbacks.write_errors import IgnoreWriteErrors
from keras_mae.profiling import costs
from keras_mae.runs.run_folder import RunFolder
from keras_mae.utils.distribution import (
    STRATEGIES,
    is_chief,
    make_strategy,
    run_on_all_workers,
)
from keras_mae.utils.flags import flag

# how to begin, rather than what to train
BEGINNING = ("config", "resume", "overwrite", "dry_run")
# what a resumed run may change: where and how fast it runs, what it reports
MAY_DIFFER = (
    *("output", "data_dir", "strategy", "replicas", "tpu", "jit_compile"),
    *("accumulation_steps", "rematerialize", "corrupt_limit", "log_every"),
    *("checkpoint_steps", "checkpoint_minutes", "keep"),
)
XLA = {"auto": "auto", "on": True, "off": False}


@dataclasses.dataclass
class TrainingConfig:
    """The flags of every training script."""

    dataset: str = flag("digits, photos, folder:PATH, tfrecord:GLOB, tfds:X", "digits")
    held_out: str | None = flag("held-out images, as --dataset; default: its own", None)
    data_dir: str | None = flag("where TFDS keeps its files", None)
    output: str = flag("folder for everything the run writes", "runs/training")
    config: str | None = flag("JSON file of flags, such as a run's config.json", None)
    resume: bool = flag("go on with the run that --output holds, if any", False)
    overwrite: bool = flag("replace the run that --output holds", False)
    dry_run: bool = flag("print what would be run, and what it costs", False)
    epochs: int = flag("passes over the data", 100)
    warmup_epochs: int = flag("epochs of linear warm-up", 5)
    batch_size: int = flag("images an update: all replicas, all parts", 64)
    accumulation_steps: int = flag("parts of a replica's batch, one at a time", 1)
    blr: float = flag("base learning rate, for 256 images an update", 1.5e-4)
    weight_decay: float = flag("decay of matrices", 0.05)
    clip_norm: float | None = flag("largest norm of the gradient; default: any", None)
    strategy: str = flag(f"one of {', '.join(STRATEGIES)}", "cpu")
    replicas: int | None = flag("devices of --strategy=mirrored", None)
    tpu: str | None = flag("name or address of the TPU; default: this machine's", None)
    precision: str | None = flag(
        "dtype policy; default: float32, on TPUs mixed_bfloat16",
        None,
        ("float32", "bfloat16", "mixed_bfloat16"),
    )
    jit_compile: str = flag("XLA; auto: on GPUs and TPUs", "auto", (*XLA,))
    rematerialize: bool = flag("compute blocks twice to save memory", False)
    steps_per_execution: int = flag("updates between two reports; for TPUs", 1)
    seed: int = flag("of weights, shuffling and all that is random", 0)
    checkpoint_steps: int | None = flag("updates between two checkpoints", None)
    checkpoint_minutes: float | None = flag("minutes between two checkpoints", 10.0)
    keep: int = flag("checkpoints to keep", 3)
    log_every: int = flag("updates between two points of TensorBoard's curves", 50)
    corrupt_limit: int = flag("corrupt images to skip before giving up", 100)

    def resolved(self, on_tpu=False):
        """Fills in the precision where none is asked for.

        Args:
            on_tpu: Whether a TPU is meant, whatever the strategy.

        Returns:
            A config of the same class.
        """
        if self.precision is not None:
            return self
        on_tpu = on_tpu or self.strategy == "tpu"
        precision = "mixed_bfloat16" if on_tpu else "float32"
        return dataclasses.replace(self, precision=precision)

    def compile_options(self):
        """Returns the flags that `compile` of our models takes, as a dict."""
        return {
            "jit_compile": XLA[self.jit_compile],
            "accumulation_steps": self.accumulation_steps,
            "clip_norm": self.clip_norm,
            "steps_per_execution": self.steps_per_execution,
        }


class Training:
    """A training that a script was asked for: checked, then begun or resumed.

    Args:
        config: A `TrainingConfig`.
        at_least_one: Names of flags that must be at least 1.
        may_differ: Names of a script's own flags that a resumed run may change.
        beginning: Names of a script's own flags that say how to begin.

    Attributes:
        strategy: The `tf.distribute.Strategy`.
        source: The `keras_mae.data.Source`.
        corrupt: The `CorruptImages` that its pipelines report to.
        run: The `RunFolder`.
        steps: Int, updates an epoch.

    Raises:
        ValueError: If flags contradict each other, or the machine or the data.

    Example:

    ```python
    training = Training(TrainingConfig(dataset="digits", batch_size=64))
    assert training.steps == 22 and training.total_steps == 2200
    ```
    """

    def __init__(self, config, at_least_one=(), may_differ=(), beginning=()):
        self.config = config
        self.strategy = make_strategy(config.strategy, config.replicas, config.tpu)
        self._may_differ = (*MAY_DIFFER, *may_differ)
        self._beginning = (*BEGINNING, *beginning)
        self._check(("log_every", "steps_per_execution", *at_least_one))
        keras.utils.set_random_seed(config.seed)
        self.source = data.load_source(config.dataset, config.held_out, config.data_dir)
        self.corrupt = data.CorruptImages(config.corrupt_limit)
        self.run = RunFolder(config.output)
        self.steps = self._count_steps()

    @property
    def replicas(self):
        """Int, how many replicas train."""
        return self.strategy.num_replicas_in_sync

    @property
    def total_steps(self):
        """Int, updates of the whole training."""
        return self.config.epochs * self.steps

    @property
    def warmup_steps(self):
        """Int, updates of the warm-up."""
        return self.config.warmup_epochs * self.steps

    @property
    def learning_rate(self):
        """Float, the peak: `blr` times the batch, in units of 256 images."""
        return self.config.blr * self.config.batch_size / 256

    def _check(self, at_least_one):
        """Refuses what no later step would refuse as clearly."""
        config = self.config
        if config.resume and config.overwrite:
            raise ValueError("Give one of --resume and --overwrite. Received: both")
        if not 0 <= config.warmup_epochs < config.epochs:
            raise ValueError(
                "warmup_epochs must be in [0, epochs). Received: "
                f"warmup_epochs={config.warmup_epochs}, epochs={config.epochs}"
            )
        for name in at_least_one:
            if getattr(config, name) < 1:
                raise ValueError(
                    f"{name} must be at least 1. Received: {getattr(config, name)}"
                )
        on_tpu = isinstance(self.strategy, tf.distribute.TPUStrategy)
        if config.steps_per_execution > 1 and self.replicas > 1 and not on_tpu:
            raise ValueError(
                "steps_per_execution must be 1 under several replicas, but on TPUs: "
                f"Keras can't do more. Received: {config.steps_per_execution}"
            )
        parts = self.replicas * max(1, config.accumulation_steps)
        if config.batch_size % parts:
            raise ValueError(
                f"batch_size must be divisible by the {self.replicas} replicas and "
                f"{config.accumulation_steps} accumulation steps. "
                f"Received: {config.batch_size}"
            )

    def _count_steps(self):
        """Counts the updates of an epoch, whole executions only."""
        size, config = self.source.epoch_size, self.config
        steps = size // max(1, config.batch_size)
        steps -= steps % config.steps_per_execution
        if steps < 1 or config.batch_size < 1:
            raise ValueError(
                f"batch_size must be in [1, {size}], the images of an epoch, "
                f"steps_per_execution={config.steps_per_execution} of it as well. "
                f"Received: {config.batch_size}"
            )
        return steps

    def describe(self, model):
        """Writes down the resolved flags, and what a training of this model costs.

        Args:
            model: A compiled `MAEPretrainer` or `MAEClassifier`.

        Returns:
            Text of several lines.
        """
        config, source = self.config, self.source
        flops = costs.flops_per_image(model) * config.batch_size
        images = config.batch_size // self.replicas // config.accumulation_steps
        memory = costs.estimate_memory(model, images) / costs.GIB
        return (
            f"{json.dumps(dataclasses.asdict(config), indent=2)}\n"
            f"parameters:  {model.count_params():,}\n"
            f"data:        {source.epoch_size:,} images an epoch, "
            f"{len(source.held_out):,} held out\n"
            f"updates:     {config.epochs} x {self.steps:,}\n"
            f"FLOPs:       {flops / 1e12:,.3f} T a step, over {self.replicas} "
            "replica(s)\n"
            f"memory:      about {memory:,.2f} GiB a replica"
        )

    def fit(self, model, processor, batches, extra=(), validation=None):
        """Begins or resumes the run, and trains to its end.

        Args:
            model: The compiled model, its optimizer built.
            processor: The `MAEImageProcessor` to keep with it.
            batches: Function of an `InputContext` and a step that returns the
                `tf.data.Dataset` of training batches from that step on.
            extra: Callbacks of the script's own, for the process that writes.
            validation: Pair of the distributed validation batches and their number, or
                `None`.
        """
        saving = self._saving()
        callbacks = [*self._callbacks(model, extra), saving]
        if validation is not None:
            callbacks.insert(0, Validation(*validation))
        # a pipeline that can't be made must not cost an older run
        self._distribute(batches, 0)
        saving.catch_sigterm()
        try:
            step = self._begin(model, processor)
            count = model.count_params()
            print(
                f"{model.name}: {count:,} parameters, {self.replicas} replica(s); "
                f"from step {step}"
            )
            for first, last, count in self._segments(step):
                model.fit(
                    self._distribute(batches, step),
                    initial_epoch=first,
                    epochs=last,
                    steps_per_epoch=count,
                    callbacks=callbacks,
                    shuffle=False,  # the pipeline does
                    verbose=1 if os.isatty(1) else 2,
                )
                step = last * self.steps
        finally:
            saving.release_sigterm()
        print(f"The run lies in {self.config.output}")

    def _distribute(self, batches, step):
        return self.strategy.distribute_datasets_from_function(
            lambda context: batches(context, step)
        )

    def _saving(self):
        config = self.config
        return checkpoints.Checkpoints(
            self.run.checkpoints,
            self.run.model,
            config.checkpoint_steps,
            config.checkpoint_minutes,
            config.keep,
            steps_per_epoch=self.steps,
            write=is_chief(self.strategy),
        )

    def _callbacks(self, model, extra):
        """Lists the callbacks, those that check before those that write."""
        config = self.config
        peak = costs.peak_flops(
            self.strategy, config.precision, os.environ.get("TPU_ACCELERATOR_TYPE")
        )
        flops = costs.flops_per_image(model)
        watching = [
            StopOnNonFiniteLoss(),
            StopOnCorruptImages(self.corrupt),
            Throughput(config.batch_size, self.total_steps, flops, peak),
        ]
        if not is_chief(self.strategy):
            return watching
        logs = keras.callbacks.CSVLogger(self.run.history, append=True)
        writing = [*extra, logs, TensorBoardScalars(self.run.logs, config.log_every)]
        return [*watching, *map(IgnoreWriteErrors, writing)]

    def _begin(self, model, processor):
        """Resumes the run in the folder, or starts one there; returns its step."""
        run, config, chief = self.run, self.config, is_chief(self.strategy)
        seen = {"images": self.source.epoch_size, "held_out": len(self.source.held_out)}

        def choose():
            found = list(checkpoints.list_checkpoints(run.checkpoints))
            if config.resume and found:
                if chief:
                    run.check_config(config, self._may_differ, seen)
                return found[-1]
            if chief and not config.overwrite:
                run.check_free()
            return 0

        def prepare():
            if chief:
                if not resumed:
                    # only now, after all that can be wrong, is an older run touched
                    run.clear()
                run.rewind_history(step // self.steps)
                run.prepare(config, self._beginning, seen)
                processor.save_pretrained(run.path)
                self._save_first(model)
            return 0

        step = run_on_all_workers(self.strategy, choose)
        newest = run.newest_checkpoint() if config.resume else None
        resumed = newest is not None
        if resumed:
            checkpoints.restore_checkpoint(model, newest)
        run_on_all_workers(self.strategy, prepare)
        return step

    def _save_first(self, model):
        """Saves at once: what can't be saved now will not be saved later."""
        run, keep = self.run, self.config.keep
        path = checkpoints.save_checkpoint(model, run.checkpoints, keep)
        checkpoints.link_or_copy(path, run.model)
        there = len(checkpoints.list_checkpoints(run.checkpoints))
        checkpoints.check_disk_space(run.path, path.stat().st_size, keep + 1 - there)

    def _segments(self, step):
        """Divides what is left into `(first epoch, last, steps)` of fits."""
        epoch, done = divmod(step, self.steps)
        if done:
            yield epoch, epoch + 1, self.steps - done
            epoch += 1
        if epoch < self.config.epochs:
            yield epoch, self.config.epochs, self.steps


def exit_on_lost_worker(main):
    """Ends a script with an exit code of its own where another worker is gone.

    Args:
        main: Function of a `TrainingConfig`.

    Returns:
        A function of a `TrainingConfig` that returns what `main` returns.

    Example:

    ```python
    main = exit_on_lost_worker(lambda config: config.epochs)
    assert main(TrainingConfig(epochs=3)) == 3
    ```
    """

    def main_or_try_again(config):
        try:
            return main(config)
        except (tf.errors.UnavailableError, tf.errors.AbortedError) as error:
            if config.strategy != "multiworker":
                raise
            line = str(error).splitlines()[0]
            print(f"Another worker is gone: {line}", file=sys.stderr, flush=True)
            sys.stdout.flush()
            # TensorFlow's own farewell would wait for that worker
            os._exit(checkpoints.EX_TEMPFAIL)

    return main_or_try_again
