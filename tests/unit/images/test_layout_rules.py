"""What holds for every layout: roots, links, names, order."""

import os
import uuid
from pathlib import Path

import pytest

from gracl.errors import LayoutError
from gracl.images.layouts import LAYOUTS, Listing, list_images
from gracl.images.layouts.files import inside, is_utf8, list_files, shown, spelt
from gracl.images.layouts.listing import numbered
from tests.raw_images import fill


@pytest.fixture(params=["disk", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "disk" else f"memory://{uuid.uuid4().hex}"


def rows(listing: Listing, split: str) -> list[tuple[str, int, int]]:
    return [(image.path, image.object_id, image.camera_id) for image in listing.images if image.split == split]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_missing_root_is_an_error(layout: str, tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match="nowhere"):
        list_images(str(tmp_path / "nowhere"), layout)


def test_an_unknown_layout_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match="expected one of market1501, .*; came 'markt'"):
        list_images(str(tmp_path), "markt")


def test_order_does_not_depend_on_the_disk(tmp_path: Path) -> None:
    paths = [f"{i}/{c}/{n}.jpg" for i in range(3) for c in range(2) for n in range(3)]
    one, two = fill(str(tmp_path / "one"), paths), fill(str(tmp_path / "two"), paths[::-1])
    assert list_images(one, "folder").images == list_images(two, "folder").images


def test_links_may_not_leave_the_root(tmp_path: Path) -> None:
    fill(str(tmp_path), ["outside/1/secret.jpg", "raw/ann/1/a.jpg"])
    raw = tmp_path / "raw"
    os.symlink(tmp_path / "outside/1/secret.jpg", raw / "ann/1/b.jpg")
    with pytest.raises(LayoutError, match=r"paths inside the root .*; came ann/1/b.jpg, a link to .*secret.jpg"):
        list_images(str(raw), "folder")
    (raw / "ann/1/b.jpg").unlink()
    os.symlink(tmp_path / "outside", raw / "bob")
    with pytest.raises(LayoutError, match="came bob, a link to"):
        list_images(str(raw), "unlabelled")


def test_links_inside_the_root_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    fill(str(tmp_path / "raw"), ["ann/1/a.jpg"])
    os.symlink(tmp_path / "raw", tmp_path / "link")
    os.symlink("a.jpg", tmp_path / "raw/ann/1/b.jpg")
    assert [image.path for image in list_images(str(tmp_path / "link"), "folder").images] == [
        "ann/1/a.jpg",
        "ann/1/b.jpg",
    ]
    os.symlink("nothing", tmp_path / "raw/ann/1/c.jpg")
    with pytest.raises(LayoutError, match="links that lead somewhere; came ann/1/c.jpg"):
        list_images(str(tmp_path / "raw"), "folder")
    (tmp_path / "raw/ann/1/c.jpg").unlink()
    os.symlink("../..", tmp_path / "raw/ann/1/up")
    with pytest.raises(LayoutError, match="folders that end; came ann/1/up"):
        list_images(str(tmp_path / "raw"), "folder")


@pytest.mark.parametrize(
    ("name", "is_one", "written"),
    [
        ("a.jpg", True, "a.jpg"),
        ("\u00e4 \u6f22\n.jpg", True, "\u00e4 \u6f22\n.jpg"),
        (os.fsdecode(b"\xff\xc3.jpg"), False, "\\xff\\xc3.jpg"),
        (os.fsdecode(b"\xc3\xa4\xe4"), False, "\u00e4\\xe4"),
        ("a\ud800b", False, "a\\ud800b"),
    ],
)
def test_names_that_are_not_utf8_are_known_and_can_be_written(name: str, is_one: bool, written: str) -> None:
    assert is_utf8(name) is is_one
    assert spelt(name) == written
    assert shown([name]).isprintable()


def test_the_root_itself_must_be_utf8(tmp_path: Path) -> None:
    root = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    fill(root, ["a.jpg"])
    with pytest.raises(LayoutError, match=r"a folder whose name is UTF-8; came .*\\xff"):
        list_images(root, "unlabelled")


def test_a_flat_listing_stays_flat(root: str) -> None:
    fill(root, ["a/1.jpg", "a/b/2.jpg", "3.jpg"])
    assert [file.path for file in list_files(root, "a", recursive=False)] == ["a/1.jpg"]
    assert [file.path for file in list_files(root)] == ["3.jpg", "a/1.jpg", "a/b/2.jpg"]


@pytest.mark.parametrize("path", ["", ".", "..", "../a", "/a", "a/../../b", "s3://a/b"])
def test_inside_refuses(path: str) -> None:
    with pytest.raises(LayoutError, match="inside the root"):
        inside(path)


def test_inside_keeps_what_stays_within() -> None:
    assert [inside(path) for path in ("a/../b", "./a//b", "..a/b")] == ["b", "a/b", "..a/b"]


@pytest.mark.parametrize(
    ("names", "keep", "numbers"),
    [
        (["10", "9", "9"], True, {"10": 10, "9": 9}),
        (["10", "9"], False, {"9": 0, "10": 1}),
        ([12, 3, -1], False, {3: 0, 12: 1}),
        (["7", "007"], True, {"007": 0, "7": 1}),
        (["7", "x"], True, {"7": 0, "x": 1}),
        (["9" * 30], True, {"9" * 30: 0}),
        ([], True, {}),
    ],
)
def test_numbers(names: list[int | str], keep: bool, numbers: dict[int | str, int]) -> None:
    assert numbered(names, keep=keep) == {-1: -1, "-1": -1, **numbers}
