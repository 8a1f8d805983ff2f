"""Valid picture files of every format, and what a seed makes of them: bits, cuts, splices, header and length fields."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from gracl.randomness import rng

EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
PNG_START = b"\x89PNG\r\n\x1a\n"


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def originals() -> dict[str, bytes]:
    """Whole pictures of 48 x 36 pixels, by what they are."""
    noise = rng(0, "originals").integers(0, 256, (12, 9, 4), dtype=np.uint8)
    clear = Image.fromarray(noise).resize((36, 48), Image.Resampling.BICUBIC)
    solid, grey = clear.convert("RGB"), clear.convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    frames = [solid.rotate(turn) for turn in (90, 180)]
    film = {"save_all": True, "append_images": frames, "duration": 40}
    sideways = Image.Exif()
    sideways[0x0112] = 6
    return {
        "jpeg": encoded(solid, "JPEG"),
        "jpeg progressive": encoded(solid, "JPEG", progressive=True),
        "jpeg restarts": encoded(solid, "JPEG", restart_marker_blocks=2),
        "jpeg grey": encoded(grey, "JPEG"),
        "jpeg cmyk": encoded(solid.convert("CMYK"), "JPEG"),
        "jpeg sideways": encoded(solid, "JPEG", exif=sideways),
        "png": encoded(solid, "PNG"),
        "png clear": encoded(clear, "PNG"),
        "png palette": encoded(solid.quantize(16), "PNG", transparency=3),
        "png deep": encoded(deep, "PNG"),
        "png bits": encoded(grey.convert("1"), "PNG"),
        "png film": encoded(solid, "PNG", **film),
        "png sideways": encoded(solid, "PNG", exif=sideways),
        "gif": encoded(solid, "GIF"),
        "gif film": encoded(solid, "GIF", **film),
        "bmp": encoded(solid, "BMP"),
        "bmp palette": encoded(solid.quantize(16), "BMP"),
        "tiff": encoded(solid, "TIFF"),
        "tiff deep": encoded(deep, "TIFF"),
        "tiff lzw": encoded(solid, "TIFF", compression="tiff_lzw"),
        "tiff deflate": encoded(solid, "TIFF", compression="tiff_adobe_deflate"),
        "tiff jpeg": encoded(solid, "TIFF", compression="jpeg"),
        "tiff cmyk": encoded(solid.convert("CMYK"), "TIFF"),
        "webp": encoded(solid, "WEBP"),
        "webp lossless": encoded(clear, "WEBP", lossless=True),
        "webp film": encoded(clear, "WEBP", **film),
        "webp sideways": encoded(solid, "WEBP", exif=sideways),
        "ppm": encoded(solid, "PPM"),
    }


def flip_bits(content: bytearray, dice: np.random.Generator, other: bytes) -> bytearray:
    for place in dice.integers(0, 8 * len(content), int(dice.integers(1, 33))):
        content[place // 8] ^= 1 << (place % 8)
    return content


def set_bytes(content: bytearray, dice: np.random.Generator, other: bytes) -> bytearray:
    for place in dice.integers(0, len(content), int(dice.integers(1, 9))):
        content[place] = int(dice.choice([0, 1, 0x7F, 0x80, 0xFE, 0xFF]))
    return content


def cut(content: bytearray, dice: np.random.Generator, other: bytes) -> bytearray:
    return content[: int(dice.integers(0, len(content)))]


def splice(content: bytearray, dice: np.random.Generator, other: bytes) -> bytearray:
    return content[: int(dice.integers(0, len(content)))] + other[int(dice.integers(0, len(other))) :]


def repeat(content: bytearray, dice: np.random.Generator, other: bytes) -> bytearray:
    start, stop = sorted(int(place) for place in dice.integers(0, len(content) + 1, 2))
    return content[:stop] + content[start:stop] * int(dice.integers(1, 9)) + content[stop:]


def leave_out(content: bytearray, dice: np.random.Generator, other: bytes) -> bytearray:
    start = int(dice.integers(0, len(content)))
    return content[:start] + content[start + int(dice.integers(1, 65)) :]


def set_field(content: bytearray, dice: np.random.Generator, other: bytes) -> bytearray:
    """A number of 2 or 4 bytes near the beginning becomes one of the edges: sizes, counts, offsets, tags."""
    return _put(content, dice, int(dice.integers(0, min(len(content), 256))))


def set_length(content: bytearray, dice: np.random.Generator, other: bytes) -> bytearray:
    """The same where a length is known to stand: of a PNG's chunk, a JPEG's segment, a RIFF chunk, a TIFF's entry."""
    places = [place for place in _lengths(bytes(content)) if place < len(content)]
    return _put(content, dice, int(dice.choice(places)) if places else 0)


def rewrite_chunk(content: bytearray, dice: np.random.Generator, other: bytes) -> bytearray:
    """Bytes of a PNG's chunk are changed and its checksum is made right again; other files have bits flipped."""
    chunks = _chunks(bytes(content))
    if not chunks:
        return flip_bits(content, dice, other)
    start, length = chunks[int(dice.integers(len(chunks)))]
    if length:
        for place in dice.integers(0, length, int(dice.integers(1, 5))):
            content[start + 8 + int(place)] = int(dice.integers(256))
        end = start + 8 + length
        content[end : end + 4] = struct.pack(">I", zlib.crc32(content[start + 4 : end]))
    return content


def _put(content: bytearray, dice: np.random.Generator, place: int) -> bytearray:
    size, little = int(dice.choice([2, 4])), dice.choice(["little", "big"]) == "little"
    value = int(dice.choice(EDGES)) if dice.random() < 0.7 else int(dice.integers(2**32))
    content[place : place + size] = (value % 256**size).to_bytes(size, "little" if little else "big")
    return content


def _chunks(content: bytes) -> list[tuple[int, int]]:
    """Start and length of each chunk of a PNG."""
    found, place = [], len(PNG_START)
    while content.startswith(PNG_START) and place + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, place)
        if place + 12 + length > len(content):
            break
        found.append((place, length))
        place += 12 + length
    return found


def _lengths(content: bytes) -> list[int]:
    if content.startswith(PNG_START):
        return [start for start, _ in _chunks(content)]
    if content.startswith(b"\xff\xd8"):
        return [
            place + 2 for place in range(2, len(content) - 4) if content[place] == 0xFF and content[place + 1] > 0xBF
        ]
    if content.startswith(b"RIFF"):
        return [4, *(place + 4 for name in (b"VP8", b"ANMF", b"ALPH") if (place := content.find(name)) >= 0)]
    if content.startswith((b"II", b"MM")):
        order = "little" if content.startswith(b"II") else "big"
        first = int.from_bytes(content[4:8], order)
        entries = int.from_bytes(content[first : first + 2], order)
        return [4, first, *(first + 2 + 12 * entry + field for entry in range(entries) for field in (2, 4, 8))]
    return list(range(min(len(content), 64)))


Mutation = Callable[[bytearray, np.random.Generator, bytes], bytearray]
MUTATIONS: tuple[Mutation, ...] = (
    flip_bits,
    set_bytes,
    cut,
    splice,
    repeat,
    leave_out,
    set_field,
    set_length,
    rewrite_chunk,
)


def mutant(number: int, seed: int, whole: dict[str, bytes]) -> tuple[str, str, bytes]:
    """What was made the picture of that number of, how, and its bytes: one to three changes, the same for a seed."""
    dice = rng(seed, "mutant", number)
    names = sorted(whole)
    kind = names[int(dice.integers(len(names)))]
    content, done = bytearray(whole[kind]), []
    for _ in range(int(dice.integers(1, 4))):
        if not content:
            break
        change = MUTATIONS[int(dice.integers(len(MUTATIONS)))]
        content = change(content, dice, whole[names[int(dice.integers(len(names)))]])
        done.append(change.__name__)
    return kind, "+".join(done), bytes(content)
