"""The doors index and search in this process: pictures in, what is most like them out."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

import gracl
from gracl.cli import load_config
from gracl.errors import CheckpointError, ConfigError, GraclError, ImageError, ShardError
from gracl.images.decoding import decode
from gracl.images.embeddings import SCHEMA_VERSION, Asked, Part, part_name, write_manifest, write_part
from gracl.images.synthetic import write_world
from gracl.learning.checkpoint import TrainState, load_encoder, save_state
from gracl.learning.encoder import build_encoder
from gracl.learning.identity import model_digest
from gracl.retrieval.calibration import Calibration, Point
from gracl.runtime.search import index, search
from gracl.uses import IndexConfig, SearchConfig

VIEW = {"height": 32, "width": 16}


def model(folder, seed=0):
    encoder = build_encoder(backbone="mobilenet_v2", feature_size=16, seed=seed)
    save_state(TrainState(1, encoder.state_dict(), {}, None, None, {}, encoder.options, VIEW), folder)
    return folder


def describe(checkpoint, pictures, out, cameras=True):
    """An embedding table without Ray: what extract writes of a folder, by hand."""
    paths = sorted(str(path.relative_to(pictures)) for path in pictures.rglob("*.jpg"))
    features = gracl.embed(checkpoint, [pictures / path for path in paths])
    digest, dim = model_digest(*load_encoder(checkpoint)), features.shape[1]
    asked = Asked(SCHEMA_VERSION, str(pictures), "", len(paths), len(paths), digest, dim, "float32", False, "float32")
    write_part(
        str(out / part_name(0)),
        paths=paths,
        indices=np.arange(len(paths)),
        cameras=[f"c{path.split('_c')[1][0]}" if cameras else None for path in paths],
        tracks=[None] * len(paths),
        features=features,
        dtype="float32",
        bad=[],
    )
    (out / "asked.json").write_bytes(asked.to_json())
    write_manifest(str(out), asked, [Part(part_name(0), len(paths), ())], (), str(checkpoint))
    return paths, features


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, a world, and the index of its gallery."""
    folder = tmp_path_factory.mktemp("search")
    model(folder / "model")
    size = {"train_objects": 4, "test_objects": 6, "cameras": 3, "shots": 3, "height": 32, "width": 16}
    write_world(folder / "world", seed=6, difficulty=0.2, **size)
    describe(folder / "model", folder / "world" / "bounding_box_test", folder / "features")
    run_index(embeddings=folder / "features", out=folder / "index")
    return folder


def run_index(**asked):
    return index(load_config(IndexConfig, [f"{name}={value}" for name, value in asked.items()]))


def run(place, **asked):
    given = {"index": place / "index", "queries": place / "world" / "query", **asked}
    return search(load_config(SearchConfig, [f"{name}={value}" for name, value in given.items()]))


def test_each_query_finds_what_is_most_like_it(place):
    found = run(place, k=4)
    queries = sorted((place / "world" / "query").glob("*.jpg"))
    gallery = sorted((place / "world" / "bounding_box_test").glob("*.jpg"))
    sides = [gracl.embed(place / "model", files) for files in (queries, gallery)]
    wanted = np.argsort(-(sides[0] @ sides[1].T), axis=1, kind="stable")[:, :4]
    assert [line["query"] for line in found["results"]] == [path.name for path in queries]
    for line, rows in zip(found["results"], wanted, strict=True):
        assert [hit["path"] for hit in line["results"]] == [gallery[row].name for row in rows]
    assert found["threshold"] is None
    assert (found["kind"], found["recall"], found["rows"]) == ("flat", 1.0, len(gallery))
    assert json.loads(json.dumps(found)) == found


def test_one_picture_is_a_query_and_a_broken_one_is_told(place, tmp_path):
    one = next((place / "world" / "bounding_box_test").glob("*.jpg"))
    found = run(place, queries=one, k=1)["results"]
    assert [(line["query"], line["results"][0]["path"]) for line in found] == [(one.name, one.name)]
    assert found[0]["results"][0]["similarity"] == pytest.approx(1, abs=1e-5)
    (tmp_path / "a.jpg").write_bytes(one.read_bytes())
    (tmp_path / "b.jpg").write_bytes(b"\xff\xd8 torn")
    both = run(place, queries=tmp_path)
    assert [line["query"] for line in both["results"]] == ["a.jpg"]
    assert [bad["path"] for bad in both["bad_images"]] == ["b.jpg"]
    with pytest.raises(ImageError, match="whole picture"):
        run(place, queries=tmp_path / "b.jpg")
    with pytest.raises(ImageError, match=r"a picture at .*c.jpg"):
        run(place, queries=tmp_path / "c.jpg")


def listed(place, tmp_path):
    """A list of queries that knows its cameras."""
    queries = sorted((place / "world" / "query").glob("*.jpg"))
    for path in queries:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    lines = [f"{path.name},c{path.name.split('_c')[1][0]}" for path in queries]
    (tmp_path / "queries.csv").write_text("\n".join(["path,camera_id", *lines]))
    return tmp_path / "queries.csv"


def test_cameras_say_who_may_be_found(place, tmp_path):
    queries = listed(place, tmp_path)
    for line in run(place, queries=queries, other_cameras=True, k=40)["results"]:
        own = f"c{line['query'].split('_c')[1][0]}"
        seen = {hit["camera"] for hit in line["results"]}
        assert own not in seen
        assert len(seen) == 2
    for line in run(place, cameras="[c1]", k=40)["results"]:
        assert {hit["camera"] for hit in line["results"]} == {"c1"}
    with pytest.raises(ConfigError, match=r"cameras of the index \(c0, c1, c2\)|cameras of the index .*came c9"):
        run(place, cameras="[c9]")
    with pytest.raises(ConfigError, match="known cameras for other_cameras=true; came none of the queries"):
        run(place, other_cameras=True)


def test_re_ranking_orders_the_first_ones_anew(place, capsys):
    plain, again = (
        run(place, k=10, **more)["results"] for more in ({}, {"rerank_first": 30, "reranking.k1": 5, "reranking.k2": 3})
    )
    assert any(
        [hit["path"] for hit in one["results"]] != [hit["path"] for hit in other["results"]]
        for one, other in zip(plain, again, strict=True)
    )
    known = {hit["path"]: hit["similarity"] for hit in plain[0]["results"]}
    for line in again:
        values = [hit["reranked"] for hit in line["results"]]
        assert values == sorted(values, reverse=True)
    shared = [hit for hit in again[0]["results"] if hit["path"] in known]
    assert shared
    assert all(hit["similarity"] == pytest.approx(known[hit["path"]], abs=1e-6) for hit in shared)
    few = run(place, rerank_first=12)["results"]
    assert [[hit["path"] for hit in line["results"]] for line in few] == [
        [hit["path"] for hit in line["results"]] for line in plain
    ]
    assert not any("reranked" in hit for line in few for hit in line["results"])
    assert "17 queries found no more than reranking.k1 pictures" in capsys.readouterr().err


def test_the_results_are_written_as_json_parquet_and_a_picture(place, tmp_path):
    result = run(place, out=tmp_path / "out", k=3, shown=2)
    told = json.loads((tmp_path / "out" / "results.json").read_text())
    flat = pq.read_table(tmp_path / "out" / "results.parquet").to_pylist()
    assert len(flat) == 3 * result["queries"] == 3 * len(told["results"])
    assert [row["path"] for row in flat[:3]] == [hit["path"] for hit in told["results"][0]["results"]]
    assert [row["rank"] for row in flat[:3]] == [1, 2, 3]
    picture = decode((tmp_path / "out" / "results.png").read_bytes())
    assert picture.shape[0] > 2 * 128
    assert "results" not in result
    kinds = pq.read_schema(tmp_path / "out" / "results.parquet")
    assert [str(kinds.field(name).type) for name in ("path", "camera", "similarity")] == ["string", "string", "double"]
    assert run(place, out=tmp_path / "out", shown=0)["queries"] == result["queries"]
    assert not (tmp_path / "out" / "results.png").exists(), "the picture of another search"


def test_queries_may_be_a_table_that_is_there(place, tmp_path):
    describe(place / "model", place / "world" / "query", tmp_path / "queries")
    found = run(place, queries=tmp_path / "queries", k=4)["results"]
    assert found == run(place, k=4)["results"]
    with pytest.raises(ConfigError, match="no settings of a model beside queries that are described; came checkpoint"):
        run(place, queries=tmp_path / "queries", checkpoint=place / "model")
    model(tmp_path / "other", seed=1)
    describe(tmp_path / "other", place / "world" / "query", tmp_path / "strange")
    with pytest.raises(ConfigError, match="the index's model .*came the queries'"):
        run(place, queries=tmp_path / "strange")


def test_another_model_is_refused_and_a_moved_one_can_be_named(place, tmp_path):
    model(tmp_path / "other", seed=1)
    with pytest.raises(ConfigError, match="the index's model .*came the checkpoint's"):
        run(place, checkpoint=tmp_path / "other")
    with pytest.raises(ConfigError, match="flip=false; came the checkpoint's .*flip=true"):
        run(place, flip=True)
    (place / "model").rename(tmp_path / "moved")
    try:
        with pytest.raises(CheckpointError, match="no such file"):
            run(place)
        assert run(place, checkpoint=tmp_path / "moved")["queries"] > 0
    finally:
        (tmp_path / "moved").rename(place / "model")


def test_a_rate_of_false_matches_says_which_results_are_the_same(place, tmp_path):
    with pytest.raises(ConfigError, match="a calibration at .*; came none; make it"):
        run(place, false_match_rate=0.01)
    digest, rows = model_digest(*load_encoder(place / "model")), run(place)["rows"]
    middle = float(np.median([line["results"][0]["similarity"] for line in run(place)["results"]]))
    points = (Point(0.1, 0.5, 0.4, 0.6, 1.0), Point(0.0001, middle, middle, middle, 0.5))
    kept = Calibration(1, digest, False, "clusters", 9, 3, 99, points)
    (place / "model" / "calibration.json").write_bytes(kept.to_json())
    try:
        found = run(place, false_match_rate=0.0001, of="pair", out=tmp_path / "out")
        told = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
        assert found["threshold"]["similarity"] == pytest.approx(middle)
        for line in told:
            assert [hit["same"] for hit in line["results"]] == [hit["similarity"] >= middle for hit in line["results"]]
            assert line["in_gallery"] == (line["results"][0]["similarity"] >= middle)
        assert len({line["in_gallery"] for line in told}) == 2
        whole = run(place, false_match_rate=0.1, of="query")["threshold"]
        assert whole["rate"] == pytest.approx(0.1 / rows)
        with pytest.raises(ConfigError, match=f"a rate of a query of 0.0034 or more, as was measured for {rows} rows"):
            run(place, false_match_rate=0.001, of="query")
        with pytest.raises(ConfigError, match="a rate from 0.0001 to 0.1"):
            run(place, false_match_rate=0.00001)
        (place / "model" / "calibration.json").write_bytes(kept.to_json().replace(digest.encode(), b"b" * 64))
        with pytest.raises(ConfigError, match="a calibration of the model .*came of bbbbbbbbbbbb"):
            run(place, false_match_rate=0.1, of="pair")
    finally:
        (place / "model" / "calibration.json").unlink()


def test_more_pictures_can_be_added(place, tmp_path):
    describe(place / "model", place / "world" / "query", tmp_path / "more", cameras=False)
    run_index(embeddings=place / "features", out=tmp_path / "index")
    before = len(list((place / "world" / "bounding_box_test").glob("*.jpg")))
    grown = run_index(embeddings=tmp_path / "more", out=tmp_path / "index", add=True)
    queries = len(list((place / "world" / "query").glob("*.jpg")))
    assert (grown["rows"], grown["kind"]) == (before + queries, "flat")
    found = run(place, index=tmp_path / "index", k=1)["results"]
    assert all(line["results"][0]["path"] == line["query"] for line in found)
    assert all(line["results"][0]["source"].endswith("query") for line in found)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"rerank_first": 5, "k": 6}, "rerank_first of at least k=6; came 5"),
        ({"reranking.k1": 5}, "rerank_first=N beside settings of it"),
        ({"of": "query"}, "false_match_rate beside of"),
        ({"shown": 5}, "out= beside settings of its picture; came shown=5"),
    ],
)
def test_settings_that_say_nothing_are_refused(asked, words, place):
    with pytest.raises(ConfigError, match=words):
        run(place, **asked)


def test_what_is_no_table_or_index_is_refused(place, tmp_path):
    with pytest.raises(ShardError, match="an embedding table in .*; came none"):
        run_index(embeddings=tmp_path, out=tmp_path / "index")
    with pytest.raises(GraclError, match="an index in .*; came none"):
        run(place, index=tmp_path)
    with pytest.raises(ConfigError, match="a folder of this machine for an index; came s3://"):
        run_index(embeddings=place / "features", out="s3://bucket/index")
    with pytest.raises(ConfigError, match="no kind or effort beside add=true; came kind=flat"):
        run_index(embeddings=place / "features", out=tmp_path, add=True, kind="flat")
