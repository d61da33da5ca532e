"""The train step that every model here shares: replicas, parts of a batch, clipping."""

import keras
import numpy as np
from keras import ops

from keras_mae.fusion import fusing, fusing_pays, xla_pays


class ReplicatedTraining:
    """Mixin that trains a `keras.Model` alike on one replica, on many, and on TPUs.

    The gradient is that of the mean over the batch of all replicas, by Keras's own
    scaling. A model says what it trains on in `training_inputs`, what it minimizes in
    `training_loss`, and what it reports in `track`.

    Attributes:
        fuses: Whether a step runs under `keras_mae.fusion.fusing`; `compile` decides.
    """

    fuses = False
    _resumed_metrics = None

    def training_inputs(self, data):
        """Takes a replica's batch apart.

        Args:
            data: What `fit` was given, a batch of it.

        Returns:
            A dict of tensors whose first axis is the batch, `images` among them.
        """
        raise NotImplementedError

    def training_loss(self, **inputs):
        """Computes what to minimize.

        Args:
            **inputs: What `training_inputs` returned, or equal parts of it.

        Returns:
            A tuple: the mean loss over these inputs, a float32 scalar, and the outputs
            that `track` wants, a float32 tensor whose first axis is the batch, or
            `None`.
        """
        raise NotImplementedError

    def track(self, loss, outputs, data):
        """Updates the metrics.

        Args:
            loss: The mean loss of this replica's batch.
            outputs: Those of `training_loss`, of the whole batch.
            data: What `fit` was given, a batch of it.

        Returns:
            A dict of metric results.
        """
        raise NotImplementedError

    def compile(
        self,
        *args,
        jit_compile="auto",
        accumulation_steps=1,
        clip_norm=None,
        **kwargs,
    ):
        """Configures training, as `keras.Model.compile` does.

        Args:
            *args: Those of `keras.Model.compile`.
            jit_compile: `True`, `False`, or `"auto"`: XLA on GPUs, plain graphs on
                CPUs. One replica's step is compiled whole; under several, loss and
                gradients are, and the optimizer runs outside. TPUs always compile.
            accumulation_steps: Int, the parts in which a replica works through its
                batch before one update: the same numbers, less memory.
            clip_norm: Float or `None`, the largest norm of the gradient of all
                variables over all replicas; the paper does not clip.
            **kwargs: Those of `keras.Model.compile`.

        Raises:
            ValueError: If `accumulation_steps` is less than 1 or `clip_norm` is not
                positive.

        Example:

        ```python
        model = keras_mae.MAEPretrainer.from_preset("mae_tiny")
        model.compile(optimizer=keras.optimizers.AdamW(1e-3), jit_compile=True)
        ```
        """
        if accumulation_steps < 1:
            raise ValueError(
                f"accumulation_steps must be at least 1. Received: {accumulation_steps}"
            )
        if clip_norm is not None and clip_norm <= 0:
            raise ValueError(f"clip_norm must be positive. Received: {clip_norm}")
        self.accumulation_steps = accumulation_steps
        self.clip_norm = clip_norm
        self._jit_compile_asked = jit_compile
        xla = xla_pays() if jit_compile == "auto" else jit_compile
        whole = xla and not self._is_distributed()
        self.fuses = fusing_pays(xla, self.count_params())
        super().compile(*args, jit_compile=whole, **kwargs)
        self._differentiate = self._accumulate
        if self._is_distributed():
            self._prepare_replicas(xla)

    def _is_distributed(self):
        """Whether several replicas, several workers or a TPU train this model."""
        if keras.backend.backend() != "tensorflow":
            return False
        from tensorflow import distribute

        strategy = self.distribute_strategy
        kinds = distribute.TPUStrategy, distribute.MultiWorkerMirroredStrategy
        return strategy.num_replicas_in_sync > 1 or isinstance(strategy, kinds)

    def _prepare_replicas(self, xla):
        """Arranges what a step under several replicas does otherwise."""
        import tensorflow as tf

        if xla and not isinstance(self.distribute_strategy, tf.distribute.TPUStrategy):
            # one XLA cluster can't hold the variables of several replicas
            self._differentiate = tf.function(self._accumulate, jit_compile=True)
        # train_step sums gradients over replicas, to know their norm: once is enough
        self.optimizer._all_reduce_sum_gradients = list

    def get_compile_config(self):
        config = super().get_compile_config()
        if config:
            config["accumulation_steps"] = self.accumulation_steps
            config["clip_norm"] = self.clip_norm
            # "auto" is decided anew on the machine that loads the model
            config["jit_compile"] = self._jit_compile_asked
        return config

    def compile_from_config(self, config):
        # Keras skips this for a model with its own compile()
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def train_step(self, data):
        import tensorflow as tf

        inputs = self.training_inputs(data)
        loss, outputs, gradients = self._differentiate(inputs)
        context = tf.distribute.get_replica_context()
        if context.num_replicas_in_sync > 1:
            # each replica brings its share of the mean
            gradients = context.all_reduce("SUM", gradients)
        norm = tf.linalg.global_norm([tf.cast(g, "float32") for g in gradients])
        if self.clip_norm is not None:
            scale = self.clip_norm / tf.maximum(norm, self.clip_norm)
            gradients = [g * tf.cast(scale, g.dtype) for g in gradients]
        variables = self.trainable_variables
        with fusing(self.fuses):
            self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        results = self.track(loss, outputs, data)
        return self.replica_results({**results, "gradient_norm": norm})

    def _loss_and_gradients(self, inputs):
        """Computes loss, outputs and this replica's share of the gradient."""
        import tensorflow as tf

        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        with tf.GradientTape() as tape, fusing(self.fuses):
            loss, outputs = self.training_loss(**inputs)
            scaled = self.optimizer.scale_loss(loss / replicas)
        return loss, outputs, tape.gradient(scaled, self.trainable_variables)

    def _accumulate(self, inputs):
        """Averages loss and gradients over the parts of a batch."""
        import tensorflow as tf

        steps = self.accumulation_steps
        if steps == 1:
            return self._loss_and_gradients(inputs)
        batch = inputs["images"].shape[0]
        if batch is None or batch % steps:
            raise ValueError(
                "A replica's batch must be of one size, which accumulation_steps="
                f"{steps} divides: use batch(..., drop_remainder=True). Received: "
                f"{'batches of any size' if batch is None else batch}"
            )
        has_outputs = []

        def add_part(step, loss, gradients, parts):
            rows = step * (batch // steps) + tf.range(batch // steps)
            part_loss, outputs, more = self._loss_and_gradients(
                {name: tf.gather(tensor, rows) for name, tensor in inputs.items()}
            )
            if outputs is not None:
                has_outputs.append(True)
                parts = parts.write(step, outputs)
            more = [tf.cast(gradient, "float32") for gradient in more]
            gradients = [sum(pair) for pair in zip(gradients, more, strict=True)]
            return step + 1, loss + part_loss, gradients, parts

        variables = self.trainable_variables
        zeros = [tf.zeros(variable.shape, "float32") for variable in variables]
        parts = tf.TensorArray("float32", steps)
        _, loss, gradients, parts = tf.while_loop(
            lambda step, *_: step < steps, add_part, (0, 0.0, zeros, parts)
        )
        gradients = [
            tf.cast(gradient / steps, variable.dtype)
            for gradient, variable in zip(gradients, variables, strict=True)
        ]
        return loss / steps, parts.concat() if has_outputs else None, gradients

    def replica_results(self, results):
        """Gives results the axis over which Keras takes their mean among workers.

        Args:
            results: Dict of scalar tensors.

        Returns:
            Dict of tensors.
        """
        import tensorflow as tf

        workers = tf.distribute.MultiWorkerMirroredStrategy
        if isinstance(self.distribute_strategy, workers):
            return {name: value[None] for name, value in results.items()}
        return results

    def unscaled(self, loss):
        """Undoes what Keras does to a loss under several replicas.

        Args:
            loss: What `compute_loss` returned.

        Returns:
            The mean over this replica's batch.
        """
        import tensorflow as tf

        return loss * tf.distribute.get_strategy().num_replicas_in_sync

    def first_row(self, batch):
        """Says where this replica's rows lie in the batch of all replicas.

        Args:
            batch: Int or scalar int tensor, rows of a replica.

        Returns:
            Scalar int tensor.
        """
        import tensorflow as tf

        return tf.distribute.get_replica_context().replica_id_in_sync_group * batch

    def _metric_variables(self):
        return [part for metric in self.metrics for part in metric.variables]

    @property
    def running_metrics(self):
        """Flat float array, what this epoch's means have summed up so far.

        Of several workers, that of this one: asking the others would need all of them
        to ask. What a file restored stands here until `fit` resets its metrics.
        """
        if self._resumed_metrics is not None:
            return self._resumed_metrics
        values = []
        for value in [variable.value for variable in self._metric_variables()]:
            parts = [value]
            if self._is_distributed():
                parts = self.distribute_strategy.experimental_local_results(value)
            values.append(sum(ops.convert_to_numpy(part) for part in parts))
        return np.concatenate([np.ravel(value) for value in values])

    @running_metrics.setter
    def running_metrics(self, values):
        first, workers = 0, 1
        if self._is_distributed():
            from keras_mae.distribution import cluster

            # they are one worker's, and are dealt out to all
            workers = len(cluster()[0])
        for variable in self._metric_variables():
            last = first + int(np.prod(variable.shape))
            if last <= len(values):  # else its file had fewer metrics
                value = np.reshape(values[first:last], variable.shape)
                variable.assign(value * workers)
            first = last

    def reset_metrics(self):
        super().reset_metrics()
        self._resumed_metrics = None

    def _seeds(self):
        """Lists the states of the random seeds, which Keras leaves out of files."""
        return [
            variable
            for variable in self.non_trainable_variables
            if variable.path.endswith("seed_generator_state")
        ]

    def save_own_variables(self, store):
        for index, seed in enumerate(self._seeds()):
            store[f"seed_{index}"] = ops.convert_to_numpy(seed)
        if self.compiled:
            store["running_metrics"] = self.running_metrics

    def load_own_variables(self, store):
        for index, seed in enumerate(self._seeds()):
            if f"seed_{index}" in store.keys():  # noqa: SIM118, an HDF5 group's
                seed.assign(store[f"seed_{index}"])
        if "running_metrics" in store.keys():  # noqa: SIM118
            self._resumed_metrics = np.array(store["running_metrics"])
