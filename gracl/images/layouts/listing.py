"""What a layout finds: a sorted list of images with split, identity and camera. An image's index is settled here."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from gracl.errors import LayoutError, expected
from gracl.images.layouts.files import RawFile, shown
from gracl.types import UNKNOWN

Split = Literal["train", "query", "gallery"]
SPLITS: tuple[Split, ...] = ("train", "query", "gallery")
WHOLE_NUMBER = re.compile(r"\d{1,18}")  # fits an int64


@dataclass(frozen=True, slots=True)
class RawImage:
    """One picture of a raw folder: path relative to the root (with `/`), split, and who and where, -1 where unknown.

    The path is as the disk has it, which may be no UTF-8 (`files.is_utf8`); such a picture is never written.
    """

    path: str
    split: Split
    object_id: int
    camera_id: int


@dataclass(frozen=True, slots=True)
class Entry:
    """What a layout says of one file, before identities and cameras have their numbers."""

    file: RawFile
    split: Split
    identity: int | str
    camera: int | str


@dataclass(frozen=True)
class Found:
    """What one layout makes of a root. `shared_names`: train and test number their identities separately."""

    entries: list[Entry]
    version: str
    notes: dict[str, int] = field(default_factory=dict)
    shared_names: bool = False


@dataclass(frozen=True)
class Listing:
    """A raw dataset as it was found.

    `images` stand by split (train, query, gallery) and within a split by path; an image's index is its place within
    its split. `sizes` (bytes) and `stamps` belong to them, place by place. `notes` counts what was left out: `junk`,
    `not_images`, `unlisted`, ...
    """

    root: str
    layout: str
    version: str
    images: tuple[RawImage, ...]
    sizes: tuple[int, ...]
    stamps: tuple[str, ...]
    notes: dict[str, int]

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that have images, in the order train, query, gallery."""
        present = {image.split for image in self.images}
        return tuple(split for split in SPLITS if split in present)

    def of(self, split: Split) -> tuple[RawImage, ...]:
        """The images of one split in order of index."""
        return tuple(image for image in self.images if image.split == split)


def settle(root: str, layout: str, found: Found, *, allow_shared_identities: bool) -> Listing:
    """Sorts, numbers and checks what a layout found.

    Raises:
        LayoutError: a path stands twice; query comes without gallery or the other way round; there is
            nothing at all; an identity of query or gallery is unknown, or one of train is also in query or gallery
            (unless that is allowed or the layout numbers them apart).
    """
    entries = sorted(found.entries, key=lambda entry: (SPLITS.index(entry.split), entry.file.path))
    _refuse_twice(entries)
    identities = numbered((entry.identity for entry in entries), keep=True)
    cameras = numbered((entry.camera for entry in entries), keep=False)
    images = tuple(
        RawImage(entry.file.path, entry.split, identities[entry.identity], cameras[entry.camera]) for entry in entries
    )
    _refuse_half(root, images)
    _refuse_unknown(images)
    if not allow_shared_identities and not found.shared_names:
        _refuse_shared(images)
    files = [entry.file for entry in entries]
    sizes, stamps = tuple(file.size for file in files), tuple(file.stamp for file in files)
    return Listing(root, layout, found.version, images, sizes, stamps, found.notes)


def numbered(names: Iterable[int | str], *, keep: bool) -> dict[int | str, int]:
    """A number for every name: whole numbers in their order, otherwise places in sorted order. -1 stays -1.

    Args:
        names: as found, repeated or not.
        keep: whole numbers stay what they are (identities); otherwise they are numbered from 0 (cameras).
    """
    known = {name for name in set(names) if name not in (UNKNOWN, str(UNKNOWN))}
    values = {name: int(name) for name in known if isinstance(name, int) or WHOLE_NUMBER.fullmatch(name)}
    # «7» and «007» as names of two things must not become one.
    if len(values) == len(known) == len(set(values.values())):
        order = sorted(known, key=values.__getitem__)
        numbers = values if keep else {name: place for place, name in enumerate(order)}
    else:
        numbers = {name: place for place, name in enumerate(sorted(known, key=str))}
    return {UNKNOWN: UNKNOWN, str(UNKNOWN): UNKNOWN, **numbers}


def _refuse_twice(entries: Sequence[Entry]) -> None:
    twice = [path for path, times in Counter(entry.file.path for entry in entries).items() if times > 1]
    if twice:
        raise twice_refused(twice)


def twice_refused(twice: Sequence[str]) -> LayoutError:
    """The error of paths that are named again."""
    came = f"{len(twice)} repeated: {shown(twice)}"
    return LayoutError(expected("every path once", came, "an image belongs to one split, once"))


def _refuse_half(root: str, images: Sequence[RawImage]) -> None:
    present = {image.split for image in images}
    if not images or len(present & {"query", "gallery"}) == 1:
        came = f"only {', '.join(sorted(present))}" if images else "no image at all"
        raise LayoutError(
            expected(f"images for train, or for query and gallery, in {root}", came, "check raw= and layout=")
        )


def _refuse_unknown(images: Sequence[RawImage]) -> None:
    unknown = [image.path for image in images if image.split != "train" and image.object_id == UNKNOWN]
    if unknown:
        raise LayoutError(
            expected(
                "a known identity for every image of query and gallery",
                f"{len(unknown)} without: {shown(unknown)}",
                "give a distractor an identity that no query has, or leave the image out",
            )
        )


def _refuse_shared(images: Sequence[RawImage]) -> None:
    train = {image.object_id for image in images if image.split == "train"}
    test = {image.object_id for image in images if image.split != "train"}
    shared = sorted((train & test) - {UNKNOWN})
    if shared:
        raise LayoutError(
            expected(
                "other identities in query and gallery than in train",
                f"{len(shared)} in both: {shown(shared)}",
                "check the split; if it is meant, say allow_shared_identities=true",
            )
        )


def refuse_empty(root: str, entries: Sequence[Entry], folders: dict[Split, str]) -> None:
    """Refuses a split whose folder or list gave no image.

    Raises:
        LayoutError: naming the first empty one.
    """
    present = {entry.split for entry in entries}
    for split, folder in folders.items():
        if split not in present:
            raise LayoutError(
                expected(f"images of the {split} split in {root}/{folder}", "none", "check raw= and what lies there")
            )
