"""What the head of a picture file claims, read without decoding it."""

import io

import numpy as np
import pytest
from PIL import Image

from gracl.errors import ImageError, LargePicture
from gracl.images.decoding import claimed, decode
from gracl.images.preprocess import MAX_PIXELS
from tests.unit.runtime.test_service import bomb


def written(form, height=5, width=9, **options):
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP"])
def test_it_claims_what_is_decoded(form):
    picture = written(form)
    assert claimed(picture) == (form, 9, 5)
    assert decode(picture).shape == (5, 9, 3)


def test_several_jpegs_in_one_file_are_a_jpeg():
    others = [Image.new("RGB", (9, 5), "red")]
    assert claimed(written("MPO", save_all=True, append_images=others)) == ("JPEG", 9, 5)


def test_what_is_behind_the_head_is_not_looked_at():
    picture = written("JPEG", 200, 200)
    assert claimed(picture[:-3000]) == ("JPEG", 200, 200)
    with pytest.raises(ImageError):
        decode(picture[:-3000])


@pytest.mark.parametrize("content", [b"", b"words", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_has_no_head_of_a_picture_is_refused(content):
    with pytest.raises(ImageError, match=f"expected the bytes of a picture; came {len(content)} bytes") as refused:
        claimed(content)
    assert not isinstance(refused.value, LargePicture)


def test_too_many_pixels_are_an_error_of_their_own():
    assert MAX_PIXELS < 20_000 * 20_000
    with pytest.raises(LargePicture, match=f"at most {MAX_PIXELS} pixels"):
        claimed(bomb())
