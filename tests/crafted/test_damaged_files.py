"""Truncated files, flipped bits, other tensors, and sources that don't exist."""

import os
import random

import numpy as np
import pytest
from safetensors.numpy import save_file

import keras_mae
from keras_mae.weights import export_weights, load_weights
from keras_mae.weights.key_mapping import FACEBOOK
from tests.crafted import forge
from tests.crafted.forge import ARGS, text
from tests.crafted.refusing import refuse


@pytest.mark.parametrize("kind", ["huggingface", "shards", "zip", "legacy"])
def test_the_sound_sources_are_read(kind, write, model, state):
    """Else the refusals below would prove nothing."""
    path = write(kind)
    heads = {"num_heads": 2, "decoder_num_heads": 2} if kind == "shards" else {}
    loaded = keras_mae.MAEPretrainer.from_pretrained(path, **heads)
    for key, value in export_weights(loaded, FACEBOOK).items():
        np.testing.assert_array_equal(value, state[key])


CUTS = ["huggingface/model.safetensors", "huggingface/config.json", "zip/model.pth"]
CUTS += ["shards/b.safetensors", "shards/model.safetensors.index.json"]
CUTS += ["legacy/model.pth", "timm/model.safetensors"]


def spoilt(write, what, change):
    """Changes one file of a sound source; returns the source's path."""
    kind, _, file = what.partition("/")
    path = write(kind)
    spoilt = path.parent / file if path.is_file() else path / file
    spoilt.write_bytes(change(spoilt.read_bytes()))
    return path


@pytest.mark.parametrize("seed", range(7))
@pytest.mark.parametrize("what", CUTS)
def test_files_that_break_off(what, seed, write, model):
    def cut(content):
        whole = content.rstrip()
        # a sixth of the way, two sixths, ..., but for the last byte
        return whole[: min(seed * len(whole) // 6, len(whole) - 1)]

    refuse(model, spoilt(write, what, cut))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("what", CUTS)
def test_flipped_bits_are_an_error_or_stay_numbers(what, seed, write, model):
    """What lies in the data of a tensor can't be seen; no file holds a sum of it."""
    rng = random.Random(f"{what}{seed}")

    def flip(content):
        content = bytearray(content)
        # names and shapes come first, but for zip's own directory
        ends = [min(len(content), 3000), len(content)]
        for _ in range(1 + seed):
            content[rng.randrange(ends[rng.random() < 0.2])] ^= 1 << rng.randrange(8)
        return bytes(content)

    path = spoilt(write, what, flip)
    before = [weight.numpy() for weight in model.weights]
    try:
        load_weights(model, path)
    except ValueError as error:
        assert path.name in str(error)
        for weight, old in zip(model.weights, before, strict=True):
            np.testing.assert_array_equal(weight.numpy(), old)
    else:
        model.set_weights(before)


@pytest.mark.parametrize("kind", ["safetensors", "pickle"])
@pytest.mark.parametrize("seed", range(10))
def test_other_tensors_are_named(seed, kind, state, tmp_path, model):
    rng = random.Random(seed)
    state = dict(state)
    key = rng.choice(sorted(state))
    wrong = rng.choice(["missing", "renamed", "a row more", "whole", "an axis more"])
    value = state.pop(key)
    if wrong == "renamed":
        state[f"{key}.0"] = value
    elif wrong == "a row more":
        state[key] = np.concatenate([value, value[:1]])
    elif wrong == "whole":
        state[key] = value.astype("int64")
    elif wrong == "an axis more":
        state[key] = value[None]
    if kind == "safetensors":
        save_file(state, tmp_path / "model.safetensors")
    else:
        content = forge.state_program(state, text("args") + ARGS)
        storages = forge.storages_of(state)
        forge.write_zip(tmp_path / "model.pth", content, storages)
    refuse(model, tmp_path)


# of a width of a million the first matrix alone would take four terabytes
@pytest.mark.parametrize("key", ["cls_token", "mask_token"])
def test_a_shape_alone_builds_no_model(key, state, tmp_path, model):
    many = {**state, key: np.zeros((1, 1, 10**6), "float32")}
    content = forge.state_program(many, text("args") + ARGS)
    path = tmp_path / "model.pth"
    refuse(model, forge.write_zip(path, content, forge.storages_of(many)))
    with pytest.raises(ValueError, match=r"hidden_dim is 1000000, from \w+_token"):
        keras_mae.MAEPretrainer.from_pretrained(path)


def make_sources(folder):
    """Yields what is no source of weights at all."""
    rng = random.Random(0)
    for size in (1, 8, 9, 100, 10_000):
        path = folder / f"random-{size}.pth"
        path.write_bytes(rng.randbytes(size))
        yield path
    starts = [b"", b"\x80", b"\x80\2", b"PK", b"PK\3\4", b"\x1f\x8b", b"BZh9", b"GGUF"]
    starts += [b"\x89HDF\r\n", b"\x93NUMPY", b"<html>", b"version https://git-lfs"]
    for index, start in enumerate(starts):
        path = folder / f"start-{index}.bin"
        path.write_bytes(start)
        yield path
    (folder / "loop").symlink_to("loop")
    yield folder / "loop"
    (folder / "empty").mkdir()
    yield folder / "empty"
    (folder / "folders" / "model.safetensors").mkdir(parents=True)
    yield folder / "folders"
    (folder / "single" / "vit.pth").mkdir(parents=True)
    yield folder / "single"
    os.mkfifo(folder / "pipe.pth")
    yield folder / "pipe.pth"
    yield folder / "start-0.bin" / "model.pth"
    yield f"{folder}/{'a' * 5000}.pth"
    yield f"{folder}/a\0b.pth"
    if os.path.exists("/proc/self/mem"):
        yield "/proc/self/mem"  # a file that can be opened, and not read


def test_what_is_no_source_at_all(tmp_path, model):
    for source in make_sources(tmp_path):
        refuse(model, source)
