"""MAEPretrainer: training by fit, its numbers under every way to run, its pictures."""

import random

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mae
from keras_mae import normalize_patches, patchify
from keras_mae.optimizers.adamw import pretraining_optimizer
from tests.autodiff import gradients

pytestmark = pytest.mark.backends


def adamw():
    return keras.optimizers.AdamW(1e-2)


def test_fit_learns_and_evaluate_repeats_itself(make_model, images):
    model = make_model()
    model.compile(optimizer=adamw())
    before = model.evaluate(images, verbose=0)
    dataset = tf.data.Dataset.from_tensor_slices(images).batch(2)
    model.fit(dataset, epochs=30, shuffle=False, verbose=0)
    after = model.evaluate(images, verbose=0)
    assert after < 0.9 * before
    assert model.evaluate(images, verbose=0) == after


@pytest.mark.nightly
@pytest.mark.parametrize("form", ["x", "(x, y)"])
def test_labels_are_ignored(make_model, images, form):
    model = make_model()
    model.compile(optimizer=adamw())
    labels = None if form == "x" else np.zeros(len(images))
    history = model.fit(images, labels, verbose=0).history
    assert np.isfinite(history["loss"]).all()


def test_loss_is_the_error_on_removed_patches(make_model, images):
    model = make_model(norm_pix_loss=True)
    outputs = model(images, seed=0)
    targets = np.asarray(normalize_patches(patchify(images, 8)))
    errors = ((np.asarray(outputs["logits"]) - targets) ** 2).mean(axis=-1)
    mask = np.asarray(outputs["mask"])
    wanted = (errors * mask).sum() / mask.sum()
    np.testing.assert_allclose(outputs["loss"], wanted, rtol=1e-5)


@pytest.mark.nightly
def test_eager_graph_and_xla_train_alike(make_model, images):
    losses = {}
    for name, options in {
        "eager": {"run_eagerly": True},
        "graph": {"jit_compile": False},
        "xla": {"jit_compile": True},
    }.items():
        keras.utils.set_random_seed(1)
        model = make_model(seed=2)
        model.compile(optimizer=adamw(), **options)
        losses[name] = model.fit(images, epochs=3, verbose=0).history["loss"]
    np.testing.assert_allclose(losses["graph"], losses["eager"], rtol=1e-5)
    np.testing.assert_allclose(losses["xla"], losses["eager"], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "policy", [pytest.param("bfloat16", marks=pytest.mark.nightly), "mixed_bfloat16"]
)
def test_half_precision_keeps_masks_and_loss_in_float32(make_model, images, policy):
    model = make_model(dtype=policy)
    outputs = model(images, seed=0)
    dtypes = {
        name: keras.backend.standardize_dtype(value.dtype)
        for name, value in outputs.items()
    }
    assert dtypes["loss"] == dtypes["mask"] == "float32"
    assert dtypes["logits"] == dtypes["latent"] == "bfloat16"
    np.testing.assert_array_equal(outputs["mask"], make_model()(images, seed=0)["mask"])
    # beta_2 = 0.999, Keras's default, is 1 in bfloat16: nothing would be learned
    model.compile(optimizer=pretraining_optimizer(1e-2))
    before = model.evaluate(images, verbose=0)
    model.fit(images, epochs=20, verbose=0)
    assert model.evaluate(images, verbose=0) < 0.9 * before


@pytest.mark.slow
def test_predict_gives_one_loss_an_image(make_model, images):
    model = make_model()
    model.compile(optimizer=adamw())
    outputs = model.predict(images, batch_size=3, verbose=0)
    assert outputs["loss"].shape == (4,)
    assert outputs["logits"].shape == (4, 16, 192)


@pytest.mark.slow
@pytest.mark.tensorflow
def test_steps_per_execution_and_partial_batches(make_model, images):
    model = make_model()
    model.compile(optimizer=adamw(), steps_per_execution=2)
    history = model.fit(images, batch_size=3, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_a_perfect_prediction_reconstructs_the_image(
    make_model, images, norm_pix_loss, monkeypatch
):
    model = make_model(norm_pix_loss=norm_pix_loss)
    targets = patchify(images, 8)
    targets = normalize_patches(targets) if norm_pix_loss else targets
    monkeypatch.setattr(model.decoder, "call", lambda *_, **__: targets)
    outputs = model.reconstruct(images, seed=0)
    np.testing.assert_allclose(outputs["reconstruction"], images, atol=1e-4)
    np.testing.assert_allclose(outputs["loss"], 0, atol=1e-6)


def test_pasted_shows_visible_patches_as_they_are(make_model, images):
    mask = np.zeros((4, 16))
    mask[:, :3] = 1
    outputs = make_model().reconstruct(images, mask=mask)
    np.testing.assert_array_equal(outputs["mask"], mask)
    pasted = np.asarray(patchify(outputs["pasted"], 8))
    masked = np.asarray(patchify(outputs["masked"], 8))
    painted = np.asarray(patchify(outputs["reconstruction"], 8))
    original = np.asarray(patchify(images, 8))
    np.testing.assert_array_equal(pasted[:, 3:], original[:, 3:])
    np.testing.assert_array_equal(masked[:, 3:], original[:, 3:])
    np.testing.assert_array_equal(pasted[:, :3], painted[:, :3])
    assert not masked[:, :3].any()


def test_the_same_seed_reconstructs_alike(make_model, images):
    model = make_model()
    first, second = (model.reconstruct(images, seed=5) for _ in range(2))
    np.testing.assert_array_equal(first["pasted"], second["pasted"])


@pytest.mark.tensorflow
def test_a_seed_gives_the_initial_weights_that_it_gave():
    keras.utils.set_random_seed(0)
    model = keras_mae.MAEPretrainer.from_preset("mae_tiny", patch_size=8)
    # Keras takes the seed of each initializer from here
    assert random.random() == 0.6404234015420902
    images = np.linspace(0, 1, 2 * 32 * 32 * 3, dtype="float32")
    loss = model(images.reshape(2, 32, 32, 3), seed=0)["loss"]
    assert float(loss) == pytest.approx(0.97091055, rel=1e-5)


def test_a_loss_over_nothing_is_refused(make_model, images):
    with pytest.raises(ValueError, match="at least one must be removed"):
        make_model(mask_ratio=0.0)(images)
    with pytest.raises(ValueError, match="at least one must be removed"):
        make_model().reconstruct(images, mask=np.zeros((4, 16)))


@pytest.mark.parametrize("ratio", [1.0, -0.25, 2])
def test_a_wrong_mask_ratio_is_refused_at_once(make_model, ratio):
    with pytest.raises(ValueError, match=rf"in \[0, 1\). Received: {ratio}"):
        make_model(mask_ratio=ratio)


def test_a_decoder_must_fit_its_encoder(make_model):
    encoder, decoder = make_model().encoder, make_model(patch_size=4).decoder
    with pytest.raises(ValueError, match="decoder must have the encoder's"):
        keras_mae.MAEPretrainer(encoder, decoder)


def test_dropout_acts_in_training_only(make_model, images):
    model = make_model(dropout_rate=0.5)
    noise = np.random.default_rng(0).random((4, 16), dtype="float32")
    first = model(images, noise=noise)["loss"]
    assert first == model(images, noise=noise)["loss"]
    assert first != model(images, noise=noise, training=True)["loss"]


def test_dicts_are_refused_with_their_keys(make_model, images):
    model = make_model()
    model.compile(optimizer=adamw())
    dataset = tf.data.Dataset.from_tensor_slices({"image": images}).batch(2)
    with pytest.raises(ValueError, match=r"Received: \['image'\]"):
        model.fit(dataset, verbose=0, shuffle=False)


def test_auto_is_decided_anew_after_loading(make_model):
    model = make_model()
    model.compile(optimizer=adamw())
    assert model.get_compile_config()["jit_compile"] == "auto"
    model.compile(optimizer=adamw(), jit_compile=True)
    assert model.get_compile_config()["jit_compile"] is True


@pytest.mark.tensorflow
def test_an_empty_batch_has_no_nan(make_model, images):
    assert float(make_model()(images[:0], seed=0)["loss"]) == 0.0


def train(images, make_model, rematerialize=False, **options):
    """Trains three epochs with plain SGD, which shows a wrong gradient scale."""
    keras.utils.set_random_seed(1)
    model = make_model(seed=2, rematerialize=rematerialize)
    model.compile(optimizer=keras.optimizers.SGD(0.05), **options)
    history = model.fit(images, epochs=3, verbose=0, shuffle=False).history
    return history, [variable.numpy() for variable in model.trainable_variables]


def assert_equal_trainings(one, other, tolerance):
    for name in one[0]:
        np.testing.assert_allclose(other[0][name], one[0][name], rtol=1e-5)
    for wanted, got in zip(one[1], other[1], strict=True):
        np.testing.assert_allclose(got, wanted, atol=tolerance)


def batches(images, size):
    dataset = tf.data.Dataset.from_tensor_slices(images)
    return dataset.batch(size, drop_remainder=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "jit_compile", [False, pytest.param(True, marks=pytest.mark.nightly)]
)
def test_accumulated_parts_are_one_batch(make_model, images, jit_compile):
    whole = train(batches(images, 4), make_model, jit_compile=jit_compile)
    parts = train(
        batches(images, 4), make_model, jit_compile=jit_compile, accumulation_steps=2
    )
    assert_equal_trainings(whole, parts, 1e-6)


def test_a_batch_that_parts_do_not_divide_is_refused(make_model, images):
    of_any_size = tf.data.Dataset.from_tensor_slices(images).batch(4)
    for data in (batches(images, 3), of_any_size):
        if data is of_any_size and keras.backend.backend() != "tensorflow":
            continue  # each batch is looked at there
        with pytest.raises(ValueError, match="divisible by accumulation_steps=2"):
            train(data, make_model, accumulation_steps=2)
    with pytest.raises(ValueError, match=r"at least 1. Received: 0"):
        make_model().compile(accumulation_steps=0)


@pytest.mark.slow
def test_rematerialized_blocks_give_the_same_numbers(make_model, images):
    plain = train(batches(images, 4), make_model)
    again = train(batches(images, 4), make_model, rematerialize=True)
    assert_equal_trainings(plain, again, 1e-6)


@pytest.mark.tensorflow
def test_rematerialized_blocks_are_computed_twice(make_model, images, monkeypatch):
    calls = []
    for remat in (False, True):
        model = make_model(rematerialize=remat)
        block = model.encoder.blocks[0]
        real, count = block.mlp.call, []
        monkeypatch.setattr(
            block.mlp, "call", lambda x, r=real, c=count: c.append(1) or r(x)
        )
        gradients(
            lambda m=model: m(images, seed=0, training=True)["loss"],
            model.trainable_variables,
        )
        calls.append(len(count))
    assert calls == [1, 2]
    outputs = model(images, seed=0, training=True, output_attentions=True)
    assert outputs["attentions"][0].shape == (4, 2, 5, 5)


def test_what_is_drawn_anew_is_not_rematerialized(make_model):
    with pytest.raises(ValueError, match=r"does not support dropout.*dropout_rate=0.1"):
        make_model(rematerialize=True, dropout_rate=0.1)


@pytest.mark.slow
def test_gradients_are_clipped_by_the_norm_of_all_of_them(make_model, images):
    data = batches(images, 4)
    model = make_model()
    before = [variable.numpy() for variable in model.trainable_variables]
    model.compile(optimizer=keras.optimizers.SGD(1.0), clip_norm=0.01)
    norm = model.fit(data, verbose=0).history["gradient_norm"][0]
    assert norm > 0.1  # as it was before clipping
    steps = [
        variable.numpy() - old
        for variable, old in zip(model.trainable_variables, before, strict=True)
    ]
    length = np.sqrt(sum((step**2).sum() for step in steps))
    np.testing.assert_allclose(length, 0.01, rtol=1e-4)
    with pytest.raises(ValueError, match=r"clip_norm must be positive. Received: 0"):
        model.compile(clip_norm=0)


def test_what_compile_was_told_survives_saving(make_model, images, tmp_path):
    model = make_model(rematerialize=True)
    model.compile(optimizer=adamw(), accumulation_steps=2, clip_norm=3.0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert (loaded.accumulation_steps, loaded.clip_norm) == (2, 3.0)
    assert loaded.encoder.rematerialize and loaded.decoder.rematerialize


def operations(graph):
    """Yields every operation of a graph and of the functions that it calls."""
    yield from graph.get_operations()
    definition = graph.as_graph_def(add_shapes=True)
    for function in definition.library.function:
        yield from function.node_def


@pytest.mark.nightly
@pytest.mark.tensorflow
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=pytest.mark.nightly),
        {"accumulation_steps": 2, "clip_norm": 1.0},
    ],
)
def test_the_step_is_what_a_tpu_takes(make_model, images, options):
    model = make_model(rematerialize=True)
    model.compile(optimizer=pretraining_optimizer(1e-3), jit_compile=True, **options)
    model.optimizer.build(model.trainable_variables)
    step = tf.function(model.train_step, jit_compile=True)
    concrete = step.get_concrete_function(tf.TensorSpec((4, 32, 32, 3)))
    # the host would have to be asked in the middle of a step
    names = {getattr(op, "op", None) or op.type for op in operations(concrete.graph)}
    assert not [name for name in names if "PyFunc" in name or "Host" in name]
    for operation in concrete.graph.get_operations():
        for output in operation.outputs:
            # lists of axes are integers, which XLA works out while compiling
            known = output.shape.is_fully_defined() or not output.dtype.is_floating
            assert known, operation.name
    # compiled whole: XLA refuses what it can't compile
    assert np.isfinite(float(step(tf.constant(images))["loss"]))


@pytest.mark.slow
@pytest.mark.tensorflow
def test_a_step_is_traced_once_for_all_epochs(make_model, images, monkeypatch):
    model = make_model()
    traces, real = [], model.train_step
    model.train_step = lambda data: traces.append(1) or real(data)
    model.compile(optimizer=adamw(), jit_compile=True)
    model.optimizer.build(model.trainable_variables)
    model.fit(batches(images, 2), epochs=4, verbose=0)
    assert len(traces) == 1


@pytest.mark.parametrize(
    "name", ["loss", "loss_weights", "metrics", "weighted_metrics"]
)
def test_a_loss_or_metric_in_compile_is_refused(make_model, name):
    with pytest.raises(ValueError, match=f"takes no loss.*'{name}'"):
        make_model().compile(optimizer="adam", **{name: ["mse"]})


def test_images_of_integers_are_warned_of(make_model):
    model = make_model()
    model.compile(optimizer=keras.optimizers.SGD(0.0))
    with pytest.warns(UserWarning, match=r"models take normalized floats.*uint8"):
        model.fit(np.zeros((2, 32, 32, 3), "uint8"), verbose=0)
