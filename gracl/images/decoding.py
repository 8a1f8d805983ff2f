"""From the bytes of a picture file to its pixels, fast: JPEG by simplejpeg, everything else as `preprocess.py` does it.

What the file claims is looked at before anything is made of it, by the checks that stand there.
"""

import io
import math
from contextlib import suppress

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image, UnidentifiedImageError

from gracl.errors import ImageError, LargePicture, expected
from gracl.images.preprocess import (
    FORMATS,
    JPEG,
    MAX_PIXELS,
    Refused,
    decoded,
    orientation_of_jpeg,
    refuse_large,
    refuse_passes,
    upright,
)

_INKS = ("CMYK", "YCCK")
_STREAMED = 32


def decode(
    image: bytes | memoryview, room: UInt8[ndarray, "rows columns 3"] | None = None, *, backwards: bool = False
) -> UInt8[ndarray, "height width 3"]:
    """Turns the bytes of a picture file into RGB, upright; see `preprocess.decoded`, to which it is equal.

    JPEG goes through simplejpeg (three times as fast as Pillow, ray.md 1.3; both are libjpeg-turbo, and their pixels
    were the same bit for bit wherever they were compared); CMYK, what simplejpeg refuses (stray bytes) and every other
    format through Pillow.

    Args:
        image: the bytes.
        room: memory that a JPEG of just its size may be decoded into; the answer is this very array then.
        backwards: blue, green, red instead; whoever turns the bytes of a row around then has its mirror image.

    Raises:
        ImageError: the bytes are no picture, or only a part of one, or of a format that no raw folder has; more than
            `MAX_PIXELS` pixels, or than its bytes can fill, or `MAX_SCANS` passes over them, which is found out before
            memory is taken for them.
    """
    content = bytes(memoryview(image).cast("B"))  # simplejpeg refuses the signed chars of Arrow
    try:
        if content[:2] == JPEG:
            with suppress(ValueError):  # Pillow has the last word, and raises when it cannot read it either
                return _by_simplejpeg(content, room, "BGR" if backwards else "RGB")
        picture = decoded(content)
        return np.ascontiguousarray(picture[..., ::-1]) if backwards else picture
    except Refused as error:
        raise ImageError(f"{error}, or ingest with on_bad_image=skip") from error.__cause__


def _by_simplejpeg(
    content: bytes, room: UInt8[ndarray, "rows columns 3"] | None, order: str
) -> UInt8[ndarray, "height width 3"]:
    height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
    if colours in _INKS:
        raise ValueError("Pillow makes RGB of inks by another rule, up to two levels away")
    refuse_large(content, width, height)
    refuse_passes(content, width * height)
    if room is None or room.shape != (height, width, 3) or not room.flags.c_contiguous:
        room = near_memory((height, width, 3))
    simplejpeg.decode_jpeg(content, order, buffer=room)
    return upright(room, orientation_of_jpeg(content))


def near_memory(shape: tuple[int, ...]) -> UInt8[ndarray, "*shape"]:
    """Memory for pictures that somebody looks at soon after they were decoded; what is in it is undefined.

    Where a row begins at a multiple of 32 bytes libjpeg-turbo writes it past the processor's cache (AVX2), and whoever
    reads it next has to fetch it again: 20 microseconds more for the decoder and 40 for a training view, at 256 x 128.
    So this begins 16 bytes beside such a place, and with it each row where three times the width is a multiple of 32;
    of other widths some rows still begin at one.
    """
    size = math.prod(shape)
    raw = np.empty(size + 2 * _STREAMED, np.uint8)
    first = (_STREAMED // 2 - raw.ctypes.data) % _STREAMED
    return raw[first : first + size].reshape(shape)


def claimed(image: bytes) -> tuple[str, int, int]:
    """Format (one of `FORMATS`), width and height that the head of a picture file claims. Nothing is decoded: what is
    behind the head may be torn.

    Raises:
        ImageError: no head of a picture, or of a format that no raw folder has.
        LargePicture: so many pixels that Pillow does not even look further.
    """
    try:
        with Image.open(io.BytesIO(image), formats=FORMATS) as picture:
            form = "JPEG" if picture.format == "MPO" else str(picture.format)  # a JPEG with more of them behind it
            return form, picture.width, picture.height
    except Image.DecompressionBombError as error:
        raise LargePicture(expected(f"at most {MAX_PIXELS} pixels", str(error), "make the picture smaller")) from error
    except Exception as error:  # bytes that are no picture can fail in the decoders in any way
        reason = "no format that is known" if isinstance(error, UnidentifiedImageError) else str(error)
        came = f"{len(image)} bytes starting with {image[:8]!r} ({reason})"
        raise ImageError(expected("the bytes of a picture", came, "replace or remove the file")) from error
