"""Compiling for a TPU: the real compiler on small programs, and the report."""

import importlib.util
import os

import numpy as np
import pytest
import tensorflow as tf

import keras_mae
from keras_mae.profiling import tpu_check, tpu_compiler
from keras_mae.profiling.tpu_report import Check, Compiled, Result, Topology, report
from keras_mae.utils.flags import parse_flags
from tests import scripts

needs_compiler = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in tpu_check.PACKAGES),
    reason="needs the extra tpu-check",
)
V5E = Topology("v5e:2x2", "v5e", 4, 2**34)

# two matrix products that take 180 GB
TOO_LARGE = """
module @m {
  func.func @main(%a: tensor<4000x4000000xf32>, %b: tensor<4000x4000000xf32>)
      -> tensor<4000x4000000xf32> {
    %c = stablehlo.dot_general %a, %a, contracting_dims = [1] x [1]
      : (tensor<4000x4000000xf32>, tensor<4000x4000000xf32>) -> tensor<4000x4000xf32>
    %d = stablehlo.dot_general %c, %b, contracting_dims = [1] x [0]
      : (tensor<4000x4000xf32>, tensor<4000x4000000xf32>) -> tensor<4000x4000000xf32>
    return %d : tensor<4000x4000000xf32>
  }
}
"""
NO_SUCH_OPERATION = """
module @m {
  func.func @main(%a: tensor<4xf32>) -> tensor<4xf32> {
    %b = stablehlo.custom_call @NoSuchOperation(%a) : (tensor<4xf32>) -> tensor<4xf32>
    return %b : tensor<4xf32>
  }
}
"""


def compiled_model(make_model, step=None, sizes=None, **compile_options):
    model = make_model(**{"depth": 1, **(sizes or {})})
    optimizer = keras_mae.pretraining_optimizer(keras_mae.warmup_cosine(1e-3, 9, 2))
    model.compile(optimizer=optimizer, **compile_options)
    if step is not None:
        model.train_step = step
    return model


def compile_program(folder, text, topology="v5e:2x2"):
    program = folder / "program.mlir"
    program.write_text(text)
    return tpu_check._ask_compiler(topology, program)


def compile_step(model, batch, said=None):
    progress = [].append if said is None else said.append
    return tpu_check._compile_at(model, V5E, 1, progress, batch)


@needs_compiler
@pytest.mark.nightly
def test_the_step_compiles_and_its_memory_grows_with_the_batch(make_model):
    model = compiled_model(make_model)
    said, environment = [], dict(os.environ)
    small, large = (compile_step(model, batch, said) for batch in (8, 64))
    assert small.error is None and large.error is None
    assert len(said) == 2 and "64 images per chip" in said[1]
    pixels = 32 * 32 * 3 * 4
    assert large.arguments - small.arguments >= 56 * pixels
    assert large.memory > small.memory + 56 * pixels
    assert large.flops > 5 * small.flops
    # the optimizer is in it: weights and two moments of each, all updated in place
    state = 3 * 4 * model.count_params()
    assert small.arguments > state and small.aliased > state
    assert dict(os.environ) == environment  # the compiler's stays with it


@needs_compiler
@pytest.mark.nightly
def test_accumulated_parts_take_less_memory(make_model):
    whole = compile_step(compiled_model(make_model), 1024)
    parts = compile_step(compiled_model(make_model, accumulation_steps=8), 1024)
    assert parts.error is None
    assert parts.temporaries < whole.temporaries


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("generation", tpu_check.USABLE_GIB)
def test_the_compiler_confirms_the_memory_of_a_chip(generation, tmp_path):
    shape = "2x2x1" if generation in ("v4", "v5p") else "2x2"
    answer = compile_program(tmp_path, TOO_LARGE, f"{generation}:{shape}")
    verdict = Compiled(1, **answer)
    assert verdict.is_too_large
    assert f"available HBM ({tpu_check.USABLE_GIB[generation]}G)" in verdict.error


@pytest.mark.slow
@needs_compiler
def test_an_operation_without_a_tpu_kernel_is_an_error(tmp_path):
    answer = compile_program(tmp_path, NO_SUCH_OPERATION)
    assert "NoSuchOperation" in answer["error"]
    assert not Compiled(1, **answer).is_too_large


def test_a_host_callback_does_not_compile(make_model):
    def step(images):
        return {"loss": tf.py_function(np.sum, [images], tf.float32)}

    verdict = compile_step(compiled_model(make_model, step), 2)
    assert "EagerPyFunc" in verdict.error and "\n" not in verdict.error
    assert not verdict.fits(2**60) and not verdict.is_too_large


def test_a_dynamic_shape_does_not_compile(make_model):
    def step(images):
        return {"loss": tf.zeros([tf.cast(tf.reduce_sum(images), "int32")])}

    verdict = compile_step(compiled_model(make_model, step), 2)
    assert "must be a compile-time constant" in verdict.error


def test_a_python_error_of_the_step_is_raised(make_model):
    def step(images):
        raise ValueError("a mistake in Python")

    with pytest.raises(ValueError, match="a mistake in Python"):
        compile_step(compiled_model(make_model, step), 2)


def test_a_crash_of_the_compiler_is_reported(monkeypatch, tmp_path):
    script = tmp_path / "crash.py"
    script.write_text("import os, sys\nprint('it broke', file=sys.stderr)\nos._exit(7)")
    monkeypatch.setattr(tpu_compiler, "__file__", str(script))
    assert tpu_check._ask_compiler("v5e:2x2") == {
        "error": "The compiler exited with 7: it broke"
    }


@pytest.mark.nightly
@needs_compiler
@pytest.mark.parametrize(
    "name, chips", [("v4:2x2x4", 16), ("v5e:4x4", 16), ("v5p:2x2x1", 4), ("v6e:2x4", 8)]
)
def test_topologies(name, chips):
    topology = tpu_check.parse_topology(name)
    assert (topology.name, topology.chips) == (name, chips)
    assert topology.memory == tpu_check.USABLE_GIB[name[:3].rstrip(":")] * 2**30 // 1


@pytest.mark.parametrize("name", ["v9:2x2", "v5e", "v5e:axb", "v5e:4", "v5e:2x2x2x2"])
def test_unknown_topologies_list_the_known_ones(name):
    with pytest.raises(ValueError, match=rf"v4, v5e, v5p, v6e. Received: '{name}'"):
        tpu_check.parse_topology(name)


@pytest.mark.slow
@needs_compiler
def test_unsupported_topology_shape():
    with pytest.raises(ValueError, match=r"'v5e:3x3': .*not divisible"):
        tpu_check.parse_topology("v5e:3x3")


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr(tpu_check, "PACKAGES", ("json", "no_such_package"))
    wanted = r"pip install 'keras-mae\[tpu-check\]'. Missing: no_such_package"
    for ask in (
        tpu_check.require_compiler,
        lambda: tpu_check.parse_topology("v5e:2x2"),
    ):
        with pytest.raises(ValueError, match=wanted):
            ask()


@pytest.mark.parametrize("batch_size, parts", [(6, 1), (8, 4), (0, 1)])
def test_indivisible_batch_size(monkeypatch, batch_size, parts):
    monkeypatch.setattr(tpu_check, "PACKAGES", ())
    with pytest.raises(ValueError, match=rf"4 chips and {parts} acc.*: {batch_size}"):
        tpu_check.check(None, V5E, batch_size, parts)


@pytest.mark.parametrize(
    "limit, granule, first",
    [(1, 8, 64), (8, 8, 8), (100, 8, 64), (777, 8, 1024), (5000, 8, 16), (96, 24, 48)],
)
def test_the_search_ends_within_an_eighth(limit, granule, first):
    tried = []

    def compile_at(batch):
        tried.append(batch)
        # the compiler makes room by itself: less an image where there are many
        return Compiled(batch, temporaries=int(100 * batch**0.9))

    memory = int(100 * limit**0.9)
    fits, fails = tpu_check.find_largest_batch(
        compile_at, compile_at(first), memory, granule
    )
    assert fits <= limit < fails
    assert fails - fits <= max(granule, fits // 8)
    assert len(tried) <= 1 + tpu_check.MAX_COMPILATIONS
    assert all(batch % granule == 0 for batch in tried)


def test_search_stops_after_max_compilations():
    def compile_at(batch):
        return Compiled(batch, temporaries=10 if batch > 8 else 1000)

    fits, fails = tpu_check.find_largest_batch(compile_at, compile_at(8), memory=10**4)
    assert fits > 100 and fails is None


@pytest.mark.nightly
def test_check_with_a_stubbed_compiler(monkeypatch, make_model):
    """All but the compiler, which here charges 100 bytes an image, or 10."""
    models, lowered = [], []

    def make(rematerialize):
        models.append(make_model(depth=1, rematerialize=rematerialize))
        models[-1].compile(optimizer="adam", accumulation_steps=2)
        return models[-1]

    def lower(model, batch):
        lowered.append((model.encoder.rematerialize, batch))
        return f"{batch} {10 if model.encoder.rematerialize else 100}"

    def answer(topology, program):
        batch, each = map(int, program.read_text().split())
        if batch * each > 10000:
            return {"error": "RESOURCE_EXHAUSTED: Ran out of memory\nSee the manual"}
        return {"temporaries": batch * each, "flops": 1e12}

    monkeypatch.setattr(tpu_check, "PACKAGES", ())
    monkeypatch.setattr(tpu_check, "lower_step", lower)
    monkeypatch.setattr(tpu_check, "_ask_compiler", answer)
    topology = Topology("v5e:2x2", "v5e", 4, 8000)
    outcome = tpu_check.check(make, topology, 4 * 128, 2, progress=[].append)
    off, on = outcome.results
    assert [off.rematerialize, on.rematerialize] == [False, True]
    assert off.requested.is_too_large and (off.largest, off.too_large) == (80, 88)
    assert on.requested.memory == 1280 and on.largest <= 800 < on.too_large
    assert lowered[0] == (False, 128) and len(set(lowered)) == len(lowered)
    weights = sum(int(np.prod(v.shape)) for v in models[0].trainable_variables)
    assert outcome.gradient_bytes == 4 * weights
    text = report(outcome)
    assert "does not fit: RESOURCE_EXHAUSTED: Ran out of memory\n" in text
    assert "largest batch per chip found to fit: 80 (88 does not fit)" in text
    assert "2 TFLOP per chip" in text  # twice what the compiler counts in a loop


def test_report_of_steps_that_do_not_fit_or_compile():
    result = Result(True, Compiled(4, temporaries=3 * 2**34), 0, 8)
    text = report(Check(V5E, 16, 1, 5 * 10**6, (result,)))
    assert "compiles, but does not fit: 48.00 of 16.00 GiB per chip" in text
    assert "4 chips" in text and "global batch size 16, 4 images per chip" in text
    assert "all-reduce of the gradients: 5 MB per step" in text
    refused = Result(False, Compiled(4, error="UNIMPLEMENTED: no such thing"))
    text = report(Check(V5E, 16, 1, 1, (refused,)))
    assert "does not compile: UNIMPLEMENTED: no such thing" in text
    assert "largest" not in text


@needs_compiler
@pytest.mark.nightly
def test_rematerialized_blocks_take_less_memory_and_more_arithmetic(make_model):
    # deep, and with many tokens: what the blocks keep is most of the memory
    sizes = {"depth": 8, "hidden_dim": 64, "mlp_dim": 256, "mask_ratio": 0.25}
    plain = compile_step(compiled_model(make_model, sizes=sizes), 1024)
    sizes["rematerialize"] = True
    again = compile_step(compiled_model(make_model, sizes=sizes), 1024)
    assert again.error is None
    assert again.temporaries < 0.9 * plain.temporaries
    assert again.flops > 1.05 * plain.flops


@needs_compiler
@pytest.mark.nightly
def test_compile_for_flag_of_the_script(monkeypatch, capsys):
    # a whole search takes many minutes
    monkeypatch.setattr(tpu_check, "MAX_COMPILATIONS", 1)
    script = scripts.load("training/pretrain.py")
    flags = ["--batch_size=4096", "--precision=bfloat16", "--compile_for=v5e:2x2"]
    script.main(parse_flags(script.PretrainConfig, "", flags))
    assert capsys.readouterr().out.count("  compiles: ") == 2
