"""Random masking: counts, polarity, order, seeds, explicit masks."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mae.layers import RandomMasking, seeded_noise
from keras_mae.ops import gather_tokens

pytestmark = pytest.mark.backends

PATCHES = np.zeros((4, 196, 3), "float32")


@pytest.mark.parametrize("ratio, kept", [(0.75, 49), (0.6, 78), (0.0, 196), (0.5, 98)])
def test_keep_count_is_the_published_one(ratio, kept):
    chosen = RandomMasking(seed=0)(PATCHES, mask_ratio=ratio)
    assert chosen["ids_keep"].shape == (4, kept)
    np.testing.assert_array_equal(np.asarray(chosen["mask"]).sum(axis=1), 196 - kept)


def test_mask_is_one_where_removed_and_ids_restore_undoes_the_shuffle():
    noise = np.random.default_rng(0).random((4, 196), dtype="float32")
    chosen = RandomMasking()(PATCHES, mask_ratio=0.75, noise=noise)
    order = np.argsort(noise, axis=1, kind="stable")
    np.testing.assert_array_equal(chosen["ids_keep"], order[:, :49])
    np.testing.assert_array_equal(chosen["ids_restore"], np.argsort(order, axis=1))
    mask = np.asarray(chosen["mask"])
    assert not np.take_along_axis(mask, order[:, :49], axis=1).any()
    assert np.take_along_axis(mask, order[:, 49:], axis=1).all()


def test_ties_in_noise_are_broken_by_position():
    chosen = RandomMasking()(PATCHES, mask_ratio=0.75, noise=np.zeros((4, 196)))
    np.testing.assert_array_equal(chosen["ids_keep"], [range(49)] * 4)


@pytest.mark.parametrize("policy", ["float32", "bfloat16", "mixed_bfloat16"])
def test_a_seed_gives_one_mask_under_every_precision(policy):
    chosen = RandomMasking(dtype=policy)(PATCHES, mask_ratio=0.75, seed=3)
    wanted = RandomMasking()(PATCHES, mask_ratio=0.75, seed=3)
    assert keras.backend.standardize_dtype(chosen["mask"].dtype) == "float32"
    for name, value in wanted.items():
        np.testing.assert_array_equal(chosen[name], value)


def test_rows_and_calls_differ_unless_a_seed_is_given():
    masking = RandomMasking(seed=0)
    first = np.asarray(masking(PATCHES, mask_ratio=0.75)["mask"])
    second = np.asarray(masking(PATCHES, mask_ratio=0.75)["mask"])
    assert (first != second).any() and (first[0] != first[1]).any()


def test_every_patch_is_removed_equally_often():
    patches = np.zeros((4000, 16, 1), "float32")
    mask = np.asarray(RandomMasking(seed=0)(patches, mask_ratio=0.75)["mask"])
    # five deviations of a share of 4000 draws
    np.testing.assert_allclose(mask.mean(axis=0), 0.75, atol=5 * 0.007)


def test_explicit_mask_keeps_raster_order():
    mask = np.array([[1, 0, 1, 0], [0, 1, 1, 0]])
    chosen = RandomMasking()(np.zeros((2, 4, 3)), mask=mask)
    np.testing.assert_array_equal(chosen["ids_keep"], [[1, 3], [0, 3]])
    np.testing.assert_array_equal(chosen["mask"], mask)


def test_a_function_of_jax_takes_a_mask_as_noise():
    if keras.backend.backend() != "jax":
        pytest.skip("JAX alone has to know how many patches stay")
    import jax

    masking, patches = RandomMasking(), np.zeros((2, 4, 3))
    mask = np.array([[1, 0, 1, 0], [0, 1, 1, 0]])
    with pytest.raises(ValueError, match="there pass noise=mask with mask_ratio"):
        jax.jit(lambda mask: masking(patches, mask=mask)["mask"])(mask)
    compiled = jax.jit(lambda noise: masking(patches, noise=noise, mask_ratio=0.5))
    np.testing.assert_array_equal(compiled(mask)["mask"], mask)


def test_boolean_masks_are_accepted():
    chosen = RandomMasking()(np.zeros((1, 2, 3)), mask=np.array([[True, False]]))
    np.testing.assert_array_equal(chosen["ids_keep"], [[1]])


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5, "most", None, float("nan")])
def test_mask_ratio_is_checked(ratio):
    with pytest.raises(ValueError, match=r"mask_ratio must be in \[0, 1\). Received"):
        RandomMasking()(PATCHES, mask_ratio=ratio)


def test_a_ratio_that_leaves_nothing_is_refused():
    with pytest.raises(ValueError, match="no visible patch of 4"):
        RandomMasking()(np.zeros((1, 4, 3)), mask_ratio=0.8)


@pytest.mark.parametrize(
    "mask, message",
    [
        ([[0, 1, 1]], r"mask must be \(batch, 4\)"),
        ([[1, 1, 1, 1]], "keep at least one patch"),
        ([[0, 1, 0.5, 1]], "mask must hold only 0"),
        ([[0, 1, 1, 1], [0, 0, 1, 1]], r"equally many.*keep \[1, 2\]"),
    ],
)
def test_masks_are_checked(mask, message):
    patches = np.zeros((len(mask), 4, 3), "float32")
    with pytest.raises(ValueError, match=message):
        RandomMasking()(patches, mask=np.array(mask))


def test_contradicting_arguments_are_refused():
    with pytest.raises(ValueError, match="mask can't be combined"):
        RandomMasking()(PATCHES, mask=np.zeros((4, 196)), mask_ratio=0.75)
    with pytest.raises(ValueError, match=r"noise must be \(batch, 196\)"):
        RandomMasking()(PATCHES, mask_ratio=0.75, noise=np.zeros((4, 195)))


def test_gather_tokens_picks_rows():
    tokens = np.random.default_rng(0).standard_normal((3, 5, 2)).astype("float32")
    ids = np.array([[4, 0], [1, 1], [2, 3]])
    wanted = np.take_along_axis(tokens, ids[..., None], axis=1)
    np.testing.assert_array_equal(gather_tokens(tokens, ids), wanted)


def test_noise_is_pinned():
    rows = np.arange(3)
    noise = np.asarray(seeded_noise([5, 1], rows, 4))
    wanted = [6242690, 2408743, 348149, 15521004]
    np.testing.assert_array_equal(noise[0] * 2**24, wanted)


@pytest.mark.tensorflow
def test_noise_is_the_same_compiled():
    rows = np.arange(3)
    draw = tf.function(lambda r: seeded_noise([5, 1], r, 4), jit_compile=True)
    np.testing.assert_array_equal(draw(rows), seeded_noise([5, 1], rows, 4))


def test_noise_is_uniform_and_rarely_ties():
    noise = np.asarray(seeded_noise([1, 2], np.arange(5000), 196))
    assert noise.min() >= 0 and noise.max() < 1
    np.testing.assert_allclose(noise.mean(), 0.5, atol=0.002)
    np.testing.assert_allclose(noise.var(), 1 / 12, atol=0.001)
    assert np.mean([len(set(row)) < 196 for row in noise]) < 0.005


def test_seeds_of_rows_are_independent_of_their_place():
    together = np.asarray(seeded_noise([[3, 0], [9, 0]], [0, 0], 8))
    np.testing.assert_array_equal(together[1:], seeded_noise([9, 0], [0], 8))


def test_a_batch_in_parts_gets_the_noise_of_the_whole():
    masking = RandomMasking()
    whole = np.asarray(masking.draw_noise(6, 8, seed=1))
    part = masking.draw_noise(2, 8, seed=1, first_row=4)
    np.testing.assert_array_equal(part, whole[4:])


def test_every_image_needs_its_own_row():
    with pytest.raises(ValueError, match="a row for each image"):
        RandomMasking()(PATCHES, mask=np.eye(1, 196))
    with pytest.raises(ValueError, match="a row for each image"):
        RandomMasking()(PATCHES, mask_ratio=0.75, noise=np.zeros((1, 196)))


def test_an_empty_batch_may_be_masked():
    chosen = RandomMasking()(PATCHES[:0], mask=np.zeros((0, 196)))
    assert chosen["mask"].shape == (0, 196)


@pytest.mark.parametrize("seed", [2**31, 0.5, True, "a"])
def test_seeds_are_checked(seed):
    with pytest.raises(ValueError, match="seed must"):
        RandomMasking()(PATCHES, mask_ratio=0.75, seed=seed)


def test_noise_and_seed_contradict_each_other():
    with pytest.raises(ValueError, match="noise can't be combined"):
        RandomMasking()(PATCHES, mask_ratio=0.75, noise=np.zeros((4, 196)), seed=1)
