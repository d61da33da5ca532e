"""MAEPretrainer with block-wise and grid-wise masks, and another ratio by epoch."""

import keras
import numpy as np
import pytest

import keras_mae
from keras_mae.callbacks import MaskRatioSchedule
from keras_mae.callbacks.mask_ratio import parse_schedule
from keras_mae.layers import RandomMasking

pytestmark = pytest.mark.backends


def mask_of(outputs):
    return keras.ops.convert_to_numpy(outputs["mask"])


@pytest.mark.parametrize("mask_sampling, ratio", [("block", 0.5), ("grid", 0.75)])
def test_a_call_reconstruction_and_encoder_sample_alike(
    make_model, images, mask_sampling, ratio
):
    model = make_model(mask_sampling=mask_sampling, mask_ratio=ratio, depth=1)
    options = {"mask_ratio": ratio, "mask_sampling": mask_sampling, "seed": 5}
    wanted = RandomMasking()(np.zeros((4, 16, 1)), grid=(4, 4), **options)
    for outputs in (
        model(images, seed=5),
        model.reconstruct(images, seed=5),
        model.encoder(images, **options),
    ):
        np.testing.assert_array_equal(mask_of(outputs), mask_of(wanted))
    explicit = np.tile(np.arange(16) < 5, (4, 1))
    np.testing.assert_array_equal(mask_of(model(images, mask=explicit)), explicit)
    copy = keras_mae.MAEPretrainer.from_config(model.get_config())
    assert copy.mask_sampling == mask_sampling and copy.mask_ratio == ratio


def test_rectangular_and_other_sizes(make_model, images):
    model = make_model(mask_sampling="block", mask_ratio=0.5, image_size=(16, 32))
    assert mask_of(model(images[:, :16], seed=0)).sum(axis=1).tolist() == [4] * 4
    assert mask_of(model(images, seed=0, interpolate=True)).sum() == 4 * 8


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mask_sampling": "rows"}, "mask_sampling must be one of"),
        ({"mask_sampling": "grid", "mask_ratio": 0.6}, "mask_ratio must be 0.75"),
        ({"mask_sampling": "grid", "image_size": (8, 32)}, "even number of rows"),
    ],
)
def test_what_cannot_be_sampled_is_refused_at_once(make_model, options, message):
    with pytest.raises(ValueError, match=message):
        make_model(**options)


@pytest.mark.nightly
@pytest.mark.parametrize("mask_sampling, ratio", [("block", 0.5), ("grid", 0.75)])
def test_training_evaluates_and_saves(
    make_model, images, tmp_path, mask_sampling, ratio
):
    model = make_model(mask_sampling=mask_sampling, mask_ratio=ratio, seed=0)
    model.compile(optimizer=keras.optimizers.AdamW(1e-2))
    before = model.evaluate(images, verbose=0)
    assert before == pytest.approx(float(model(images, seed=0)["loss"]), rel=1e-5)
    model.fit(images, epochs=20, verbose=0)
    after = model.evaluate(images, batch_size=2, verbose=0)
    assert after < 0.9 * before
    model.save(tmp_path / "mae.keras")
    loaded = keras.models.load_model(tmp_path / "mae.keras")
    assert loaded.mask_sampling == mask_sampling
    assert loaded.evaluate(images, verbose=0) == pytest.approx(after, rel=1e-5)
    with pytest.raises(ValueError, match="mask_ratio must be"):
        loaded.mask_ratio = 1.5


def test_a_schedule_has_few_ratios_and_its_ends():
    schedule = MaskRatioSchedule(0.5, 0.75, epochs=10, values=5)
    ratios = [schedule.ratio(epoch) for epoch in range(12)]
    assert ratios[:10:2] == pytest.approx([0.5, 0.5625, 0.625, 0.6875, 0.75])
    assert ratios[1:10:2] == ratios[:10:2] and ratios[9:] == [0.75] * 3
    falling = parse_schedule("0.8:0.4:3:cosine", epochs=9)
    assert [falling.ratio(epoch) for epoch in (0, 4, 8)] == pytest.approx(
        [0.8, 0.6, 0.4]
    )
    assert parse_schedule("0.5:0.75", epochs=2).values == 2


@pytest.mark.parametrize(
    "text, message",
    [
        ("0.5", "mask_ratio_schedule must be START:END.*Received: 0.5"),
        ("0.5:high", "mask_ratio_schedule must be START:END"),
        ("0.5:1.0", r"mask_ratio must be in \[0, 1\). Received: 1.0"),
        ("0.5:0.7:1", r"values must be in \[2, epochs\]. Received: values=1, epochs=4"),
        ("0.5:0.7:5", "values=5, epochs=4"),
        ("0.5:0.7:2:sine", "shape must be one of linear, cosine. Received: 'sine'"),
    ],
)
def test_schedules_are_checked(text, message):
    with pytest.raises(ValueError, match=message):
        parse_schedule(text, epochs=4)


class VisibleTokens(keras.callbacks.Callback):
    """Notes how many tokens the decoder gets while a step is traced or run."""

    def __init__(self, model):
        super().__init__()
        self.epochs, call = [], model.decoder.call

        def watched(latent, *arguments, **options):
            self.epochs[-1].add(latent.shape[1])
            return call(latent, *arguments, **options)

        model.decoder.call = watched

    def on_epoch_begin(self, epoch, logs=None):
        self.epochs.append(set())


@pytest.mark.nightly
def test_fit_follows_the_schedule_and_goes_on_exactly(make_model, images, tmp_path):
    keras.utils.set_random_seed(0)
    model = make_model(seed=0, depth=1)
    model.compile(optimizer=keras.optimizers.AdamW(1e-2))
    tokens = VisibleTokens(model)
    schedule = MaskRatioSchedule(0.25, 0.75, epochs=3, values=3)
    options = {"batch_size": 2, "shuffle": False, "verbose": 0}
    history = model.fit(
        images,
        epochs=3,
        validation_data=images,
        callbacks=[schedule, tokens],
        **options,
    ).history
    # CLS and the visible ones of 16 patches, in training and validation
    assert tokens.epochs == [{1 + 12}, {1 + 8}, {1 + 4}]
    assert history["mask_ratio"] == [0.25, 0.5, 0.75]
    assert model.evaluate(images, verbose=0) == pytest.approx(
        history["val_loss"][-1], rel=1e-5
    )

    keras.utils.set_random_seed(0)
    model = make_model(seed=0, depth=1)
    model.compile(optimizer=keras.optimizers.AdamW(1e-2))
    model.fit(images, epochs=1, callbacks=[schedule], **options)
    model.save(tmp_path / "mae.keras")
    model = keras.models.load_model(tmp_path / "mae.keras")
    assert model.mask_ratio == 0.25
    rest = model.fit(
        images, initial_epoch=1, epochs=3, callbacks=[schedule], **options
    ).history
    assert rest["loss"] == history["loss"][1:]


@pytest.mark.slow
def test_a_new_ratio_is_seen_by_predict(make_model, images):
    model = make_model(depth=1)
    assert mask_of(model.predict(images, verbose=0)).sum() == 4 * 12
    model.mask_ratio = 0.5
    assert mask_of(model.predict(images, verbose=0)).sum() == 4 * 8
