"""Datasets that write identity and camera into the file name: Market-1501 and its relatives, VeRi-776.

The naming is `<identity>_c<camera>...`: Market-1501 `0002_c1s1_000451_03.jpg`, DukeMTMC-reID `0001_c2_f0046182.jpg`,
PersonX `0001_c10s1_....jpg` (its cameras are 3, 4, 8, 10, 11, 12), VeRi-776 `0002_c002_00030600_0.jpg`. The rules
for junk and distractors are those of Market-1501 (Zheng et al., ICCV 2015; method.md section 6).
"""

import re
from collections.abc import Iterable

from gracl.errors import LayoutError, expected
from gracl.images.layouts.files import RawFile, is_image, list_files, require_folders, shown
from gracl.images.layouts.listing import Entry, Found, Split, refuse_empty

JUNK = -1
NAMING = re.compile(r"(-1|\d{1,18})_c(\d{1,18})(?!\d)")
VERSIONS = {
    "Market-1501": re.compile(r"\d+_c\d+s\d+_"),
    "DukeMTMC-reID": re.compile(r"\d+_c\d+_f\d+"),
}
MARKET_FOLDERS: dict[Split, str] = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
VERI_FOLDERS: dict[Split, str] = {"train": "image_train", "query": "image_query", "gallery": "image_test"}


def market1501(root: str) -> Found:
    """Reads Market-1501, DukeMTMC-reID or PersonX: `bounding_box_train`, `query`, `bounding_box_test`.

    Junk (identity -1) is dropped everywhere; distractors (identity 0) stay in the gallery, where no query asks for
    them. The version says which naming was met.

    Raises:
        LayoutError: a folder is missing or empty, or a name does not follow the naming.
    """
    found = _named(root, MARKET_FOLDERS)
    return Found(found.entries, _naming(entry.file.name for entry in found.entries), found.notes)


def veri776(root: str) -> Found:
    """Reads VeRi-776: `image_train`, `image_query`, `image_test`; identity -1, where it occurs, is junk.

    Raises:
        LayoutError: a folder is missing or empty, or a name does not follow the naming.
    """
    found = _named(root, VERI_FOLDERS)
    return Found(found.entries, "VeRi-776", found.notes)


def _named(root: str, folders: dict[Split, str]) -> Found:
    require_folders(root, folders.values())
    entries: list[Entry] = []
    notes = {"junk": 0, "not_images": 0}
    for split, folder in folders.items():
        files = list_files(root, folder, recursive=False)
        pictures = [file for file in files if is_image(file.path)]
        _refuse_names(pictures)
        mine = [_entry(file, split) for file in pictures]
        kept = [entry for entry in mine if entry.identity != JUNK]
        notes["not_images"] += len(files) - len(pictures)
        notes["junk"] += len(mine) - len(kept)
        entries += kept
    refuse_empty(root, entries, folders)
    return Found(entries, "", notes)


def _refuse_names(files: list[RawFile]) -> None:
    strange = [file.path for file in files if not NAMING.match(file.name)]
    if strange:
        raise LayoutError(
            expected(
                "names like 0002_c1s1_000451_03.jpg (identity, camera)",
                f"{len(strange)} others: {shown(strange)}",
                "choose another layout=, or take them out",
            )
        )


def _entry(file: RawFile, split: Split) -> Entry:
    match = NAMING.match(file.name)
    assert match is not None, "names were checked before"
    return Entry(file, split, int(match[1]), int(match[2]))


def _naming(names: Iterable[str]) -> str:
    names = list(names)
    for version, pattern in VERSIONS.items():
        if all(pattern.match(name) for name in names):
            return f"{version} naming"
    return "<identity>_c<camera> naming"
