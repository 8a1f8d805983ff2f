"""From the bytes of a picture file to its pixels, fast: JPEG by simplejpeg, everything else as `preprocess.py` does it.

What the file claims is looked at before anything is made of it, by the checks that stand there.
"""

import io
from contextlib import suppress

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


def decode(
    image: bytes | memoryview, room: UInt8[ndarray, "rows columns 3"] | None = None
) -> UInt8[ndarray, "height width 3"]:
    """Turns the bytes of a picture file into RGB, upright; see `preprocess.decoded`, to which it is equal.

    JPEG goes through simplejpeg (three times as fast as Pillow, ray.md 1.3; both are libjpeg-turbo, and their pixels
    were the same bit for bit wherever they were compared); CMYK, what simplejpeg refuses (stray bytes) and every other
    format through Pillow.

    Args:
        image: the bytes.
        room: memory that a JPEG of just its size may be decoded into; the answer is this very array then.

    Raises:
        ImageError: the bytes are no picture, or only a part of one, or of a format that no raw folder has; more than
            `MAX_PIXELS` pixels, or than its bytes can fill, or `MAX_SCANS` passes over them, which is found out before
            memory is taken for them.
    """
    content = bytes(memoryview(image).cast("B"))  # simplejpeg refuses the signed chars of Arrow
    try:
        if content[:2] == JPEG:
            with suppress(ValueError):  # Pillow has the last word, and raises when it cannot read it either
                return _by_simplejpeg(content, room)
        return decoded(content)
    except Refused as error:
        raise ImageError(f"{error}, or ingest with on_bad_image=skip") from error.__cause__


def _by_simplejpeg(content: bytes, room: UInt8[ndarray, "rows columns 3"] | None) -> UInt8[ndarray, "height width 3"]:
    height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
    if colours in _INKS:
        raise ValueError("Pillow makes RGB of inks by another rule, up to two levels away")
    refuse_large(content, width, height)
    refuse_passes(content, width * height)
    if room is not None and room.shape == (height, width, 3) and room.flags.c_contiguous:
        simplejpeg.decode_jpeg(content, "RGB", buffer=room)
        picture = room
    else:
        picture = simplejpeg.decode_jpeg(content, "RGB")
    return upright(picture, orientation_of_jpeg(content))


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
