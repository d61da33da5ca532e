"""Train, test and predict steps on TensorFlow, under any `tf.distribute` strategy."""

import contextlib
import contextvars
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from keras_mae.ops.fusion import fusion_scope
from keras_mae.ops.tracing import cpu_graph_scope
from keras_mae.trainers.base_step import (
    BaseStep,
    add_part,
    drop_unused,
    is_overwritten,
    part_size,
)
from keras_mae.utils.typing import Tensor

# the rows of each replica's part of the batch, while a step is traced or run
_ROWS: contextvars.ContextVar[Tensor | None] = contextvars.ContextVar(
    "rows", default=None
)


class BackendStep(BaseStep):
    """Mixin for a `keras.Model`: the steps that `TrainStep` describes.

    The gradient is that of the mean over the batch of all replicas, by Keras's own
    scaling.
    """

    distribute_strategy: Any  # that of `keras.Model`

    def make_train_function(self, force=False):
        # one whose first trace failed may not make the optimizer's variables later
        failed = self.train_function is not None and not self.optimizer.built
        super().make_train_function(force=force or failed)

    def train_step(self, data):
        with cpu_graph_scope(self.is_cpu_graph), self._counting_rows(data):
            return self._train_step(data)

    def _train_step(self, data):
        inputs = self.training_inputs(data)
        loss, outputs, gradients = self._differentiate(inputs, self._share())
        gradients, variables = drop_unused(gradients, self.trainable_variables)
        if tf.distribute.get_replica_context().num_replicas_in_sync > 1:
            gradients = self._reduce_gradients(gradients, variables)
        pairs = zip(gradients, variables, strict=True)
        summed = [one for one, variable in pairs if not is_overwritten(variable)]
        norm = tf.linalg.global_norm([tf.cast(one, "float32") for one in summed])
        norm = norm / self.loss_scale()
        gradients = self.clip_gradients(gradients, variables, norm)
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        results = self.track(loss, outputs, data)
        return self._replica_results({**results, "gradient_norm": norm})

    def _reduce_gradients(self, gradients, variables):
        """Adds up the replicas' shares; of what is overwritten, takes the maximum."""
        context = tf.distribute.get_replica_context()
        pairs = list(zip(gradients, variables, strict=True))
        sums = [one for one, variable in pairs if not is_overwritten(variable)]
        sums = iter(context.all_reduce("SUM", sums))
        maxima = [one for one, variable in pairs if is_overwritten(variable)]
        if not maxima:
            return list(sums)
        # replicas can't reduce to a maximum, but add up each its row of a table
        flat = tf.concat([tf.reshape(one, [-1]) for one in maxima], axis=0)
        rows = tf.range(context.num_replicas_in_sync)[:, None]
        own = rows == context.replica_id_in_sync_group
        table = context.all_reduce("SUM", tf.where(own, flat, 0.0))
        sizes = [one.shape.num_elements() for one in maxima]
        parts = tf.split(tf.reduce_max(table, axis=0), sizes)
        parts = map(tf.reshape, parts, [one.shape for one in maxima])
        return [next(parts if is_overwritten(one) else sums) for one in variables]

    def test_step(self, data):
        with self._counting_rows(data):
            return self._replica_results(self.evaluation(data))

    def predict_step(self, data):
        with self._counting_rows(data):
            return self.prediction(data)

    @contextlib.contextmanager
    def _counting_rows(self, data):
        """Counts each replica's rows: an epoch's last batch may be shared unevenly."""
        context = tf.distribute.get_replica_context()
        if context.num_replicas_in_sync == 1 or self._is_on_tpu():
            yield  # TPUs take batches of one size alone
            return
        rows = tf.shape(tf.nest.flatten(data)[0])[:1]
        token = _ROWS.set(context.all_gather(rows, axis=0))  # (replicas,)
        try:
            yield
        finally:
            _ROWS.reset(token)

    def _prepare_step(self, xla):
        self._differentiate = self._accumulate
        if not self._is_distributed():
            return
        if xla and not self._is_on_tpu():
            # one XLA cluster can't hold the variables of several replicas
            self._differentiate = tf.function(self._accumulate, jit_compile=True)
        # train_step has summed the gradients over replicas already, for their norm
        inner = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        inner._all_reduce_sum_gradients = list

    def _is_on_tpu(self):
        return isinstance(self.distribute_strategy, tf.distribute.TPUStrategy)

    def _is_distributed(self):
        strategy = self.distribute_strategy
        kinds = tf.distribute.TPUStrategy, tf.distribute.MultiWorkerMirroredStrategy
        return strategy.num_replicas_in_sync > 1 or isinstance(strategy, kinds)

    def _share(self):
        """Returns this replica's share of the batch: all rows count alike."""
        context, rows = tf.distribute.get_replica_context(), _ROWS.get()
        if rows is None:
            return 1 / context.num_replicas_in_sync
        mine = rows[context.replica_id_in_sync_group]
        return tf.cast(mine, "float32") / tf.cast(tf.reduce_sum(rows), "float32")

    def _loss_and_gradients(self, inputs, share):
        """Returns loss, outputs and this replica's part of the gradient."""
        with tf.GradientTape() as tape, fusion_scope(self.fuses):
            loss, outputs = self.training_loss(**inputs)
            scaled = self.optimizer.scale_loss(loss * share)
        return loss, outputs, tape.gradient(scaled, self.trainable_variables)

    def _accumulate(self, inputs, share):
        """Averages loss and gradients over the parts of a batch."""
        steps = self.accumulation_steps
        if steps == 1:
            return self._loss_and_gradients(inputs, share)
        size = part_size(inputs["images"].shape[0], steps)
        has_outputs, unused = [], set()

        def add_gradients(step, loss, gradients, parts):
            rows = step * size + tf.range(size)
            part_loss, outputs, more = self._loss_and_gradients(
                {name: tf.gather(tensor, rows) for name, tensor in inputs.items()},
                share / steps,  # of the sum, whose division would copy it
            )
            if outputs is not None:
                has_outputs.append(True)
                parts = parts.write(step, outputs)
            unused.update(index for index, one in enumerate(more) if one is None)
            sums = [
                total if one is None else add_part(total, one, variable)
                for total, one, variable in zip(gradients, more, variables, strict=True)
            ]
            return step + 1, loss + part_loss, sums, parts

        variables = self.trainable_variables
        zeros = [tf.zeros(variable.shape, "float32") for variable in variables]
        parts = tf.TensorArray("float32", steps)
        _, loss, gradients, parts = tf.while_loop(
            lambda step, *_: step < steps,
            add_gradients,
            (0, 0.0, zeros, parts),
            parallel_iterations=1,  # parts side by side would take memory each
        )
        gradients = [
            None if index in unused else tf.cast(total, variables[index].dtype)
            for index, total in enumerate(gradients)
        ]
        return loss / steps, parts.concat() if has_outputs else None, gradients

    def _replica_results(self, results):
        """Adds the axis over which Keras averages results of several workers."""
        workers = tf.distribute.MultiWorkerMirroredStrategy
        if isinstance(self.distribute_strategy, workers):
            return {name: value[None] for name, value in results.items()}
        return results

    def sum_over_replicas(self, value: Tensor) -> Tensor:
        context = tf.distribute.get_replica_context()
        if context.num_replicas_in_sync == 1:
            return value
        if self._is_on_tpu():
            return context.all_reduce("SUM", value)
        # over workers, TensorFlow can't reduce a tensor that has no device
        return tf.reduce_sum(context.all_gather(value[None], axis=0))

    def unscaled(self, loss: Tensor) -> Tensor:
        return loss * tf.distribute.get_strategy().num_replicas_in_sync

    def first_row(self, batch: Tensor) -> Tensor:
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        rows = _ROWS.get()
        return replica * batch if rows is None else tf.reduce_sum(rows[:replica])

    def local_values(self, value: Tensor) -> Sequence[Tensor]:
        # also of one mirrored replica, whose variables NumPy can't read
        return self.distribute_strategy.experimental_local_results(value)

    def count_workers(self) -> int:
        workers = tf.distribute.MultiWorkerMirroredStrategy
        if not isinstance(self.distribute_strategy, workers):
            return 1  # TF_CONFIG may then be of another job
        from keras_mae.utils.distribution import read_tf_config

        return len(read_tf_config()[0])
