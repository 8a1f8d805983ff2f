"""The bytes of a picture file as the pixels that the network sees, exactly as its training saw them.

This file needs NumPy and Pillow and nothing else of anybody's: it is written beside an exported model
(`pipelines/export.py`) and used there without gracl. In gracl, `decoding.py` and `views.py` are built on it.

    pictures = numpy.stack([preprocess(path.read_bytes(), height=256, width=128) for path in paths])

Pictures come from anywhere. A header of a thousand bytes may claim four thousand million pixels, a progressive JPEG
ten thousand passes over them, and a file named .jpg may be a PostScript program, which Pillow would hand to
Ghostscript. So: one limit of pixels for all formats, one of passes, and only the formats that a raw folder may hold.
"""

import io
import re
import struct
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin, WebPImagePlugin

# As RGB a picture may take as much as a file may: 512 MiB. It is also where Pillow by itself refuses.
MAX_FILE_BYTES = 2**29
MAX_PIXELS = MAX_FILE_BYTES // 3
# A PNG of one bit a pixel holds no more in a byte, and a claim of more is one that its bytes do not fill; only blank
# pictures of other formats may, and as long as they are small it does no harm to let them.
PIXELS_IN_A_BYTE, PIXELS_ANYWAY = 8 * 1032, 2**24
# Progressive JPEGs have ten passes or so; each one more goes over all the pixels for a few bytes of the file.
# They are counted where pixels times bytes say that there may be much to do: at 12 bytes a pass and the 2.3 ns a pixel
# that were measured on two busy cores, less than this takes under seven seconds.
MAX_SCANS, LITTLE_WORK = 100, 2**35
# Pillow loads these two only when it tries all of its formats, among them some that start other programs.
_LOADED = (TiffImagePlugin.TiffImageFile.format, WebPImagePlugin.WebPImageFile.format)
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", *_LOADED)

JPEG = b"\xff\xd8"
_EXIF = b"Exif\0\0"
_SCAN = b"\xff\xda"
_APP1, _START_OF_SCAN, _END = 0xE1, 0xDA, 0xD9
_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])", re.DOTALL)  # not a stuffed byte, a restart or a filling
_ORIENTATION, _SHORT = 0x0112, 3
_ADDRESS = re.compile(r" <_io\.BytesIO object at 0x[0-9a-f]+>")

# uint8 [height, width, 3], red first.
Pixels = NDArray[np.uint8]


class Refused(Exception):
    """No whole picture, or one beyond the limits; says what was expected, what came and what to do."""


def preprocess(content: bytes, *, height: int, width: int) -> Pixels:
    """The picture as uint8 [height, width, 3], red first: what an exported model takes, stacked to a batch.

    Args:
        content: the bytes of a JPEG, PNG, BMP, GIF, PPM, TIFF or WebP file.
        height: rows that the model wants.
        width: columns that the model wants.

    Raises:
        Refused: the bytes are no picture, or only a part of one, or claim too much.
    """
    return fitted(decoded(content), height=height, width=width)


def fitted(pixels: Pixels, *, height: int, width: int) -> Pixels:
    """Pixels at that size (bicubic); untouched when they have it already."""
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


def decoded(content: bytes) -> Pixels:
    """The bytes of a picture file as RGB, upright.

    Grey and palette become RGB, 16-bit grey keeps its high byte, and what is transparent is laid over white. Of a file
    with several frames the first counts. A picture whose EXIF says that it lies on its side is set upright.

    Raises:
        Refused: see `preprocess`. What is claimed is looked at before memory is taken for it.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            refuse_large(content, *picture.size)
            if picture.format in ("JPEG", "MPO"):
                refuse_passes(content, picture.width * picture.height)
            pixels = np.asarray(_to_rgb(picture))
            exif = picture.info.get("exif", b"")  # a TIFF is upright already, and a PNG may have it behind the pixels
    except Refused:
        raise
    except Exception as error:  # bytes that are no picture can fail in the decoders in any way
        reason = _ADDRESS.sub("", str(error))  # the same file has the same reason in every run
        what = f"{len(content)} bytes starting with {content[:8]!r} ({reason})"
        raise Refused(f"expected the bytes of a whole picture; came {what}; replace or remove the file") from error
    return upright(pixels, orientation(exif))


def refuse_large(content: bytes, width: int, height: int) -> None:
    """Refuses more than `MAX_PIXELS` pixels, or than the bytes can fill."""
    most = min(MAX_PIXELS, max(PIXELS_ANYWAY, PIXELS_IN_A_BYTE * len(content)))
    if not 0 < width * height <= most:
        came = f"a header of {width} x {height} in {len(content)} bytes"
        raise Refused(f"expected from 1 to {most} pixels; came {came}; make the picture smaller")


def refuse_passes(content: bytes, pixels: int) -> None:
    """Refuses a JPEG of more than `MAX_SCANS` passes, where these would be much work."""
    # The bytes that begin a pass may also stand in what is no pass (a thumbnail, a film behind the picture): count
    # them first, because that is quick, and look closer only where there are many.
    if pixels * len(content) < LITTLE_WORK or content.count(_SCAN) <= MAX_SCANS:
        return
    passes = sum(marker == _START_OF_SCAN for marker, _ in _segments(content))
    if passes > MAX_SCANS:
        raise Refused(f"expected a JPEG of at most {MAX_SCANS} passes; came {passes}; save it anew")


def _segments(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The marker and content of each segment of a JPEG to its end; what is encoded between them is passed over."""
    place = len(JPEG)
    while found := _MARKER.search(content, place):
        marker, place = found[1][0], found.end()
        if marker == _END:
            return
        length = int.from_bytes(content[place : place + 2], "big")
        yield marker, content[place + 2 : place + length]
        place += max(length, 2)


def orientation_of_jpeg(content: bytes) -> int:
    """How the pixels of a JPEG lie, as `orientation` says."""
    if content.find(_EXIF, 0, content.find(_SCAN)) < 0:  # it stands ahead of the pixels, and most pictures have none
        return 1
    for marker, segment in _segments(content):
        if marker == _START_OF_SCAN:
            return 1
        if marker == _APP1 and segment.startswith(_EXIF):
            return orientation(segment)
    return 1


def orientation(exif: bytes) -> int:
    """How the pixels lie, from 1 (upright) to 8, as EXIF counts; 1 where the block says nothing that can be read."""
    block = exif.removeprefix(_EXIF)
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None or len(block) < 10:
        return 1
    (start,) = struct.unpack_from(f"{order}I", block, 4)
    if start + 2 > len(block):
        return 1
    (entries,) = struct.unpack_from(f"{order}H", block, start)
    for place in range(start + 2, min(start + 2 + 12 * entries, len(block) - 11), 12):
        tag, kind, _, value = struct.unpack_from(f"{order}HHIH", block, place)
        if tag == _ORIENTATION:
            return int(value) if kind == _SHORT and 1 <= value <= 8 else 1
    return 1


def upright(pixels: Pixels, lies: int) -> Pixels:
    """Pixels that lie as EXIF's orientation says (1 to 8), set upright."""
    if lies == 1:
        return pixels
    if lies >= 5:
        pixels = pixels.transpose(1, 0, 2)
    rows, columns = {2: (1, -1), 3: (-1, -1), 4: (-1, 1), 5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}[lies]
    return np.ascontiguousarray(pixels[::rows, ::columns])


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "F":
        raise ValueError("a picture of floats has no known white")
    if picture.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip at 255
        return Image.fromarray((np.clip(np.asarray(picture), 0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        solid = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", solid.size, "white"), solid).convert("RGB")
    return picture.convert("RGB")
