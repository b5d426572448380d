"""How one person, rider, car, truck or bus of `synthetic` is drawn: its look and its shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

Colour = tuple[int, int, int]
Points = list[tuple[float, float]]
# Fill an ellipse or a polygon of the unit square (x right, y down) with a colour.
Pen = Callable[[str, Points, Colour], None]


@dataclass(frozen=True)
class Look:
    """Differences between individuals: within a few per cent, except for colours and clothes.

    Attributes:
        colour: of the clothes or the paint.
        second: of trousers, stripes or a truck's box.
        skin: of the face.
        hair: of the head's upper half.
        pattern: 0 plain, 1 a band across the body, 2 stripes.
        wide: factor on the width of body parts, about 1.
        low: where body parts begin, about 0, as a part of the height.
        stride: how far the feet are apart, 0..1.
    """

    colour: Colour
    second: Colour
    skin: Colour
    hair: Colour
    pattern: int
    wide: float
    low: float
    stride: float


def group_look(rng: np.random.Generator) -> Look:
    """What the individuals of a group have in common."""
    return Look(
        colour=_PAINTS[rng.integers(len(_PAINTS))],
        second=_SECONDS[rng.integers(len(_SECONDS))],
        skin=_SKIN,
        hair=_HAIR[0],
        pattern=int(rng.integers(3)),
        wide=1.0,
        low=0.0,
        stride=0.5,
    )


def individual_look(group: Look, rng: np.random.Generator) -> Look:
    """One individual of a group: nearly its colours, with an own shade, face, pattern and proportions."""
    return replace(
        group,
        colour=_vary(group.colour, rng, 0.14),
        second=_vary(group.second, rng, 0.2),
        skin=_vary(_SKIN, rng, 0.25),
        hair=_vary(_HAIR[rng.integers(len(_HAIR))], rng, 0.2),
        pattern=group.pattern if rng.random() < 0.6 else int(rng.integers(3)),
        wide=rng.uniform(0.88, 1.1),
        low=rng.uniform(-0.03, 0.03),
        stride=rng.uniform(0.0, 1.0),
    )


def shade(colour: Colour, factor: float) -> Colour:
    """Lighter or darker, factor 1 leaving it as it is."""
    r, g, b = (int(min(255, max(0, c * factor))) for c in colour)
    return r, g, b


def _vary(colour: Colour, rng: np.random.Generator, most: float) -> Colour:
    light = rng.uniform(1 - most, 1 + most)
    r, g, b = (int(min(255, max(0, c * light * rng.uniform(0.95, 1.05)))) for c in colour)
    return r, g, b


_PAINTS: list[Colour] = [
    (178, 40, 40),
    (45, 75, 150),
    (215, 215, 215),
    (60, 60, 66),
    (60, 120, 75),
    (200, 160, 60),
    (120, 70, 130),
]
_SECONDS: list[Colour] = [(50, 55, 80), (85, 70, 55), (70, 72, 75), (120, 125, 140)]
_HAIR: list[Colour] = [(45, 35, 30), (95, 65, 40), (165, 135, 85), (130, 130, 130)]
_SKIN: Colour = (205, 160, 132)
_GLASS: Colour = (165, 195, 215)
_TYRE: Colour = (22, 22, 24)
_SHADED = 0.72  # of the side that is turned from the light


def _rectangle(x1: float, y1: float, x2: float, y2: float) -> Points:
    return [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]


def _pattern(fill: Pen, look: Look, x1: float, y1: float, x2: float, y2: float) -> None:
    """Inside a body part that is a rectangle at least."""
    if look.pattern == 1:
        fill("polygon", _rectangle(x1, y1 + 0.4 * (y2 - y1), x2, y1 + 0.6 * (y2 - y1)), look.second)
    elif look.pattern == 2:
        for k in range(3):
            top = y1 + (0.12 + 0.3 * k) * (y2 - y1)
            fill("polygon", _rectangle(x1, top, x2, top + 0.12 * (y2 - y1)), shade(look.colour, 1.35))


def _person(fill: Pen, look: Look) -> None:
    half, top, waist = 0.36 * look.wide, 0.19 + look.low, 0.57 + look.low
    apart = 0.04 + 0.16 * look.stride
    for side, light in ((-1, 1.0), (1, _SHADED)):
        foot, hip = 0.5 + side * apart, 0.5 + side * 0.12
        fill(
            "polygon",
            [(hip - 0.11, waist - 0.03), (hip + 0.11, waist - 0.03), (foot + 0.09, 1.0), (foot - 0.09, 1.0)],
            shade(look.second, light),
        )
    fill(
        "polygon",
        [
            (0.5 - 0.8 * half, top),
            (0.5 + 0.8 * half, top),
            (0.5 + 1.1 * half, waist),
            (0.5 - 1.1 * half, waist),
        ],
        look.colour,
    )
    _pattern(fill, look, 0.5 - 0.8 * half, top, 0.5 + 0.8 * half, waist)
    right = [(0.5 + 0.45 * half, top), (0.5 + 0.8 * half, top), (0.5 + 1.1 * half, waist)]
    fill("polygon", [*right, (0.5 + 0.6 * half, waist)], shade(look.colour, _SHADED))
    fill("ellipse", [(0.31, 0.0), (0.69, top + 0.01)], look.hair)
    fill("ellipse", [(0.35, 0.055), (0.65, top + 0.01)], look.skin)


def _rider(fill: Pen, look: Look) -> None:
    for x in (0.0, 0.58):
        fill("ellipse", [(x, 0.62), (x + 0.42, 1.0)], _TYRE)
        fill("ellipse", [(x + 0.07, 0.69), (x + 0.35, 0.93)], (120, 120, 125))
    knee = 0.7 + 0.12 * look.stride
    fill("polygon", [(0.2, 0.78), (0.45, 0.55), (0.78, 0.6), (0.8, 0.82)], shade(look.colour, 0.6))
    fill("polygon", [(0.34, 0.52), (0.56, 0.52), (0.64, knee), (0.5, knee + 0.12)], look.second)
    left, right, top = 0.48 - 0.18 * look.wide, 0.46 + 0.18 * look.wide, 0.2 + look.low
    fill("polygon", [(left, top), (right, top), (right + 0.06, 0.6), (left, 0.62)], look.colour)
    _pattern(fill, look, left, top, right, 0.6)
    back = left + 0.08
    fill("polygon", [(left, top), (back, top), (back, 0.62), (left, 0.62)], shade(look.colour, _SHADED))
    fill("ellipse", [(0.34, 0.0), (0.62, top + 0.02)], look.hair)
    fill("ellipse", [(0.38, 0.06), (0.6, top + 0.02)], look.skin)


def _car(fill: Pen, look: Look) -> None:
    front, back, top = 0.32 - 0.3 * look.low, 0.72 * look.wide, 0.03 + look.low
    fill("polygon", [(0.18, 0.4), (front, top), (back, top), (min(0.92, back + 0.16), 0.4)], look.colour)
    middle = 0.5 * (front + back)
    fill("polygon", [(0.25, 0.37), (front + 0.03, top + 0.08), (middle, top + 0.08), (middle, 0.37)], _GLASS)
    fill(
        "polygon",
        [(middle + 0.04, 0.37), (middle + 0.04, top + 0.08), (back - 0.02, top + 0.08), (back + 0.08, 0.37)],
        _GLASS,
    )
    fill(
        "polygon",
        [(0.0, 0.47), (0.06, 0.37), (0.94, 0.37), (1.0, 0.5), (1.0, 0.84), (0.0, 0.84)],
        look.colour,
    )
    if look.pattern == 1:
        fill("polygon", _rectangle(0.0, 0.5, 1.0, 0.57), look.second)
    fill("polygon", _rectangle(0.0, 0.68, 1.0, 0.84), shade(look.colour, _SHADED))
    fill("polygon", _rectangle(0.0, 0.5, 0.05, 0.6), (240, 225, 160))
    fill("polygon", _rectangle(0.95, 0.5, 1.0, 0.6), (170, 50, 45))
    fill("polygon", _rectangle(middle + 0.01, 0.39, middle + 0.03, 0.68), shade(look.colour, 0.6))
    _wheels(fill, (0.12 - look.low, 0.66 + look.low), 0.2, 0.6)


def _truck(fill: Pen, look: Look) -> None:
    end, top = 0.68 * min(1.0, look.wide), 0.03 + look.low
    fill("polygon", _rectangle(0.0, top, end, 0.86), shade(look.second, 1.4))
    _pattern(fill, replace(look, colour=shade(look.second, 1.4), second=look.colour), 0.0, top, end, 0.8)
    fill("polygon", _rectangle(end - 0.07, top, end, 0.86), shade(look.second, 1.4 * _SHADED))
    fill("polygon", _rectangle(end - 0.02, 0.6, 0.72, 0.86), shade(look.colour, 0.5))
    fill("polygon", [(0.7, 0.25), (0.9, 0.25), (1.0, 0.55), (1.0, 0.86), (0.7, 0.86)], look.colour)
    fill("polygon", [(0.76, 0.32), (0.88, 0.32), (0.95, 0.54), (0.76, 0.54)], _GLASS)
    fill("polygon", _rectangle(0.7, 0.74, 1.0, 0.86), shade(look.colour, _SHADED))
    _wheels(fill, (0.08, 0.42, 0.74), 0.17, 0.72)


def _bus(fill: Pen, look: Look) -> None:
    top = 0.03 + look.low
    fill("polygon", _rectangle(0.0, top, 1.0, 0.88), look.colour)
    windows = 4 + round(2 * look.stride)
    step = 0.9 / windows
    for k in range(windows):
        left = 0.05 + step * k
        fill("polygon", _rectangle(left, top + 0.12, left + 0.8 * step, 0.46), _GLASS)
    if look.pattern:
        fill("polygon", _rectangle(0.0, 0.54, 1.0, 0.54 + 0.06 * look.pattern), look.second)
    fill("polygon", _rectangle(0.0, 0.74, 1.0, 0.88), shade(look.colour, _SHADED))
    fill("polygon", _rectangle(0.0, top, 0.03, 0.88), shade(look.colour, _SHADED))
    _wheels(fill, (0.14, 0.7), 0.15, 0.74)


def _wheels(fill: Pen, left: tuple[float, ...], wide: float, top: float) -> None:
    for x in left:
        fill("ellipse", [(x, top), (x + wide, 1.0)], _TYRE)
        inset = 0.3 * wide, 0.3 * (1.0 - top)
        fill(
            "ellipse", [(x + inset[0], top + inset[1]), (x + wide - inset[0], 1 - inset[1])], (130, 130, 132)
        )


SHAPES = (_person, _rider, _car, _truck, _bus)
