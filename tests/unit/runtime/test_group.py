"""group(config): from a table to files and a page, without a cluster; and what is refused."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from gracl.cli import load_config
from gracl.errors import CheckpointError, ConfigError, ShardError
from gracl.images import storage
from gracl.images.embeddings import ASKED, SCHEMA_VERSION, Asked, Part, write_manifest, write_part
from gracl.images.shards import ShardStore
from gracl.learning.checkpoint import TrainState, load_state, save_state
from gracl.learning.encoder import build_encoder
from gracl.learning.identity import model_digest
from gracl.locks import holding
from gracl.relations.grouping import group as related
from gracl.runtime.album import HEIGHT, WIDTH, Album
from gracl.runtime.group import group
from gracl.uses import GroupConfig
from tests.raw_images import fill, picture
from tests.unit.relations.test_relate import objects

NOWHERE = "/nowhere/epoch-0001"
OBJECTS, EACH, ALONE = 4, 9, 3
ROWS = OBJECTS * EACH + ALONE


def asked(source, **more):
    plain = Asked(SCHEMA_VERSION, str(source), "d" * 64, ROWS, 16, "m" * 64, 16, "float32", False, "float32")
    return replace(plain, **more)


def make_table(root, told, *, cameras=None, tracks=None, checkpoint=NOWHERE, rows=ROWS):
    """A table of features with objects in them, in parts; returns features, objects and paths."""
    features, truth = objects(count=OBJECTS, each=EACH, noise=ALONE)
    paths = [f"some/{number:03}.jpg" for number in range(ROWS)]
    storage.write_bytes(storage.join(str(root), ASKED), told.to_json())
    parts = []
    for number, first in enumerate(range(0, rows, told.part)):
        here = slice(first, min(first + told.part, rows))
        write_part(
            storage.join(str(root), f"part-{number:05}.parquet"),
            paths=paths[here],
            indices=np.arange(ROWS)[here],
            cameras=(cameras or [None] * ROWS)[here],
            tracks=(tracks or [None] * ROWS)[here],
            features=features[here],
            dtype=told.dtype,
            bad=[],
        )
        parts.append(Part(f"part-{number:05}.parquet", here.stop - here.start, ()))
    write_manifest(str(root), told, parts, [], str(checkpoint))
    return features, truth, paths


@pytest.fixture
def table(tmp_path):
    """A table of a folder of pictures, and where it lies."""
    source = tmp_path / "pictures"
    _, truth, paths = make_table(tmp_path / "table", asked(source))
    fill(str(source), paths)
    return tmp_path / "table", truth


def run(table, out, *more):
    return group(
        load_config(GroupConfig, [f"embeddings={table}", f"out={out}", "relations.k1=10", "relations.k2=3", *more])
    )


def read(out):
    return pq.read_table(out / "groups.parquet").to_pydict(), json.loads((out / "groups.json").read_text())


def test_a_table_becomes_groups_a_summary_and_a_page(table, tmp_path, capsys):
    result = run(table[0], tmp_path / "out")
    rows, summary = read(tmp_path / "out")
    features, truth, paths = objects(count=OBJECTS, each=EACH, noise=ALONE) + (
        [f"some/{n:03}.jpg" for n in range(ROWS)],
    )
    found = related(features, k1=10, k2=3)
    assert rows["path"] == paths
    assert rows["index"] == list(range(ROWS))
    assert rows["camera"] == rows["track"] == [None] * ROWS
    assert rows["group"] == found.labels.tolist()
    assert rows["confidence"] == found.confidence.tolist()
    assert np.flatnonzero(rows["centre"]).tolist() == sorted(found.centres.tolist())
    for one in range(OBJECTS):
        assert len(set(np.array(rows["group"])[truth == one])) == 1
    assert (summary["groups"], summary["images"], summary["tracks"]) == (OBJECTS, ROWS, None)
    assert summary["sizes"] == np.bincount(found.labels[found.labels >= 0]).tolist()
    assert summary["in_no_group"] == result["in_no_group"] == (found.labels < 0).mean()
    assert summary["relations"]["k1"] == 10
    assert summary["relations_of"] == "the defaults"
    assert "relations are the defaults where none are given" in capsys.readouterr().err
    assert result["groups"] == OBJECTS
    assert not [path for path in (tmp_path / "out").iterdir() if path.suffix not in (".parquet", ".json", ".html")]


def test_neither_ray_nor_mlflow_is_loaded():
    code = "import sys, gracl.runtime.group; print(sorted({'ray', 'mlflow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


def test_the_page_holds_its_pictures_and_fetches_nothing(table, tmp_path):
    run(table[0], tmp_path / "out")
    text = (tmp_path / "out" / "groups.html").read_text()
    # Four groups are one sheet; with the sizes and those of no group that makes three pictures.
    assert text.count('src="data:image/png;base64,') == text.count("src=") == 3
    assert "could not be read" not in text
    assert not re.search(r"https?://|<script", text)
    assert "In no group" in text


def test_many_groups_are_three_sheets(table, tmp_path):
    run(table[0], tmp_path / "out", "groups=2")
    text = (tmp_path / "out" / "groups.html").read_text()
    for kind in ("largest", "least sure", "surest"):
        assert f"<figcaption>{kind}</figcaption>" in text


def test_the_same_table_gives_the_same_bytes(table, tmp_path):
    run(table[0], tmp_path / "one", "threads=1")
    run(table[0], tmp_path / "two", "threads=3")
    for name in ("groups.parquet", "groups.json", "groups.html"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_pictures_that_are_gone_cost_no_table(tmp_path, capsys):
    make_table(tmp_path / "table", asked(tmp_path / "gone"))
    run(tmp_path / "table", tmp_path / "out")
    assert (
        "could not be read (grey fields), the first: expected a picture at"
        in (tmp_path / "out/groups.html").read_text()
    )
    assert "could not be read" in capsys.readouterr().err
    assert read(tmp_path / "out")[1]["groups"] == OBJECTS


def test_pictures_of_a_list_lie_beside_it(tmp_path):
    _, _, paths = make_table(tmp_path / "table", asked(tmp_path / "lists" / "some.csv"))
    fill(str(tmp_path / "lists"), paths)
    run(tmp_path / "table", tmp_path / "out")
    assert "could not be read" not in (tmp_path / "out/groups.html").read_text()


def test_pictures_of_shards_are_those_of_the_same_split(toy_shards):
    split = storage.join(str(toy_shards), "gallery")
    digest = ShardStore.open(str(toy_shards), "gallery").digest
    whole, other = Album(str(split), digest), Album(str(split), "another")
    (good,) = whole.pictures(["any"], np.array([2]))
    assert whole.told() == ""
    assert good.shape[0] == HEIGHT
    other.pictures(["any"], np.array([2]))
    assert f"1 of 1 pictures could not be read (grey fields), the first: expected the split {split}" in other.told()


def test_the_door_reads_no_identities(toy_shards, tmp_path, monkeypatch):
    def never(self):
        raise AssertionError("identities were read")

    store = ShardStore.open(str(toy_shards), "gallery")
    assert len(store) >= ROWS
    monkeypatch.setattr(ShardStore, "identities", never)
    split = storage.join(str(toy_shards), "gallery")
    make_table(tmp_path / "table", asked(split, data_digest=store.digest))
    run(tmp_path / "table", tmp_path / "out")
    assert "could not be read" not in (tmp_path / "out/groups.html").read_text()


def test_a_picture_too_wide_for_the_sheet_is_laid_into_a_field(tmp_path):
    (tmp_path / "wide.png").write_bytes(picture(0, height=10, width=200, kind="PNG"))
    (tmp_path / "broken.png").write_bytes(b"none")
    album = Album(str(tmp_path))
    wide, broken = album.pictures(["wide.png", "broken.png"], np.array([0, 1]))
    assert wide.shape == (HEIGHT, WIDTH, 3)
    assert (wide[0] == wide[0, 0]).all()
    assert broken.shape[0] == HEIGHT
    assert len(album.faults) == 1


def tracked():
    """Two tracks for each object; one image is of none."""
    _, truth = objects(count=OBJECTS, each=EACH, noise=ALONE)
    seen = dict.fromkeys(range(-1, OBJECTS), 0)
    names = []
    for one in truth.tolist():
        seen[one] += 1
        names.append(f"t{one}-{seen[one] > 4}" if one >= 0 else None)
    return names


def test_tracks_are_used_where_there_are_any(tmp_path):
    names = tracked()
    make_table(tmp_path / "table", asked(tmp_path), tracks=names)
    run(tmp_path / "table", tmp_path / "out", "relations.k1=3", "relations.k2=1")
    rows, summary = read(tmp_path / "out")
    assert (summary["tracks"], summary["related"]) == (2 * OBJECTS, 2 * OBJECTS + ALONE)
    assert rows["track"] == names
    for name in set(names) - {None}:
        assert len({rows["group"][row] for row in range(ROWS) if names[row] == name}) == 1
    run(tmp_path / "table", tmp_path / "ignored", "tracks=ignore")
    assert read(tmp_path / "ignored")[1]["tracks"] is None
    assert read(tmp_path / "ignored")[1]["related"] == ROWS


def test_neighbours_count_tracks_where_they_are_not_given(tmp_path, capsys):
    make_table(tmp_path / "table", asked(tmp_path), tracks=tracked())
    rows = 2 * OBJECTS + ALONE
    settings_of(tmp_path / "table", tmp_path / "out", "relations.k2=3")
    relations = read(tmp_path / "out")[1]["relations"]
    assert (relations["k1"], relations["k2"], relations["min_samples"]) == (round(30 * rows / ROWS), 3, 4)
    said = capsys.readouterr().err
    assert f"{rows} tracks and single images of {ROWS} images" in said
    assert f"k1={relations['k1']} for 30" in said
    assert "k2=" not in said.replace("k2=3", "")


def test_cameras_of_the_table_are_used(tmp_path):
    cameras = [("north", "south")[number % 2] for number in range(ROWS)]
    features, _, _ = make_table(tmp_path / "table", asked(tmp_path), cameras=cameras)
    by_camera = {"camera_aware": True, "k1_intra": 4, "k1_inter": 4, "k2_inter": 2}
    run(tmp_path / "table", tmp_path / "out", *(f"relations.{name}={value}" for name, value in by_camera.items()))
    found = related(features, k1=10, k2=3, cameras=np.arange(ROWS) % 2, **by_camera)
    rows, summary = read(tmp_path / "out")
    assert rows["group"] == found.labels.tolist()
    assert summary["cameras"] == 2


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint whose training clustered at eps=0.45, and the digest of its model."""
    folder, view = tmp_path_factory.mktemp("epoch-0001"), {"height": 32, "width": 16}
    encoder = build_encoder(backbone="mobilenet_v2", feature_size=16, bn_group=0)
    recipe = {"relations.eps": 0.45, "relations.k1": 12, "relations.inter_rule": "nearest_sample", "loss.momentum": 0.9}
    state = TrainState.fresh(encoder, recipe, **view)
    save_state(replace(state, epoch=1, model=encoder.state_dict()), folder)
    return folder, model_digest(encoder, view)


def settings_of(table, out, *more):
    group(load_config(GroupConfig, [f"embeddings={table}", f"out={out}", *more]))
    summary = json.loads((out / "groups.json").read_text())
    return summary["relations_of"], *(summary["relations"][name] for name in ("eps", "k1", "k2"))


def test_settings_are_those_of_the_training_and_what_is_given_wins(checkpoint, tmp_path, capsys):
    folder, digest = checkpoint
    table = tmp_path / "table"
    make_table(table, asked(tmp_path, model=digest), checkpoint=folder)
    assert settings_of(table, tmp_path / "1") == (str(folder), 0.45, 12, 6)
    assert settings_of(table, tmp_path / "2", "relations.eps=0.3") == (str(folder), 0.3, 12, 6)
    assert settings_of(table, tmp_path / "3", "checkpoint=''") == ("the defaults", 0.6, 30, 6)
    assert "relations are the defaults" not in capsys.readouterr().err


@pytest.mark.parametrize("cameras_from", ["recorded", "surroundings"])
def test_cameras_of_a_table_are_not_taken_for_groups_of_surroundings(checkpoint, tmp_path, capsys, cameras_from):
    state = load_state(str(checkpoint[0]))
    recipe = state.recipe | {"relations.centre": "camera", "relations.camera_aware": True, "cameras_from": cameras_from}
    save_state(replace(state, recipe=recipe), tmp_path / "epoch-0001")
    table = tmp_path / "table"
    make_table(table, asked(tmp_path, model=checkpoint[1]), cameras=[str(1 + row % 2) for row in range(ROWS)])
    named = f"checkpoint={tmp_path / 'epoch-0001'}"
    settings_of(table, tmp_path / "out", named)
    relations = json.loads((tmp_path / "out" / "groups.json").read_text())["relations"]
    recorded = cameras_from == "recorded"
    assert (relations["centre"], relations["camera_aware"]) == (("camera", True) if recorded else ("none", False))
    assert ("took groups of surroundings for cameras" in capsys.readouterr().err) != recorded
    settings_of(table, tmp_path / "given", named, "relations.centre=camera", "relations.camera_aware=false")
    assert "took groups of surroundings" not in capsys.readouterr().err
    assert json.loads((tmp_path / "given" / "groups.json").read_text())["relations"]["centre"] == "camera"


def test_settings_of_another_model_in_the_same_place_do_not_hold(checkpoint, tmp_path, capsys):
    make_table(tmp_path / "table", asked(tmp_path), checkpoint=checkpoint[0])
    assert settings_of(tmp_path / "table", tmp_path / "out") == ("the defaults", 0.6, 30, 6)
    assert "another model" in capsys.readouterr().err
    found = settings_of(tmp_path / "table", tmp_path / "named", f"checkpoint={checkpoint[0]}")
    assert found == (str(checkpoint[0]), 0.45, 12, 6)


def test_a_checkpoint_that_is_named_has_to_be_there(table, tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        run(table[0], tmp_path / "out", f"checkpoint={NOWHERE}")
    assert not (tmp_path / "out").exists()


def test_given_settings_have_to_fit_those_of_the_training(checkpoint, tmp_path):
    make_table(tmp_path / "table", asked(tmp_path, model=checkpoint[1]), checkpoint=checkpoint[0])
    with pytest.raises(ConfigError, match="k2 <= k1"):
        settings_of(tmp_path / "table", tmp_path / "out", "relations.k2=13")


def test_an_unfinished_table_is_refused(tmp_path):
    with pytest.raises(ShardError, match=r"an embedding table in .*; came none; make one"):
        run(tmp_path / "none", tmp_path / "out")
    make_table(tmp_path / "table", asked(tmp_path))
    (tmp_path / "table" / "manifest.json").unlink()
    with pytest.raises(ShardError, match=r"came an unfinished one; run its extraction again"):
        run(tmp_path / "table", tmp_path / "out")


def test_groups_that_are_there_are_left_alone(table, tmp_path):
    run(table[0], tmp_path / "out")
    before = (tmp_path / "out" / "groups.parquet").read_bytes()
    with pytest.raises(ConfigError, match="a new folder for groups"):
        run(table[0], tmp_path / "out", "relations.eps=0.2")
    assert (tmp_path / "out" / "groups.parquet").read_bytes() == before
    (tmp_path / "out" / "groups.json").unlink()  # as if it had been stopped before its end
    run(table[0], tmp_path / "out", "relations.eps=0.2")


def test_only_one_writes_at_a_time(table, tmp_path):
    with holding(str(tmp_path / "out"), "the folder"), pytest.raises(ConfigError, match="for this process alone"):
        run(table[0], tmp_path / "out")


def test_one_image_is_no_group(tmp_path):
    make_table(tmp_path / "table", asked(tmp_path, part=1), rows=1)
    with pytest.raises(ConfigError, match="2 images or more"):
        run(tmp_path / "table", tmp_path / "out")


def test_a_table_that_lacks_rows_is_refused(tmp_path):
    make_table(tmp_path / "table", asked(tmp_path))
    manifest = tmp_path / "table" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"rows": {ROWS}', f'"rows": {ROWS + 1}'))
    with pytest.raises(ShardError, match=f"{ROWS + 1} rows"):
        run(tmp_path / "table", tmp_path / "out")


@pytest.mark.parametrize("setting", ["relations.camera_aware=true", "relations.centre=camera"])
def test_settings_that_ask_for_cameras_are_refused_where_there_are_none(table, tmp_path, setting):
    with pytest.raises(ConfigError, match=r"cameras in .* since relations of the defaults ask for them; came none"):
        run(table[0], tmp_path / "out", setting)


def test_tracks_that_are_asked_for_have_to_be_there(table, tmp_path):
    with pytest.raises(ConfigError, match="tracks in the table, for tracks=use; came none"):
        run(table[0], tmp_path / "out", "tracks=use")


def test_a_table_in_which_nobody_is_alike_has_no_groups(table, tmp_path, capsys):
    result = run(table[0], tmp_path / "out", "relations.eps=0.001")
    assert (result["groups"], result["in_no_group"]) == (0, 1.0)
    assert "every image is in no group; raise relations.eps" in capsys.readouterr().err
    assert "In no group" in Path(tmp_path / "out/groups.html").read_text()
