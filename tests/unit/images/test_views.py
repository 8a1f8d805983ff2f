"""Views: what decoding gives for each format, and what the altered views may and may not do."""

import io

import numpy as np
import pytest
from PIL import Image

from gracl.errors import ImageError
from gracl.images.decoding import near_memory
from gracl.images.views import (
    MEAN_COLOUR,
    _between,
    decode,
    eval_view,
    train_view,
)
from gracl.randomness import rng


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def coloured(height: int = 24, width: int = 12) -> np.ndarray:
    return np.random.default_rng(1).integers(30, 250, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def png() -> bytes:
    return encoded(Image.fromarray(coloured()), "PNG")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF"])
def test_lossless_formats_come_back_as_they_were(kind: str) -> None:
    assert (decode(encoded(Image.fromarray(coloured()), kind)) == coloured()).all()


def test_jpeg_is_close_and_the_same_from_any_buffer() -> None:
    smooth = np.asarray(Image.fromarray(coloured(3, 2)).resize((32, 48), Image.Resampling.BICUBIC))
    data = encoded(Image.fromarray(smooth), "JPEG", quality=95, subsampling=0)
    picture = decode(data)
    assert picture.shape == (48, 32, 3)
    assert np.abs(picture.astype(int) - smooth).mean() < 3
    signed = memoryview(np.frombuffer(data, np.int8).copy())  # as Arrow hands them out
    assert (decode(signed) == picture).all()


def test_grey_palette_and_deep_pictures_become_rgb() -> None:
    grey = Image.fromarray(coloured()[..., 0])
    for data in (encoded(grey, "PNG"), encoded(grey.convert("P"), "PNG")):
        assert (decode(data) == np.asarray(grey)[..., None]).all()
    deep = (np.asarray(grey).astype(np.uint16) << 8) + 7
    assert (decode(encoded(Image.fromarray(deep), "PNG")) == np.asarray(grey)[..., None]).all()
    assert (decode(encoded(Image.new("1", (4, 3), 1), "PNG")) == 255).all()
    grey_jpeg = decode(encoded(grey, "JPEG"))
    assert (grey_jpeg == grey_jpeg[..., :1]).all()


def test_cmyk_jpeg_is_read() -> None:
    red = Image.new("RGB", (16, 16), (220, 30, 30)).convert("CMYK")
    assert np.abs(decode(encoded(red, "JPEG")).mean((0, 1)) - (220, 30, 30)).max() < 12


def test_what_is_transparent_lies_over_white() -> None:
    solid = np.dstack([coloured(), np.full((24, 12), 255, np.uint8)])
    solid[:12, :, 3] = 0
    picture = decode(encoded(Image.fromarray(solid), "PNG"))
    assert (picture[:12] == 255).all()
    assert (picture[12:] == coloured()[12:]).all()
    see_through = encoded(Image.new("P", (3, 3), 0), "PNG", transparency=0)
    assert (decode(see_through) == 255).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP"])
def test_half_a_picture_is_refused(kind: str) -> None:
    data = encoded(Image.fromarray(coloured(64, 64)), kind)
    with pytest.raises(ImageError, match="expected the bytes of a whole picture"):
        decode(data[: len(data) // 2])


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xe0 not a picture", b"hello", b"\x89PNG\r\n\x1a\n"])
def test_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match=f"{len(data)} bytes"):
        decode(data)


def test_a_picture_of_floats_is_refused() -> None:
    with pytest.raises(ImageError, match="floats"):
        decode(encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"))


def test_eval_view_touches_nothing_of_the_right_size(png: bytes) -> None:
    assert (eval_view(png, height=24, width=12) == coloured()).all()
    resized = eval_view(png, None, height=48, width=20)
    wanted = Image.fromarray(coloured()).resize((20, 48), Image.Resampling.BICUBIC)
    assert (resized == np.asarray(wanted)).all()


def test_train_view_with_everything_off_is_the_eval_view(png: bytes) -> None:
    off = train_view(png, rng(0), height=32, width=16, flip=0.0, pad=0, erase=0.0)
    assert (off == eval_view(png, height=32, width=16)).all()
    mirrored = train_view(png, rng(0), height=32, width=16, flip=1.0, pad=0, erase=0.0)
    assert (mirrored == off[:, ::-1]).all()


def test_same_dice_same_view(png: bytes) -> None:
    one = train_view(png, rng(3, "view", 1), height=24, width=12, pad=4, jitter=0.3)
    assert (one == train_view(png, rng(3, "view", 1), height=24, width=12, pad=4, jitter=0.3)).all()
    assert any((one != train_view(png, rng(3, "view", n), height=24, width=12, pad=4)).any() for n in range(2, 6))


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_shift_is_a_crop_of_the_padded_picture(png: bytes, flip: float) -> None:
    padded = np.pad(coloured()[:, ::-1] if flip else coloured(), ((3, 3), (3, 3), (0, 0)))
    crops = {(y, x): padded[y : y + 24, x : x + 12].tobytes() for y in range(7) for x in range(7)}
    seen = set()
    for number in range(300):
        view = train_view(png, rng(0, number), height=24, width=12, flip=flip, pad=3, erase=0.0).tobytes()
        assert view in crops.values()
        seen.add(view)
    assert len(seen) == 49  # every shift comes, the largest included


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", [(24, 12), (32, 20)])
def test_a_view_in_memory_used_before_is_the_view(kind: str, size: tuple[int, int]) -> None:
    data, shape = encoded(Image.fromarray(coloured()), kind), {"height": size[0], "width": size[1]}
    for number in range(40):
        room = np.full((*size, 3), 77, np.uint8)
        view = train_view(data, rng(6, number), room, np.full_like(room, 99), **shape, pad=5)
        assert view is room
        assert (view == train_view(data, rng(6, number), **shape, pad=5)).all()
    strip = np.full((3, *size, 3), 77, np.uint8)
    assert (eval_view(data, None, strip[1], **shape) == eval_view(data, **shape)).all()
    assert (strip[::2] == 77).all()


KINDS = {
    "JPEG": lambda height, width: encoded(Image.fromarray(coloured(height, width)), "JPEG"),
    "turned JPEG": lambda height, width: encoded(Image.fromarray(coloured(width, height)), "JPEG", exif=turned(6)),
    "grey JPEG": lambda height, width: encoded(Image.fromarray(coloured(height, width)).convert("L"), "JPEG"),
    "inks": lambda height, width: encoded(Image.fromarray(coloured(height, width)).convert("CMYK"), "JPEG"),
    "PNG": lambda height, width: encoded(Image.fromarray(coloured(height, width)), "PNG"),
}


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(24, 12), (25, 16), (16, 11)])
def test_a_file_is_altered_as_its_pixels_are(kind: str, size: tuple[int, int]) -> None:
    # Bytes are mirrored by words of eight, pixels that are there already colour by colour.
    shape = {"height": size[0], "width": size[1]}
    for stored in (size, (40, 30)):
        data = KINDS[kind](*stored)
        pixels = eval_view(data, **shape)
        for number in range(30):
            options = {**shape, "pad": 5, "jitter": 0.2 * (number % 2)}
            view = train_view(data, rng(8, number), **options)
            np.testing.assert_array_equal(view, train_view(pixels, rng(8, number), **options))


def test_draws_are_those_of_numpys_own_forms() -> None:
    for seed in range(400):
        ours, theirs = np.random.default_rng(seed), np.random.default_rng(seed)
        for low, high in ((0.02, 0.4), (0.3, 3.3)):
            assert _between(ours, low, high) == theirs.uniform(low, high)
        for pad in (0, 1, 10, 31):
            two = [int(ours.integers(-pad, pad + 1)) for _ in range(2)]
            assert two == theirs.integers(-pad, pad + 1, 2).tolist()
        assert ours.random() == theirs.random()


@pytest.mark.parametrize("shape", [(24, 12, 3), (4, 256, 128, 3), (1, 1, 3)])
def test_memory_that_is_near_begins_beside_the_places_that_are_written_past_the_cache(shape):
    for _ in range(20):
        room = near_memory(shape)
        assert room.shape == shape
        assert room.dtype == np.uint8
        assert room.flags.c_contiguous
        assert room.ctypes.data % 32 == 16


def test_pixels_do_not_depend_on_where_they_are_written():
    data = encoded(Image.fromarray(coloured(64, 32)), "JPEG")
    raw = np.empty(64 * 32 * 3 + 64, np.uint8)
    wanted = decode(data)
    for first in range(0, 64, 8):
        room = raw[first : first + 64 * 32 * 3].reshape(64, 32, 3)
        assert decode(data, room) is room
        np.testing.assert_array_equal(room, wanted)


def test_memory_of_another_size_is_left_alone() -> None:
    room = np.full((9, 9, 3), 77, np.uint8)
    view = train_view(encoded(Image.fromarray(coloured()), "JPEG"), rng(6), room, height=24, width=12, pad=5)
    assert view.shape == (24, 12, 3)
    assert (room == 77).all()


def test_erased_box_has_the_mean_colour_and_the_promised_size() -> None:
    black = encoded(Image.new("RGB", (64, 128)), "PNG")
    shares, aspects, places = [], [], set()
    for number in range(300):
        view = train_view(black, rng(1, number), height=128, width=64, pad=0, erase=1.0)
        rows, columns = (np.flatnonzero((view > 0).any((axis, 2))) for axis in (1, 0))
        box = view[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert (box == MEAN_COLOUR).all()
        assert (view > 0).any(2).sum() == len(rows) * len(columns)
        shares.append(len(rows) * len(columns) / (128 * 64))
        aspects.append(len(rows) / len(columns))
        places.add((rows[0], columns[0]))
    assert 0.015 < min(shares) < 0.05
    assert 0.3 < max(shares) < 0.41
    assert 0.25 < min(aspects) < 0.6
    assert 2 < max(aspects) < 3.6
    assert len(places) > 200


def test_erasing_and_flipping_come_as_often_as_asked() -> None:
    half = np.zeros((32, 16, 3), np.uint8)
    half[:, :8] = 255
    data = encoded(Image.fromarray(half), "PNG")
    options = {"height": 32, "width": 16, "pad": 0}
    flips = sum(train_view(data, rng(2, n), flip=0.5, erase=0.0, **options)[0, 0, 0] == 0 for n in range(400))
    erased = sum((train_view(data, rng(2, n), flip=0.0, erase=0.5, **options) != half).any() for n in range(400))
    assert 160 < flips < 240
    assert 160 < erased < 240


def test_a_picture_too_narrow_to_erase_stays_whole() -> None:
    line = encoded(Image.new("RGB", (1, 400), "red"), "PNG")
    view = train_view(line, rng(0), height=400, width=1, pad=0, erase=1.0)
    assert (view == (255, 0, 0)).all()


def test_jitter_changes_light_within_its_bounds() -> None:
    grey = encoded(Image.new("RGB", (8, 8), (100, 100, 100)), "PNG")
    levels = [
        int(train_view(grey, rng(5, n), height=8, width=8, pad=0, erase=0.0, jitter=0.2)[0, 0, 0]) for n in range(200)
    ]
    assert 80 <= min(levels) < 90
    assert 110 < max(levels) <= 120


def test_train_view_refuses_what_cannot_be(png: bytes) -> None:
    with pytest.raises(ValueError, match="expected dice"):
        train_view(png, None)
    for pad in (-1, 12):
        with pytest.raises(ValueError, match="pad from 0 to 11"):
            train_view(png, rng(0), height=24, width=12, pad=pad)
