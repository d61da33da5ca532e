"""What test_jax_devices.py runs: the same training on one device and on several.

Run: KERAS_BACKEND=jax python -m tests.jax_devices_run FOLDER
"""

import sys
from pathlib import Path

import jax
import keras
import numpy as np

import keras_mae
from keras_mae.callbacks.linear_head import LinearHead
from keras_mae.runs.jax_strategy import make_jax_strategy
from tests.backend_run import images, values

SIZES = {"hidden_dim": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32, "patch_size": 8}
DECODER = {"hidden_dim": 8, "depth": 1, "num_heads": 2, "mlp_dim": 16}
STRATEGIES = {
    "one": ("cpu",),
    "data2": ("data_parallel", 2),
    "model2x2": ("model_parallel", 2, 2),
}


def make_model():
    keras.utils.set_random_seed(0)
    decoder = {f"decoder_{name}": size for name, size in DECODER.items()}
    model = keras_mae.MAEPretrainer.from_preset("mae_tiny", **SIZES, **decoder, seed=3)
    model.compile(
        optimizer=keras_mae.pretraining_optimizer(1e-3),
        accumulation_steps=2,
        clip_norm=0.5,
    )
    model.optimizer.build(model.trainable_variables)
    return model


def fit(model):
    history = model.fit(images(16), batch_size=8, shuffle=False, verbose=0)
    return [history.history[name][0] for name in ("loss", "gradient_norm")]


def train(folder):
    """Trains, goes back to a checkpoint and trains on; returns all that came of it."""
    model = make_model()
    first = fit(model)
    model.save(folder / "model.keras")
    fit(model)
    model.load_weights(folder / "model.keras")
    second = fit(model)
    predicted = model.predict(images(16), batch_size=8, verbose=0)
    results = {
        **values(model),
        **{v.path: keras.ops.convert_to_numpy(v) for v in model.optimizer.variables},
        "history": first + second,
        "evaluated": model.evaluate(images(16), batch_size=8, verbose=0),
        "logits": predicted["logits"],
        "mask": predicted["mask"],
        "probe": probe(),
    }
    return model, {plain(name): value for name, value in results.items()}


def probe():
    """Scores by a linear head of 5 rows, which no devices can share evenly."""
    features = np.random.default_rng(0).normal(size=(5, 16)).astype("float32")
    head = LinearHead(16, 5, 2)
    head.epochs = 2
    return head.scores(features, np.arange(5) % 2, features[:3])


def plain(name):
    """Leaves out what Keras counts in a path: each strategy has a model of its own."""
    for word in ("mae_encoder", "mae_decoder", "adam_w"):
        head, found, tail = name.partition(word)
        digits = tail.lstrip("_0123456789") if found else tail
        joint = "" if not found or digits[:1] == "/" else "_"
        name = head + found + joint + digits
    return name.replace("/", ".")  # slashes would make folders in an archive


def check_layout(model, shards):
    """Each device holds its share of a kernel and of its moments, and no more."""
    optimizer = model.optimizer
    for variable in model.trainable_variables:
        if not variable.path.endswith("kernel"):
            continue
        index = optimizer._get_variable_index(variable)
        moments = optimizer._momentums[index], optimizer._velocities[index]
        for one in (variable, *moments):
            part = one.value.addressable_shards[0].data
            assert part.size * shards == one.value.size, one.path


def flops(model):
    """Returns the FLOPs of a device in a training step."""
    batch = images(16)
    distribution = keras.distribution.distribution()
    if distribution is not None:
        layout = distribution.get_data_layout(batch.shape)
        batch = keras.distribution.distribute_tensor(batch, layout)
    model.accumulation_steps = 1
    kinds = ("trainable", "non_trainable", "optimizer", "metrics")
    state = model._get_jax_state(**{f"{kind}_variables": True for kind in kinds})
    return (
        jax.jit(model.train_step).lower(state, batch).compile().cost_analysis()["flops"]
    )


def check_failures(model):
    """A batch that can't be divided is refused, and the model keeps its weights."""
    before = model.get_weights()
    for method in (model.predict, model.evaluate, model.fit):
        try:
            method(images(13), batch_size=8, verbose=0)
        except ValueError as error:
            assert "drop_remainder=True" in "".join(error.__notes__)
        else:
            raise AssertionError("a batch of 5 went to 2 replicas")
        after = model.get_weights()
        if method != model.fit:
            for one, other in zip(before, after, strict=True):
                np.testing.assert_array_equal(one, other)


def check_widths():
    """Widths that the devices can't divide are refused, in the flags' words."""
    try:
        with make_jax_strategy("model_parallel", 1, 3).scope():
            make_model()
    except ValueError as error:
        assert "model_shards must divide" in str(error)
    else:
        raise AssertionError("3 devices share 16 units")


def main(folder):
    """Runs all strategies, and saves what each gives."""
    jax.config.update("jax_num_cpu_devices", 4)
    work = {}
    for name, arguments in STRATEGIES.items():
        make_jax_strategy(*arguments)
        model, results = train(folder)
        np.savez(folder / f"{name}.npz", **results)
        check_layout(model, shards=arguments[2] if len(arguments) > 2 else 1)
        if name != "one":
            check_failures(model)
        work[name] = flops(model)
    check_widths()
    # more than a share: the optimizer's arithmetic, and the seeded noise
    assert work["data2"] < 0.6 * work["one"], work
    assert work["model2x2"] < 0.4 * work["one"], work


if __name__ == "__main__":
    main(Path(sys.argv[1]))
