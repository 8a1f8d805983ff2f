"""From encoded bytes to the pictures a network sees: resize, and the altered views of training.

Everything up to the device is `uint8[height, width, 3]`, a quarter of the bytes of float32; `learning/pixels.py` makes
floats of it where the network runs. No torch here, so that ingest's workers start fast. Augmentations: method.md 4.8.
"""

import math

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from gracl.errors import expected
from gracl.images.decoding import decode
from gracl.images.preprocess import fitted
from gracl.types import IMAGENET_MEAN

MEAN_COLOUR = np.array([round(255 * share) for share in IMAGENET_MEAN], np.uint8)

ERASE_AREA = (0.02, 0.4)
ERASE_ASPECT = (0.3, 3.3)
ERASE_TRIES = 100


def eval_view(
    image: bytes | memoryview | UInt8[ndarray, "rows columns 3"],
    dice: np.random.Generator | None = None,
    room: UInt8[ndarray, "rows columns 3"] | None = None,
    scratch: UInt8[ndarray, "other_rows other_columns 3"] | None = None,
    *,
    height: int = 256,
    width: int = 128,
) -> UInt8[ndarray, "height width 3"]:
    """The picture as it is, at the network's size (bicubic; untouched when it has that size already).

    `dice` and `scratch` are there so that this is a `View` like `train_view`; nothing is drawn from them.
    `preprocess.preprocess` is the same for whoever has an exported model and no gracl. `room` is memory that the answer
    may lie in. Of a picture that was made already (an array of that size, see `pixel_files.py`) it is a copy.
    """
    if isinstance(image, ndarray):
        return _copied(image, room, (height, width, 3))
    return fitted(decode(image, room), height=height, width=width)


def train_view(
    image: bytes | memoryview | UInt8[ndarray, "rows columns 3"],
    dice: np.random.Generator | None,
    room: UInt8[ndarray, "rows columns 3"] | None = None,
    scratch: UInt8[ndarray, "other_rows other_columns 3"] | None = None,
    *,
    height: int = 256,
    width: int = 128,
    flip: float = 0.5,
    pad: int = 10,
    erase: float = 0.5,
    jitter: float = 0.0,
) -> UInt8[ndarray, "height width 3"]:
    """An altered picture: resized, perhaps mirrored, relit, shifted, perhaps partly erased (method.md 4.8).

    Padding is black (0), as in the code of the family, whose figures we want to be compared with. The erased patch
    has the ImageNet mean colour, so that it is 0 for the network; the family fills normalised pixels with the raw
    mean, which is another colour.

    Args:
        image: the encoded picture, or what `eval_view` made of it.
        dice: draws everything; the same dice give the same picture.
        room: memory that the answer may lie in, for whoever has it: memory never used before is dear.
        scratch: memory of the same size, and no part of `room`, that the decoder may use on the way.
        height: rows of the result.
        width: columns of the result.
        flip: probability of mirroring left and right.
        pad: the largest shift in each direction, in pixels of the result: padding by `pad` and cropping anywhere.
        erase: probability of erasing a box of 2 to 40 % of the area with an aspect of 0.3 to 3.3.
        jitter: brightness and contrast are multiplied by factors from 1 - jitter to 1 + jitter; 0 leaves them.

    Raises:
        ImageError: unreadable bytes.
        ValueError: no dice, or a shift that could lose the whole picture.
    """
    if dice is None:
        raise ValueError(expected("dice for a training view", "none", "give load() a seed, or scan with eval_view"))
    if not 0 <= pad < min(height, width):
        raise ValueError(expected(f"pad from 0 to {min(height, width) - 1}", pad, "choose a smaller pad"))
    if isinstance(image, ndarray) and image.shape == (height, width, 3):
        picture = image
    else:
        picture = eval_view(image, None, scratch, height=height, width=width)
    mirrored = dice.random() < flip
    if jitter:
        picture = _relight(picture, dice, jitter)
    canvas = np.empty(picture.shape, np.uint8) if room is None or room.shape != picture.shape else room
    _shift(picture, dice, pad, mirrored=mirrored, onto=canvas)
    if dice.random() < erase:
        _erase(canvas, dice)
    return canvas


def _copied(
    picture: UInt8[ndarray, "rows columns 3"], room: ndarray | None, shape: tuple[int, int, int]
) -> UInt8[ndarray, "height width 3"]:
    if picture.shape != shape:
        raise ValueError(expected(f"a picture of shape {shape}", picture.shape, "set one size for both"))
    if room is None or room.shape != shape:
        return picture.copy()
    room[...] = picture
    return room


def _relight(
    picture: UInt8[ndarray, "height width 3"], dice: np.random.Generator, jitter: float
) -> UInt8[ndarray, "height width 3"]:
    brightness, contrast = dice.uniform(1 - jitter, 1 + jitter, 2)
    grey = float(picture.mean())
    levels = ((np.arange(256) - grey) * contrast + grey) * brightness
    relit: ndarray = np.clip(np.rint(levels), 0, 255).astype(np.uint8)[picture]
    return relit


def _shift(
    picture: UInt8[ndarray, "height width 3"],
    dice: np.random.Generator,
    pad: int,
    *,
    mirrored: bool,
    onto: UInt8[ndarray, "height width 3"],
) -> None:
    """Draws the picture, mirrored or not, moved a little, and black where it leaves the canvas."""
    height, width, _ = picture.shape
    down, right = (int(step) for step in dice.integers(-pad, pad + 1, 2))
    top, bottom, left, end = max(down, 0), height + min(down, 0), max(right, 0), width + min(right, 0)
    onto[:top], onto[bottom:], onto[top:bottom, :left], onto[top:bottom, end:] = 0, 0, 0, 0
    seen = onto[top:bottom, left:end]
    rows, columns = slice(max(-down, 0), height - max(down, 0)), slice(max(-right, 0), width - max(right, 0))
    if mirrored:
        for colour in range(3):  # NumPy turns single bytes around four times as fast as pixels of three
            seen[..., colour] = picture[:, ::-1, colour][rows, columns]
    else:
        seen[...] = picture[rows, columns]


def _erase(canvas: UInt8[ndarray, "height width 3"], dice: np.random.Generator) -> None:
    """Fills a box in place. A picture so narrow that no box fits in a hundred tries stays whole, as in the family."""
    height, width, _ = canvas.shape
    for _ in range(ERASE_TRIES):
        area, aspect = dice.uniform(*ERASE_AREA) * height * width, dice.uniform(*ERASE_ASPECT)
        rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < rows < height and 0 < columns < width:
            top, left = dice.integers(0, height - rows + 1), dice.integers(0, width - columns + 1)
            for colour, level in enumerate(MEAN_COLOUR):  # faster than a pixel of three again and again
                canvas[top : top + rows, left : left + columns, colour] = level
            return
