"""From encoded bytes to the pictures a network sees: resize, and the altered views of training.

Everything up to the device is `uint8[height, width, 3]`, a quarter of the bytes of float32; `learning/pixels.py` makes
floats of it where the network runs. No torch here, so that ingest's workers start fast. Augmentations: method.md 4.8.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from numpy.lib.stride_tricks import as_strided

from gracl.errors import expected
from gracl.images.decoding import decode, near_memory
from gracl.images.preprocess import fitted
from gracl.types import MEAN_COLOUR

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
        flip, pad, erase, jitter: as `draw_augmentation` has them.

    Raises:
        ImageError: unreadable bytes.
        ValueError: no dice, or a shift that could lose the whole picture.
    """
    drawn = draw_augmentation(dice, height=height, width=width, flip=flip, pad=pad, erase=erase, jitter=jitter)
    # Mirrored by turning bytes around, which reverses the colours as well, so they are decoded in reverse.
    backwards = drawn.mirrored and not isinstance(image, ndarray)
    if isinstance(image, ndarray):
        picture = image if image.shape == (height, width, 3) else eval_view(image, height=height, width=width)
    else:
        picture = fitted(decode(image, scratch, backwards=backwards), height=height, width=width)
    if jitter:
        picture = _relight(picture, drawn)
    usable = room is not None and room.shape == picture.shape and room.flags.c_contiguous
    canvas = room if room is not None and usable else near_memory(picture.shape)
    _shift(picture, drawn, onto=canvas, backwards=backwards)
    if drawn.rows:
        box = canvas[drawn.top : drawn.top + drawn.rows, drawn.left : drawn.left + drawn.columns]
        for colour, level in enumerate(MEAN_COLOUR):  # faster than a pixel of three again and again
            box[..., colour] = level
    return canvas


class Augmentation(NamedTuple):
    """What a training view does to one picture, see `Augmentations`."""

    mirrored: bool
    down: int
    right: int
    top: int
    left: int
    rows: int
    columns: int
    brightness: float
    contrast: float


def draw_augmentation(
    dice: np.random.Generator | None,
    *,
    height: int = 256,
    width: int = 128,
    flip: float = 0.5,
    pad: int = 10,
    erase: float = 0.5,
    jitter: float = 0.0,
) -> Augmentation:
    """All that is drawn for one picture of training, whoever does it: `train_view`, or the device (`Augmentations`).

    Args:
        dice: draws everything.
        height: rows of the picture.
        width: columns of the picture.
        flip: probability of mirroring left and right.
        pad: the largest shift in each direction, in pixels of the result: padding by `pad` and cropping anywhere.
        erase: probability of erasing a box of 2 to 40 % of the area with an aspect of 0.3 to 3.3.
        jitter: brightness and contrast are multiplied by factors from 1 - jitter to 1 + jitter; 0 leaves them.

    Raises:
        ValueError: no dice, or a shift that could lose the whole picture.
    """
    if dice is None:
        raise ValueError(expected("dice for a training view", "none", "give load() a seed, or scan with eval_view"))
    if not 0 <= pad < min(height, width):
        raise ValueError(expected(f"pad from 0 to {min(height, width) - 1}", pad, "choose a smaller pad"))
    mirrored = bool(dice.random() < flip)
    light = dice.uniform(1 - jitter, 1 + jitter, 2).tolist() if jitter else (1.0, 1.0)
    down, right = int(dice.integers(-pad, pad + 1)), int(dice.integers(-pad, pad + 1))
    box = _draw_box(dice, height, width) if dice.random() < erase else (0, 0, 0, 0)
    return Augmentation(mirrored, down, right, *box, *light)


def _copied(
    picture: UInt8[ndarray, "rows columns 3"], room: ndarray | None, shape: tuple[int, int, int]
) -> UInt8[ndarray, "height width 3"]:
    if picture.shape != shape:
        raise ValueError(expected(f"a picture of shape {shape}", picture.shape, "set one size for both"))
    if room is None or room.shape != shape:
        return picture.copy()
    room[...] = picture
    return room


def _relight(picture: UInt8[ndarray, "height width 3"], augmentation: Augmentation) -> UInt8[ndarray, "height width 3"]:
    grey = float(picture.mean())
    levels = ((np.arange(256) - grey) * augmentation.contrast + grey) * augmentation.brightness
    relit: ndarray = np.clip(np.rint(levels), 0, 255).astype(np.uint8)[picture]
    return relit


def _shift(
    picture: UInt8[ndarray, "height width 3"],
    augmentation: Augmentation,
    *,
    onto: UInt8[ndarray, "height width 3"],
    backwards: bool = False,
) -> None:
    """Draws the picture, mirrored or not, moved a little, and black where it leaves the canvas.

    With `backwards` its colours are in reverse order, and it is to be mirrored.
    """
    height, width, _ = picture.shape
    down, right = augmentation.down, augmentation.right
    top, bottom, left, end = max(down, 0), height + min(down, 0), max(right, 0), width + min(right, 0)
    onto[:top], onto[bottom:], onto[top:bottom, :left], onto[top:bottom, end:] = 0, 0, 0, 0
    seen = onto[top:bottom, left:end]
    rows, columns = slice(max(-down, 0), height - max(down, 0)), slice(max(-right, 0), width - max(right, 0))
    if backwards:
        unturned = slice(width - columns.stop, width - columns.start)
        _turn_around(np.ascontiguousarray(picture)[rows, unturned], onto=seen)
    elif augmentation.mirrored:
        for colour in range(3):  # NumPy turns single bytes around four times as fast as pixels of three
            seen[..., colour] = picture[:, ::-1, colour][rows, columns]
    else:
        seen[...] = picture[rows, columns]


def _turn_around(picture: UInt8[ndarray, "height width 3"], *, onto: UInt8[ndarray, "height width 3"]) -> None:
    """The bytes of each row, the last first. Rows may lie apart, what is in a row may not.

    By words of eight bytes, each read as one whose bytes are in the other order: a fourth of the time of single bytes.
    """
    before, after = (_as_rows(one) for one in (picture, onto))
    length = before.shape[1]
    rest = length % 8
    after[:, : length - rest].view("<u8")[...] = before[:, rest:].view(">u8")[:, ::-1]
    after[:, length - rest :] = before[:, :rest][:, ::-1]


def _as_rows(picture: UInt8[ndarray, "height width 3"]) -> UInt8[ndarray, "height bytes"]:
    """Its rows as bytes; the same memory."""
    height, width, _ = picture.shape
    return as_strided(picture, (height, 3 * width), (picture.strides[0], 1))


def _draw_box(dice: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int]:
    """Top, left, rows and columns of a box. A picture so narrow that none fits in a hundred tries stays whole, as in
    the family."""
    for _ in range(ERASE_TRIES):
        area, aspect = _between(dice, *ERASE_AREA) * height * width, _between(dice, *ERASE_ASPECT)
        rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < rows < height and 0 < columns < width:
            return int(dice.integers(0, height - rows + 1)), int(dice.integers(0, width - columns + 1)), rows, columns
    return 0, 0, 0, 0


def _between(dice: np.random.Generator, low: float, high: float) -> float:
    """What `dice.uniform` draws, bit for bit, in a third of its time."""
    return low + (high - low) * dice.random()
