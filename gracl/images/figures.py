"""Figures: objects with an identity, drawn as maps of body parts. The people of the synthetic world.

What makes an object this object is a `Thing`; how it stands in one picture is a `Pose`. A figure is drawn at several
times the size of the picture, with one number per body part, and coloured by a table: that is what makes it quick.
"""

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from jaxtyping import Bool, UInt8
from numpy import ndarray
from PIL import Image, ImageDraw

from gracl.errors import expected
from gracl.randomness import rng

Colour = tuple[float, float, float]

PATTERNS = ("plain", "plain", "hoops", "stripes", "checks", "dots", "yoke", "sash")
CLOTH = (  # what people wear, red green blue
    ((0.08, 0.08, 0.09), (0.25, 0.25, 0.27), (0.55, 0.55, 0.56), (0.93, 0.93, 0.92), (0.12, 0.16, 0.35))
    + ((0.18, 0.35, 0.75), (0.55, 0.75, 0.92), (0.36, 0.23, 0.13), (0.80, 0.70, 0.52), (0.36, 0.40, 0.18))
    + ((0.78, 0.12, 0.14), (0.15, 0.52, 0.27), (0.95, 0.80, 0.20), (0.93, 0.55, 0.68), (0.48, 0.22, 0.58))
    + ((0.95, 0.50, 0.12), (0.10, 0.60, 0.62))
)
SKIN = ((0.96, 0.80, 0.69), (0.87, 0.67, 0.52), (0.68, 0.47, 0.33), (0.40, 0.26, 0.18))
HAIR = ((0.08, 0.06, 0.05), (0.30, 0.18, 0.10), (0.80, 0.65, 0.35), (0.62, 0.60, 0.58))


class Part(IntEnum):
    """What a pixel of the figure belongs to; a row of the colour table."""

    NOTHING = 0
    SKIN = 1
    HAIR = 2
    TOP = 3
    TOP_PATTERN = 4
    BOTTOM = 5
    BOTTOM_PATTERN = 6
    SHOES = 7
    SHIRT = 8
    HAT = 9
    PACK = 10
    BAG = 11
    OBSTACLE = 12


@dataclass(frozen=True)
class Thing:
    """What makes an object this object. Lengths are shares of the figure's height, 0 at the head's top."""

    tall: float
    shoulders: float
    waist: float
    hips: float
    coat: float
    sleeve: float
    hem: float
    skirt: bool
    hair: float
    opening: float
    hat: bool
    pack: float
    bag: int
    bag_size: float
    pattern: str
    pattern_size: float
    bottom_pattern: str
    colours: tuple[Colour, ...]


@dataclass(frozen=True)
class Pose:
    """How a figure stands in one picture: where it looks, its step, and its place in pixels.

    `heading` is an angle: 0 looks at the camera, pi away from it. `stride` goes from -1 to 1, `scale` is the figure's
    height, `left` its middle and `top` the level of its head's top.
    """

    heading: float
    stride: float
    scale: float
    left: float
    top: float


def object_of(seed: int, object_id: int, *, difficulty: float = 0.5) -> Thing:
    """The appearance of an object. With difficulty the objects' colours and proportions draw nearer to each other."""
    dice = rng(seed, "object", object_id)
    apart = 1 - 0.5 * checked_difficulty(difficulty)

    def around(middle: float, reach: float) -> float:
        return middle + apart * reach * float(dice.uniform(-1, 1))

    def dyed() -> Colour:
        cloth = np.array(CLOTH[dice.integers(len(CLOTH))]) + dice.normal(0, 0.05, 3)
        return as_colour(0.42 + (cloth - 0.42) * (0.4 + 0.6 * apart))

    def one_of(colours: tuple[Colour, ...]) -> Colour:
        return as_colour(np.array(colours[dice.integers(len(colours))]) + dice.normal(0, 0.03, 3))

    nothing = (0.0, 0.0, 0.0)
    colours = (nothing, one_of(SKIN), one_of(HAIR), *(dyed() for _ in range(9)), nothing)
    return Thing(
        tall=around(0.92, 0.10),
        shoulders=around(0.13, 0.035),
        waist=around(0.50, 0.04),
        hips=around(0.11, 0.03),
        coat=float(dice.choice([0.02, 0.04, 0.16, 0.24], p=[0.4, 0.3, 0.2, 0.1])),
        sleeve=float(dice.choice([0.35, 1.0])),
        hem=float(dice.choice([0.70, 0.80, 0.95], p=[0.25, 0.15, 0.6])),
        skirt=bool(dice.random() < 0.25),
        hair=float(dice.choice([0.0, 0.3, 1.0], p=[0.15, 0.5, 0.35])),
        opening=float(dice.choice([0.0, 0.3, 0.55], p=[0.5, 0.3, 0.2])),
        hat=bool(dice.random() < 0.25),
        pack=float(dice.choice([0.0, 0.8, 1.1], p=[0.55, 0.25, 0.2])),
        bag=int(dice.choice([-1, 0, 1], p=[0.25, 0.5, 0.25])),
        bag_size=float(dice.uniform(0.05, 0.10)),
        pattern=str(dice.choice(PATTERNS)),
        pattern_size=float(dice.uniform(0.06, 0.12)),
        bottom_pattern=str(dice.choice(["plain", "plain", "plain", "stripes", "checks"])),
        colours=colours,
    )


def draw_parts(thing: Thing, pose: Pose, *, height: int, width: int) -> UInt8[ndarray, "height width"]:
    """The figure as a map of parts, clothes with their patterns included."""
    figure = _Figure(thing, pose, height, width)
    figure.draw()
    parts = np.array(figure.image)
    _decorate(parts, Part.TOP, _pattern(thing.pattern, thing.pattern_size, pose, (height, width)))
    _decorate(parts, Part.BOTTOM, _pattern(thing.bottom_pattern, thing.pattern_size, pose, (height, width)))
    return parts


class _Figure:
    """A figure on its way to a map of parts; lives for one picture."""

    def __init__(self, thing: Thing, pose: Pose, height: int, width: int) -> None:
        self.thing, self.pose = thing, pose
        self.front, self.side = math.cos(pose.heading), math.sin(pose.heading)
        self.breadth = thing.shoulders * (0.62 + 0.38 * abs(self.front))
        self.image = Image.new("L", (width, height), Part.NOTHING)
        self._pen = ImageDraw.Draw(self.image)

    def draw(self) -> None:
        """Draws from far to near."""
        self._pack(near=False)
        self._bag(near=False)
        self._legs()
        self._torso()
        self._pack(near=True)
        self._head()
        self._bag(near=True)

    def _at(self, x: float, y: float) -> tuple[float, float]:
        return self.pose.left + x * self.pose.scale, self.pose.top + y * self.pose.scale

    def _quad(self, part: Part, upper: tuple[float, float, float], lower: tuple[float, float, float]) -> None:
        """A trapezoid between two levels, each given as (middle, level, half width) in shares of the figure."""
        (x0, y0, w0), (x1, y1, w1) = upper, lower
        corners = ((x0 - w0, y0), (x0 + w0, y0), (x1 + w1, y1), (x1 - w1, y1))
        self._pen.polygon([self._at(x, y) for x, y in corners], fill=part)

    def _oval(self, part: Part, x: float, y: float, w: float, h: float) -> None:
        self._pen.ellipse((*self._at(x - w, y - h), *self._at(x + w, y + h)), fill=part)

    def _legs(self) -> None:
        thing, hips = self.thing, self.thing.hips * (0.7 + 0.3 * abs(self.front))
        for sign in (-1, 1):
            hip = sign * hips * 0.5 * abs(self.front)
            foot = hip + sign * 0.12 * self.pose.stride * (0.3 + 0.7 * abs(self.side))
            hem = foot + (hip - foot) * (0.97 - thing.hem) / (0.97 - thing.waist)
            self._quad(Part.SKIN, (hip, thing.waist, hips * 0.45), (foot, 0.97, 0.022))
            if not thing.skirt:
                self._quad(Part.BOTTOM, (hip, thing.waist, hips * 0.55), (hem, thing.hem, 0.04))
            self._oval(Part.SHOES, foot + 0.02 * self.side, 0.975, 0.03 + 0.02 * abs(self.side), 0.02)
        if thing.skirt:
            self._quad(Part.BOTTOM, (0.0, thing.waist, hips), (0.0, min(thing.hem, 0.8), hips * 1.35))

    def _torso(self) -> None:
        thing, breadth = self.thing, self.breadth
        for sign in (-1, 1):
            shoulder = sign * (breadth - 0.01)
            hand = sign * (breadth + 0.025) - sign * 0.08 * self.pose.stride * abs(self.side)
            cuff = shoulder + (hand - shoulder) * thing.sleeve
            self._quad(Part.SKIN, (shoulder, 0.18, 0.022), (hand, 0.54, 0.018))
            self._quad(Part.TOP, (shoulder, 0.17, 0.034), (cuff, 0.17 + 0.34 * thing.sleeve, 0.028))
        self._quad(Part.SKIN, (0.0, 0.10, 0.03), (0.0, 0.18, 0.035))
        waist = max(thing.hips * (0.7 + 0.3 * abs(self.front)), 0.8 * breadth)
        self._quad(Part.TOP, (0.0, 0.155, breadth), (0.0, thing.waist + thing.coat, waist))
        if thing.opening and self.front > 0:
            slit = thing.opening * breadth * self.front
            self._quad(Part.SHIRT, (self.side * 0.5 * breadth, 0.155, slit), (self.side * 0.5 * breadth, 0.48, slit))

    def _head(self) -> None:
        thing = self.thing
        long = 0.06 + 0.09 * thing.hair
        if thing.hair:
            self._oval(Part.HAIR, -0.015 * self.side, long, 0.058, long)
        face = 0.052 * (0.75 + 0.25 * abs(self.front))
        self._oval(Part.SKIN, 0.018 * self.side, 0.085, face, 0.065)
        if thing.hair:
            self._oval(Part.HAIR, 0.0, 0.03, 0.052, 0.03)
            if self.front < 0:
                self._oval(Part.HAIR, -0.01 * self.side, long, 0.055 * max(0.5, -self.front), long)
        if thing.hat:
            self._quad(Part.HAT, (0.0, -0.01, 0.045), (0.0, 0.05, 0.06))
            self._quad(Part.HAT, (0.05 * self.side, 0.04, 0.06), (0.05 * self.side, 0.055, 0.06))

    def _pack(self, *, near: bool) -> None:
        """A bag on the back: before the figure when that shows its back, else behind it, and then straps in front."""
        size = self.thing.pack
        if not size:
            return
        x = -self.side * (self.breadth + 0.02)
        half = size * (0.085 * abs(self.front) + 0.05 * abs(self.side))
        if near == (self.front < 0):
            self._quad(Part.PACK, (x, 0.18, half * 0.8), (x, 0.20 + 0.24 * size, half))
        elif near:
            for sign in (-1, 1):
                strap = sign * 0.6 * self.breadth * self.front
                self._quad(Part.PACK, (strap, 0.155, 0.014), (strap, 0.38, 0.014))

    def _bag(self, *, near: bool) -> None:
        """A bag at one hand, which is the other side of the picture when the figure turns round."""
        hand = self.thing.bag
        if not hand or near != (hand * self.side >= 0):
            return
        x, size = hand * self.front * (self.breadth + 0.04), self.thing.bag_size
        self._quad(Part.BAG, (x, 0.42, 0.01), (x, 0.53, 0.01))
        self._quad(Part.BAG, (x, 0.52, size * 0.8), (x, 0.52 + 1.8 * size, size))


def _pattern(kind: str, size: float, pose: Pose, shape: tuple[int, int]) -> Bool[ndarray, "height width"] | None:
    """Where the second colour of a cloth would be, if all were cloth."""
    if kind == "plain":
        return None
    y = ((np.arange(shape[0], dtype=np.float32) - pose.top) / pose.scale)[:, None]
    x = ((np.arange(shape[1], dtype=np.float32) - pose.left) / pose.scale)[None, :]
    if kind == "yoke":
        return np.broadcast_to(y < 0.30, shape)
    if kind == "sash":
        slope: float = math.copysign(0.9, math.cos(pose.heading))
        sash: ndarray = np.abs(y - 0.32 - slope * x) < 0.05
        return sash
    across, along = (x / size + 0.25) % 1, (y / size) % 1
    whole: ndarray
    match kind:
        case "dots":
            whole = (across - 0.5) ** 2 + (along - 0.5) ** 2 < 0.1
        case "stripes":
            whole = np.broadcast_to(across < 0.5, shape)
        case "hoops":
            whole = np.broadcast_to(along < 0.5, shape)
        case _:
            whole = (across < 0.5) ^ (along < 0.5)
    return whole


def _decorate(
    parts: UInt8[ndarray, "height width"], cloth: Part, pattern: Bool[ndarray, "height width"] | None
) -> None:
    """Turns cloth into its second colour, which stands one row below in the table."""
    if pattern is not None:
        parts[(parts == cloth) & pattern] = cloth + 1


def as_colour(values: ndarray) -> Colour:
    """Three numbers as a colour, kept off pure black and white."""
    red, green, blue = (float(value) for value in values.clip(0.02, 0.98))
    return red, green, blue


def checked_difficulty(difficulty: float) -> float:
    """The difficulty itself when it lies between 0 and 1; else a ValueError."""
    if not 0 <= difficulty <= 1:
        raise ValueError(expected("a difficulty from 0 to 1", difficulty, "choose one between"))
    return difficulty
