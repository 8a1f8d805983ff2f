"""The picture in a request: no more of it is read than a picture may have, and nothing is made of it before a look."""

import asyncio
import re

from starlette.requests import Request

from gracl.errors import ImageError, LargePicture
from gracl.images.decoding import claimed
from gracl.runtime.service.refusals import Refusal, refusal_of

_BOUNDARY = re.compile(r'boundary=(?:"([^"]{1,200})"|([^\s";]{1,200}))')
FORM_SPARE = 2**14  # what a form has around its file


async def picture_in(request: Request, *, most_bytes: int, most_pixels: int, seconds: float) -> bytes:
    """The bytes of the one picture that a request brings, as its body or as the one file of a form.

    Args:
        request: not read so far.
        most_bytes: of the picture.
        most_pixels: that it may claim.
        seconds: for it to arrive.

    Raises:
        Refusal: 400 no body or a torn form, 408 too slow, 413 too many bytes or pixels, 415 no picture.
    """
    kind = request.headers.get("content-type", "")
    form = kind.lower().startswith("multipart/")
    body = await _read(request, most_bytes + (FORM_SPARE if form else 0), seconds)
    picture = _file_in(body, kind) if form else body
    if not picture:
        raise Refusal(400, "a picture as the body of the request", "nothing", "send its bytes, or a form with one file")
    if len(picture) > most_bytes:
        raise _large(most_bytes, f"{len(picture)}")
    try:
        _, width, height = claimed(picture)
    except LargePicture as error:
        raise refusal_of(error, 413) from error
    except ImageError as error:
        raise refusal_of(error, 415, "send a JPEG, PNG or another picture") from error
    if width * height > most_pixels:
        raise Refusal(413, f"at most {most_pixels} pixels", f"{width} x {height}", "make the picture smaller")
    return picture


async def _read(request: Request, most: int, seconds: float) -> bytes:
    length = request.headers.get("content-length", "0")
    if not length.isascii() or not length.isdigit():
        raise Refusal(400, "a content-length in digits", length[:40], "mend the request")
    if int(length) > most:
        raise _large(most, length)
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                body += part
                if len(body) > most:
                    raise _large(most, f"more than {most}")
    except TimeoutError:
        what = f"a request that arrives within {seconds:g} s"
        raise Refusal(408, what, f"{len(body)} bytes of it", "send less, or over a faster line") from None
    return bytes(body)


def _large(most: int, came: str) -> Refusal:
    return Refusal(413, f"at most {most} bytes", f"{came} bytes", "make the picture smaller")


def _file_in(body: bytes, kind: str) -> bytes:
    """The one part of a form. A form of several is refused: nobody could say which of them was meant."""
    found = _BOUNDARY.search(kind)
    if found is None:
        raise Refusal(400, "a form with its boundary", kind[:80], "send the picture as the body instead")
    boundary = (found[1] or found[2]).encode()
    parts = (b"\r\n" + body).split(b"\r\n--" + boundary, 3)
    if len(parts) != 3 or not parts[-1].startswith(b"--"):
        came = "more than one part, or an end that is missing"
        raise Refusal(400, "a form with one file", came, "send one picture; settings go into the address")
    head, _, content = parts[1].partition(b"\r\n\r\n")
    if b"filename" not in head.lower():
        raise Refusal(400, "a form with one file", "a field that is none", "settings go into the address")
    return content
