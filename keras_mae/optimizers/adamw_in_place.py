"""AdamW in TensorFlow's own kernel, which updates weights and moments in place."""

import keras
import tensorflow as tf


def adamw_in_place(variables, gradient, rate, betas, powers, epsilon, decay):
    """Updates weight and moments by AdamW; `powers` are betas^(iterations + 1)."""
    weight, *moments = (
        one.value if isinstance(one, keras.Variable) else one for one in variables
    )
    if decay:
        # as late as possible: the product is as large as the weight
        with tf.control_dependencies([gradient]):
            weight.assign(weight * (1.0 - rate * decay))
    tf.raw_ops.ResourceApplyAdam(
        var=weight.handle,
        m=moments[0].handle,
        v=moments[1].handle,
        beta1_power=powers[0],
        beta2_power=powers[1],
        lr=rate,
        beta1=betas[0],
        beta2=betas[1],
        # added before the bias is corrected: PyTorch's times sqrt(1 - powers[1])
        epsilon=epsilon,
        grad=tf.cast(gradient, "float32"),
    )
