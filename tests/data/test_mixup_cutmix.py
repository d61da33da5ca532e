"""Mixup and CutMix: published distributions, exact labels, any split of a batch."""

import numpy as np
import pytest
import tensorflow as tf

from keras_mae.data.mixup_cutmix import mix, smoothed_one_hot

SHAPE = (20, 32)


def mixed(count, **options):
    """Gives the pixels' weights and the label's under `count` seeds.

    The first image is all 1, its neighbour all 0: the first becomes its own weights.
    """
    images = tf.stack([tf.ones((*SHAPE, 1)), tf.zeros((*SHAPE, 1))])

    def draw(i):
        seed = tf.stack([tf.constant(2, tf.int64), i])
        pixels, labels = mix(images, tf.eye(2), seed, **options)
        return pixels[0, :, :, 0], labels[0, 0]

    dataset = tf.data.Dataset.range(count).map(draw).batch(count)
    return next(dataset.as_numpy_iterator())


def published_shares(count):
    """What the boxes of the published code leave of an image."""
    rng = np.random.default_rng(0)
    sides = np.array(SHAPE)
    halves = (sides * np.sqrt(1 - rng.beta(1, 1, (count, 1)))).astype(int) // 2
    centres = rng.integers(sides, size=(count, 2))
    begin, end = np.maximum(centres - halves, 0), np.minimum(centres + halves, sides)
    return 1 - np.prod(end - begin, axis=1) / np.prod(sides)


def batch(count=8):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(count, 6, 8, 3)).astype("float32")
    return images, smoothed_one_hot(rng.integers(10, size=count), 10).numpy()


def test_choices_and_weights_are_the_published_ones():
    weights, shares = mixed(2500)
    cutmix = np.all((weights == 0) | (weights == 1), axis=(1, 2))
    assert abs(cutmix.mean() - 0.5) < 0.03
    mixup = shares[~cutmix]
    # the variance of Beta(a, a) is 1 / (8 a + 4)
    assert abs(mixup.mean() - 0.5) < 0.03
    assert abs(mixup.var() - 1 / (8 * 0.8 + 4)) < 0.01
    wanted = published_shares(20000)
    assert abs(shares[cutmix].mean() - wanted.mean()) < 0.02
    assert abs(shares[cutmix].std() - wanted.std()) < 0.02


def test_labels_have_the_true_share_of_pixels():
    weights, shares = mixed(300)
    np.testing.assert_allclose(shares, weights.mean((1, 2)), atol=1e-6)
    for box in 1 - weights[np.all((weights == 0) | (weights == 1), axis=(1, 2))]:
        np.testing.assert_array_equal(box, np.outer(box.max(1), box.max(0)))


def test_neighbours_are_mixed_with_their_labels():
    images, labels = batch()
    for i in range(6):
        new_images, new_labels = mix(images, labels, [0, i])
        np.testing.assert_allclose(new_labels.numpy().sum(-1), 1, atol=1e-6)
        # a pair's weights add up: what one loses the other gains
        for new, old in [(new_images, images), (new_labels, labels)]:
            pairs = [np.reshape(x, (4, 2, -1)) for x in (new, old)]  # (B/2, 2, -1)
            np.testing.assert_allclose(pairs[0].sum(1), pairs[1].sum(1), atol=1e-5)


@pytest.mark.slow
def test_the_seed_decides_and_not_the_division_of_the_batch():
    images, labels = batch()
    in_graph = tf.function(mix)
    for i in range(6):
        whole = mix(images, labels, [0, i])
        halves = [
            mix(images[k : k + 4], labels[k : k + 4], [0, i], first_row=k)
            for k in (0, 4)
        ]
        for part, pieces in zip(whole, zip(*halves, strict=True), strict=True):
            np.testing.assert_array_equal(part, np.concatenate(pieces))
        graph = in_graph(images, labels, tf.constant([0, i], tf.int64))
        np.testing.assert_allclose(whole[0], graph[0], atol=1e-6)
    assert np.any(mix(images, labels, [0, 0])[0] != mix(images, labels, [0, 1])[0])


def test_each_32_rows_draw_for_themselves():
    images = np.zeros((96, 6, 8, 1), "float32")
    labels = np.tile(np.eye(2, dtype="float32"), (48, 1))
    shares = mix(images, labels, [0, 1], cutmix_alpha=0)[1].numpy()[::2, 0]  # (48,)
    groups = shares.reshape(3, 16)
    np.testing.assert_array_equal(groups, groups[:, :1].repeat(16, axis=1))
    assert len(set(groups[:, 0])) == 3
    # replicas of 24 rows, whose groups lie across them
    for row in range(0, 96, 24):
        part = slice(row, row + 24)
        mine = mix(images[part], labels[part], [0, 1], cutmix_alpha=0, first_row=row)
        np.testing.assert_array_equal(mine[1][::2, 0], shares[row // 2 : row // 2 + 12])


def test_an_alpha_of_0_leaves_the_other_alone():
    is_box = [
        np.all((weights == 0) | (weights == 1), axis=(1, 2))
        for weights, _ in (mixed(100, mixup_alpha=0), mixed(100, cutmix_alpha=0))
    ]
    assert is_box[0].all() and not is_box[1].any()


@pytest.mark.parametrize(
    "options", [{"probability": 0.0}, {"mixup_alpha": 0, "cutmix_alpha": 0}]
)
def test_nothing_is_mixed_when_nothing_is_asked_for(options):
    images, labels = batch()
    new_images, new_labels = mix(images, labels, [0, 0], **options)
    np.testing.assert_array_equal(new_images, images)
    np.testing.assert_array_equal(new_labels, labels)


def test_some_batches_stay_at_a_probability_below_1():
    weights, shares = mixed(1000, probability=0.3)
    assert abs(np.mean(shares < 1) - 0.3) < 0.05
    assert np.all(weights[shares == 1] == 1)


def test_tiny_alphas_give_numbers():
    _, shares = mixed(500, mixup_alpha=1e-3, cutmix_alpha=0)
    assert np.all((shares >= 0) & (shares <= 1))


def test_smoothed_labels_are_timms():
    labels = smoothed_one_hot([2, 0], 4, smoothing=0.1).numpy()
    np.testing.assert_allclose(labels[0], [0.025, 0.025, 0.925, 0.025])
    np.testing.assert_allclose(labels.sum(-1), 1, atol=1e-6)
    np.testing.assert_array_equal(smoothed_one_hot([1], 2, smoothing=0), [[0, 1]])


def test_odd_batches_and_values_out_of_range_are_refused():
    images, labels = batch(3)
    with pytest.raises(ValueError, match=r"must be even for mixing. Received: 3"):
        mix(images, labels, [0, 0])
    images, labels = batch(2)
    for options in ({"mixup_alpha": -1}, {"switch": 2}, {"probability": -0.1}):
        with pytest.raises(ValueError, match="Received"):
            mix(images, labels, [0, 0], **options)
    with pytest.raises(ValueError, match=r"smoothing must be in \[0, 1\]. Received: 2"):
        smoothed_one_hot([1], 2, smoothing=2)
