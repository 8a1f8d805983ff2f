"""Pictures that nobody has packed: who is listed, in which order, with what is known of them."""

import os
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gracl.errors import ImageError, LayoutError, ShardError
from gracl.images.ingesting import ingest_here
from gracl.images.shards import ShardStore
from gracl.images.sources import list_source, open_pictures, read_pictures
from gracl.images.synthetic import write_world

NAMES = ["b/2.PNG", "a.jpg", "b/1.jpeg"]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "b").mkdir()
    for name in [*NAMES, "notes.txt", ".hidden.jpg"]:
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def test_a_folder_gives_its_pictures_in_order_of_path(folder):
    found = list_source(str(folder))
    assert found.rows["path"].to_pylist() == ["a.jpg", "b/1.jpeg", "b/2.PNG"]
    assert found.rows["camera"].null_count == found.rows["track"].null_count == 3
    assert found.unnamed == ()
    assert [bytes(one) for one in read_pictures(found.root, ["b/1.jpeg", "a.jpg"])] == [b"b/1.jpeg", b"a.jpg"]


def test_another_name_camera_or_track_is_another_source(folder):
    def digest(text):
        (folder / "list.csv").write_text(text)
        return list_source(str(folder / "list.csv")).digest()

    texts = ["path\na.jpg\n", "path\nb/1.jpeg\n", "path,camera_id\na.jpg,1\n", "path,track\na.jpg,1\n"]
    texts += ["path\na.jpg\nb/1.jpeg\n", "path\nb/1.jpeg\na.jpg\n"]
    assert len({digest(text) for text in texts}) == len(texts)
    assert digest(texts[0]) == digest("path,camera_id\na.jpg,-1\n") == digest("path,other\na.jpg,5\n")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_list_says_what_is_known(folder, kind):
    rows = {"path": ["b/1.jpeg", "a.jpg"], "camera_id": [3, None], "track": ["t", "t"]}
    if kind == "csv":
        (folder / "list.csv").write_text("path,camera_id,track\nb/1.jpeg,3,t\na.jpg,,t\n")
    else:
        pq.write_table(pa.table(rows), folder / "list.parquet")
    found = list_source(str(folder / f"list.{kind}"))
    assert found.root == str(folder)
    assert found.rows.to_pydict() == {"path": rows["path"], "camera": ["3", None], "track": ["t", "t"]}


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
def test_a_name_that_is_no_utf8_has_no_row_and_is_named(folder):
    with open(os.path.join(os.fsencode(folder), b"\xff.jpg"), "wb") as file:
        file.write(b"x")
    found = list_source(str(folder))
    assert found.rows.num_rows == 3
    assert found.unnamed == ("\\xff.jpg",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "a readable list at"),
        ("name\na.jpg\n", "rows with path in .*; came path missing"),
        ("path\n", "rows with path in .*; came no row"),
        ("path\na.jpg\na.jpg\n", "every path once in .*; came again a.jpg"),
        ("path\n/etc/passwd\n", "a path inside the root"),
        ("path\nb/../../a.jpg\n", "a path inside the root"),
        ("path,path\na.jpg,b.jpg\n", "came path twice"),
    ],
)
def test_a_list_that_cannot_be_meant_is_refused(folder, text, words):
    (folder / "list.csv").write_text(text)
    with pytest.raises(LayoutError, match=words):
        list_source(str(folder / "list.csv"))


def test_what_is_not_there_is_said(folder, tmp_path):
    with pytest.raises(LayoutError, match="a folder at"):
        list_source(str(folder / "nowhere"))
    (folder / "c").mkdir()
    with pytest.raises(LayoutError, match="pictures in .*; came nothing there"):
        list_source(str(folder / "c"))
    missing = read_pictures(str(folder), ["a.jpg", "gone.jpg"])
    assert missing[0] == b"a.jpg"
    assert isinstance(missing[1], ImageError)
    assert "gone.jpg" in str(missing[1])


def test_a_path_that_leads_out_is_no_picture(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "secret.jpg").write_bytes(b"secret")
    (folder / "link").symlink_to(other)
    found = read_pictures(str(folder), ["link/secret.jpg", "a.jpg", str(other / "secret.jpg"), f"../{other.name}/x"])
    assert [one if isinstance(one, bytes) else "refused" for one in found] == [
        "refused",
        b"a.jpg",
        "refused",
        "refused",
    ]
    assert "it leads out of the folder" in str(found[0])


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
def test_a_folder_of_names_that_are_no_utf8_is_refused(tmp_path):
    with open(os.path.join(os.fsencode(tmp_path), b"\xff.jpg"), "wb") as file:
        file.write(b"x")
    with pytest.raises(LayoutError, match=r"pictures with names in UTF-8 in .*; came .*xff.jpg"):
        list_source(str(tmp_path))


def test_what_a_table_was_made_of_is_read_again(folder, tmp_path):
    size = {"train_objects": 2, "test_objects": 2, "cameras": 2, "shots": 2, "height": 16, "width": 16}
    write_world(tmp_path / "world", seed=1, **size)
    ingest_here(str(tmp_path / "world"), str(tmp_path / "shards"), layout="market1501")
    store = ShardStore.open(str(tmp_path / "shards"), "gallery")
    rows = np.array([1, 0])
    packed = open_pictures(str(tmp_path / "shards" / "gallery"))(rows, store.paths(rows))
    assert [bytes(one) for one in packed] == [bytes(one) for one in store.read(rows)]
    with pytest.raises(ShardError, match="the split .* of digest ddd"):
        open_pictures(str(tmp_path / "shards" / "gallery"), digest="d" * 64)
    (folder / "list.csv").write_text("path\na.jpg\n")
    for source in (str(folder), str(folder / "list.csv")):
        assert open_pictures(source)(np.array([0]), ["a.jpg"]) == [b"a.jpg"]
