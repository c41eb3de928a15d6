"""RandAugment (Cubuk et al., arXiv 1909.13719) as MindCV composes it, by its string: `randaug-m9-n2-mstd0.5-inc0`.

Each image goes through n operations drawn from fourteen; each is done with probability 1/2 at a magnitude drawn from
a normal distribution around m. What a magnitude means is MindCV's (v0.5.0), as it runs: the card's weights were
trained so. It departs from timm in two operations. Shear: MindCV hands timm's slope, at most 0.3, to an operator that
takes degrees. Posterize: it keeps 8 - b bits (at least 1) where timm keeps b.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.errors import SpecError
from rexnet.data import pixels
from rexnet.data.crop import INTERPOLATION
from rexnet.data.keyed import Draws

Array = np.ndarray[Any, Any]
_TOP = 10.0  # the magnitude at which an operation's usual range ends
_PROBABILITY = 0.5
_UNIFORM_FROM = 100.0  # a deviation above this means: uniform between 0 and m
_PLAIN = (
    "AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "Color", "Contrast", "Brightness",
    "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY",
)  # fmt: skip
_GROWING = ("Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness")  # these have an increasing form
# The one set of weights that timm and MindCV know, w0; they add up to 1.
_WEIGHTS = {
    "Rotate": 0.3, "ShearX": 0.2, "ShearY": 0.2, "TranslateX": 0.1, "TranslateY": 0.1, "Color": 0.025,
    "Sharpness": 0.025, "AutoContrast": 0.025, "Solarize": 0.005, "Contrast": 0.005, "Brightness": 0.005,
    "Equalize": 0.005, "Posterize": 0.005, "Invert": 0.0,
}  # fmt: skip
_BLENDS: dict[str, Callable[[Array, float], Array]] = {
    "Color": pixels.colour, "Contrast": pixels.contrast, "Brightness": pixels.brightness,
    "Sharpness": pixels.sharpness,
}  # fmt: skip
_TURN, _SLOPE, _PART = 30.0, 0.3, 0.45  # at _TOP: degrees of rotation, degrees of shear, share of the side


@dataclass(frozen=True, slots=True, kw_only=True)
class RandAugment:
    """The policy. `fill` is the colour of what a moved image uncovers, `interpolation` a name of OpenCV's number."""

    magnitude: float
    num_layers: int
    deviation: float  # of the magnitude; infinite: uniform from 0 to it
    maximum: float
    operations: tuple[str, ...]
    weighted: bool
    interpolation: int
    fill: tuple[int, int, int]

    def __call__(self, image: Array, draws: Draws) -> Array:
        """A new (h, w, 3) uint8 image, or the same one where chance leaves it alone."""
        for name in self._choose(draws):
            if draws.uniform() < _PROBABILITY:
                image = self.apply(name, image, self._level(draws), draws)
        return image

    def apply(self, name: str, image: Array, level: float, draws: Draws) -> Array:
        """The operation of that name at a magnitude from 0 to `maximum`; `draws` gives its sign where it has one."""
        share = level / _TOP
        growing = name.endswith("Increasing")
        kind = name.removesuffix("Increasing")
        if kind in _BLENDS:
            factor = max(0.1, 1 + _signed(0.9 * share, draws)) if growing else 0.1 + 1.8 * share
            return _BLENDS[kind](image, factor)
        match kind:
            case "AutoContrast":
                return pixels.auto_contrast(image)
            case "Equalize":
                return pixels.equalize(image)
            case "Invert":
                return pixels.invert(image)
            case "Posterize":
                kept = 4 - int(4 * share) if growing else int(4 * share)
                return pixels.posterize(image, max(8 - kept, 1))
            case "Solarize":
                threshold = int(255 * share)
                return pixels.solarize(image, 255 - threshold if growing else threshold)
            case "Rotate":
                return pixels.rotate(image, _signed(_TURN * share, draws), self.interpolation, self.fill)
            case "ShearX":
                return pixels.shear_x(image, _signed(_SLOPE * share, draws), self.interpolation, self.fill)
            case "ShearY":
                return pixels.shear_y(image, _signed(_SLOPE * share, draws), self.interpolation, self.fill)
        part = _signed(_PART * share, draws)
        if kind == "TranslateX":
            return pixels.translate_x(image, part * image.shape[1], self.interpolation, self.fill)
        assert kind == "TranslateY", kind
        return pixels.translate_y(image, part * image.shape[0], self.interpolation, self.fill)

    def _choose(self, draws: Draws) -> list[str]:
        """The operations for one image: with replacement if all weigh the same, else without."""
        number = len(self.operations)
        if not self.weighted:
            return [self.operations[draws.integer(0, number - 1)] for _ in range(self.num_layers)]
        left = {name: weight for name in self.operations if (weight := _WEIGHTS[name.removesuffix("Increasing")])}
        chosen: list[str] = []
        for _ in range(self.num_layers):
            point = draws.uniform(0, sum(left.values()))
            passed = itertools.accumulate(left.values())
            name = next((name for name, end in zip(left, passed, strict=True) if point < end), list(left)[-1])
            chosen.append(name)
            del left[name]
        return chosen

    def _level(self, draws: Draws) -> float:
        if self.deviation == float("inf"):
            level = draws.uniform(0, self.magnitude)
        else:
            level = draws.normal(self.magnitude, self.deviation) if self.deviation else self.magnitude
        return max(0.0, min(level, self.maximum))


def parse_randaug(text: str, *, mean: tuple[float, float, float], interpolation: str) -> RandAugment:
    """The policy that `text` describes; parts of it that are not given have MindCV's defaults.

    m: magnitude (10); n: operations an image (2); mstd: deviation of the magnitude (0.5), above 100 for a uniform one
    from 0 to m; mmax: its upper limit (10); inc1: operations that grow with the magnitude; w0: weighted choice.
    SpecError on anything else. MindCV's own parser takes inc0 for inc1 and leaves mstd at 0.5 whatever is said.
    """
    values = {"m": _TOP, "n": 2.0, "mstd": 0.5, "mmax": _TOP, "inc": 0.0, "w": None}
    head, *parts = text.split("-")
    for part in parts:
        found = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?|inf)", part)
        if not found or found[1] not in values:
            raise _refused(text, part)
        values[found[1]] = float(found[2])
    magnitude, layers, deviation, maximum = values["m"], values["n"], values["mstd"], values["mmax"]
    assert magnitude is not None and layers is not None and deviation is not None and maximum is not None
    weighted = values["w"] is not None
    if head != "randaug":
        raise _refused(text, head)
    if values["w"] not in (None, 0.0):
        raise _refused(text, f"w{values['w']:g}")
    if values["inc"] not in (0.0, 1.0):
        raise _refused(text, f"inc{values['inc']:g}")
    num_choices = sum(weight > 0 for weight in _WEIGHTS.values())
    if layers != int(layers) or layers < 1 or (weighted and layers > num_choices):
        raise _refused(text, f"n{layers:g}")
    if magnitude == float("inf") or not 0 < maximum < float("inf"):
        raise _refused(text, f"m{magnitude:g}, mmax{maximum:g}")
    names = tuple(f"{name}Increasing" if values["inc"] and name in _GROWING else name for name in _PLAIN)
    return RandAugment(
        magnitude=magnitude,
        num_layers=int(layers),
        deviation=float("inf") if deviation > _UNIFORM_FROM else deviation,
        maximum=maximum,
        operations=names,
        weighted=weighted,
        interpolation=INTERPOLATION[interpolation],
        fill=(min(255, round(mean[0])), min(255, round(mean[1])), min(255, round(mean[2]))),
    )


def _refused(text: str, part: str) -> SpecError:
    return SpecError(
        f"auto_augment: {part!r} in {text!r} is not supported",
        hint="supported are randaug and, joined by -, m9, n2, mstd0.5, mmax10, inc0 or inc1, w0",
    )


def _signed(value: float, draws: Draws) -> float:
    return -value if draws.uniform() < 0.5 else value
