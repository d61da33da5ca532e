"""Crafted HDF5: links to elsewhere, other storage, bombs, and damaged bytes."""

import random

import h5py
import numpy as np
import pytest

import keras_mae
from keras_mae.weights import export_weights, load_weights
from keras_mae.weights.key_mapping import FACEBOOK, HUGGINGFACE_TENSORFLOW
from tests.crafted.refusing import refuse

BETA = "vit/tf_vi_tmae_for_pre_training/vit/layernorm/beta:0"


@pytest.fixture
def folder(model, saved, tmp_path):
    """What the TensorFlow class would have written of the model."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "config.json").write_bytes(saved["huggingface"]["config.json"])
    with h5py.File(folder / "tf_model.h5", "w") as file:
        for key, value in export_weights(model, HUGGINGFACE_TENSORFLOW).items():
            layer = key.partition("/")[0]
            file[f"{layer}/tf_vi_tmae_for_pre_training/{key}"] = value
        file.create_group("top_level_model_weights")
        file.attrs["backend"] = b"tensorflow"
    return folder


def test_the_sound_file_is_read(folder, state):
    """Else the refusals below would prove nothing."""
    loaded = keras_mae.MAEPretrainer.from_pretrained(folder)
    for key, value in export_weights(loaded, FACEBOOK).items():
        np.testing.assert_array_equal(value, state[key])


def replaced(file, *arguments, **options):
    """Puts another dataset in the place of a vector of 16."""
    del file[BETA]
    return file.create_dataset(BETA, *arguments, **options)


def elsewhere(file):
    """A sound file beside it, whose values are as good."""
    path = f"{file.filename}.other"
    with h5py.File(path, "w") as other:
        other[BETA] = np.zeros(16, "float32")
    return path


def soft_link(file):
    del file[BETA]
    file[BETA] = h5py.SoftLink(BETA.replace("beta", "gamma"))


def external_link(file):
    path = elsewhere(file)
    del file[BETA]
    file[BETA] = h5py.ExternalLink(path, BETA)


def external_link_for_a_group(file):
    del file["vit"]
    file["vit"] = h5py.ExternalLink(elsewhere(file), "vit")


def external_link_to_a_device(file):
    del file["top_level_model_weights"]
    file["top_level_model_weights"] = h5py.ExternalLink("/dev/zero", "a")


def external_storage(file):
    path = f"{file.filename}.raw"
    np.zeros(16, "float32").tofile(path)
    replaced(file, (16,), "float32", external=[(path, 0, 64)])


def virtual(file):
    layout = h5py.VirtualLayout((16,), "float32")
    layout[:] = h5py.VirtualSource(elsewhere(file), BETA, (16,))
    del file[BETA]
    file.create_virtual_dataset(BETA, layout)


def compact(file):
    kind = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    kind.set_layout(h5py.h5d.COMPACT)
    del file[BETA]
    space = h5py.h5s.create_simple((16,))
    h5py.h5d.create(file.id, BETA.encode(), h5py.h5t.IEEE_F32LE, space, kind)


def never_written(file):
    # ten terabytes of which none is in the file
    replaced(file, (2_500_000_000_000,), "float32")


def compressed_bomb(file):
    replaced(file, (2**28,), "float32", chunks=(2**20,), compression="gzip")


def one_dataset_by_many_names(file):
    """Fifty keys of the largest dataset's bytes."""
    for index in range(50):
        name = f"top_level_model_weights/bomb{index}:0"
        file[name] = file["vit/tf_vi_tmae_for_pre_training/vit/embeddings/"
                          "patch_embeddings/projection/kernel:0"]  # fmt: skip


def deep(file):
    file["top_level_model_weights"].create_group("/".join("a" * 2000))


def a_group_in_itself(file):
    file["top_level_model_weights/again"] = file["top_level_model_weights"]


def the_root_in_itself(file):
    for name in ("one", "two"):
        file[f"top_level_model_weights/{name}"] = file["/"]


def many_groups(file):
    for index in range(10_001):
        file["top_level_model_weights"].create_group(str(index))


def many_long_names(file):
    for index in range(200):
        file[f"top_level_model_weights/{index}{'a' * 60_000}"] = np.zeros(1, "float32")


def a_type_with_a_name(file):
    file["top_level_model_weights/type"] = np.dtype("float32")


def odd_floats(file):
    """A float of 32 bits, 20 of them an exponent."""
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_fields(31, 11, 20, 0, 11)
    del file[BETA]
    space = h5py.h5s.create_simple((16,))
    h5py.h5d.create(file.id, BETA.encode(), kind, space).write(
        h5py.h5s.ALL, h5py.h5s.ALL, np.zeros(16, "float32"), kind
    )


ZEROS = np.zeros(16, "float32")
SPOILS = [
    soft_link, external_link, external_link_for_a_group, external_link_to_a_device,
    external_storage, virtual, compact, never_written, compressed_bomb,
    one_dataset_by_many_names, deep, a_group_in_itself, the_root_in_itself, many_groups,
    many_long_names, a_type_with_a_name, odd_floats,
]  # fmt: skip
DATASETS = {
    "in chunks": {"data": ZEROS, "chunks": (4,)},
    "compressed": {"data": ZEROS, "compression": "gzip"},
    "shuffled": {"data": ZEROS, "shuffle": True},
    "with sums": {"data": ZEROS, "fletcher32": True},
    "growing": {"data": ZEROS, "maxshape": (None,)},
    "whole numbers": {"data": ZEROS.astype("int32")},
    "the other end first": {"data": ZEROS.astype(">f4")},
    "of long floats": {"data": ZEROS.astype("longdouble")},
    "complex": {"data": ZEROS.astype("complex64")},
    "truth": {"data": ZEROS.astype("bool")},
    "text": {"data": "16"},
    "texts": {"data": ["a"] * 16, "dtype": h5py.string_dtype()},
    "rows": {"shape": (16,), "dtype": h5py.vlen_dtype("float32")},
    "records": {"data": np.zeros(16, [("a", "f4")])},
    "empty": {"data": h5py.Empty("float32")},
    "a number": {"data": np.float32(1)},
    "none": {"shape": (0,), "dtype": "float32"},
    "32 axes": {"data": ZEROS[:1].reshape((1,) * 32)},
}


@pytest.mark.parametrize("spoil", SPOILS, ids=lambda spoil: spoil.__name__)
def test_what_no_class_writes_is_refused(spoil, folder, model):
    with h5py.File(folder / "tf_model.h5", "r+") as file:
        spoil(file)
    refuse(model, folder)


@pytest.mark.parametrize("kind", DATASETS)
def test_other_datasets_are_refused(kind, folder, model):
    with h5py.File(folder / "tf_model.h5", "r+") as file:
        replaced(file, **DATASETS[kind])
    refuse(model, folder)


def test_attributes_are_not_read(folder, state):
    """Keras's own names stand in them, and in those of strangers anything."""
    with h5py.File(folder / "tf_model.h5", "r+", libver="latest") as file:
        file.attrs["layer_names"] = ["../../etc/passwd"]
        file.attrs["many"] = np.zeros(15_000, "float32")
        file["vit"].attrs["link"] = file.ref
    loaded = keras_mae.MAEPretrainer.from_pretrained(folder)
    for key, value in export_weights(loaded, FACEBOOK).items():
        np.testing.assert_array_equal(value, state[key])


@pytest.mark.parametrize("part", range(8))
def test_files_that_break_off(part, folder, model):
    path = folder / "tf_model.h5"
    content = path.read_bytes()
    path.write_bytes(content[: min(part * len(content) // 7, len(content) - 1)])
    refuse(model, folder)


@pytest.mark.parametrize("seed", range(12))
def test_flipped_bits_are_an_error_or_stay_numbers(seed, folder, model):
    rng = random.Random(seed)
    path = folder / "tf_model.h5"
    content = bytearray(path.read_bytes())
    for _ in range(1 + seed):
        end = 3000 if rng.random() < 0.7 else len(content)
        content[rng.randrange(end)] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    before = [weight.numpy() for weight in model.weights]
    try:
        load_weights(model, folder)
    except ValueError as error:
        assert folder.name in str(error)
        for weight, old in zip(model.weights, before, strict=True):
            np.testing.assert_array_equal(weight.numpy(), old)
    else:
        model.set_weights(before)
