import tarfile
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from gracl.errors import LayoutError
from gracl.images import storage
from gracl.images.layouts import Listing, list_images
from tests.raw_images import MARKET, fill, fill_folders

OMNIGLOT = Path(__file__).parents[3] / ".." / "shared" / "data" / "omniglot_small" / "omniglot_small.tar"


@pytest.fixture(params=["disk", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "disk" else f"memory://{uuid.uuid4().hex}"


def rows(listing: Listing, split: str) -> list[tuple[str, int, int]]:
    return [(image.path, image.object_id, image.camera_id) for image in listing.images if image.split == split]


# Market-1501 and relatives


def test_market_keeps_distractors_and_drops_junk(root: str) -> None:
    fill_folders(root, MARKET)
    storage.write_bytes(storage.join(root, "query/Thumbs.db"), b"x")
    listing = list_images(root, "market1501")
    assert listing.version == "Market-1501 naming"
    assert listing.splits == ("train", "query", "gallery")
    # Cameras 1, 2, 3, 6 over all splits become 0, 1, 2, 3.
    assert rows(listing, "train") == [
        ("bounding_box_train/0002_c1s1_000451_03.jpg", 2, 0),
        ("bounding_box_train/0002_c3s1_000551_01.jpg", 2, 2),
        ("bounding_box_train/0007_c6s3_077419_03.jpg", 7, 3),
    ]
    assert rows(listing, "gallery") == [
        ("bounding_box_test/0000_c1s1_000151_01.jpg", 0, 0),
        ("bounding_box_test/0000_c2s1_000151_01.jpg", 0, 1),
        ("bounding_box_test/0001_c2s1_000301_01.jpg", 1, 1),
        ("bounding_box_test/0003_c3s1_000301_01.jpg", 3, 2),
    ]
    assert listing.notes == {"junk": 2, "not_images": 1}
    assert listing.sizes == tuple(len(storage.read_bytes(storage.join(root, image.path))) for image in listing.images)


def test_market_reads_duke_and_personx_names(tmp_path: Path) -> None:
    folders = ("bounding_box_train", "query", "bounding_box_test")
    duke = fill(str(tmp_path / "duke"), [f"{folder}/000{i}_c{i + 2}_f0046182.jpg" for i, folder in enumerate(folders)])
    listing = list_images(duke, "market1501")
    assert listing.version == "DukeMTMC-reID naming"
    assert [(image.object_id, image.camera_id) for image in listing.images] == [(0, 0), (1, 1), (2, 2)]
    # PersonX has the cameras 3, 4, 8, 10, 11, 12.
    names = [f"{folder}/{i + 1}_c{camera}_{i}.png" for i, folder in enumerate(folders) for camera in (3, 8, 10, 12)]
    listing = list_images(fill(str(tmp_path / "personx"), names), "market1501")
    assert listing.version == "<identity>_c<camera> naming"
    assert [camera for _, _, camera in rows(listing, "query")] == [2, 3, 0, 1]  # sorted by path: c10, c12, c3, c8


def test_market_names_the_missing_folders(root: str) -> None:
    fill_folders(root, {"bounding_box_train": MARKET["bounding_box_train"]})
    with pytest.raises(LayoutError, match=r"the folders query, bounding_box_test in .*; came bounding_box_train there"):
        list_images(root, "market1501")


def test_market_names_the_first_strange_files(root: str) -> None:
    fill_folders(root, {**MARKET, "query": ["a.jpg", "0001_1.jpg", "-2_c1s1_1.jpg", "0001_c1s1_001051_00.jpg"]})
    with pytest.raises(LayoutError, match=r"came 3 others: query/-2_c1s1_1.jpg, query/0001_1.jpg, query/a.jpg"):
        list_images(root, "market1501")


def test_a_split_of_junk_alone_is_empty(root: str) -> None:
    fill_folders(root, {**MARKET, "bounding_box_test": ["-1_c1s1_000401_03.jpg"]})
    with pytest.raises(LayoutError, match=r"images of the gallery split in .*/bounding_box_test; came none"):
        list_images(root, "market1501")


def test_train_may_not_share_identities_by_mistake(root: str) -> None:
    fill_folders(root, {**MARKET, "query": ["0002_c1s1_001051_00.jpg", "0003_c2s1_000001_00.jpg"]})
    with pytest.raises(LayoutError, match=r"came 1 in both: 2; .*allow_shared_identities=true"):
        list_images(root, "market1501")
    assert len(list_images(root, "market1501", allow_shared_identities=True).images) == 9


def test_omniglot_has_its_counts(tmp_path: Path) -> None:
    if not OMNIGLOT.exists():
        pytest.skip(f"no {OMNIGLOT.name} beside the project in ../shared/data")
    with tarfile.open(OMNIGLOT) as tar:
        # Python before 3.11.4 knows no filter; where there is one, it is used.
        tar.extraction_filter = getattr(tarfile, "data_filter", None)
        tar.extractall(tmp_path)
    listing = list_images(str(tmp_path / "omniglot_small"), "market1501")
    assert [len(listing.of(split)) for split in listing.splits] == [2720, 424, 1696]
    assert len({image.object_id for image in listing.of("train")}) == 136
    assert {image.camera_id for image in listing.of("query")} == set(range(4))
    assert {image.camera_id for image in listing.images} == set(range(20))


# VeRi-776


def test_veri(root: str) -> None:
    folders = {
        "image_train": ["0002_c002_00030600_0.jpg", "0003_c020_00030600_0.jpg"],
        "image_query": ["0005_c003_00077625_0.jpg"],
        "image_test": ["0005_c001_00077640_0.jpg", "-1_c001_00077640_0.jpg"],
    }
    listing = list_images(fill_folders(root, folders), "veri776")
    assert listing.version == "VeRi-776"
    assert [(image.object_id, image.camera_id) for image in listing.images] == [(2, 1), (3, 3), (5, 2), (5, 0)]
    assert listing.notes["junk"] == 1


# MSMT17


def msmt(root: str, train: str = "train", test: str = "test") -> str:
    """Three images for training (one of them listed in val), one query, one gallery image, one in no list."""
    a, b, c = "0000/0000_000_01_a_0.jpg", "0000/0000_001_14_a_0.jpg", "0001/0001_000_02_a_0.jpg"
    q, g, unlisted = "0000/0000_000_01_b_0.jpg", "0000/0000_003_05_b_0.jpg", "0009/0009_003_05_b_0.jpg"
    fill(root, [f"{train}/{name}" for name in (a, b, c)] + [f"{test}/{name}" for name in (q, g, unlisted)])
    lists = {"train": [f"{a} 0", f"{c} 1"], "val": [f"{b} 0"], "query": [f"{q} 0"], "gallery": [f"{g} 0"]}
    for name, lines in lists.items():
        storage.write_bytes(storage.join(root, f"list_{name}.txt"), ("\n".join(lines) + "\n").encode())
    return root


@pytest.mark.parametrize(
    ("version", "train", "test"), [("MSMT17_V1", "train", "test"), ("MSMT17_V2", "mask_train_v2", "mask_test_v2")]
)
def test_msmt_records_its_version_and_trains_on_val_too(root: str, version: str, train: str, test: str) -> None:
    listing = list_images(msmt(root, train, test), "msmt17")
    assert listing.version == version
    assert rows(listing, "train") == [
        (f"{train}/0000/0000_000_01_a_0.jpg", 0, 0),
        (f"{train}/0000/0000_001_14_a_0.jpg", 0, 3),
        (f"{train}/0001/0001_000_02_a_0.jpg", 1, 1),
    ]
    # Identity 0 of the test lists is another person than identity 0 of the train lists: no shared identity.
    assert rows(listing, "query") == [(f"{test}/0000/0000_000_01_b_0.jpg", 0, 0)]
    assert listing.notes == {"unlisted": 1}


def test_msmt_refuses_two_versions_or_none(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match=r"mask_train_v2 and mask_test_v2 \(V2\) in .*; came nothing"):
        list_images(str(tmp_path), "msmt17")
    msmt(str(tmp_path))
    fill(str(tmp_path), ["mask_train_v2/a.jpg", "mask_test_v2/a.jpg"])
    with pytest.raises(LayoutError, match="came both"):
        list_images(str(tmp_path), "msmt17")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0000/0000_000_01_x_0.jpg 0", "every image of list_val.txt in .*; came 1 missing: 0000/0000_000_01_x_0.jpg"),
        ("0000/0000_000_01_a_0.jpg 0", "every path once; came 1 repeated: train/0000/0000_000_01_a_0.jpg"),
        ("0000/0000_000_01_a_0.jpg zero", "lines like .* in list_val.txt; came '0000/0000_000_01_a_0.jpg zero'"),
        ("../test/0000/0000_000_01_b_0.jpg 0", "a path inside the root, relative to it; came '../test"),
        ("/etc/0000_000_01_b_0.jpg 0", "a path inside the root, relative to it; came '/etc"),
    ],
)
def test_msmt_refuses_bad_lines(tmp_path: Path, line: str, message: str) -> None:
    root = msmt(str(tmp_path))
    storage.write_bytes(storage.join(root, "list_val.txt"), line.encode())
    with pytest.raises(LayoutError, match=message):
        list_images(root, "msmt17")


def test_msmt_needs_all_lists_filled(tmp_path: Path) -> None:
    root = msmt(str(tmp_path))
    storage.write_bytes(storage.join(root, "list_query.txt"), b"\n")
    with pytest.raises(LayoutError, match="images of the query split in .*list_query.txt; came none"):
        list_images(root, "msmt17")
    (tmp_path / "list_query.txt").unlink()
    with pytest.raises(LayoutError, match="the list .*list_query.txt; came no such file"):
        list_images(root, "msmt17")


# Plain folders


def test_folder_is_all_for_training(root: str) -> None:
    listing = list_images(
        fill(root, ["bob/left/2.jpg", "ann/right/1.png", "ann/left/1.JPG", "ann/left/t.txt"]), "folder"
    )
    assert rows(listing, "train") == [("ann/left/1.JPG", 0, 0), ("ann/right/1.png", 0, 1), ("bob/left/2.jpg", 1, 0)]
    assert listing.splits == ("train",)
    assert listing.notes == {"not_images": 1}


def test_folder_by_split(root: str) -> None:
    fill(root, ["train/2/1/a.jpg", "query/10/2/a.jpg", "gallery/10/1/a.jpg", "gallery/9/3/a.jpg"])
    listing = list_images(root, "folder")
    assert [(image.split, image.object_id, image.camera_id) for image in listing.images] == [
        ("train", 2, 0),
        ("query", 10, 1),
        ("gallery", 10, 0),
        ("gallery", 9, 2),
    ]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["ann/1.jpg"], r"images as <identity>/<camera>/<image>; came ann/1.jpg"),
        (["ann/left/x/1.jpg"], r"came ann/left/x/1.jpg"),
        (["train/1/1/a.jpg", "bob/1/a.jpg"], r"images as <split>/<identity>/<camera>/<image>; came bob/1/a.jpg"),
        (["train/1/1/a.jpg", "query/2/1/a.txt", "gallery/2/2/a.jpg"], r"images of the query split in .*; came none"),
        (["train/1/1/a.jpg", "query/2/1/a.jpg"], r"came only query, train"),
        (["train/1/1/a.jpg", "query/-1/1/a.jpg", "gallery/2/1/a.jpg"], r"known identity .*came 1 without: query/-1"),
        (["readme.txt"], r"came no image at all"),
    ],
)
def test_folder_refuses(root: str, paths: list[str], message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        list_images(fill(root, paths), "folder")


def test_unlabelled_finds_pictures_at_any_depth(root: str) -> None:
    listing = list_images(fill(root, ["b.jpg", "x/y/z/a.png", "x/.hidden.jpg", "x/note.txt"]), "unlabelled")
    assert rows(listing, "train") == [("b.jpg", -1, -1), ("x/y/z/a.png", -1, -1)]
    assert listing.notes == {"not_images": 2}


# Lists


def write_csv(root: str, *lines: str, head: str = "path,object_id,camera_id,split") -> None:
    storage.write_bytes(storage.join(root, "manifest.csv"), "\n".join([head, *lines, ""]).encode())


def test_manifest_csv_with_words(root: str) -> None:
    fill(root, ["a/1.jpg", "a/2.jpg", "b/1.jpg", "c.jpg", "unlisted.jpg"])
    write_csv(root, "b/1.jpg,car,north,query", "a/2.jpg,car,south,gallery", "a/1.jpg,007,,train", "c.jpg,,north,train")
    listing = list_images(root, "manifest")
    assert rows(listing, "train") == [("a/1.jpg", 0, -1), ("c.jpg", -1, 0)]
    assert rows(listing, "query") == [("b/1.jpg", 1, 0)]
    assert rows(listing, "gallery") == [("a/2.jpg", 1, 1)]
    assert listing.version == "manifest.csv"


def test_manifest_parquet_named_by_itself(tmp_path: Path) -> None:
    fill(str(tmp_path), ["a.jpg", "b.jpg"])
    columns = {"path": ["a.jpg", "b.jpg"], "object_id": [7.0, None], "camera_id": [3, 9], "split": ["train", "train"]}
    pa.parquet.write_table(pa.table({**columns, "colour": ["red", "blue"]}), tmp_path / "mine.parquet")
    listing = list_images(str(tmp_path / "mine.parquet"), "manifest")
    assert rows(listing, "train") == [("a.jpg", 7, 0), ("b.jpg", -1, 1)]
    assert listing.root == str(tmp_path)
    assert listing.notes == {"extra_columns": 1}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a.jpg,1,1,train", "./a.jpg,1,1,train"], "every path once; came 1 repeated: a.jpg"),
        (["a.jpg,1,1,train", "../a.jpg,1,1,train"], r"a path inside the root, relative to it; came '\.\./a.jpg'"),
        (["a.jpg,1,1,train", "x/../../a.jpg,1,1,train"], "a path inside the root"),
        (["/etc/passwd,1,1,train"], "a path inside the root, relative to it; came '/etc/passwd'"),
        (["s3://other/a.jpg,1,1,train"], "a path inside the root"),
        ([",1,1,train"], "a path inside the root"),
        (["none.jpg,1,1,train", "no/none.jpg,1,1,train"], "came 2 missing: none.jpg, no/none.jpg"),
        (["a.jpg,1,1,test"], "train, query, gallery in the column split; came 'test'"),
        (["a.jpg,1,1,train", "b.jpg,1,1,query"], "came only query, train"),
        (["a.jpg,,1,query", "b.jpg,1,1,gallery"], "a known identity for every image .*came 1 without: a.jpg"),
        (["a.jpg,1,1"], "a readable list at"),
        ([], "came no row"),
    ],
)
def test_manifest_refuses(root: str, lines: list[str], message: str) -> None:
    fill(root, ["a.jpg", "b.jpg"])
    write_csv(root, *lines)
    with pytest.raises(LayoutError, match=message):
        list_images(root, "manifest")


def test_manifest_must_be_there_once_with_its_columns(tmp_path: Path) -> None:
    root = fill(str(tmp_path), ["a.jpg"])
    with pytest.raises(LayoutError, match="manifest.csv or manifest.parquet in .*; came neither"):
        list_images(root, "manifest")
    with pytest.raises(LayoutError, match="a list of images at .*/other.csv; came no such file"):
        list_images(f"{root}/other.csv", "manifest")
    write_csv(root, "a.jpg,1", head="path,object_id")
    with pytest.raises(LayoutError, match="came camera_id, split missing"):
        list_images(root, "manifest")
    (tmp_path / "manifest.parquet").write_bytes(b"")
    with pytest.raises(LayoutError, match="came both"):
        list_images(root, "manifest")
    (tmp_path / "manifest.csv").unlink()
    with pytest.raises(LayoutError, match="a readable list"):
        list_images(root, "manifest")
