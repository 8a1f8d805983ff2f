"""Odd and hostile pictures, one by one: used rightly, or refused by name before memory or time is taken for them."""

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

import gracl
from gracl.errors import ImageError
from gracl.images import preprocess, storage
from gracl.images.batches import MappedBatches
from gracl.images.decoding import decode
from gracl.images.ingesting import ingest_here
from gracl.images.preprocess import orientation, upright
from gracl.images.shards import ShardStore
from gracl.images.views import eval_view
from gracl.learning.encoder import build_encoder
from tests.chaos.mutations import encoded, originals
from tests.raw_images import picture


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_claiming(width: int, height: int) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def jpeg_claiming(width: int, height: int) -> bytes:
    content = picture(1)
    at = content.index(b"\xff\xc0") + 5
    return content[:at] + struct.pack(">HH", height, width) + content[at + 4 :]


def bmp_claiming(width: int, height: int) -> bytes:
    content = picture(1, kind="BMP")
    return content[:18] + struct.pack("<ii", width, height) + content[26:]


def gif_claiming(width: int, height: int) -> bytes:
    content = picture(1, kind="GIF")
    return content[:6] + struct.pack("<HH", width, height) + content[10:]


def webp_claiming(width: int, height: int) -> bytes:
    size = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    return b"RIFF" + struct.pack("<I", 100) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + size + bytes(80)


def tiff_claiming(width: int, height: int) -> bytes:
    entries = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (278, 4, height)]
    entries += [(279, 4, width * height % 2**32)]
    packed = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries)) + packed + bytes(4)


def ppm_claiming(width: int, height: int) -> bytes:
    return b"P6 %d %d 255\n" % (width, height) + bytes(60)


CLAIMS = {
    "png": png_claiming,
    "jpeg": jpeg_claiming,
    "bmp": bmp_claiming,
    "gif": gif_claiming,
    "webp": webp_claiming,
    "tiff": tiff_claiming,
    "ppm": ppm_claiming,
}

MEASURED = """
import resource, sys
from gracl.errors import ImageError
from gracl.images.decoding import decode
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    decode(open(sys.argv[1], "rb").read())
except ImageError as error:
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, error)
"""


@pytest.mark.parametrize("kind", CLAIMS)
@pytest.mark.parametrize("side", [20_000, 60_000])
def test_a_claim_of_too_many_pixels_is_refused(kind: str, side: int) -> None:
    with pytest.raises(ImageError, match="pixels|whole picture"):
        decode(CLAIMS[kind](side, side))


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
def test_no_memory_is_taken_for_a_claim(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "bomb"
    file.write_bytes(CLAIMS[kind](60_000, 60_000))
    done = subprocess.run([sys.executable, "-c", MEASURED, str(file)], capture_output=True, text=True, timeout=120)
    taken, _, words = done.stdout.partition(" ")
    assert int(taken) < 50, done  # a JPEG's claim of so many took 10 GB
    assert str(60_000**2) in words or "60000 x 60000" in words


@pytest.mark.parametrize("kind", CLAIMS)
def test_a_claim_that_its_bytes_cannot_fill_is_refused(kind: str) -> None:
    words = f"from 1 to {preprocess.PIXELS_ANYWAY} pixels.*13000 x 13000"
    with pytest.raises(ImageError, match="could not create decoder" if kind == "webp" else words):
        decode(CLAIMS[kind](13_000, 13_000))


def test_a_large_blank_picture_is_whole() -> None:
    blank = encoded(Image.new("1", (8000, 8000), 1), "PNG")
    assert preprocess.PIXELS_ANYWAY < 8000 * 8000
    assert decode(blank).shape == (8000, 8000, 3)
    small = encoded(Image.new("RGB", (2000, 2000), "red"), "WEBP", lossless=True)
    assert preprocess.PIXELS_IN_A_BYTE * len(small) < 2000 * 2000
    assert decode(small).shape == (2000, 2000, 3)


def test_a_jpeg_of_too_many_passes_is_refused_and_one_of_many_is_not() -> None:
    content = encoded(Image.new("L", (3000, 3000), 128), "JPEG", progressive=True)
    last = content[content.rindex(b"\xff\xda") : -2]
    assert 9_000_000 * len(content) > preprocess.LITTLE_WORK
    with pytest.raises(ImageError, match="at most 100 passes; came 2"):
        decode(content[:-2] + 200 * last + b"\xff\xd9")
    assert decode(content[:-2] + 20 * last + b"\xff\xd9").shape == (3000, 3000, 3)
    assert (decode(content + 200 * last) == decode(content)).all()  # what lies behind its end is no pass


def test_no_program_is_run_for_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: object, **options: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", run)
    with pytest.raises(ImageError):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n")


@pytest.mark.parametrize("lies", range(1, 9))
def test_orientation_is_that_of_pillow(lies: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = lies
    for kind in ("PNG", "TIFF"):
        plain = Image.open(io.BytesIO(encoded(Image.fromarray(pixels), "PNG", exif=exif)))
        wanted = np.asarray(ImageOps.exif_transpose(plain))
        assert (decode(encoded(Image.fromarray(pixels), kind, exif=exif)) == wanted).all()
        assert (upright(pixels, lies) == wanted).all()
    for mode in ("RGB", "CMYK"):  # the second through Pillow
        jpeg = encoded(Image.fromarray(pixels).convert(mode), "JPEG", exif=exif, quality=95)
        with Image.open(io.BytesIO(jpeg)) as opened:
            turned = ImageOps.exif_transpose(opened).convert("RGB")
        assert decode(jpeg).shape == np.asarray(turned).shape
        assert np.abs(decode(jpeg).astype(int) - np.asarray(turned)).max() <= 2


def test_an_exif_block_that_says_nothing_leaves_the_picture_as_it_lies() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = exif.tobytes()
    assert orientation(whole) == 6
    assert orientation(whole.removeprefix(b"Exif\0\0")) == 6
    dice = np.random.default_rng(0)
    for length in range(len(whole)):
        assert 1 <= orientation(whole[:length]) <= 8
    for _ in range(2000):
        torn = bytearray(whole)
        torn[dice.integers(len(torn))] = dice.integers(256)
        assert 1 <= orientation(bytes(torn)) <= 8


def test_of_a_film_the_first_picture_counts() -> None:
    whole = originals()
    for kind in ("png film", "gif film", "webp film"):
        assert decode(whole[kind]).shape == (48, 36, 3)
    assert (decode(whole["png film"]) == decode(whole["png"])).all()
    assert (decode(whole["gif film"]) == decode(whole["gif"])).all()


NAMES = [
    "line\nend.jpg",
    "tab\tquote\"'.jpg",
    "猫と犬.jpg",
    "кот.png",
    "قطة.jpg",
    "e\u0301.jpg",
    "\u202egnp.jpg",
    "[a]*?.jpg",
    "a $b^{ c.jpg",
    "x" * 240 + ".jpg",
    "<b>&.gif",
    "-rf.jpg",
    " .jpg",
]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A folder with a picture under each odd name, whose pixels tell which."""
    for number, name in enumerate(NAMES):
        storage.write_bytes(str(tmp_path / "raw" / "x" / "f"), b"")
        (tmp_path / "raw" / name).write_bytes(picture(number))
    (tmp_path / "raw/x/f").unlink()
    return tmp_path / "raw"


def scanned(out: Path) -> np.ndarray:
    store = ShardStore.open(str(out), "train")
    batches = MappedBatches(
        {"train": store}, train="train", eval_view=whole_view, train_view=whole_view, height=16, width=8
    )
    return np.concatenate([batch.images for batch in batches.scan("train")])


def whole_view(
    image: bytes | memoryview,
    dice: np.random.Generator | None = None,
    room: np.ndarray | None = None,
    scratch: np.ndarray | None = None,
) -> np.ndarray:
    return eval_view(image, height=16, width=8)


def test_any_name_is_used_rightly(raw: Path, tmp_path: Path) -> None:
    ingest_here(str(raw), str(tmp_path / "out"), "unlabelled")
    store = ShardStore.open(str(tmp_path / "out"), "train")
    assert store.paths(np.arange(len(store))) == sorted(NAMES)
    for name, seen in zip(sorted(NAMES), scanned(tmp_path / "out"), strict=True):
        assert (seen == decode(picture(NAMES.index(name)))).all(), name


def test_a_bad_picture_of_any_name_is_listed_on_one_line(raw: Path, tmp_path: Path) -> None:
    for name in NAMES:
        (raw / name).write_bytes(b"no picture")
    with pytest.raises(ImageError) as refused:
        ingest_here(str(raw), str(tmp_path / "out"), "unlabelled")
    lines = str(refused.value).splitlines()
    assert len(lines) == len(NAMES) + 2  # what was expected, each name, what to do
    assert sum("line\\nend.jpg" in line for line in lines) == 1
    assert not any("\u202e" in line for line in lines)


def test_wrong_suffix_empty_file_and_pipe_are_used_or_listed(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "really_png.jpg").write_bytes(picture(1, kind="PNG"))
    (raw / "really_jpeg.gif").write_bytes(picture(2))
    (raw / "empty.png").write_bytes(b"")
    (raw / "text.bmp").write_bytes(b"hello")
    (raw / "one_pixel.png").write_bytes(picture(3, height=1, width=1, kind="PNG"))
    os.mkfifo(raw / "pipe.jpg")  # reading it would wait for ever
    manifest = ingest_here(str(raw), str(tmp_path / "out"), "unlabelled", on_bad_image="skip")["train"]
    assert {image.path: image.reason for image in manifest.bad_images} == {
        "empty.png": "no picture of a known format",
        "pipe.jpg": "OSError: no plain file, but a folder, a pipe, a device or a socket",
        "text.bmp": "no picture of a known format",
    }
    assert scanned(tmp_path / "out").shape == (3, 16, 8, 3)


def test_a_file_too_large_is_listed_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "a.jpg").write_bytes(picture(1))
    with (raw / "large.jpg").open("wb") as file:
        file.truncate(preprocess.MAX_FILE_BYTES + 1)  # takes no room on the disk
    manifest = ingest_here(str(raw), str(tmp_path / "out"), "unlabelled", on_bad_image="skip")["train"]
    (bad,) = manifest.bad_images
    assert bad.path == "large.jpg"
    assert f"{preprocess.MAX_FILE_BYTES + 1} bytes, more than {preprocess.MAX_FILE_BYTES}" in bad.reason


def test_embed_names_what_it_cannot_read_and_does_not_wait(tmp_path: Path) -> None:
    model = (build_encoder(backbone="resnet18", feature_size=4, bn_group=0).eval(), {"height": 32, "width": 16})
    (tmp_path / "a.jpg").write_bytes(picture(1))
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "bomb.jpg").write_bytes(jpeg_claiming(60_000, 60_000))
    for name, words in (("pipe.jpg", "pipe.jpg .image 1.*no plain file"), ("bomb.jpg", "image 1 .*60000 x 60000")):
        with pytest.raises(ImageError, match=words):
            gracl.embed(model, [tmp_path / "a.jpg", tmp_path / name])


def test_a_bad_picture_in_the_stream_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "raw").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "raw" / name).write_bytes(picture(1))
    with monkeypatch.context() as blind:  # an older gracl accepted what this one refuses
        blind.setattr("gracl.images.writing.decode", lambda content: np.zeros((16, 8, 3), np.uint8))
        (tmp_path / "raw/b.jpg").write_bytes(jpeg_claiming(60_000, 60_000))
        ingest_here(str(tmp_path / "raw"), str(tmp_path / "out"), "unlabelled")
    with pytest.raises(ImageError, match="image 1 .ticket 0 of epoch 0.*60000 x 60000"):
        scanned(tmp_path / "out")
