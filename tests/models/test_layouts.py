"""The layout map of model parallelism covers every kernel of every model."""

import keras
import numpy as np
import pytest

import keras_mae
from keras_mae.models import get_layout_map

pytestmark = pytest.mark.backends

DEVICES = [f"cpu:{index}" for index in range(4)]
SMALL = {"hidden_dim": 96, "depth": 1, "num_heads": 2, "mlp_dim": 192}


def make_mesh(axes=("batch", "model")):
    return keras.distribution.DeviceMesh((2, 2), axes, DEVICES)


@pytest.fixture(scope="module")
def variables():
    """The weights of a pretrainer, a classifier and a segmenter."""
    decoder = {f"decoder_{name}": size for name, size in SMALL.items()}
    pretrainer = keras_mae.MAEPretrainer.from_preset("mae_tiny", **SMALL, **decoder)
    heads = [
        keras_mae.MAEClassifier(pretrainer.encoder, num_classes=10, batch_norm=True),
        keras_mae.MAESegmenter(pretrainer.encoder, num_classes=10),
    ]
    return [v for model in (pretrainer, *heads) for v in model.variables]


def test_only_small_weights_are_on_every_device(variables):
    layout_map = get_layout_map(make_mesh())
    whole = [one for one in variables if layout_map[one.path] is None]
    sizes = {one.path: int(np.prod(one.shape)) for one in whole}
    # a table of positions, and what has one value for each unit
    assert max(sizes.values()) <= 65 * SMALL["hidden_dim"], sizes
    assert not [path for path in sizes if path.endswith("kernel")]


def test_each_pattern_names_weights_of_its_rank(variables):
    layout_map = get_layout_map(make_mesh(), model_axis="batch")
    for pattern, layout in layout_map.items():
        found = [one for one in variables if layout_map[one.path] is layout]
        assert found, pattern
        for one in found:
            assert len(one.shape) == len(layout.axes), one.path
            assert one.shape[layout.axes.index("batch")] % 2 == 0, one.path


def test_a_mesh_without_the_axis_is_refused():
    with pytest.raises(ValueError, match=r"axis 'model'\. Received: the axes"):
        get_layout_map(make_mesh(("batch", "shards")))
