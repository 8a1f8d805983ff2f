"""A stored index held against a naive search; kept, added to, torn."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from gracl.errors import ConfigError, GraclError, StoredIndexError
from gracl.retrieval.calibration import Point
from gracl.retrieval.engines import PQ_ROWS, choose
from gracl.retrieval.lookup import look_up, told
from gracl.retrieval.stored import Origin, StoredIndex, add, build

ORIGIN = Origin("a" * 64, "runs/first/epoch-0010", False, "features", "pictures")
ROWS, DIM = 12_000, 32


def unit(dice, *shape):
    rows = dice.normal(size=shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def table():
    """Rows in bunches, as embeddings of objects are."""
    dice = np.random.default_rng(0)
    centres = unit(dice, ROWS // 20, DIM)
    rows = np.repeat(centres, 20, axis=0) + 0.7 * unit(dice, ROWS, DIM)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def query(table):
    dice = np.random.default_rng(1)
    moved = table[dice.permutation(ROWS)[:40]] + 0.3 * unit(dice, 40, DIM)
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)


def parts(features, cut=5000, first=0):
    """A table in parts, with a camera for two rows of three."""
    for start in range(0, len(features), cut):
        some = features[start : start + cut]
        numbers = range(first + start, first + start + len(some))
        cameras = [None if number % 3 == 2 else f"c{number % 3}" for number in numbers]
        paths = [f"{number}.jpg" for number in numbers]
        columns = {"path": paths, "index": list(numbers), "camera": cameras, "track": [None] * len(some)}
        yield some, pa.table(columns)


def naive(features, query, k, allowed=None):
    """The k best rows by a product with all of them in double precision; equal ones in order."""
    scores = query.astype(np.float64) @ features.astype(np.float64).T
    if allowed is not None:
        scores[:, ~allowed] = -np.inf
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


@pytest.fixture(scope="module", params=["flat", "hnsw", "ivf_pq"])
def index(request, table, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    build(folder, parts(table), ROWS, ORIGIN, kind=request.param)
    return StoredIndex(folder)


def test_what_is_found_is_what_all_rows_say(index, table, query):
    found, similarities = index.search(query, 10)
    wanted = naive(table, query, 10)
    hits = np.mean([len(np.intersect1d(one, other)) / 10 for one, other in zip(found, wanted, strict=True)])
    assert hits == 1 if index.facts.kind == "flat" else hits >= 0.85
    np.testing.assert_allclose(similarities, np.einsum("qd,qkd->qk", query, table[found]), rtol=0, atol=1e-6)
    assert (np.diff(similarities, axis=1) <= 0).all()


def test_the_recall_that_is_told_is_the_one_that_is_had(index, table):
    rows = np.sort(np.random.default_rng(5).permutation(ROWS)[:300])
    found, true = index.search(table[rows], 11)[0], naive(table, table[rows], 11)
    hits = [
        len(np.intersect1d(one[one != row][:10], other[other != row][:10])) / 10
        for row, one, other in zip(rows, found, true, strict=True)
    ]
    assert index.facts.recall == pytest.approx(np.mean(hits), abs=0.05)
    assert index.facts.recall == 1 if index.facts.kind == "flat" else 0.95 <= index.facts.recall <= 1


def test_an_effort_that_is_asked_for_is_kept_and_told(tmp_path):
    table = unit(np.random.default_rng(2), ROWS, DIM)  # without bunches: neighbours lie in many cells
    few = build(tmp_path / "few", parts(table), ROWS, ORIGIN, kind="ivf_pq", effort=2)
    assert (few.effort, StoredIndex(tmp_path / "few").engine.effort) == (2, 2)
    own = build(tmp_path / "own", parts(table), ROWS, ORIGIN, kind="ivf_pq")
    engine = StoredIndex(tmp_path / "own").engine
    assert own.effort == engine.effort == engine.efforts()[-1]  # four bytes a row are too coarse for 95 %
    assert few.recall < 0.6 < own.recall < 0.95


def test_rows_that_are_not_allowed_are_not_found(index, table, query):
    allowed = np.arange(ROWS) % 1000 == 7
    found, _ = index.search(query, 10, allowed=allowed)
    np.testing.assert_array_equal(np.sort(found), np.sort(naive(table, query, 10, allowed)))
    few = np.zeros(ROWS, bool)
    few[[3, 4]] = True
    found, similarities = index.search(query, 10, allowed=few)
    assert sorted(found[0][:2]) == [3, 4]
    assert (found[:, 2:] == -1).all()
    assert np.isneginf(similarities[:, 2:]).all()
    assert (index.search(query, 3, allowed=np.zeros(ROWS, bool))[0] == -1).all()


def test_the_exact_search_is_the_naive_one(index, table, query):
    np.testing.assert_array_equal(index.exact(query, 12)[0], naive(table, query, 12))
    allowed = np.arange(ROWS) % 7 == 0
    np.testing.assert_array_equal(index.exact(query, 12, allowed=allowed)[0], naive(table, query, 12, allowed))


def test_an_index_that_grows_is_as_one_that_was_built_at_once(index, table, query, tmp_path):
    kind = index.facts.kind
    build(tmp_path, parts(table[:11_000]), 11_000, ORIGIN, kind=kind)
    more = Origin(ORIGIN.model, ORIGIN.checkpoint, False, "more", "more pictures")
    facts = add(tmp_path, parts(table[11_000:], first=11_000), 1000, more)
    grown = StoredIndex(tmp_path)
    assert (facts.rows, len(grown), [one.rows for one in facts.segments]) == (ROWS, ROWS, [11_000, 1000])
    np.testing.assert_array_equal(grown.exact(query, 9)[0], index.exact(query, 9)[0])
    assert grown.about(np.array([11_500, 3]))[0] == {
        "path": "11500.jpg", "index": 11_500, "camera": "c1", "track": None, "source": "more pictures"
    }  # fmt: skip
    assert grown.search(table[11_500:11_501], 1)[0][0, 0] == 11_500
    names = {path.name for path in tmp_path.iterdir()}
    kept = {
        "index.json",
        *(f"{what}-000{n}.{end}" for what, end in (("features", "npy"), ("rows", "arrow")) for n in (0, 1)),
    }
    assert names == kept | ({facts.engine} if facts.engine else set())
    with pytest.raises(ConfigError, match="embeddings to add; came none"):
        add(tmp_path, iter(()), 0, Origin(**{**vars(more), "table": "third"}))
    with pytest.raises(ConfigError, match="a table that .* does not hold; came more"):
        add(tmp_path, parts(table[:10]), 10, more)
    for change in ({"model": "b" * 64}, {"flip": True}):
        with pytest.raises(ConfigError, match="the index's model aaaaaaaaaaaa, flip=false; came the table's"):
            add(tmp_path, parts(table[:10]), 10, Origin(**{**vars(more), "table": "third", **change}))


def test_an_addition_that_fails_leaves_the_index_as_it_was(table, query, tmp_path):
    build(tmp_path, parts(table[:500]), 500, ORIGIN)
    before = StoredIndex(tmp_path).search(query, 5)[0]

    def torn():
        yield next(parts(table[:100]))
        raise OSError("the disk is gone")

    more = Origin(ORIGIN.model, ORIGIN.checkpoint, False, "more", "more")
    with pytest.raises(OSError, match="the disk is gone"):
        add(tmp_path, torn(), 200, more)
    with pytest.raises(GraclError, match="200 embeddings; came 100"):
        add(tmp_path, parts(table[:100]), 200, more)
    np.testing.assert_array_equal(StoredIndex(tmp_path).search(query, 5)[0], before)
    assert add(tmp_path, parts(table[500:600]), 100, more).rows == 600


def test_an_index_that_was_killed_while_it_was_measured_is_not_there_yet(table, tmp_path, monkeypatch):
    def killed(index):
        assert not (tmp_path / "index.json").exists()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("gracl.retrieval.stored._measured", killed)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path, parts(table[:400]), 400, ORIGIN, kind="hnsw")
    (tmp_path / "features-mine.npy").write_bytes(b"another's")
    assert build(tmp_path, parts(table[:400]), 400, ORIGIN, kind="hnsw").recall > 0.9
    assert (tmp_path / "features-mine.npy").exists()


def test_float16_is_kept_as_it_is(table, query, tmp_path):
    half = table[:2000].astype(np.float16)
    build(tmp_path, parts(half), 2000, ORIGIN)
    index = StoredIndex(tmp_path)
    assert index.facts.dtype == "float16"
    np.testing.assert_array_equal(index.search(query, 5)[0], naive(half, query, 5))


def test_what_is_found_is_told_with_its_picture(table, tmp_path):
    build(tmp_path, parts(table[:100]), 100, ORIGIN)
    index = StoredIndex(tmp_path)
    lines = [told(index, hits)["results"] for hits in look_up(index, table[4:6], 2)]
    assert [line[0]["path"] for line in lines] == ["4.jpg", "5.jpg"]
    assert [line[0]["camera"] for line in lines] == ["c1", None]
    assert lines[0][0]["similarity"] == pytest.approx(1, abs=1e-6)
    names, theirs = index.cameras
    assert names == ["c0", "c1"]
    assert list(theirs[:4]) == [0, 1, -1, 0]
    assert len(theirs) == len(index)


def test_the_best_row_decides_though_re_ranking_shows_others(table, tmp_path):
    build(tmp_path, parts(table[:200]), 200, ORIGIN)
    index = StoredIndex(tmp_path)
    for number, hits in enumerate(look_up(index, table[:60], 1, rerank_first=60, k1=8, k2=2, original_weight=0.0)):
        assert hits.best == pytest.approx(1, abs=1e-6)
        assert len(hits.rows) == 1
        said = told(index, hits, Point(0.01, 0.999, 0.99, 1.0, 0.1))
        assert said["in_gallery"] is True
        assert said["results"][0]["same"] == (hits.rows[0] == number)


def test_an_effort_that_was_chosen_is_chosen_anew_when_the_index_grows(tmp_path):
    table = unit(np.random.default_rng(2), ROWS + 1000, DIM)
    for name, effort in (("chosen", 0), ("asked", 3)):
        build(tmp_path / name, parts(table[:ROWS]), ROWS, ORIGIN, kind="ivf_pq", effort=effort)
        path = tmp_path / name / "index.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"effort": 3}))
        more = Origin(ORIGIN.model, ORIGIN.checkpoint, False, "more", "more")
        facts = add(tmp_path / name, parts(table[ROWS:]), 1000, more)
        assert (facts.effort > 3) == (effort == 0)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda place: (place / "index.json").unlink(), "an index in .*; came none"),
        (lambda place: (place / "index.json").write_text("{"), "an index's facts in"),
        (lambda place: (place / "index.json").write_text("[" * 100_000), "an index's facts in"),
        (lambda place: (place / "features-0000.npy").write_bytes(b"\x93NUMPY"), "the embeddings .*features-0000.npy"),
        (lambda place: (place / "features-0000.npy").unlink(), "the embeddings .*features-0000.npy"),
        (lambda place: (place / "rows-0000.arrow").write_bytes(b"ARROW1"), "the rows .*rows-0000.arrow"),
        (lambda place: (place / "engine-0000.faiss").write_bytes(b"IxHs"), "the index .*faiss; came another content"),
        (lambda place: (place / "engine-0000.faiss").unlink(), "the index .*faiss; came no such file"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("verified", ["1", "0"])
def test_a_torn_index_is_refused(harm, words, verified, table, tmp_path, monkeypatch):
    monkeypatch.setenv("GRACL_VERIFY", verified)
    build(tmp_path, parts(table[:300]), 300, ORIGIN, kind="hnsw")
    harm(tmp_path)
    with pytest.raises(GraclError, match=words):
        StoredIndex(tmp_path)


def flipped(path, place):
    """One bit of a file turned over."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("name", ["features-0000.npy", "rows-0000.arrow"])
def test_a_flipped_bit_is_found_unless_nobody_is_to_look(name, table, tmp_path, monkeypatch):
    build(tmp_path, parts(table[:300]), 300, ORIGIN)
    flipped(tmp_path / name, (tmp_path / name).stat().st_size // 2)
    with pytest.raises(StoredIndexError, match=f"{name} as written; came another content; build"):
        StoredIndex(tmp_path)
    monkeypatch.setenv("GRACL_VERIFY", "0")
    assert len(StoredIndex(tmp_path)) == 300


def test_an_index_of_before_there_were_checksums_is_read_and_added_to(table, query, tmp_path):
    build(tmp_path, parts(table[:300]), 300, ORIGIN)
    facts = json.loads((tmp_path / "index.json").read_text())
    for segment in facts["segments"]:
        del segment["features_sha256"], segment["rows_sha256"]
    (tmp_path / "index.json").write_text(json.dumps(facts | {"schema_version": 1}))
    assert len(StoredIndex(tmp_path)) == 300
    add(tmp_path, parts(table[300:400], first=300), 100, replace(ORIGIN, table="more"))
    index = StoredIndex(tmp_path)
    assert index.facts.schema_version == 2
    assert [bool(segment.rows_sha256) for segment in index.facts.segments] == [False, True]
    np.testing.assert_array_equal(index.search(query, 5)[0], naive(table[:400], query, 5))


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 3},
        {"kind": "other"},
        {"engine": "../x"},
        {"rows": 5},
        {"segments": []},
        {"effort": "x"},
        {"recall": "y"},
        {"dtype": 3},
    ],
)
def test_facts_that_cannot_be_are_refused(change, table, tmp_path):
    build(tmp_path, parts(table[:300]), 300, ORIGIN)
    facts = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps(facts | change))
    with pytest.raises(GraclError, match="an index's facts in"):
        StoredIndex(tmp_path)


def test_what_cannot_be_indexed_or_asked_is_refused(table, query, tmp_path):
    with pytest.raises(ConfigError, match="embeddings to search among; came none"):
        build(tmp_path, iter(()), 0, ORIGIN)
    with pytest.raises(ConfigError, match=f"{PQ_ROWS} rows or more, .*came 300 rows of 32 values"):
        build(tmp_path, parts(table[:300]), 300, ORIGIN, kind="ivf_pq")
    with pytest.raises(GraclError, match="embeddings of length 1; came lengths from"):
        build(tmp_path, parts(2 * table[:300]), 300, ORIGIN)
    with pytest.raises(GraclError, match="finite embeddings"):
        build(tmp_path, parts(np.full((3, DIM), np.nan, np.float32)), 3, ORIGIN)
    shutil.rmtree(tmp_path)
    build(tmp_path, parts(table[:300]), 300, ORIGIN)
    with pytest.raises(ConfigError, match="a folder without an index"):
        build(tmp_path, parts(table[:300]), 300, ORIGIN)
    index = StoredIndex(tmp_path)
    with pytest.raises(ConfigError, match="k >= 1; came 0"):
        index.search(query, 0)
    with pytest.raises(GraclError, match="queries of 32 finite values; came 31 values"):
        index.search(query[:, 1:])
    with pytest.raises(GraclError, match="queries of 32 finite values"):
        index.search(np.full((1, DIM), np.inf, np.float32))


def test_the_kind_goes_by_the_rows():
    assert [choose(rows) for rows in (1, 200_000, 200_001)] == ["flat", "flat", "ivf_pq"]
