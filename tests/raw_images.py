"""Tiny raw folders for tests: pictures of random colours, written under any names, on a disk or in memory."""

import io
from collections.abc import Iterable, Mapping

from PIL import Image

from gracl.images import storage
from gracl.randomness import rng

MARKET = {
    "bounding_box_train": ["0002_c1s1_000451_03.jpg", "0002_c3s1_000551_01.jpg", "0007_c6s3_077419_03.jpg"],
    "query": ["0001_c1s1_001051_00.jpg", "0003_c2s1_000001_00.jpg"],
    "bounding_box_test": [
        "0001_c2s1_000301_01.jpg",
        "0003_c3s1_000301_01.jpg",
        "0000_c1s1_000151_01.jpg",
        "0000_c2s1_000151_01.jpg",
        "-1_c1s1_000401_03.jpg",
        "-1_c6s1_000401_03.jpg",
    ],
}


def picture(seed: int, *, height: int = 16, width: int = 8, kind: str = "JPEG", mode: str = "RGB") -> bytes:
    """The bytes of a picture of noise."""
    buffer = io.BytesIO()
    pixels = rng(seed, "picture").integers(0, 256, (height, width, 3), dtype="uint8")
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def fill(root: str, paths: Iterable[str]) -> str:
    """Writes a picture under every path of a root, each another one; returns the root."""
    for seed, path in enumerate(paths):
        kind = "PNG" if path.lower().endswith(".png") else "JPEG"
        storage.write_bytes(storage.join(root, path), picture(seed, kind=kind))
    return root


def fill_folders(root: str, folders: Mapping[str, Iterable[str]]) -> str:
    """The same for names by folder."""
    return fill(root, [f"{folder}/{name}" for folder, names in folders.items() for name in names])
