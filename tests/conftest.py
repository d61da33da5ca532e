"""What every test shares: quiet logs, fixed seeds, small models."""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
# what AutoGraph can't convert is an error, not a warning at the end of a script
os.environ.setdefault("AUTOGRAPH_STRICT_CONVERSION", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    # each worker has a core of its own, and what it starts shares that
    for name in ("OMP_NUM", "TF_NUM_INTRAOP", "TF_NUM_INTEROP"):
        os.environ.setdefault(f"{name}_THREADS", "1")

# isort: off
import keras_mae  # before Keras imports TensorFlow: utils/triton_first.py

# isort: on
import keras
import numpy as np
import pytest

if keras.backend.backend() == "torch":
    import torch

    _to_array = torch.Tensor.__array__

    def _array(tensor, *arguments, **options):
        tensor = tensor.detach().cpu()
        known = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
        return _to_array(known, *arguments, **options)

    # as on other backends: NumPy reads a tensor that has a gradient, and bfloat16
    torch.Tensor.__array__ = _array


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items):
    """Gives each file to one process, which makes its fixtures once."""
    for item in items:
        name = item.nodeid.partition("::")[0]
        # one server answers all of these
        name = "conformance" if name.startswith("tests/conformance/") else name
        item.add_marker(pytest.mark.xdist_group(name))


def pytest_runtest_logreport(report):
    """Shows a failure at once, and not only when all tests have run."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        text = f"\n{report.nodeid}\n{report.longreprtext}"
        print(text, file=sys.__stderr__, flush=True)


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Frees what JAX compiled for a file: each operation, for each of its shapes."""
    yield
    if keras.backend.backend() == "jax":
        import jax

        jax.clear_caches()


@pytest.fixture(autouse=True)
def fixed_seed():
    keras.utils.set_random_seed(0)


@pytest.fixture
def images():
    """Four normalized images with something to learn: one wave, and noise on it."""
    wave = np.sin(np.arange(32 * 32 * 3) / 17).reshape(1, 32, 32, 3)
    noise = np.random.default_rng(0).standard_normal((4, 32, 32, 3))
    return (wave + 0.3 * noise).astype("float32")


@pytest.fixture
def make_model():
    """Builds the smallest useful model; keyword arguments override."""

    def make(**overrides):
        sizes = {"hidden_dim": 16, "depth": 2, "num_heads": 2, "mlp_dim": 32}
        decoder = {"hidden_dim": 8, "depth": 1, "num_heads": 2, "mlp_dim": 16}
        config = {
            **sizes,
            **{f"decoder_{key}": value for key, value in decoder.items()},
            "patch_size": 8,
        }
        return keras_mae.MAEPretrainer.from_preset(
            "mae_tiny", **{**config, **overrides}
        )

    return make


@pytest.fixture
def served_mae(tmp_path):
    """A folder of exported versions, for tests that start the embedded server."""
    for package in ("starlette", "uvicorn", "grpc", "tensorflow_serving"):
        pytest.importorskip(package)
    from keras_mae.export import export_savedmodel

    model = keras_mae.MAEPretrainer.from_preset(
        "mae_tiny", patch_size=8, depth=1, decoder_depth=1
    )
    processor = keras_mae.MAEImageProcessor(image_size=32)
    export_savedmodel(model, processor, tmp_path / "mae/1", warmup_batch_sizes=())
    return tmp_path / "mae"
