"""Crops, flips, pixel operations, RandAugment and erasing, beside MindSpore's own operators and plain numpy."""

from __future__ import annotations

import io
import math
from collections import Counter
from typing import Any

import cv2
import numpy as np
import pytest
from mindspore.dataset import vision
from PIL import Image
from sklearn.datasets import load_sample_image

from jobs.errors import SpecError
from rexnet.data import pixels
from rexnet.data.augment import EvalTransform, Normalise, TrainTransform, erase, jitter
from rexnet.data.crop import INTERPOLATION, Box, centre_crop, random_box, random_crop
from rexnet.data.decode import CorruptImage, decode
from rexnet.data.keyed import Domain, Draws, keyed
from rexnet.data.randaug import RandAugment, parse_randaug
from rexnet.data.slide import num_runs, slide_rows
from rexnet.recipe import load_recipe, make_recipe

Array = np.ndarray[Any, Any]
MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
FILL = (124, 116, 104)  # MEAN, rounded
CUBIC: dict[str, Any] = {"resample": vision.Inter.BICUBIC, "fill_value": FILL}
TURNING = {**CUBIC, "fill_value": FILL[::-1]}  # MindSpore's rotation, and it alone, takes the colour as BGR
SIGNS = (0, 2)  # keys whose first draw gives either sign
OURS = (INTERPOLATION["bicubic"], FILL)


@pytest.fixture(scope="module")
def image() -> Array:
    """A real photograph, small and of odd shape."""
    small = Image.fromarray(load_sample_image("china.jpg")).resize((97, 63))
    return np.asarray(small)


def draws(number: int = 0) -> Draws:
    return Draws(keyed(Domain.AUGMENT, 1, 2, number))


def encoded(image: Array, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind, **options)
    return stream.getvalue()


def differences(ours: Array, reference: Array) -> Array:
    assert ours.dtype == reference.dtype == np.uint8 and ours.shape == reference.shape
    return np.asarray(np.abs(ours.astype(int) - reference))


# -- single operations


@pytest.mark.parametrize(
    ("ours", "reference"),
    [
        (pixels.auto_contrast, vision.AutoContrast()),
        (pixels.equalize, vision.Equalize()),
        (pixels.invert, vision.Invert()),
    ],
)
def test_operation_without_magnitude_is_mindspores(image: Array, ours: Any, reference: Any) -> None:
    dull = (image // 2 + 40).astype(np.uint8)
    for case in (image, dull, np.full_like(image, 77)):
        before = case.copy()
        assert differences(ours(case), reference(case)).max() <= (ours is pixels.auto_contrast)
        assert np.array_equal(case, before)


@pytest.mark.parametrize("factor", [0.0, 0.1, 0.62, 1.0, 1.38, 1.9])
def test_blend_is_mindspores(image: Array, factor: float) -> None:
    pairs = [
        (pixels.brightness, vision.RandomColorAdjust(brightness=(factor, factor))),
        (pixels.contrast, vision.RandomColorAdjust(contrast=(factor, factor))),
        (pixels.colour, vision.RandomColor(degrees=(factor, factor))),
        (pixels.sharpness, vision.RandomSharpness(degrees=(factor, factor))),
    ]
    for ours, reference in pairs:
        off = differences(ours(image, factor), reference(image))
        assert off.max() <= 1 and off.mean() < 0.05, ours


@pytest.mark.parametrize("threshold", [0, 25, 128, 229, 255])
def test_solarize_is_mindspores(image: Array, threshold: int) -> None:
    reference = vision.RandomSolarize(threshold=(threshold, threshold))(image)
    assert differences(pixels.solarize(image, threshold), reference).max() == 0


@pytest.mark.parametrize("bits", [1, 4, 5, 8])
def test_posterize_is_mindspores(image: Array, bits: int) -> None:
    assert differences(pixels.posterize(image, bits), vision.RandomPosterize(bits=(bits, bits))(image)).max() == 0


@pytest.mark.parametrize("degrees", [0.27, -0.27, 12.0])
def test_shear_is_mindspores(image: Array, degrees: float) -> None:
    across = vision.RandomAffine(degrees=0, shear=(-degrees, -degrees), **CUBIC)(image)
    assert differences(pixels.shear_x(image, degrees, *OURS), across).mean() < 0.02
    down = vision.RandomAffine(degrees=0, shear=(0, 0, -degrees, -degrees), **CUBIC)(image)
    assert differences(pixels.shear_y(image, degrees, *OURS), down).mean() < 0.02


@pytest.mark.parametrize("part", [0.405, -0.2, 0.013])
@pytest.mark.parametrize("name", ["nearest", "bilinear", "bicubic"])
def test_translation_is_mindspores(image: Array, part: float, name: str) -> None:
    kind = {"resample": vision.Inter[name.upper()], "fill_value": FILL}
    height, width = image.shape[:2]
    across = vision.RandomAffine(degrees=0, translate=(part, part), **kind)(image)
    ours = pixels.translate_x(image, part * width, INTERPOLATION[name], FILL)
    off = differences(ours, across)
    assert off.mean() < 0.05 and off.max() <= 1
    down = vision.RandomAffine(degrees=0, translate=(0, 0, part, part), **kind)(image)
    ours = pixels.translate_y(image, part * height, INTERPOLATION[name], FILL)
    off = differences(ours, down)
    assert off.mean() < 0.05 and off.max() <= 1


@pytest.mark.parametrize("offset", [0.0, 5.0, -0.4, 17.31, 96.9, -200.0])
def test_sliding_by_one_offset_is_opencvs_bicubic_warp(image: Array, offset: float) -> None:
    height, width = image.shape[:2]
    matrix = np.array([[1, 0, offset], [0, 1, 0]])
    warped = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_CUBIC, borderValue=FILL)
    off = differences(slide_rows(image, np.full(height, offset), FILL), warped)
    assert off.max() <= 1 and off.mean() < 0.05


def test_sliding_moves_each_row_by_its_own_offset(image: Array) -> None:
    offsets = np.arange(image.shape[0]) // 10 - 3.0
    slid = slide_rows(image, offsets, FILL)
    for row, moved, offset in zip(image, slid, offsets.astype(int), strict=True):
        kept = slice(max(offset, 0), len(row) + min(offset, 0))
        assert np.array_equal(moved[kept], row[max(-offset, 0) : len(row) - max(offset, 0)])
        uncovered = np.delete(moved, np.r_[kept], axis=0)
        assert (uncovered == FILL).all()
    assert num_runs(offsets) == 7


@pytest.mark.parametrize("degrees", [27.0, -13.5])
def test_rotation_is_mindspores_but_for_rounded_positions(image: Array, degrees: float) -> None:
    reference = vision.RandomRotation(degrees=(degrees, degrees), **TURNING)(image)
    off = differences(pixels.rotate(image, degrees, *OURS), reference)
    assert off.mean() < 0.1  # turned the other way it is about 60


def test_shift_moves_whole_pixels_and_brings_in_black(image: Array) -> None:
    moved = pixels.shift(image, 3, -2)
    assert np.array_equal(moved[:-2, 3:], image[2:, :-3])
    assert not moved[-2:].any() and not moved[:, :3].any()
    assert np.array_equal(pixels.shift(image, 0, 0), image)


# -- RandAugment


def policy(text: str = "randaug-m9-mstd0.5") -> RandAugment:
    return parse_randaug(text, mean=MEAN, interpolation="bicubic")


def test_the_cards_string_is_understood() -> None:
    card = policy()
    assert (card.magnitude, card.num_layers, card.deviation, card.maximum) == (9, 2, 0.5, 10)
    assert len(card.operations) == 14 and not card.weighted and card.fill == FILL


def test_every_part_of_the_string_is_understood() -> None:
    full = policy("randaug-w0-inc1-m7-n3-mstd101-mmax8")
    assert (full.magnitude, full.num_layers, full.deviation, full.maximum) == (7, 3, float("inf"), 8)
    assert full.weighted and "SolarizeIncreasing" in full.operations and "Solarize" not in full.operations
    assert policy("randaug") == policy("randaug-m10-n2-mstd0.5-mmax10-inc0")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("autoaug-mstd0.5", "autoaug"), ("randaug-x3", "x3"), ("randaug-m", "m"), ("randaug-w1", "w1"),
        ("randaug-inc2", "inc2"), ("randaug-n0", "n0"), ("randaug-n1.5", "n1.5"), ("randaug-w0-n14", "n14"),
        ("randaug-m9-", "''"), ("randaug-p0.3", "p0.3"), ("randaug-mmax0", "mmax0"), ("randaugment", "randaugment"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_by_name(text: str, named: str) -> None:
    with pytest.raises(SpecError, match="auto_augment") as caught:
        policy(text)
    assert named in str(caught.value)


def reference_operation(name: str, level: float, sign: float, image: Array) -> Array:
    """The operation as MindCV hands it to MindSpore's operators at that magnitude (auto_augment.py, v0.5.0)."""
    share = level / 10
    blend = {
        "Contrast": lambda f: vision.RandomColorAdjust(contrast=(f, f)),
        "Brightness": lambda f: vision.RandomColorAdjust(brightness=(f, f)),
        "Color": lambda f: vision.RandomColor(degrees=(f, f)),
        "Sharpness": lambda f: vision.RandomSharpness(degrees=(f, f)),
    }
    kind = name.removesuffix("Increasing")
    grows = name != kind
    if kind in blend:
        operator = blend[kind](max(0.1, 1 + sign * share * 0.9) if grows else share * 1.8 + 0.1)
    elif kind == "Posterize":
        kept = 4 - int(share * 4) if grows else int(share * 4)
        operator = vision.RandomPosterize(bits=(max(8 - kept, 1),) * 2)
    elif kind == "Solarize":
        threshold = 255 - int(share * 255) if grows else int(share * 255)
        operator = vision.RandomSolarize(threshold=(threshold, threshold))
    elif kind == "Rotate":
        operator = vision.RandomRotation(degrees=(sign * share * 30,) * 2, **TURNING)
    elif kind in ("ShearX", "ShearY"):
        slope = sign * share * 0.3
        shear = (-slope, -slope) if kind == "ShearX" else (0, 0, -slope, -slope)
        operator = vision.RandomAffine(degrees=0, shear=shear, **CUBIC)
    elif kind in ("TranslateX", "TranslateY"):
        part = sign * share * 0.45
        operator = vision.RandomAffine(
            degrees=0, translate=(part, part) if kind == "TranslateX" else (0, 0, part, part), **CUBIC
        )
    else:
        operator = {"AutoContrast": vision.AutoContrast, "Equalize": vision.Equalize, "Invert": vision.Invert}[kind]()
    return np.asarray(operator(image))


@pytest.mark.parametrize("increasing", [0, 1])
@pytest.mark.parametrize("level", [0.0, 3.3, 9.0, 10.0])
def test_each_operation_at_a_level_is_what_mindcv_does(image: Array, level: float, increasing: int) -> None:
    chosen = policy(f"randaug-inc{increasing}")
    for name in chosen.operations:
        for number in SIGNS:
            sign = -1.0 if draws(number).uniform() < 0.5 else 1.0
            ours = chosen.apply(name, image, level, draws(number))
            assert differences(ours, reference_operation(name, level, sign, image)).mean() < 0.5, name
    assert {draws(number).uniform() < 0.5 for number in SIGNS} == {True, False}  # both signs were seen


def counted(chosen: RandAugment, number: int) -> Counter[str]:
    return Counter(name for i in range(number) for name in chosen._choose(draws(i)))


def test_operations_are_chosen_evenly_or_by_weight_without_repetition() -> None:
    even = counted(policy(), 4000)
    assert len(even) == 14 and min(even.values()) > 470 and max(even.values()) < 680  # 571 expected
    by_weight = policy("randaug-w0-n3")
    assert all(len(set(by_weight._choose(draws(i)))) == 3 for i in range(300))
    weighted = counted(policy("randaug-w0-n1"), 4000)
    assert 1080 < weighted["Rotate"] < 1320 and weighted["Invert"] == 0 and weighted["ShearX"] > 680


def test_levels_follow_the_normal_distribution_within_their_bounds() -> None:
    levels = [policy()._level(draws(i)) for i in range(2000)]
    assert abs(np.mean(levels) - 9) < 0.05 and max(levels) <= 10
    uniform = [policy("randaug-m8-mstd101")._level(draws(i)) for i in range(2000)]
    assert abs(np.mean(uniform) - 4) < 0.2 and max(uniform) < 8
    assert policy("randaug-m9-mstd0")._level(draws()) == 9
    assert policy("randaug-m30-mstd0-mmax12")._level(draws()) == 12


def test_a_quarter_of_the_images_pass_through_two_operations_untouched(image: Array) -> None:
    same = sum(policy()(image, draws(i)) is image for i in range(2000))
    assert 430 < same < 570


def test_shift_and_jitter_stay_within_their_bounds() -> None:
    gray = np.full((4, 4, 3), 100, np.uint8)
    values = [int(jitter(gray, 0.4, draws(i))[0, 0, 0]) for i in range(300)]  # brightness is all that shows on gray
    assert min(values) >= 60 and max(values) <= 140 and min(values) < 70 and max(values) > 130


# -- crops


def test_random_boxes_stay_inside_and_have_the_area_and_shape_asked_for() -> None:
    shares, aspects = [], []
    for i in range(3000):
        top, left, height, width = random_box(400, 500, (0.08, 1.0), (0.75, 1.333), draws(i))
        assert top >= 0 and left >= 0 and top + height <= 400 and left + width <= 500 and min(height, width) > 0
        shares.append(height * width / 200_000)
        aspects.append(width / height)
    assert 0.075 < min(shares) < 0.1 and max(shares) > 0.9
    assert 0.43 < np.mean(shares) < 0.5  # less than 0.54, since the largest fit less often
    assert min(aspects) > 0.74 and max(aspects) < 1.35
    small = [random_box(400, 500, (0.08, 0.2), (0.75, 1.333), draws(i)) for i in range(3000)]
    assert abs(np.mean([math.log(box.width / box.height) for box in small])) < 0.02
    assert abs(np.mean([box.height * box.width / 200_000 for box in small]) - 0.14) < 0.003
    assert abs(np.mean([box.left / (500 - box.width) for box in small]) - 0.5) < 0.02


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [(8, 8, Box(0, 0, 8, 8)), (300, 400, Box(0, 0, 300, 400)), (100, 400, Box(0, 134, 100, 133)),
     (400, 100, Box(134, 0, 133, 100)), (1, 1, Box(0, 0, 1, 1))],
)  # fmt: skip
def test_what_never_fits_is_the_largest_box_in_the_centre(height: int, width: int, box: Box) -> None:
    assert random_box(height, width, (1, 1), (0.75, 1.333), draws()) == box
    assert random_box(height, width, (30.0, 40.0), (0.75, 1.333), draws()) == box  # ten attempts in vain


def test_a_large_jpeg_is_decoded_small_and_the_crop_is_the_same_part(monkeypatch: pytest.MonkeyPatch) -> None:
    photo = np.asarray(Image.fromarray(load_sample_image("flower.jpg")).resize((1200, 900)))
    data = encoded(photo, "JPEG", quality=95)
    reduced: list[int] = []

    def watched(data: bytes, *, reduce: int = 1) -> Array:
        reduced.append(reduce)
        return decode(data, reduce=reduce)

    monkeypatch.setattr("rexnet.data.crop.decode", watched)
    for number in range(12):
        small = random_crop(
            data, size=64, scale=(0.05, 0.8), ratio=(0.75, 1.333), interpolation="bilinear", draws=draws(number)
        )
        top, left, height, width = random_box(900, 1200, (0.05, 0.8), (0.75, 1.333), draws(number))
        by = reduced[-1]
        assert min(height, width) >= by * 64 and (by == 8 or min(height, width) < by * 2 * 64)
        box = (left, top, left + width, top + height)
        exact = Image.fromarray(photo).resize((64, 64), Image.Resampling.BOX, box=box)
        assert np.abs(small.astype(int) - np.asarray(exact)).mean() < 8
    assert len(set(reduced)) >= 3


@pytest.mark.parametrize("name", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(90, 140), (140, 90), (50, 50), (64, 64)])
@pytest.mark.parametrize("crop_pct", [0.875, 1.0])
def test_the_centre_crop_is_mindspores(name: str, shape: tuple[int, int], crop_pct: float) -> None:
    photo = np.asarray(Image.fromarray(load_sample_image("china.jpg")).resize(shape[::-1]))
    data = encoded(photo)
    reference = np.frombuffer(data, np.uint8)
    for operator in (
        vision.Decode(),
        vision.Resize(math.floor(64 / crop_pct), vision.Inter[name.upper()]),
        vision.CenterCrop(64),
    ):
        reference = operator(reference)
    ours = centre_crop(data, size=64, crop_pct=crop_pct, interpolation=name)
    off = differences(ours, reference)
    assert off.mean() < 0.2 and off.max() <= 2  # the two builds of OpenCV round differently


def test_at_crop_1_a_square_image_is_seen_whole() -> None:
    square = np.random.default_rng(0).integers(0, 255, (24, 24, 3), np.uint8)
    assert np.array_equal(centre_crop(encoded(square), size=24, crop_pct=1.0, interpolation="bicubic"), square)


# -- whole transforms


def test_normalising_is_exact_and_channel_first(image: Array) -> None:
    std = (58.395, 57.12, 57.375)
    out = np.full((3, *image.shape[:2]), np.nan, np.float32)
    Normalise(MEAN, std)(image, out)
    expected = (image.astype(np.float32) - np.array(MEAN, np.float32)) / np.array(std, np.float32)
    assert np.array_equal(out, expected.transpose(2, 0, 1))


@pytest.mark.parametrize("value", ["random", 0, 7])
def test_erasing_fills_one_box_of_the_area_and_shape_asked_for(value: str | int) -> None:
    areas = []
    for i in range(200):
        out = np.full((3, 60, 80), 99, np.float32)
        erase(out, draws(i), scale=(0.02, 0.33), ratio=(0.3, 3.3), value=value, attempts=10)
        changed = (out != 99).all(axis=0)
        assert ((out != 99).any(axis=0) == changed).all()
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        assert changed.sum() == len(rows) * len(columns) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        areas.append(changed.sum() / 4800)
        assert 0.25 < len(columns) / len(rows) < 4
        if value != "random":
            assert (out[:, changed] == value).all()
        elif changed.sum() > 1000:
            assert abs(out[:, changed].mean()) < 0.1 and abs(out[:, changed].std() - 1) < 0.1
            assert len(np.unique(out[:, changed])) > 2900
    assert min(areas) > 0.01 and max(areas) < 0.35 and 0.13 < np.mean(areas) < 0.19


def test_a_box_that_never_fits_erases_nothing() -> None:
    out = np.ones((3, 8, 8), np.float32)
    erase(out, draws(), scale=(2.0, 3.0), ratio=(1.0, 1.0), value=0, attempts=10)
    assert (out == 1).all()


def finished(transform: TrainTransform | EvalTransform, data: bytes, number: int) -> Array:
    key = draws(number)
    out = np.empty((3, transform.size, transform.size), np.float32)
    transform.finish(transform.load(data, key), key, out)
    return out


def test_flips_come_at_their_rates() -> None:
    plain = {"image_resize": 8, "scale": [1, 1], "color_jitter": 0, "mean": [0, 0, 0], "std": [1, 1, 1]}
    square = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    transform = TrainTransform(make_recipe({**plain, "hflip": 0.25, "vflip": 0.5}, "test"))
    kinds = {
        square[::down, ::across].transpose(2, 0, 1).astype(np.float32).tobytes(): (across, down)
        for down in (1, -1)
        for across in (1, -1)
    }
    seen = Counter(kinds[finished(transform, encoded(square), i).tobytes()] for i in range(800))
    assert abs(sum(n for (across, _), n in seen.items() if across < 0) - 200) < 45
    assert abs(sum(n for (_, down), n in seen.items() if down < 0) - 400) < 50


def test_quickstart_is_a_resize_and_a_shift() -> None:
    recipe = load_recipe("quickstart")
    digit = np.random.default_rng(0).integers(0, 255, (8, 8), np.uint8)
    data = encoded(digit)
    with Image.open(io.BytesIO(data)) as file:
        large = np.asarray(file.convert("RGB").resize((24, 24), Image.Resampling.BILINEAR))
    transform = TrainTransform(recipe)
    assert transform.fixed_load
    assert differences(transform.load(data, draws()), large).max() <= 1
    evaluated = finished(EvalTransform(recipe), data, 0)
    padded = np.full((3, 28, 28), np.nan, np.float32)
    padded[:, 2:26, 2:26] = evaluated
    places = set()
    for i in range(300):
        out = finished(transform, data, i)
        fits = [
            (down, right)
            for down in range(5)
            for right in range(5)
            if np.array_equal(
                out[:, 4:20, 4:20], padded[:, 4 + down : 20 + down, 4 + right : 20 + right]
            )
        ]  # fmt: skip
        assert len(fits) == 1
        places.update(fits)
    assert len(places) == 25


def test_the_cards_recipe_gives_all_its_augmentations() -> None:
    recipe = make_recipe(
        {"interpolation": "bicubic", "re_prob": 0.2, "auto_augment": "randaug-m9-mstd0.5", "re_value": "random"}, "test"
    )
    data = encoded(load_sample_image("china.jpg"), "JPEG")
    transform = TrainTransform(recipe)
    assert not transform.fixed_load
    images = [finished(transform, data, i) for i in range(12)]
    assert all(image.shape == (3, 224, 224) and np.isfinite(image).all() for image in images)
    assert len({image.tobytes() for image in images}) == 12
    assert np.array_equal(finished(transform, data, 5), images[5])


def test_colour_jitter_serves_only_without_a_policy() -> None:
    flat = encoded(np.full((8, 8, 3), 100, np.uint8))
    common = {"image_resize": 8, "scale": [1, 1], "mean": [0, 0, 0], "std": [1, 1, 1], "color_jitter": 0.4}
    jittered = TrainTransform(make_recipe(common, "test"))
    assert len({finished(jittered, flat, i).tobytes() for i in range(20)}) > 10
    policed = TrainTransform(make_recipe({**common, "auto_augment": "randaug-m0-n1-mstd0-w0"}, "test"))
    assert sum((finished(policed, flat, i) == 100).all() for i in range(40)) > 20


def test_an_unsupported_policy_is_refused_when_the_transform_is_made() -> None:
    with pytest.raises(SpecError, match="w3"):
        TrainTransform(make_recipe({"auto_augment": "randaug-w3"}, "test"))


def test_a_corrupt_image_raises_from_both_transforms() -> None:
    recipe = load_recipe("quickstart")
    for transform in (TrainTransform(recipe), EvalTransform(recipe)):
        with pytest.raises(CorruptImage):
            transform.load(b"none", draws())
