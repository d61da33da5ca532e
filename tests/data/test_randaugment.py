"""RandAugment: Pillow's operations, drawn as timm draws them, decided by the seed."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from keras_mae.data import randaugment
from keras_mae.data.randaugment import OPS, rand_augment

skimage = pytest.importorskip("skimage")

MOVING = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")
STEADY = [name for name in OPS if name not in MOVING]
# in this order no two sides, levels or signs can be exchanged unnoticed
SIZE = (128, 96)


def photograph(mode="RGB"):
    photo = Image.fromarray(skimage.data.chelsea()).convert(mode)
    return photo.resize(SIZE, Image.Resampling.BICUBIC)


def pixels(image):
    levels = np.asarray(image, "float32")
    return levels[..., None] if levels.ndim == 2 else levels


def posterized(image, level):
    bits = 4 - int(level * 4)
    return ImageOps.posterize(image, bits) if bits else Image.new(image.mode, SIZE)


def brighter(image, level):
    added = [i + int(level * 110) if i < 128 else i for i in range(256)]
    return image.point(np.minimum(added, 255).tolist() * len(image.getbands()))


def by_pillow(name, image, level, sign):
    """What timm's operation of this name does, told by its facts."""
    fill = (124, 116, 104) if image.mode == "RGB" else 117
    factor = max(0.1, 1 + sign * 0.9 * level)
    shift, shear = sign * 0.45 * level, sign * 0.3 * level
    width, height = image.size

    def moved(*matrix):
        how = (Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
        return image.transform(image.size, *how, fillcolor=fill)

    def enhanced(kind):
        return kind(image).enhance(factor)

    return {
        "AutoContrast": lambda: ImageOps.autocontrast(image),
        "Equalize": lambda: ImageOps.equalize(image),
        "Invert": lambda: ImageOps.invert(image),
        "Rotate": lambda: image.rotate(
            sign * 30 * level, Image.Resampling.BILINEAR, fillcolor=fill
        ),
        "PosterizeIncreasing": lambda: posterized(image, level),
        "SolarizeIncreasing": lambda: ImageOps.solarize(image, 256 - int(level * 256)),
        "SolarizeAdd": lambda: brighter(image, level),
        "ColorIncreasing": lambda: enhanced(ImageEnhance.Color),
        "ContrastIncreasing": lambda: enhanced(ImageEnhance.Contrast),
        "BrightnessIncreasing": lambda: enhanced(ImageEnhance.Brightness),
        "SharpnessIncreasing": lambda: enhanced(ImageEnhance.Sharpness),
        "ShearX": lambda: moved(1, shear, 0, 0, 1, 0),
        "ShearY": lambda: moved(1, 0, 0, shear, 1, 0),
        "TranslateXRel": lambda: moved(1, 0, shift * width, 0, 1, 0),
        "TranslateYRel": lambda: moved(1, 0, 0, 0, 1, shift * height),
    }[name]()


def both(name, level, sign, mode="RGB"):
    photo = photograph(mode)
    got = OPS[name](tf.constant(pixels(photo)), tf.constant(level), float(sign)).numpy()
    assert got.shape == pixels(photo).shape and got.dtype == np.float32
    np.testing.assert_array_equal(got, np.clip(np.rint(got), 0, 255))
    return got, pixels(by_pillow(name, photo, level, sign))


def drawn(count, **options):
    """What a pixel of zeros becomes under `count` seeds."""
    pixel = tf.zeros((1, 1, 3))
    dataset = tf.data.Dataset.range(count).map(
        lambda i: rand_augment(
            pixel, tf.stack([tf.constant(5, tf.int64), i]), **options
        )
    )
    return np.concatenate(list(dataset.batch(count).as_numpy_iterator()))[:, 0, 0]


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("name", STEADY)
def test_operations_on_levels_are_pillows(name, mode):
    for level in (0.0, 0.37, 0.9, 1.0):
        for sign in (-1, 1):
            got, wanted = both(name, level, sign, mode)
            difference = np.abs(got - wanted)
            assert difference.max() <= 1 and difference.mean() < 0.05, (level, sign)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("name", MOVING)
def test_operations_on_places_are_pillows_but_for_the_edge(name, mode):
    for level in (0.0, 0.37, 0.9, 1.0):
        for sign in (-1, 1):
            got, wanted = both(name, level, sign, mode)
            difference = np.abs(got - wanted)
            assert difference.mean() < 0.3, (level, sign)
            assert np.mean(difference > 1) < 0.02, (level, sign)


def test_images_of_few_levels_stay_what_they_are():
    flat = tf.fill((20, 20, 3), 77.0)
    two = tf.concat([tf.zeros((4, 4, 1)), tf.fill((4, 4, 1), 9.0)], axis=0)
    for name, image in [("AutoContrast", flat), ("Equalize", flat), ("Equalize", two)]:
        np.testing.assert_array_equal(OPS[name](image, 0.9, 1.0), image)
    np.testing.assert_array_equal(OPS["Rotate"](flat, 0.0, 1.0), flat)


def test_each_operation_is_drawn_equally_often(monkeypatch):
    def telling(number):
        return lambda image, level, sign: tf.stack([number, level, sign])[None, None]

    told = {name: telling(float(n)) for n, name in enumerate(OPS, start=1)}
    monkeypatch.setattr(randaugment, "OPS", told)
    numbers, levels, signs = drawn(4000, num_ops=1).T
    applied = numbers > 0
    assert abs(applied.mean() - 0.5) < 0.02
    counts = np.bincount(numbers[applied].astype(int), minlength=16)[1:]
    # 15 operations share 2000 draws: 133 each, and a deviation of 11
    assert counts.sum() == applied.sum() and 85 < counts.min() <= counts.max() < 185
    assert abs(signs[applied].mean()) < 0.06 and set(signs[applied]) == {-1, 1}
    levels = levels[applied]
    assert abs(levels.mean() - 0.9) < 0.01 and abs(levels.std() - 0.05) < 0.01
    assert levels.max() == 1 and 0.01 < np.mean(levels == 1) < 0.04


def test_draws_of_one_image_are_independent_and_with_replacement(monkeypatch):
    def counting(number):
        return lambda image, level, sign: image * 16 + number

    told = {name: counting(float(n)) for n, name in enumerate(OPS, start=1)}
    monkeypatch.setattr(randaugment, "OPS", told)
    first, second = np.divmod(drawn(2500)[:, 0], 16)
    assert abs(np.mean((first == 0) & (second == 0)) - 0.25) < 0.03
    twice = (first > 0) & (second > 0)
    assert abs(twice.mean() - 0.25) < 0.03
    assert abs(np.mean(first[twice] == second[twice]) - 1 / 15) < 0.03


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_seed_decides_in_parallel_and_in_a_graph_too(mode):
    photo = tf.constant(pixels(photograph(mode)))
    seeds = [[7, i] for i in range(8)]
    dataset = tf.data.Dataset.from_tensor_slices(tf.constant(seeds, tf.int64))
    dataset = dataset.map(lambda seed: rand_augment(photo, seed), num_parallel_calls=3)
    assert dataset.element_spec.shape == photo.shape
    images = list(dataset.as_numpy_iterator())
    assert len({image.tobytes() for image in images}) > 4
    for image, seed in zip(images, seeds, strict=True):
        np.testing.assert_array_equal(image, rand_augment(photo, seed))
        assert image.min() >= 0 and image.max() <= 255


def test_magnitude_0_changes_only_what_has_no_magnitude(monkeypatch):
    photo = pixels(photograph())
    graded = {name: OPS[name] for name in STEADY[5:] + list(MOVING)}
    monkeypatch.setattr(randaugment, "OPS", graded)
    for i in range(8):
        image = rand_augment(photo, [0, i], magnitude=0, magnitude_std=0.0)
        np.testing.assert_array_equal(image, photo)


def test_other_images_and_magnitudes_are_refused():
    with pytest.raises(ValueError, match=r"1 or 3 channels. Received: shape \(8, 8, 4"):
        rand_augment(np.zeros((8, 8, 4), "float32"), [0, 0])
    photo = np.zeros((8, 8, 3), "float32")
    for options in ({"magnitude": 11}, {"magnitude_std": -1.0}, {"num_ops": -1}):
        with pytest.raises(ValueError, match=r"magnitude must be in \[0, 10\].* Rec"):
            rand_augment(photo, [0, 0], **options)
