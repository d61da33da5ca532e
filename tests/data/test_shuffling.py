"""Order: what a batch holds follows from the seed and the step, and nothing else."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from keras_mae import data
from keras_mae.data.shuffling import Order
from tests import pictures

TRAINING = range(24)
HELD_OUT = range(24, 30)
FILES = ["folder", "tfrecord", "tfds"]
EVERY = ["digits", "photos", *FILES]


def by_kind(kinds):
    """Arrays that are cropped and tfds's shards go by the code of the others."""
    rare = ("photos", "tfds")
    return pytest.mark.parametrize(
        "kind",
        [
            pytest.param(kind, marks=pytest.mark.nightly if kind in rare else ())
            for kind in kinds
        ],
    )


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    pictures.write_folder(root / "folder" / "train", TRAINING)
    pictures.write_folder(root / "folder" / "val", HELD_OUT)
    pictures.write_shards(root / "shards", TRAINING, shards=4)
    pictures.write_shards(root / "shards" / "val", HELD_OUT, shards=1)
    pictures.prepare_tfds(root / "tfds", train=TRAINING, validation=HELD_OUT)
    names = {
        "digits": ("digits", None),
        "photos": ("photos", None),
        "folder": (f"folder:{root}/folder", None),
        "tfrecord": (
            f"tfrecord:{root}/shards/*.tfrecord",
            f"tfrecord:{root}/shards/val/*",
        ),
        "tfds": ("tfds:mini_pictures", None),
    }
    return {
        kind: data.load_source(name, held_out, data_dir=root / "tfds")
        for kind, (name, held_out) in names.items()
    }


def context(worker, workers, replicas):
    return tf.distribute.InputContext(workers, worker, replicas)


def batches(source, count, batch_size=4, seed=0, **arguments):
    """Takes the first few batches."""
    processor = pictures.processor_for(source)
    pipeline = data.training_pipeline(source, processor, batch_size, seed, **arguments)
    assert pipeline.element_spec.shape[1:] == (16, 16, len(source.mean))
    assert pipeline.element_spec.shape[0] is not None
    return np.stack(list(itertools.islice(pipeline.as_numpy_iterator(), count)))


@pytest.fixture(scope="module")
def streams(sources):
    """The first three epochs of files, under seed 0 and whatever the global seed is."""
    tf.random.set_seed(1)
    return {kind: batches(source, 18) for kind, source in sources.items()}


@pytest.mark.slow
@by_kind(EVERY)
def test_a_seed_decides_and_another_one_differs(kind, sources, streams):
    tf.random.set_seed(2)
    np.testing.assert_array_equal(streams[kind][:3], batches(sources[kind], 3))
    assert np.abs(streams[kind][:3] - batches(sources[kind], 3, seed=1)).max() > 0


@pytest.mark.slow
@by_kind(FILES)
def test_each_epoch_visits_each_image_once(kind, sources, streams):
    source = sources[kind]
    assert source.epoch_size == len(TRAINING)
    seen = pictures.numbers(source, np.concatenate(streams[kind]))
    epochs = [seen[begin : begin + 24] for begin in (0, 24, 48)]
    assert [sorted(epoch) for epoch in epochs] == [list(TRAINING)] * 3
    assert len({tuple(epoch) for epoch in [*epochs, TRAINING]}) == 4


@pytest.mark.slow
@by_kind(FILES)
def test_crops_change_from_epoch_to_epoch(kind, sources, streams):
    images = np.concatenate(streams[kind][:12])
    seen = np.array(pictures.numbers(sources[kind], images))
    for number in TRAINING:
        first, second = images[seen == number]
        assert np.abs(first - second).max() > 0


# in an epoch, at its end, and in a later one
@pytest.mark.slow
@pytest.mark.parametrize(
    "first_step",
    [
        pytest.param(1, marks=pytest.mark.nightly),
        6,
        pytest.param(14, marks=pytest.mark.nightly),
    ],
)
@by_kind(EVERY)
def test_a_stream_begins_anywhere_as_if_it_had_not_stopped(
    kind, first_step, sources, streams
):
    later = batches(sources[kind], 2, first_step=first_step)
    np.testing.assert_array_equal(later, streams[kind][first_step : first_step + 2])


@pytest.mark.slow
@by_kind(["digits", "photos", "folder"])
def test_workers_together_see_what_one_would(kind, sources):
    whole = batches(sources[kind], 7, batch_size=8)
    parts = [
        batches(sources[kind], 14, 8, input_context=context(worker, 2, 4))
        for worker in range(2)
    ]
    # (steps, workers x replicas, rows, ...)
    steps = [part.reshape(7, 2, 2, *part.shape[2:]) for part in parts]
    steps = np.concatenate(steps, axis=1)
    np.testing.assert_array_equal(steps.reshape(whole.shape), whole)


@pytest.mark.slow
@by_kind(["tfrecord", "tfds"])
def test_workers_share_the_shards(kind, sources):
    source = sources[kind]
    seen = []
    for worker in range(2):
        part = batches(source, 12, 8, input_context=context(worker, 2, 4))
        seen.append(pictures.numbers(source, np.concatenate(part)))
    # shards are of equal size here: both workers' epochs end at once
    assert sorted(seen[0][:12] + seen[1][:12]) == list(TRAINING)
    assert sorted(seen[0][12:] + seen[1][12:]) == list(TRAINING)
    assert set(seen[0][:12]) != set(seen[0][12:])  # dealt out anew


@pytest.mark.nightly
def test_unequal_shards_keep_their_place_on_every_worker(tmp_path):
    for shard, numbers in enumerate([range(3), range(3, 10), range(10, 11)]):
        pictures.write_shards(tmp_path / str(shard), numbers, shards=1)
    source = data.load_source(
        f"tfrecord:{tmp_path}/?/*.tfrecord", f"tfrecord:{tmp_path}/2/*"
    )
    assert source.epoch_size == 10
    for worker in range(2):
        place = context(worker, 2, 2)
        whole = batches(source, 12, 2, input_context=place)
        later = batches(source, 2, 2, first_step=10, input_context=place)
        np.testing.assert_array_equal(later, whole[10:])


@pytest.mark.slow
def test_a_strategy_deals_rows_to_its_replicas(sources):
    source = sources["folder"]
    processor = pictures.processor_for(source)
    strategy = tf.distribute.get_strategy()
    distributed = strategy.distribute_datasets_from_function(
        lambda context: data.training_pipeline(
            source, processor, 4, 0, input_context=context
        )
    )
    np.testing.assert_array_equal(next(iter(distributed)), batches(source, 1)[0])


def test_what_cannot_be_shared_is_refused(sources):
    source = sources["tfrecord"]
    with pytest.raises(ValueError, match=r"divisible by the 3 replicas. Received: 4"):
        batches(source, 1, input_context=context(0, 1, 3))
    with pytest.raises(
        ValueError, match=r"same number of replicas. Received: 3 replicas"
    ):
        batches(source, 1, batch_size=6, input_context=context(0, 2, 3))
    with pytest.raises(ValueError, match=r"the 8 workers. Received: 4 files"):
        batches(source, 1, batch_size=8, input_context=context(0, 8, 8))
    with pytest.raises(ValueError, match=r"must not be negative. Received: -1"):
        batches(source, 1, first_step=-1)
    with pytest.raises(ValueError, match=r"in \[1, 24\].* Received: 25"):
        batches(source, 1, batch_size=25)


@pytest.mark.parametrize("count", [1, 2, 3, 400])
def test_indices_are_permutations_that_look_random(count):
    epochs = list(Order(7, 1).indices(count).take(4 * count).as_numpy_iterator())
    positions, indices = np.array(epochs).T
    np.testing.assert_array_equal(positions, np.arange(4 * count))
    epochs = indices.reshape(4, count)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(count), (4, 1)))
    if count > 60:
        # neither near the order of the files nor near that of another epoch
        correlations = np.corrcoef([np.arange(count), *epochs]) - np.eye(5)
        assert np.abs(correlations).max() < 5 / np.sqrt(count)
        neighbours = np.abs(np.diff(epochs[0])).mean()
        assert abs(neighbours / (count / 3) - 1) < 0.25
