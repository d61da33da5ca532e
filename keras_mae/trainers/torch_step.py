"""Train, test and predict steps on PyTorch: one device, gradients by autograd."""

import torch

from keras_mae.trainers.base_step import (
    BaseStep,
    drop_unused,
    global_norm,
    is_overwritten,
    mean_gradients,
    part_size,
)


class BackendStep(BaseStep):
    """Mixin for a `keras.Model`: the steps that `TrainStep` describes."""

    def train_step(self, data):
        loss, outputs, gradients = self._accumulate(self.training_inputs(data))
        gradients, variables = drop_unused(gradients, self.trainable_variables)
        with torch.no_grad():
            norm = global_norm(gradients, variables) / self.loss_scale()
            gradients = self.clip_gradients(gradients, variables, norm)
            self.optimizer.apply(gradients, variables)
            return {**self.track(loss, outputs, data), "gradient_norm": norm}

    def test_step(self, data):
        return self.evaluation(data)

    def predict_step(self, data):
        return self.prediction(data)

    def _loss_and_gradients(self, inputs):
        loss, outputs = self.training_loss(**inputs)
        values = [variable.value for variable in self.trainable_variables]
        scaled = self.optimizer.scale_loss(loss)
        gradients = torch.autograd.grad(scaled, values, allow_unused=True)
        outputs = None if outputs is None else outputs.detach()
        return loss.detach(), outputs, gradients

    def _accumulate(self, inputs):
        """Averages loss and gradients over the parts of a batch."""
        steps = self.accumulation_steps
        if steps == 1:
            return self._loss_and_gradients(inputs)
        rows = part_size(inputs["images"].shape[0], steps)
        losses, parts, gradients = [], [], None
        for first in range(0, rows * steps, rows):
            part = {name: one[first : first + rows] for name, one in inputs.items()}
            loss, outputs, more = self._loss_and_gradients(part)
            losses.append(loss)
            parts.append(outputs)
            if gradients is None:
                gradients = [None if one is None else one.float() for one in more]
            else:
                self._add_part(gradients, more)
        gradients = mean_gradients(gradients, steps, self.trainable_variables)
        outputs = None if parts[0] is None else torch.cat(parts)
        return sum(losses) / steps, outputs, gradients

    def _add_part(self, sums, gradients):
        """Adds the gradients of a part of a batch to the sums, in place."""
        added = []
        for *pair, one in zip(sums, gradients, self.trainable_variables, strict=True):
            if any(value is None for value in pair):
                continue  # a weight that one part leaves unused is unused in all
            if is_overwritten(one):
                torch.maximum(*pair, out=pair[0])
            else:
                added.append(pair)
        torch._foreach_add_(*map(list, zip(*added, strict=True)))
