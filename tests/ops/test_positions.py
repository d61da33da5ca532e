"""Position tables: the sin-cos layout and two-dimensional resizing."""

import numpy as np
import pytest

from keras_mae import resize_positions, sincos_positions

pytestmark = pytest.mark.backends


def test_first_half_encodes_the_column_and_second_the_row():
    table = sincos_positions(8, grid=(3, 5))
    assert table.shape == (16, 8) and table.dtype == np.float32
    assert not table[0].any()
    row, column = 2, 3
    angles = [column, column / 100, row, row / 100]
    (a, b, c, d), wave = angles, np.sin
    wanted = [wave(a), wave(b), np.cos(a), np.cos(b)]
    wanted += [wave(c), wave(d), np.cos(c), np.cos(d)]
    np.testing.assert_allclose(table[1 + row * 5 + column], wanted, rtol=1e-6)


def test_width_must_be_a_multiple_of_four():
    with pytest.raises(ValueError, match="Received: hidden_dim=6"):
        sincos_positions(6, grid=(2, 2))


@pytest.mark.parametrize("antialias", [False, True])
def test_resizing_keeps_cls_and_constants(antialias):
    table = np.full((1 + 6, 4), 2.5, "float32")
    table[0] = 7
    resized = np.asarray(resize_positions(table, (2, 3), (5, 4), antialias))
    assert resized.shape == (21, 4)
    np.testing.assert_array_equal(resized[0], 7)
    np.testing.assert_allclose(resized[1:], 2.5, rtol=1e-6)


def test_same_grid_changes_nothing():
    table = sincos_positions(16, (4, 3))
    np.testing.assert_array_equal(resize_positions(table, (4, 3), (4, 3)), table)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("new_grid", [(16, 16), (7, 7), (24, 10), (5, 31)])
def test_resizing_equals_torch(new_grid, antialias):
    torch = pytest.importorskip("torch")
    table = np.random.default_rng(0).standard_normal((1 + 14 * 12, 6), dtype="float32")
    patches = torch.from_numpy(table[1:]).reshape(1, 14, 12, 6).permute(0, 3, 1, 2)
    wanted = torch.nn.functional.interpolate(
        patches, size=new_grid, mode="bicubic", align_corners=False, antialias=antialias
    )
    wanted = wanted.permute(0, 2, 3, 1).reshape(-1, 6).numpy()
    got = resize_positions(table, (14, 12), new_grid, antialias)
    np.testing.assert_allclose(got[1:], wanted, atol=1e-5)


def test_table_must_fit_its_grid():
    with pytest.raises(ValueError, match=r"table must be \(1 \+ 2 \* 3"):
        resize_positions(np.zeros((6, 4)), (2, 3), (4, 4))
