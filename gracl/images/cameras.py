"""Cameras: how the synthetic world is seen. Light, colour, sharpness, point of view, framing, background, obstacles."""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import simplejpeg
from jaxtyping import Float32, UInt8
from numpy import ndarray
from PIL import Image, ImageFilter

from gracl.images.figures import Colour, Part, Pose, as_colour, checked_difficulty
from gracl.randomness import rng


@dataclass(frozen=True)
class Camera:
    """How a camera sees: light, colour, sharpness, point of view, framing, background and what stands in the way.

    `key` is (seed, camera id) and names the scenery. `nuisance` scales what changes from shot to shot. Lengths are
    shares of the picture's side (`across` of its width, all others of its height), colours and noise shares of white.
    """

    key: tuple[int, int]
    nuisance: float
    gain: float
    gamma: float
    cast: Colour
    contrast: float
    shade: float
    blur: float
    noise: float
    quality: int
    heading: float
    spread: float
    zoom: float
    across: float
    down: float
    obstructed: float
    obstacle: Colour
    wall: Colour
    floor: Colour
    line: float
    structure: str


def camera_of(seed: int, camera_id: int, *, difficulty: float = 0.5) -> Camera:
    """The ways of a camera. Without difficulty all cameras are one: even light, the front, an empty grey room."""
    dice = rng(seed, "camera", camera_id)
    nuisance = 1.4 * checked_difficulty(difficulty)

    def somewhere() -> Colour:
        return as_colour(0.6 + min(nuisance, 1.0) * (dice.uniform(0.42, 0.72, 3) - 0.6))

    return Camera(
        key=(seed, camera_id),
        nuisance=nuisance,
        gain=math.exp(nuisance * dice.uniform(-0.2, 0.15)),
        gamma=math.exp(nuisance * dice.uniform(-0.15, 0.15)),
        cast=tuple(np.exp(nuisance * dice.normal(0, 0.05, 3)).tolist()),
        contrast=math.exp(nuisance * dice.uniform(-0.2, 0.05)),
        shade=nuisance * float(dice.uniform(-0.25, 0.25)),
        blur=nuisance * float(dice.uniform(0, 0.012)),
        noise=nuisance * float(dice.uniform(0.005, 0.03)),
        quality=max(20, round(95 - nuisance * dice.uniform(0, 35))),
        heading=min(nuisance, 1.0) * float(dice.uniform(-math.pi, math.pi)),
        spread=nuisance * 0.35,
        zoom=math.exp(nuisance * dice.uniform(-0.35, 0.3)),
        across=nuisance * float(dice.uniform(-0.2, 0.2)),
        down=nuisance * float(dice.uniform(-0.12, 0.12)),
        obstructed=min(1.0, nuisance * float(dice.uniform(0.0, 0.15))),
        obstacle=somewhere(),
        wall=somewhere(),
        floor=somewhere(),
        line=float(dice.uniform(0.35, 0.9)),
        structure=str(dice.choice(["plain", "bricks", "fence", "rails"])) if nuisance else "plain",
    )


def aim(camera: Camera, dice: np.random.Generator, *, tall: float, height: int, width: int) -> Pose:
    """Where and how a figure of relative height `tall` stands in one picture of this camera."""
    loose = camera.nuisance * 0.02
    scale = min(height, 2 * width) * 0.95 * tall * camera.zoom * math.exp(dice.normal(0, loose))
    return Pose(
        heading=camera.heading + dice.normal(0, camera.spread),
        stride=float(dice.uniform(-1, 1)),
        scale=scale,
        left=width * (0.5 + camera.across + dice.normal(0, 4 * loose)),
        top=(height - scale) * 0.5 + height * (camera.down + dice.normal(0, 2 * loose)),
    )


def obstruct(parts: UInt8[ndarray, "height width"], camera: Camera, dice: np.random.Generator) -> None:
    """Sometimes something stands between, in place: low and wide, or upright at one side."""
    if dice.random() >= camera.obstructed:
        return
    height, width = parts.shape
    if dice.random() < 0.5:
        parts[int(height * dice.uniform(0.55, 0.85)) :] = Part.OBSTACLE
    else:
        start, wide = width * dice.uniform(0, 0.8), width * dice.uniform(0.12, 0.3)
        parts[:, int(start) : int(start + wide)] = Part.OBSTACLE


def behind(camera: Camera, dice: np.random.Generator, height: int, width: int) -> Float32[ndarray, "height width 3"]:
    """A window into the camera's scenery, for one picture. Colours from 0 to 1."""
    scene = _scenery(camera, height, width)
    down, right = (int(dice.integers(more + 1)) for more in (scene.shape[0] - height, scene.shape[1] - width))
    return scene[down : down + height, right : right + width]


@lru_cache(maxsize=32)
def _scenery(camera: Camera, height: int, width: int) -> Float32[ndarray, "rows columns 3"]:
    """What a camera sees when nobody is there: larger than a picture, so that every shot shows another part."""
    dice = rng(camera.key[0], "scenery", camera.key[1])
    rows, columns = height + height // 4, 4 * width
    blotches = (dice.random((9, 12, 3)) * 255).astype(np.uint8)
    noise = np.asarray(Image.fromarray(blotches).resize((columns, rows), Image.Resampling.BICUBIC), np.float32) / 255
    y, x = np.arange(rows)[:, None] / height, np.arange(columns)[None, :] / height
    scene = np.where((y < camera.line)[..., None], camera.wall, camera.floor)
    lines = {
        "bricks": ((y * 8) % 1 < 0.15) | ((x * 5 + 0.5 * np.floor(y * 8)) % 1 < 0.1),
        "fence": (x * 7 + 0 * y) % 1 < 0.3,
        "rails": (y * 9 + x) % 1 < 0.3,
    }
    if camera.structure in lines:
        scene = np.where((lines[camera.structure] & (y < camera.line))[..., None], camera.obstacle, scene)
    strength = min(camera.nuisance, 1.0) * 0.15
    return (scene + strength * (noise - 0.5)).clip(0, 1).astype(np.float32)


def photograph(
    picture: Float32[ndarray, "height width 3"], camera: Camera, dice: np.random.Generator
) -> UInt8[ndarray, "height width 3"]:
    """Light, colour, lens, sensor and compression, in the order in which they work."""
    height, width, _ = picture.shape
    light = camera.gain * math.exp(dice.normal(0, 0.08 * camera.nuisance)) * np.array(camera.cast)
    shade = 1 + (camera.shade + dice.normal(0, 0.08 * camera.nuisance)) * np.linspace(-1, 1, width)
    seen: ndarray = picture.clip(0, 1) ** np.float32(camera.gamma) * (light * shade[:, None]).astype(np.float32)
    seen = 0.5 + (seen - 0.5) * np.float32(camera.contrast)
    if camera.blur:
        sharp = Image.fromarray((seen.clip(0, 1) * 255).astype(np.uint8))
        seen = np.asarray(sharp.filter(ImageFilter.GaussianBlur(camera.blur * height)), np.float32) / 255
    if camera.noise:
        seen = seen + np.float32(camera.noise) * dice.standard_normal(seen.shape, np.float32)
    taken: ndarray = np.rint(seen.clip(0, 1) * 255).astype(np.uint8)
    if camera.nuisance:
        taken = simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(taken, camera.quality, colorsubsampling="420"))
    return taken
