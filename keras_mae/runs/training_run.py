"""Training runs: checks, and bit-exact resuming after a kill.

A script subclasses `keras_mae.runs.training_config.TrainingConfig` for its flags, and
makes a `Training` of them.
"""

import dataclasses
import functools
import json
import math
import os
import sys

import keras
import tensorflow as tf

from keras_mae import data
from keras_mae.callbacks import checkpoints
from keras_mae.callbacks.callback_list import OccasionalCallbackList, hears_each_update
from keras_mae.callbacks.history import RunHistory
from keras_mae.callbacks.stopping import StopOnCorruptImages, StopOnNonFiniteLoss
from keras_mae.callbacks.tensorboard import TensorBoardScalars
from keras_mae.callbacks.throughput import Throughput
from keras_mae.callbacks.trackers import MLflowLogger, WandbLogger
from keras_mae.callbacks.validation import Validation
from keras_mae.callbacks.write_errors import IgnoreWriteErrors
from keras_mae.data.damaged_records import naming_damaged_files
from keras_mae.profiling import costs
from keras_mae.runs.own_callbacks import load_callbacks
from keras_mae.runs.run_folder import RunFolder, saved_flags
from keras_mae.utils.devices import has_accelerator
from keras_mae.utils.distribution import is_chief, make_strategy, run_on_all_workers
from keras_mae.utils.flags import check_at_least

# flags of how to start, which config.json leaves out
_NOT_SAVED = ("config", "resume", "overwrite", "dry_run")
# flags that a resumed run may change: where and how fast it runs, what it reports
_MAY_DIFFER = (
    *("output", "data_dir", "strategy", "replicas", "model_shards", "tpu"),
    *("jit_compile", "accumulation_steps", "rematerialize", "corrupt_limit"),
    *("log_every", "checkpoint_steps", "checkpoint_minutes", "keep", "keep_every"),
    *("callback", "wandb", "mlflow"),
)
_AT_LEAST_ONE = (
    *("log_every", "steps_per_execution", "checkpoint_steps", "keep", "keep_every"),
)


def _make_strategy(config):
    """Returns the strategy of the flags: `tf.distribute`'s, or JAX's."""
    if keras.backend.backend() == "jax":
        from keras_mae.runs.jax_strategy import make_jax_strategy

        return make_jax_strategy(
            config.strategy, config.replicas, config.model_shards, config.tpu
        )
    if config.model_shards is not None:
        raise ValueError(
            "model_shards needs KERAS_BACKEND=jax and --strategy=model_parallel. "
            f"Received: {config.model_shards}"
        )
    return make_strategy(config.strategy, config.replicas, config.tpu)


class Training:
    """A training run: checks flags and data, then starts or resumes, and trains."""

    def __init__(
        self, config, at_least_one=(), may_differ=(), not_saved=(), trains=True
    ):
        self.config = config
        self.strategy = _make_strategy(config)
        # flags that a resumed run may change, and those of how to start
        self._may_differ = (*_MAY_DIFFER, *may_differ)
        self._not_saved = (*_NOT_SAVED, *not_saved)
        self._check(at_least_one)
        self._trackers = self._make_trackers()
        self._own_callbacks = load_callbacks(config.callback, config)
        keras.utils.set_random_seed(config.seed)
        self.source = data.load_source(
            config.dataset, config.held_out, config.data_dir, config.num_channels
        )
        self.read_by_callbacks = []  # a `Source` each
        self.corrupt = data.CorruptImages(config.corrupt_limit)
        self.run = RunFolder(config.output)
        # without `trains` there may be fewer images than a batch
        self.steps = self._count_steps(trains)

    @property
    def replicas(self):
        return self.strategy.num_replicas_in_sync

    @property
    def total_steps(self):
        return self.config.epochs * self.steps

    @property
    def warmup_steps(self):
        return self.config.warmup_epochs * self.steps

    @property
    def learning_rate(self):
        """Peak learning rate, by the linear scaling rule."""
        return self.config.blr * self.config.batch_size / 256

    @property
    def weights(self):
        """What to build the model from: --model, or a checkpoint of the resumed run."""
        if self.config.model is not None and self.config.resume:
            # the files of --model are needed no more
            return self.run.newest_checkpoint() or self.config.model
        return self.config.model

    def _check(self, at_least_one):
        config = self.config
        if config.resume and config.overwrite:
            raise ValueError("Give one of --resume and --overwrite. Received: both")
        if not 0 <= config.warmup_epochs < config.epochs:
            raise ValueError(
                "warmup_epochs must be in [0, epochs). Received: "
                f"warmup_epochs={config.warmup_epochs}, epochs={config.epochs}"
            )
        check_at_least(config, 1, *_AT_LEAST_ONE, *at_least_one)
        check_at_least(config, 0, "corrupt_limit")
        if config.checkpoint_minutes is not None and config.checkpoint_minutes <= 0:
            raise ValueError(
                "checkpoint_minutes must be positive. "
                f"Received: {config.checkpoint_minutes}"
            )
        on_tpu = isinstance(self.strategy, tf.distribute.TPUStrategy)
        if config.steps_per_execution > 1 and self.replicas > 1 and not on_tpu:
            raise ValueError(
                "steps_per_execution must be 1 with several replicas, except on TPUs. "
                f"Received: {config.steps_per_execution}"
            )
        parts = self.replicas * max(1, config.accumulation_steps)
        if config.batch_size % parts:
            raise ValueError(
                f"batch_size must be divisible by the {self.replicas} replicas and "
                f"{config.accumulation_steps} accumulation steps. "
                f"Received: {config.batch_size}"
            )

    def _make_trackers(self):
        """Returns the callbacks of --wandb and --mlflow."""
        config, trackers = self.config, []
        flags = saved_flags(config, self._not_saved)
        if config.wandb is not None:
            trackers.append(WandbLogger(config.wandb, config.output, flags))
        if config.mlflow is not None:
            trackers.append(MLflowLogger(config.mlflow, config.output, flags))
        return trackers

    def _count_steps(self, trains):
        """Counts the steps of an epoch, rounded down to whole executions."""
        size, config = self.source.epoch_size, self.config
        steps = size // max(1, config.batch_size)
        steps -= steps % config.steps_per_execution
        if (trains and steps < 1) or config.batch_size < 1:
            raise ValueError(
                f"batch_size must be in [1, {size}], the images of an epoch; so must "
                f"batch_size * steps_per_execution={config.steps_per_execution}. "
                f"Received: {config.batch_size}"
            )
        return max(1, steps)

    def describe(self, model):
        """Returns what `--dry_run` prints: flags, parameters, FLOPs and memory."""
        config = self.config
        flops = costs.flops_per_image(model) * config.batch_size
        images = config.batch_size // self.replicas // config.accumulation_steps
        memory = costs.estimate_memory(model, images) / costs.GIB
        return (
            f"{json.dumps(dataclasses.asdict(config), indent=2)}\n"
            f"parameters:  {parameters(model)}\n"
            f"data:        {self._data_sizes()}\n"
            f"updates:     {config.epochs} x {self.steps:,}\n"
            f"FLOPs:       {flops / 1e12:,.3f} T a step, over {self.replicas} "
            "replica(s)\n"
            f"memory:      about {memory:,.2f} GiB a replica"
        )

    def fit(self, model, processor, batches, extra=(), validation=None, leading=()):
        """Starts or resumes; trains to the last epoch on `batches(context, step)`."""
        saving = self._saving()
        sometimes = [name for one in extra for name in getattr(one, "log_names", ())]
        callbacks = [*self._callbacks(model, extra, sometimes), saving]
        if validation is not None:
            callbacks.insert(0, Validation(*validation))
        # on every process, and first: they set what belongs to an epoch
        callbacks = [*leading, *callbacks]
        verbose = 1 if os.isatty(1) else 2
        # a pipeline that fails must do so before an older run is deleted
        self._distribute(batches, 0)
        saving.catch_sigterm()
        try:
            step = self._start(model, processor, leading)
            print(
                f"{model.name}: {parameters(model)} parameters, {self.replicas} "
                f"replica(s); {self._data_sizes()}; from step {step}"
            )
            for epoch, last, count in self._segments(step):
                with naming_damaged_files(self.source, *self.read_by_callbacks):
                    model.fit(
                        self._distribute(batches, step),
                        initial_epoch=epoch,
                        epochs=last,
                        steps_per_epoch=count,
                        callbacks=self._callback_list(
                            callbacks, model, count, last, verbose
                        ),
                        shuffle=False,  # the pipeline does
                        verbose=verbose,
                    )
                step = last * self.steps
                if model.stop_training:
                    break  # by a callback; the next `fit` would forget it
        except BaseException as error:
            for tracker in self._trackers:
                tracker.close(failed=True)
            if isinstance(error, FloatingPointError):
                raise FloatingPointError(f"{error}. {self._way_out()}") from error
            raise
        finally:
            saving.release_sigterm()
        print(f"Run saved to {self.config.output}")

    def _data_sizes(self):
        """Says how many images are trained on and held out, and how many classes."""
        source = self.source
        sizes = (
            f"{source.epoch_size:,} images an epoch, {len(source.held_out):,} held out"
        )
        if source.class_names is not None:
            sizes += f", {source.num_classes:,} classes"
        return sizes

    def _way_out(self):
        """Says how to go on after a loss that is NaN or infinite."""
        model = self.run.newest_checkpoint() or "CHECKPOINT"
        return (
            f"To go on from before, into another folder: --model={model} "
            f"--blr={self.config.blr / 2:g} --output=OTHER"
        )

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
            keep_every=config.keep_every,
        )

    def _callbacks(self, model, extra, sometimes):
        """Returns the callbacks, those that check before those that write."""
        config = self.config
        peak = costs.peak_flops(
            self.strategy, config.precision, os.environ.get("TPU_ACCELERATOR_TYPE")
        )
        watching = [
            StopOnNonFiniteLoss(),
            StopOnCorruptImages(self.corrupt),
            Throughput(
                config.batch_size,
                self.total_steps,
                functools.partial(costs.flops_per_image, model),
                peak,
            ),
        ]
        watching += self._own_callbacks
        if not is_chief(self.strategy):
            return watching
        logs = RunHistory(self.run.history, sometimes)
        writing = [*extra, logs, TensorBoardScalars(self.run.logs, config.log_every)]
        return [*watching, *map(IgnoreWriteErrors, writing), *self._trackers]

    def _callback_list(self, callbacks, model, steps, epochs, verbose):
        """Lets an accelerator run on between updates that callbacks report or save."""
        own = any(map(hears_each_update, self._own_callbacks))
        if own or not has_accelerator(self.strategy):
            return callbacks
        every = math.gcd(self.config.log_every, self.config.checkpoint_steps or 0)
        return OccasionalCallbackList(callbacks, model, every, steps, epochs, verbose)

    def _start(self, model, processor, first):
        """Restores the newest checkpoint or starts anew; returns the step."""
        run, config, chief = self.run, self.config, is_chief(self.strategy)
        seen = {"images": self.source.epoch_size, "held_out": len(self.source.held_out)}

        def choose():
            found = list(checkpoints.list_checkpoints(run.checkpoints))
            if config.resume and found:
                if chief:
                    run.check_config(config, self._may_differ, seen)
                return found[-1]
            if chief:
                run.check_free(config.resume, config.overwrite)
            return 0

        def prepare():
            if chief:
                if not step:
                    self._start_trackers()
                if resumed:
                    run.rewind_history(step // self.steps)
                else:
                    # only now, after all checks, is an older run deleted
                    run.clear()
                run.prepare(saved_flags(config, self._not_saved), seen)
                processor.save_pretrained(run.path)
                if step < self.total_steps or not run.model_is_newest():
                    # else it may have weights that a callback restored at the end
                    self._save_first(model)
            return 0

        step = run_on_all_workers(self.strategy, choose)
        newest = run.newest_checkpoint() if config.resume else None
        resumed = newest is not None
        if resumed:
            checkpoints.restore_checkpoint(model, newest)
        for callback in first:
            # what they set is saved with the model, before its epoch begins
            callback.set_model(model)
            callback.on_epoch_begin(step // self.steps)
        run_on_all_workers(self.strategy, prepare)
        return step

    def _start_trackers(self):
        """Starts trackers while an older run, or an empty folder, is as it was."""
        for tracker in self._trackers:
            self.run.path.mkdir(parents=True, exist_ok=True)
            tracker.start()

    def _save_first(self, model):
        """Saves before the first step: a full disk must show now, not in an hour."""
        run, keep = self.run, self.config.keep
        path = checkpoints.save_newest(model, run.checkpoints, run.model, keep)
        there = len(checkpoints.list_checkpoints(run.checkpoints))
        checkpoints.check_disk_space(run.path, path.stat().st_size, keep + 1 - there)

    def _segments(self, step):
        """Yields `(first epoch, last epoch, steps per epoch)` of each `fit` left."""
        epoch, done = divmod(step, self.steps)
        if done:
            yield epoch, epoch + 1, self.steps - done
            epoch += 1
        if epoch < self.config.epochs:
            yield epoch, self.config.epochs, self.steps


def parameters(model):
    """Counts all weights, and where many are frozen the trainable ones."""
    total = model.count_params()
    trained = sum(math.prod(weight.shape) for weight in model.trainable_weights)
    return f"{total:,} ({trained:,} trainable)" if 2 * trained < total else f"{total:,}"


def exit_on_lost_worker(main):
    """Wraps a script's `main`: a lost worker exits with 75, to run with --resume."""

    def wrapped(config):
        try:
            return main(config)
        except (tf.errors.UnavailableError, tf.errors.AbortedError) as error:
            if config.strategy != "multiworker":
                raise
            line = str(error).splitlines()[0]
            print(f"Lost another worker: {line}", file=sys.stderr, flush=True)
            sys.stdout.flush()
            # a normal exit would wait for that worker in TensorFlow's shutdown
            os._exit(checkpoints.EX_TEMPFAIL)

    return wrapped
