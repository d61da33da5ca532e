"""The contract: what each public layer, model and optimizer promises its users."""

import inspect
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_mae
from tests import contract, contract_files
from tests.contract_cases import LAYERS, OPTIMIZERS
from tests.contract_models import IMAGE_MODELS, MODELS
from tests.scripts import ROOT

pytestmark = pytest.mark.backends

CASES = {**LAYERS, **MODELS}
# what most users fit; the others take as long
TIERS = dict.fromkeys(("MAEPretrainer", "MAEClassifier"), pytest.mark.slow)
TRAINED = [
    pytest.param(name, marks=TIERS.get(name, pytest.mark.nightly))
    for name, case in CASES.items()
    if case.compiled is not None
]


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    return request.param


def examples():
    """Yields `(class, arguments, arguments that it has not)` of every example."""
    for case in [*CASES.values(), *(make(1) for make in IMAGE_MODELS.values())]:
        yield case.kind, case.arguments, case.fixed
    for kind, arguments in OPTIMIZERS.values():
        yield kind, arguments, ()
    # by tests/models/test_classifier.py: freezing and thawing the whole would forget it
    yield keras_mae.MAEEncoder, {"trainable_blocks": 1}, ()


def test_every_public_class_has_a_case():
    kinds = {kind for kind, *_ in examples()}
    missing = [k.__name__ for k in contract.public_classes() if k not in kinds]
    assert not missing, f"No case in tests/contract_*.py: {', '.join(missing)}"


@pytest.mark.parametrize("kind", contract.public_classes(), ids=lambda k: k.__name__)
def test_cases_give_each_argument_a_value_of_its_own(kind):
    # a key that a config forgets would have the default's
    missing = {}
    for name, default in contract.own_arguments(kind).items():
        # test_freezing.py, test_quantization.py and test_lora.py give parts
        if default is not inspect.Parameter.empty and name not in contract.PARTS:
            missing[name] = default
    for other, arguments, fixed in examples():
        for name in list(missing) if other is kind else []:
            if name in fixed or arguments.get(name, missing[name]) != missing[name]:
                del missing[name]
    assert not missing


def test_config_round_trip(case):
    arguments = {**case.parts("mixed_bfloat16"), **case.arguments}
    made = case.kind(**arguments, name="x", dtype="mixed_bfloat16")
    arguments |= {"name": "x", "dtype": keras.DTypePolicy("mixed_bfloat16")}
    contract.check_config(made, arguments, case.fixed)


@pytest.mark.parametrize("kind, arguments", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_config_of_an_optimizer(kind, arguments):
    contract.check_config(kind(**arguments), arguments)


@pytest.mark.parametrize(
    "policy",
    ["float32", "mixed_bfloat16", pytest.param("bfloat16", marks=pytest.mark.slow)],
)
def test_shapes_and_dtypes(case, policy):
    contract.check_outputs(case, policy)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("make", IMAGE_MODELS.values(), ids=IMAGE_MODELS.keys())
def test_other_channels(make, channels):
    contract.check_outputs(make(channels))


@pytest.mark.slow
def test_bfloat16_rounds_and_no_more(case):
    contract.check_precision(case)


def test_state_and_freezing(case):
    contract.check_state(case)


@pytest.mark.slow
def test_every_way_to_run_gives_the_same(case):
    contract.check_every_way(case)


@pytest.mark.slow
def test_the_functional_api(case):
    contract.check_functional(case)


@pytest.mark.parametrize("name", TRAINED)
def test_fit_evaluate_and_predict(name):
    contract.check_training(CASES[name])


def stir(variables):
    """Moves variables, so that none has the value that it was born with."""
    rng = np.random.default_rng(0)
    for variable in variables:
        variable.assign_add(rng.uniform(1, 2, variable.shape).astype(variable.dtype))


def save(case, file, optimizer=None):
    """Saves a case's model, or its layer in a model, and what it should answer."""
    layer = case.make()
    is_model = isinstance(layer, keras.Model)
    model = layer if is_model else contract.functional(case, layer)
    stir(model.weights)
    if is_model and case.compiled is not None:
        optimizer = optimizer or keras.optimizers.Adam()
        model.compile(optimizer=optimizer, **case.compiled)
        optimizer.build(model.trainable_variables)
        stir(optimizer.variables)
    np.savez(file.with_suffix(".npz"), **case.draw())
    options = case.options if is_model else None
    file.with_suffix(".json").write_text(json.dumps(options))
    model.save(file)
    return contract_files.recall(model, file)


@pytest.mark.slow
def test_a_fresh_process_finds_all_that_was_saved(tmp_path):
    wanted = {}
    for name, case in CASES.items():
        wanted[name] = save(case, tmp_path / f"{name}.keras")
    for name, (kind, arguments) in OPTIMIZERS.items():
        file = tmp_path / f"{name}.keras"
        wanted[name] = save(CASES["MAEClassifier"], file, kind(**arguments))
    subprocess.run(
        [sys.executable, "-m", "tests.contract_files", tmp_path],
        check=True,
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": keras.backend.backend()},
    )
    for name, (configs, arrays) in wanted.items():
        got = contract_files.results(tmp_path / f"{name}.keras")
        assert got[0] == configs, name
        for one, other in zip(got[1], arrays, strict=True):
            contract.assert_close(one, other, name)
