"""On JAX several devices give one device's numbers, whatever each of them holds."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.scripts import ROOT
from tests.test_backends import felt

pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("jax")
    folder = tmp_path_factory.mktemp("devices")
    finished = subprocess.run(
        [sys.executable, "-m", "tests.jax_devices_run", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"},
    )
    assert finished.returncode == 0, finished.stderr
    return folder


@pytest.mark.parametrize("name", ["data2", "model2x2"])
def test_devices_give_the_numbers_of_one(folder, name):
    wanted, got = (np.load(folder / f"{one}.npz") for one in ("one", name))
    assert sorted(got) == sorted(wanted)
    np.testing.assert_array_equal(got["mask"], wanted["mask"])
    for key in wanted:
        mine, theirs = (felt(key, archive[key]) for archive in (got, wanted))
        np.testing.assert_allclose(mine, theirs, atol=2e-6, err_msg=key)
