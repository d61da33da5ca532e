"""What every public layer, model and optimizer promises, on whatever backend runs.

Each `check_` function holds a `tests.contract_cases.Case` against its class.
"""

import inspect
import json

import keras
import numpy as np
from keras import ops, tree

import keras_mae
from tests.contract_cases import BATCH
from tests.contract_files import array

# bfloat16 rounds by 2 ** -9, a few times in a row
BFLOAT16_ERROR = 0.05
# arguments that name parts of a layer
PARTS = "frozen", "quantized", "lora"


def public_classes():
    """Lists the public classes of `keras_mae` that Keras saves."""
    kinds = keras.Layer, keras.optimizers.Optimizer
    found = {
        item
        for module in (keras_mae, keras_mae.layers, keras_mae.models)
        for name, item in vars(module).items()
        if inspect.isclass(item) and issubclass(item, kinds)
        if name in module.__all__ or not name.startswith("_")
    }
    return sorted(found, key=lambda kind: kind.__name__)


def own_arguments(kind):
    """Maps the names of a constructor's arguments, Keras's aside, to their defaults."""
    variadic = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    return {
        parameter.name: parameter.default
        for base in kind.__mro__
        if base.__module__.startswith("keras_mae.") and "__init__" in vars(base)
        for parameter in inspect.signature(base.__init__).parameters.values()
        if parameter.name != "self" and parameter.kind not in variadic
    }


def plain(value, name=None):
    """Turns a value, of the argument of that name, into what JSON gives back."""
    if name in ("activation", "kernel_initializer"):
        module = getattr(keras, name.rpartition("_")[2] + "s")
        value = module.serialize(module.get(value))
    elif hasattr(value, "get_config"):
        value = keras.saving.serialize_keras_object(value)
    return json.loads(json.dumps(value))


def check_config(made, arguments, fixed=()):
    """Checks that a config is what the constructor was given, and makes a copy.

    Args:
        made: A layer, model or optimizer.
        arguments: Dict, what its constructor was given.
        fixed: As in `Case`.
    """
    kind, config = type(made), made.get_config()
    assert keras.saving.get_registered_name(kind) == f"keras_mae>{kind.__name__}"
    keras_base = next(b for b in kind.__mro__ if b.__module__.startswith("keras.src"))
    names = set(own_arguments(kind)) - set(fixed)
    assert set(config) == names | set(keras_base.get_config(made))
    for name, value in arguments.items():
        assert plain(config[name]) == plain(value, name), name
    copy = kind.from_config(plain(config))
    assert plain(copy.get_config()) == plain(config)


def pairs(case, outputs):
    """Lists pairs of what is documented and what came, of one structure."""
    tree.assert_same_structure(case.outputs, outputs)
    return list(zip(tree.flatten(case.outputs), tree.flatten(outputs), strict=True))


def seeds_of(layer):
    """Lists the states of a layer's seed generators."""
    name = "seed_generator_state"
    return [state for state in layer.variables if state.path.endswith(name)]


def answer(case, layer, inputs=None, function=None):
    """Calls a layer, and puts its seeds back so that the next call draws the same.

    Args:
        case: A `Case`.
        layer: Its layer.
        inputs: Dict of arrays; by default those of the case.
        function: What to call on the inputs instead.

    Returns:
        A list of float32 arrays.
    """
    states = [(seed, ops.convert_to_numpy(seed).copy()) for seed in seeds_of(layer)]
    inputs = case.draw() if inputs is None else inputs
    outputs = case.call(layer, inputs) if function is None else function(inputs)
    outputs = [array(output) for _, output in pairs(case, outputs)]
    for seed, state in states:
        seed.assign(state)
    return outputs


def assert_close(one, other, message=""):
    tolerance = 1e-5 * max(1, np.abs(other).max())
    np.testing.assert_allclose(one, other, rtol=0, atol=tolerance, err_msg=message)


def check_outputs(case, dtype="float32"):
    """Checks shapes and dtypes, of outputs and weights, under a dtype policy."""
    layer, inputs = case.make(dtype=dtype), case.draw()
    for name, tensor in case.inputs.items():
        # inside of models layers get what others computed
        if tensor.dtype == "compute" and not tensor.below and "images" not in inputs:
            inputs[name] = ops.cast(inputs[name], layer.compute_dtype)
    for wanted, output in pairs(case, case.call(layer, inputs)):
        shape = tuple(BATCH if axis is None else axis for axis in wanted.shape)
        assert tuple(output.shape) == shape
        computed = layer.compute_dtype if wanted.dtype == "compute" else wanted.dtype
        assert keras.backend.standardize_dtype(output.dtype) == computed, wanted
    for part in layer._flatten_layers():
        # a part that isn't told of the policy has the global one; a classifier's head
        # computes in float32 under mixed precision
        told = "float32" if part.name == "head" and "mixed" in dtype else dtype
        told = dtype if "segmenter" in str(part.path) else told
        assert not part.weights or part.dtype_policy.name == told, part.path
    for weight in layer.weights:
        assert weight.dtype == layer.variable_dtype, weight.path


def check_precision(case):
    """Checks that bfloat16 changes the last digits alone, and integers never."""
    layer, rounded = case.make(), case.make(dtype="mixed_bfloat16")
    wanted = answer(case, layer)
    answer(case, rounded)
    for weight, value in zip(rounded.weights, layer.weights, strict=True):
        weight.assign(ops.convert_to_numpy(value))
    tensors = tree.flatten(case.outputs)
    for tensor, got, exact in zip(tensors, answer(case, rounded), wanted, strict=True):
        error = np.linalg.norm(got - exact) / np.linalg.norm(exact)
        allowed = 0 if tensor.dtype == "int32" else BFLOAT16_ERROR
        assert error <= allowed, tensor


def check_state(case):
    """Checks how much state there is, and that freezing is exact and undone."""
    layer = case.make()
    case.call(layer, case.draw())
    assert len(layer.weights) == case.weights
    assert len(seeds_of(layer)) == case.seeds
    trained = [weight.path for weight in layer.trainable_weights]
    assert len(trained) == case.trained, trained
    layer.trainable = False
    assert layer.trainable_variables == []
    assert not any(weight.trainable for weight in layer.weights)
    copy = case.kind.from_config(layer.get_config())
    case.call(copy, case.draw())
    # also as a part of something that is trained
    assert not any(weight.trainable for weight in copy.weights)
    layer.trainable = True
    assert [weight.path for weight in layer.trainable_weights] == trained


def compilers(case, layer):
    """Yields the backend's ways to compile: `(name, function of inputs)`."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        signature = {
            name: tf.TensorSpec(tensor.shape, dtype_of(tensor))
            for name, tensor in case.inputs.items()
        }

        def call(inputs):
            return case.call(layer, inputs)

        yield "graph", tf.function(call, [signature])
        yield "XLA", tf.function(call, [signature], jit_compile=True)
    elif keras.backend.backend() == "jax":
        import jax

        state = [
            [variable.value for variable in variables]
            for variables in (layer.trainable_variables, layer.non_trainable_variables)
        ]

        def stateless(*args, **kwargs):
            return layer.stateless_call(*state, *args, **kwargs)[0]

        yield "jit", jax.jit(lambda inputs: case.call(stateless, inputs))


def dtype_of(tensor):
    """Names the dtype of an input."""
    return "int32" if tensor.below else "float32"


def check_every_way(case):
    """Checks that a row's numbers depend neither on the way to run nor on its batch."""
    layer, inputs = case.make(), case.draw()
    wanted = answer(case, layer)
    first = {name: value[:1] for name, value in inputs.items()}
    # XLA takes seconds: of layers the block alone is compiled, which has most others
    compiles = isinstance(layer, (keras.Model, keras_mae.layers.TransformerBlock))
    for way, function in [("eager", None), *compilers(case, layer)]:
        if way == "XLA" and not compiles:
            continue
        # XLA would compile a second time for the single row
        for rows in [inputs] if way == "XLA" else [inputs, first]:
            outputs = answer(case, layer, rows, function)
            tensors = tree.flatten(case.outputs)
            for tensor, got, whole in zip(tensors, outputs, wanted, strict=True):
                if tensor.shape:
                    assert_close(got, whole[: len(got)], f"{way}: {tensor}")
                elif rows is inputs:  # a mean over the batch
                    assert_close(got, whole, f"{way}: {tensor}")


def functional(case, layer):
    """Wraps a layer in a functional model of a dict of inputs."""
    inputs = {
        name: keras.Input(tensor.shape[1:], name=name, dtype=dtype_of(tensor))
        for name, tensor in case.inputs.items()
    }
    return keras.Model(inputs, case.call(layer, inputs))


def check_functional(case):
    """Checks a symbolic call: shapes of any batch, and numbers."""
    layer = case.make()
    model = functional(case, layer)
    for tensor, output in pairs(case, model.output):
        assert tuple(output.shape) == tensor.shape
    wanted = answer(case, layer)
    for got, eager in zip(answer(case, layer, function=model), wanted, strict=True):
        assert_close(got, eager)


def check_training(case):
    """Checks `fit` on arrays and on a dataset, `evaluate` and `predict`."""
    import tensorflow as tf

    model, x = case.make(), case.draw()
    if len(x) > 1:
        model = functional(case, model)
    else:
        (x,) = x.values()
    y = case.labels and case.labels.draw(np.random.default_rng(1))
    dataset = tf.data.Dataset.from_tensor_slices(x if y is None else (x, y)).batch(2)
    model.compile(optimizer=keras.optimizers.Adam(1e-2), **case.compiled)
    losses = check_fit(model, x, y, epochs=4)
    assert y is None or losses[-1] < losses[0]
    check_fit(model, dataset)
    loss = model.evaluate(x, y, batch_size=2, verbose=0)
    assert_close(model.evaluate(dataset, verbose=0), loss)
    predicted = tree.flatten(model.predict(x, batch_size=2, verbose=0))
    for output in predicted:
        assert len(output) == BATCH and np.isfinite(output).all()
    if not case.options:
        assert_close(predicted[0], array(model(x)))


def check_fit(model, *data, epochs=1):
    """Checks that `fit` is finite, moves all that is trained, and nothing else."""
    before = [array(weight) for weight in model.weights]
    losses = model.fit(*data, epochs=epochs, verbose=0, shuffle=False).history["loss"]
    assert np.isfinite(losses).all()
    trained = {id(weight) for weight in model.trainable_weights}
    for weight, old in zip(model.weights, before, strict=True):
        # statistics of batches follow the data
        moves = id(weight) in trained or "/moving_" in weight.path
        assert np.array_equal(array(weight), old) != moves, weight.path
    return losses
