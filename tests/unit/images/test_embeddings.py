"""Embedding tables as files: written whole, read with suspicion."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gracl.errors import ShardError
from gracl.images.embeddings import (
    SCHEMA_VERSION,
    Asked,
    EmbeddingTable,
    Part,
    asked_of,
    finished_part,
    part_name,
    write_manifest,
    write_part,
)
from gracl.images.manifests import BadImage

DIM, PART = 4, 3
BAD = BadImage("b\u00e4d\n.jpg", "torn")


def features(first, rows):
    dice = np.random.default_rng(first)
    found = dice.normal(size=(rows, DIM)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def write(folder, dtype="float32"):
    """Five pictures in two parts; the second of the first part could not be read."""
    asked = Asked(SCHEMA_VERSION, "pictures", "d" * 64, 5, PART, "m" * 64, DIM, dtype, False, "float32")
    (folder / "asked.json").write_bytes(asked.to_json())
    for number, (rows, bad) in enumerate((([0, 2], [BAD]), ([3, 4], []))):
        write_part(
            str(folder / part_name(number)),
            paths=[f"{row}.jpg" for row in rows],
            indices=np.array(rows),
            cameras=["north", None],
            tracks=[None, "7"],
            features=features(rows[0], 2),
            dtype=dtype,
            bad=bad,
        )
    write_manifest(str(folder), asked, [Part(part_name(0), 2, (BAD,)), Part(part_name(1), 2, ())], ("\\xff.jpg",), "c")
    return asked


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_is_written_is_read(tmp_path, dtype):
    asked = write(tmp_path, dtype)
    table = EmbeddingTable(str(tmp_path))
    rows = table.read()
    assert (table.asked, asked_of(str(tmp_path)), len(table), table.checkpoint) == (asked, asked, 4, "c")
    assert rows.paths.to_pylist() == ["0.jpg", "2.jpg", "3.jpg", "4.jpg"]
    assert rows.indices.tolist() == [0, 2, 3, 4]
    assert rows.cameras.to_pylist() == ["north", None] * 2
    assert rows.tracks.to_pylist() == [None, "7"] * 2
    assert rows.features.dtype == dtype
    np.testing.assert_array_equal(rows.features, np.concatenate([features(0, 2), features(3, 2)]).astype(dtype))
    assert table.bad == (BAD, BadImage("\\xff.jpg", "a name that is no UTF-8"))
    assert [len(part) for part in table.parts()] == [2, 2]


def test_the_same_is_the_same_to_the_last_byte(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        write(tmp_path / name)
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "other")]
    assert files[0] == files[1]


def test_a_part_says_what_of_it_is_there(tmp_path):
    write(tmp_path)
    assert finished_part(str(tmp_path), part_name(0)) == Part(part_name(0), 2, (BAD,))
    content = (tmp_path / part_name(0)).read_bytes()
    for harm in (b"", content[:-5], content[: len(content) // 2], b"PAR1" * 9):
        (tmp_path / part_name(0)).write_bytes(harm)
        assert finished_part(str(tmp_path), part_name(0)) is None
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    for bit in range(8 * footer, 8 * (len(content) - 8), 37):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        (tmp_path / part_name(0)).write_bytes(bytes(flipped))
        found = finished_part(str(tmp_path), part_name(0))
        assert found is None or isinstance(found, Part)
    pq.write_table(pa.table({"path": ["a"]}), tmp_path / part_name(0))
    assert finished_part(str(tmp_path), part_name(0)) is None


def other_rows(folder):
    table = pq.read_table(folder / part_name(0))
    pq.write_table(pa.concat_tables([table] * 3), folder / part_name(0))


def other_size(folder):
    values = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(2, np.float32)), 2)
    columns = {"path": ["a"], "index": [0], "camera": pa.nulls(1, pa.string()), "track": pa.nulls(1, pa.string())}
    pq.write_table(pa.table(columns | {"embedding": values}), folder / part_name(0))


def a_flipped_bit(folder):
    path = folder / part_name(0)
    content = bytearray(path.read_bytes())
    place = content.index(features(0, 2).tobytes()[:4]) if features(0, 2).tobytes()[:4] in content else 60
    content[place] ^= 4
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (other_rows, "6 rows in a part of at most 3"),
        (other_size, "embeddings of fixed_size_list"),
        (a_flipped_bit, "a readable part of embeddings"),
        (lambda folder: (folder / part_name(0)).unlink(), "a readable part of embeddings"),
        (lambda folder: pq.write_table(pa.table({"a": [1]}), folder / part_name(0)), "a readable part of embeddings"),
    ],
)
def test_a_part_that_is_not_what_was_written_is_refused(tmp_path, harm, words):
    write(tmp_path)
    harm(tmp_path)
    with pytest.raises(ShardError, match=words):
        EmbeddingTable(str(tmp_path)).read()


def test_a_manifest_of_other_rows_than_there_are_is_refused(tmp_path):
    write(tmp_path)
    values = json.loads((tmp_path / "manifest.json").read_text())
    for change in ({"rows": 5}, {"files": values["files"][:1]}, {"files": [], "rows": 0}):
        (tmp_path / "manifest.json").write_text(json.dumps(values | change))
        with pytest.raises(ShardError, match=r"rows in the parts of"):
            EmbeddingTable(str(tmp_path)).read()


@pytest.mark.parametrize(
    "change",
    [
        {"files": ["../part.parquet"]},
        {"files": [1]},
        {"rows": "many"},
        {"bad_images": [{"a": 1}]},
        {"model": None},
        {"part": 0},
        {"part": "4"},
        {"part": 2**40},
    ],
)
def test_a_manifest_that_lies_is_refused(tmp_path, change):
    write(tmp_path)
    values = json.loads((tmp_path / "manifest.json").read_text())
    lacking = {name for name, value in change.items() if value is None}
    kept = {name: value for name, value in (values | change).items() if name not in lacking}
    (tmp_path / "manifest.json").write_text(json.dumps(kept))
    with pytest.raises(ShardError, match="the fields of an embedding table in"):
        EmbeddingTable(str(tmp_path))
