"""preprocess.py is equal to the eval view bit for bit, and needs nothing of gracl's."""

import io
import itertools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from gracl.errors import ImageError
from gracl.images import preprocess
from gracl.images.decoding import decode
from gracl.images.views import eval_view

ALONE = """
import sys, pathlib, numpy
import preprocess
for name in ("gracl", "torch", "simplejpeg", "jaxtyping"):
    assert name not in sys.modules, name
found = {}
for file in sorted(pathlib.Path("pictures").iterdir()):
    try:
        found[file.name] = preprocess.preprocess(file.read_bytes(), height=64, width=32)
    except preprocess.Refused as error:
        found[file.name] = numpy.array(str(error))
numpy.savez("found.npz", **found)
"""


def picture(seed: int, height: int = 53, width: int = 37) -> Image.Image:
    """Waves of colour with a little noise: what a JPEG has to round everywhere."""
    dice = np.random.default_rng(seed)
    down, right = np.mgrid[:height, :width]
    waves = [np.sin(down / dice.uniform(2, 15) + right / dice.uniform(2, 15) + phase) for phase in range(3)]
    return Image.fromarray(
        np.clip(127 + 100 * np.dstack(waves) + dice.normal(0, 8, (height, width, 3)), 0, 255).astype(np.uint8)
    )


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def lying(lies: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = lies
    return exif


def files() -> dict[str, bytes]:
    """One of each kind that a raw folder may hold, by name."""
    plain, grey = picture(0), picture(1).convert("L")
    clear = np.dstack([np.asarray(plain), np.asarray(grey)])
    made = {
        "baseline": encoded(plain, "JPEG", quality=90),
        "progressive": encoded(plain, "JPEG", quality=60, progressive=True),
        "jpeg of 4:4:4": encoded(plain, "JPEG", subsampling=0),
        "jpeg of rgb": encoded(plain, "JPEG", keep_rgb=True, subsampling=0),
        "restarts": encoded(plain, "JPEG", restart_marker_blocks=2),
        "cmyk": encoded(plain.convert("CMYK"), "JPEG"),
        "grey jpeg": encoded(grey, "JPEG"),
        "stray bytes": encoded(plain, "JPEG") + b"stray",
        "png": encoded(plain, "PNG"),
        "png of the right size": encoded(picture(2, 64, 32), "PNG"),
        "grey png": encoded(grey, "PNG"),
        "alpha": encoded(Image.fromarray(clear), "PNG"),
        "palette": encoded(plain.convert("P"), "PNG"),
        "palette with a hole": encoded(plain.convert("P"), "PNG", transparency=3),
        "16 bits": encoded(Image.fromarray(np.asarray(grey).astype(np.uint16) * 251), "PNG"),
        "one bit": encoded(grey.convert("1"), "PNG"),
        "bmp": encoded(plain, "BMP"),
        "gif": encoded(plain.convert("P"), "GIF"),
        "tiff": encoded(plain, "TIFF"),
        "webp": encoded(plain, "WEBP", quality=70),
        "half": encoded(plain, "JPEG")[:700],
        "no picture": b"hello",
        "a claim": b"P6 60000 60000 255 ",
    }
    made |= {f"exif {lies}": encoded(plain, "JPEG", exif=lying(lies)) for lies in range(1, 9)}
    made |= {f"cmyk exif {lies}": encoded(plain.convert("CMYK"), "JPEG", exif=lying(lies)) for lies in (3, 6)}
    return made | {"png exif": encoded(plain, "PNG", exif=lying(6))}


FILES = files()
REFUSED = ("half", "no picture", "a claim")


@pytest.mark.parametrize("name", [name for name in FILES if name not in REFUSED])
@pytest.mark.parametrize(("height", "width"), [(64, 32), (20, 41)])
def test_equal_to_the_eval_view_bit_for_bit(name, height, width):
    seen = preprocess.preprocess(FILES[name], height=height, width=width)
    assert (seen.dtype, seen.shape) == (np.uint8, (height, width, 3))
    assert (seen == eval_view(FILES[name], height=height, width=width)).all()
    assert seen.std() > 10


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_what_the_eval_view_refuses(name):
    with pytest.raises(ImageError) as ours:
        decode(FILES[name])
    with pytest.raises(preprocess.Refused) as theirs:
        preprocess.preprocess(FILES[name], height=64, width=32)
    told, advice = (str(error.value) for error in (theirs, ours))
    place = re.compile(r" at 0x\w+")  # Pillow tells where in memory it was
    assert place.sub("", advice) == place.sub("", told) + ", or ingest with on_bad_image=skip"


def test_pillow_decodes_every_kind_of_jpeg_as_simplejpeg_does():
    """Two builds of one library: were one of them to round otherwise, this is where it would be seen."""
    dice = np.random.default_rng(5)
    for number, sampling in itertools.product(range(12), ("444", "422", "420", "440", "411", "Gray")):
        height, width = (int(side) for side in dice.integers(1, 120, 2))
        pixels = np.asarray(picture(number, height, width))
        content = simplejpeg.encode_jpeg(pixels, quality=int(dice.integers(1, 101)), colorsubsampling=sampling)
        assert (preprocess.decoded(content) == simplejpeg.decode_jpeg(content, "RGB")).all(), (number, sampling)


def test_alone_in_a_folder_without_gracl(tmp_path: Path) -> None:
    shutil.copy(preprocess.__file__, tmp_path / "preprocess.py")
    (tmp_path / "pictures").mkdir()
    for name, content in FILES.items():
        (tmp_path / "pictures" / name).write_bytes(content)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{ALONE}"
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "found.npz")
    assert set(found) == set(FILES)
    for name, seen in found.items():
        if name in REFUSED:
            assert str(seen).startswith("expected ")
        else:
            assert (seen == eval_view(FILES[name], height=64, width=32)).all(), name
