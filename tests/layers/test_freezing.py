"""`part.trainable = False` survives saving, cloning and copying, with its optimizer."""

import copy

import keras
import numpy as np
import pytest

import keras_mae

pytestmark = pytest.mark.backends

CHOICES = {
    "block": lambda model: model.encoder.blocks[0],
    "attention": lambda model: model.encoder.blocks[1].attention,
    "norm": lambda model: model.encoder.norm,
    "projection": lambda model: model.encoder.patch_embedding.projection,
    "head": lambda model: model.head,
    "mlp": lambda model: model.encoder.blocks[1].mlp.fc1,
}


def make_classifier(make_model):
    return keras_mae.MAEClassifier(make_model().encoder, 3, pooling="cls")


def states(model):
    """Lists which layers are trainable, in the order of the model's parts."""
    return [layer.trainable for layer in model._flatten_layers()]


def copies(model, folder):
    """Yields copies of a model by each of Keras's ways."""
    model.save(folder / "model.keras")
    yield keras.models.load_model(folder / "model.keras")
    yield copy.deepcopy(model)
    yield keras.models.clone_model(model)
    yield type(model).from_config(model.get_config())


@pytest.mark.parametrize("name", CHOICES)
def test_a_frozen_part_stays_frozen(make_model, tmp_path, name):
    model = make_classifier(make_model)
    CHOICES[name](model).trainable = False
    assert False in states(model)
    for made in copies(model, tmp_path):
        assert states(made) == states(model)
        assert len(made.trainable_weights) == len(model.trainable_weights)


def test_a_trainable_part_of_a_frozen_one_stays_trainable(make_model, tmp_path):
    model = make_model()
    model.encoder.blocks[0].trainable = False
    model.encoder.blocks[0].norm1.trainable = True
    model.decoder.trainable = False
    for made in copies(model, tmp_path):
        assert states(made) == states(model)


@pytest.mark.slow
def test_the_optimizer_of_a_partly_frozen_model_comes_back(make_model, tmp_path):
    model = make_classifier(make_model)
    model.encoder.blocks[0].attention.trainable = False
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(1e-3), loss=loss)
    images = np.random.default_rng(0).standard_normal((4, 32, 32, 3)).astype("float32")
    model.fit(images, np.array([0, 1, 2, 0]), verbose=0)
    model.save(tmp_path / "model.keras")
    made = keras.models.load_model(tmp_path / "model.keras")
    for ours, theirs in zip(
        made.optimizer.variables, model.optimizer.variables, strict=True
    ):
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(ours), keras.ops.convert_to_numpy(theirs)
        )


def test_a_layer_that_a_subclass_adds_stays_frozen(make_model, tmp_path):
    @keras.saving.register_keras_serializable(package="test_freezing")
    class Rotation(keras_mae.MAEClassifier):
        def __init__(self, encoder, num_classes, **kwargs):
            super().__init__(encoder, num_classes, **kwargs)
            self.angle = keras.layers.Dense(1)
            self.angle.build((None, encoder.hidden_dim))

    model = Rotation(make_model().encoder, 3)
    model.angle.trainable = False
    for made in copies(model, tmp_path):
        assert not made.angle.trainable and made.head.trainable


def test_an_unknown_part_is_named(make_model):
    config = {**make_model().encoder.get_config(), "frozen": ["blocks.7"]}
    with pytest.raises(ValueError, match=r"frozen must name parts.*blocks\.7"):
        keras_mae.MAEEncoder.from_config(config)


def test_a_block_of_its_own_keeps_them():
    block = keras_mae.layers.TransformerBlock(8, num_heads=2, mlp_dim=16)
    block.attention.trainable = False
    made = keras_mae.layers.TransformerBlock.from_config(block.get_config())
    assert not made.attention.trainable and made.mlp.trainable
