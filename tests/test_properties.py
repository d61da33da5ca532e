"""Properties that hold for any size, seed and name, on examples that hypothesis draws.

The examples are the same each time: a failure here is a failure everywhere.
"""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

import keras_mae
from keras_mae import normalize_patches, patchify, resize_positions, sincos_positions
from keras_mae.export.pillow_resize import resize_like_pillow
from keras_mae.layers import RandomMasking
from keras_mae.ops import gather_tokens
from keras_mae.ops.positions import bicubic_matrix
from keras_mae.weights import PortError, export_weights, load_weights
from keras_mae.weights.key_mapping import FACEBOOK, HUGGINGFACE
from keras_mae.weights.state_dict import sizes_of
from tests.comparison import assert_same_weights


def examples(count):
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        # a failure is not made smaller: that may take minutes
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


def numbers(seed, shape, low=-1e3, high=1e3):
    return np.random.default_rng(seed).uniform(low, high, shape).astype("float32")


sides = st.integers(1, 5)
grids = st.tuples(sides, sides)
seeds = st.integers(-(2**31), 2**31 - 1)


@pytest.mark.slow
@examples(60)
@given(grid=grids, patch=grids, channels=st.integers(1, 5), batch=st.integers(0, 3))
def test_patches_are_blocks_of_the_image(grid, patch, channels, batch):
    size = grid[0] * patch[0], grid[1] * patch[1]
    images = numbers(0, (batch, *size, channels))
    patches = np.asarray(patchify(images, patch))
    assert patches.shape == (batch, grid[0] * grid[1], patch[0] * patch[1] * channels)
    for row, column in np.ndindex(*grid):
        top, left = row * patch[0], column * patch[1]
        block = images[:, top : top + patch[0], left : left + patch[1]]
        np.testing.assert_array_equal(
            patches[:, row * grid[1] + column], block.reshape(batch, patches.shape[2])
        )
    restored = keras_mae.unpatchify(patches, patch, size)
    np.testing.assert_array_equal(restored, images)


@examples(60)
@given(
    count=st.integers(2, 60),
    length=st.integers(1, 5),
    scale=st.sampled_from([1e-4, 1.0, 255.0, 1e4]),
    shift=st.sampled_from([0.0, -3.0, 1e3]),
    seed=st.integers(0, 99),
)
def test_normalized_patches_are_those_of_the_reference(
    count, length, scale, shift, seed
):
    patches = numbers(seed, (2, length, count), -scale, scale) + np.float32(shift)
    exact = patches.astype("float64")
    mean = exact.mean(axis=-1, keepdims=True)
    # torch.var, which the reference calls, divides by n - 1
    variance = exact.var(axis=-1, ddof=1, keepdims=True)
    wanted = (exact - mean) / np.sqrt(variance + 1e-6)
    got = np.asarray(normalize_patches(patches))
    assert got.dtype == np.float32
    # a mean of float32 is off by parts of its own size
    slack = 1e-5 + 4e-7 * np.abs(exact).max() / np.sqrt(variance + 1e-6).min()
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=slack)
    np.testing.assert_allclose(got.mean(axis=-1), 0, atol=slack)


@examples(10)
@given(count=st.integers(2, 60), seed=st.integers(0, 99))
def test_the_variance_is_pytorchs(count, seed):
    torch = pytest.importorskip("torch")
    patches = numbers(seed, (2, 3, count), 0, 1)
    tensor = torch.tensor(patches)
    wanted = tensor - tensor.mean(dim=-1, keepdim=True)
    wanted = wanted / (tensor.var(dim=-1, keepdim=True) + 1e-6) ** 0.5
    np.testing.assert_allclose(normalize_patches(patches), wanted, atol=2e-5)


@examples(50)
@given(
    batch=st.integers(1, 4),
    length=st.integers(1, 70),
    ratio=st.floats(0, 1, exclude_max=True),
    seed=seeds,
)
def test_random_masks(batch, length, ratio, seed):
    masking, patches = RandomMasking(), np.zeros((batch, length, 1), "float32")
    kept = int(length * (1 - ratio))
    if kept < 1:
        with pytest.raises(ValueError, match="leaves no visible patch"):
            masking(patches, mask_ratio=ratio, seed=seed)
        return
    chosen = masking(patches, mask_ratio=ratio, seed=seed)
    chosen = {name: np.asarray(value) for name, value in chosen.items()}
    check_masking(chosen, batch, length, kept)
    # a row knows nothing of those behind it
    first = masking(patches[:1], mask_ratio=ratio, seed=seed)
    for name, value in first.items():
        np.testing.assert_array_equal(value, chosen[name][:1])
    # more is removed by going on in the same order
    if kept > 1:
        more = masking(patches, mask_ratio=1 - (kept - 0.5) / length, seed=seed)
        np.testing.assert_array_equal(more["ids_keep"], chosen["ids_keep"][:, :-1])
        assert (np.asarray(more["mask"]) >= chosen["mask"]).all()


def check_masking(chosen, batch, length, kept):
    """Holds ids and mask against each other."""
    shuffle, restore, mask = (
        chosen[name] for name in ("ids_shuffle", "ids_restore", "mask")
    )
    everything = np.tile(np.arange(length), (batch, 1))
    for one, two in ((shuffle, restore), (restore, shuffle)):
        np.testing.assert_array_equal(np.take_along_axis(one, two, 1), everything)
    np.testing.assert_array_equal(chosen["ids_keep"], shuffle[:, :kept])
    assert mask.dtype == np.float32 and set(np.unique(mask)) <= {0, 1}
    np.testing.assert_array_equal(mask.sum(axis=1), [length - kept] * batch)
    # 1 = removed
    np.testing.assert_array_equal(mask, restore >= kept)
    tokens = everything[..., None].astype("float32")
    np.testing.assert_array_equal(
        gather_tokens(tokens, chosen["ids_keep"])[..., 0], shuffle[:, :kept]
    )


@examples(40)
@given(data=st.data(), batch=st.integers(1, 4), length=st.integers(1, 40))
def test_explicit_masks_come_back(data, batch, length):
    kept = data.draw(st.integers(1, length))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    mask = rng.permuted(np.tile(np.arange(length) >= kept, (batch, 1)), axis=1)
    kind = data.draw(st.sampled_from([bool, "int32", "float32"]))
    chosen = RandomMasking()(np.zeros((batch, length, 1)), mask=mask.astype(kind))
    chosen = {name: np.asarray(value) for name, value in chosen.items()}
    np.testing.assert_array_equal(chosen["mask"], mask)
    check_masking(chosen, batch, length, kept)
    # both sides in raster order
    for part in (chosen["ids_keep"], chosen["ids_shuffle"][:, kept:]):
        assert (np.diff(part, axis=1) > 0).all()


@examples(40)
@given(quarter=st.integers(1, 8), grid=grids, more=st.integers(0, 3))
def test_position_tables_turn_with_the_grid(quarter, grid, more):
    rows, columns = grid
    table = sincos_positions(4 * quarter, grid)
    assert table.shape == (1 + rows * columns, 4 * quarter)
    assert table.dtype == np.float32 and not table[0].any()
    patches = table[1:].reshape(rows, columns, 2, -1)
    turned = sincos_positions(4 * quarter, (columns, rows))[1:]
    turned = turned.reshape(columns, rows, 2, -1)
    # rows and columns change places, and so do the halves of the width
    np.testing.assert_array_equal(turned, patches.transpose(1, 0, 2, 3)[:, :, ::-1])
    # a larger grid goes on where this one ends
    larger = sincos_positions(4 * quarter, (rows + more, columns + more))[1:]
    larger = larger.reshape(rows + more, columns + more, 2, -1)
    np.testing.assert_array_equal(larger[:rows, :columns], patches)
    assert len(np.unique(table[1:], axis=0)) == rows * columns
    np.testing.assert_allclose((table[1:] ** 2).sum(axis=1), 2 * quarter, rtol=1e-5)


@examples(50)
@given(
    old=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    new=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    antialias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_resized_positions(old, new, antialias, seed):
    table = numbers(seed, (1 + old[0] * old[1], 3), -1, 1)

    def resize(table, old=old, new=new):
        return np.asarray(resize_positions(table, old, new, antialias))

    def turn(table, grid):
        patches = table[1:].reshape(*grid, -1).transpose(1, 0, 2)
        return np.concatenate([table[:1], patches.reshape(len(table) - 1, -1)])

    got = resize(table)
    assert got.shape == (1 + new[0] * new[1], 3) and got.dtype == np.float32
    np.testing.assert_array_equal(resize(table, old, old), table)
    np.testing.assert_array_equal(got[0], table[0])
    np.testing.assert_allclose(resize(0 * table + 2.5), 2.5, rtol=1e-5)
    turned = resize(turn(table, old), old[::-1], new[::-1])
    np.testing.assert_allclose(turned, turn(got, new), atol=2e-6)
    # seen in a mirror
    mirrored = np.concatenate([table[:1], table[:0:-1]])
    np.testing.assert_allclose(resize(mirrored)[1:], got[:0:-1], atol=2e-6)
    np.testing.assert_allclose(resize(2 * table - 1), 2 * got - 1, atol=1e-5)


@examples(60)
@given(old=st.integers(1, 40), new=st.integers(1, 40), antialias=st.booleans())
def test_bicubic_weights(old, new, antialias):
    matrix = bicubic_matrix(old, new, antialias)
    np.testing.assert_allclose(matrix.sum(axis=1), 1)
    np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-12)


filters = st.sampled_from(["bilinear", "bicubic"])
extents = st.one_of(st.integers(1, 40), st.integers(1, 400))


@examples(40)
@given(
    height=extents, width=extents, channels=st.sampled_from([1, 3]),
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)), resample=filters,
    seed=st.integers(0, 99),
)  # fmt: skip
def test_the_processor_resizes_as_pillow(height, width, channels, size, resample, seed):
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, channels))
    levels = levels.astype("uint8")
    picture = Image.fromarray(levels.squeeze(-1) if channels == 1 else levels)
    mode = getattr(Image.Resampling, resample.upper())
    wanted = np.asarray(picture.resize(size[::-1], mode)).reshape(*size, channels)
    half = (0.5,) * channels
    processor = keras_mae.MAEImageProcessor(size, half, half, resample)
    for image in (picture, levels):
        np.testing.assert_array_equal(processor.to_uint8(processor(image))[0], wanted)


# each size is a graph of its own, any picture may go through it
@pytest.fixture(scope="module")
def graphs():
    return {
        (size, resample): tf.function(
            lambda image, s=size, r=resample: resize_like_pillow(image, s, r),
            input_signature=[tf.TensorSpec((None, None, 3), tf.uint8)],
        )
        for size in ((16, 16), (1, 1), (7, 90))
        for resample in ("bilinear", "bicubic")
    }


@pytest.mark.slow
@examples(60)
@given(data=st.data(), height=extents, width=extents, seed=st.integers(0, 99))
def test_graphs_resize_as_pillow(graphs, data, height, width, seed):
    size, resample = data.draw(st.sampled_from(sorted(graphs)))
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), "uint8")
    if seed % 3 == 0:
        levels = levels // 128 * 255  # what overshoots is cut off
    mode = getattr(Image.Resampling, resample.upper())
    wanted = Image.fromarray(levels).resize(size[::-1], mode)
    np.testing.assert_array_equal(graphs[size, resample](levels), wanted)


@st.composite
def models(draw):
    """Draws a pretrainer of any proportions."""
    heads, decoder_heads = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    patch = draw(st.integers(1, 4))
    return {
        "image_size": patch * draw(st.integers(1, 4)),
        "patch_size": patch,
        "num_channels": draw(st.integers(1, 4)),
        "hidden_dim": 4 * heads * draw(st.integers(1, 2)),
        "num_heads": heads,
        "depth": draw(st.integers(1, 2)),
        "mlp_dim": draw(st.integers(1, 9)),
        "decoder_hidden_dim": 4 * decoder_heads,
        "decoder_num_heads": decoder_heads,
        "decoder_depth": draw(st.integers(1, 2)),
        "decoder_mlp_dim": draw(st.integers(1, 9)),
        "norm_pix_loss": draw(st.booleans()),
        "mask_ratio": draw(st.sampled_from([0.0, 0.5, 0.75])),
    }


@pytest.mark.slow
@examples(4)
@given(sizes=models(), format=st.sampled_from(["huggingface", "timm"]))
def test_any_model_comes_back_bit_equal(sizes, format, tmp_path_factory):
    model = keras_mae.MAEPretrainer.from_preset("mae_tiny", **sizes)
    folder = tmp_path_factory.mktemp("port")
    model.save_pretrained(folder, format)
    if format == "timm":
        again = keras_mae.MAEEncoder.from_pretrained(folder)
        assert_same_weights(again, model.encoder)
        return
    again = keras_mae.MAEPretrainer.from_pretrained(folder)
    assert_same_weights(again, model)
    assert sizes_of(again) == sizes_of(model)


@pytest.fixture(scope="module")
def target():
    return keras_mae.MAEPretrainer.from_preset(
        "mae_tiny", hidden_dim=8, depth=1, num_heads=2, mlp_dim=4, patch_size=16,
        decoder_hidden_dim=4, decoder_depth=1, decoder_num_heads=1, decoder_mlp_dim=4,
    )  # fmt: skip


@pytest.mark.slow
@examples(40)
@given(data=st.data(), naming=st.sampled_from([FACEBOOK, HUGGINGFACE]))
def test_one_error_lists_all_that_differs(target, data, naming):
    state = export_weights(target, naming)
    # the first weights tell the naming, and their biases that there are some
    marker = "attn.qkv" if naming is FACEBOOK else "query"
    # and tables of positions that are absent are computed
    kept = (marker, "token", "pos")
    movable = sorted(key for key in state if not any(part in key for part in kept))
    gone = data.draw(st.sets(st.sampled_from(movable), max_size=5))
    names = st.text("abcxyz.-_ 0é", min_size=1, max_size=12).map("left.".__add__)
    extra = data.draw(st.sets(names, max_size=4))
    spoilt = {key: value for key, value in state.items() if key not in gone}
    spoilt |= {name: np.zeros(3, "float32") for name in extra}
    before = [weight.numpy() for weight in target.weights]
    if not gone and not extra:
        load_weights(target, spoilt)
    else:
        with pytest.raises(PortError) as error:
            load_weights(target, spoilt)
        lines = str(error.value).splitlines()[1:]
        assert [line for line in lines if "missing key" in line] == [
            f"  missing key: {key}" for key in sorted(gone)
        ]
        assert [line for line in lines if "unused key" in line] == [
            f"  unused key: {key} (3,)" for key in sorted(extra)
        ]
    for weight, old in zip(target.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), old)
