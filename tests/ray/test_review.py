"""The page on a checkpoint, made through Ray."""

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
from PIL import Image

from benchmarks.local_twin import learn
from gracl.cli import load_config
from gracl.errors import CheckpointError, ConfigError
from gracl.images.shards import ShardStore
from gracl.learning.checkpoint import load_state, save_state
from gracl.retrieval.agreement import agreement
from gracl.runtime.review import review
from gracl.runtime.train import train
from gracl.uses import ReviewConfig
from tests.toy import toy_config

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def trained(ray_cluster, toy_shards, tmp_path_factory, with_mlflow):
    runs = with_mlflow(tmp_path_factory.mktemp("reviewed"))
    return train(toy_config(toy_shards, runs, epochs=2, eval_every=1, review_every=1, name="toy"))


def reviewed(checkpoint, root, out, **more):
    given = {"checkpoint": checkpoint, "data.root": root, "out": out, "batch": 16, "scale.worker_cpus": 0.5} | more
    return review(load_config(ReviewConfig, [f"{name}={value}" for name, value in given.items()]))


def pictures(text):
    found = re.findall(r'<img alt="([^"]*)" src="data:image/png;base64,([^"]+)"', text)
    return {name: np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")) for name, data in found}


def test_pages_are_made_on_the_way_and_at_the_end_without_identities(trained, tmp_path):
    folder, client = Path(trained["checkpoint"]).parent, mlflow.MlflowClient(trained["tracking_uri"])
    on_the_way, at_the_end = sorted(folder.glob("review-*.html"))
    assert [on_the_way.name, at_the_end.name] == ["review-epoch-0001.html", "review-epoch-0002.html"]
    told = {name: path.read_text() for name, path in (("way", on_the_way), ("end", at_the_end))}
    kept = client.download_artifacts(trained["mlflow_run_id"], on_the_way.name, str(tmp_path))
    assert Path(kept).read_text() == told["way"]
    first, last = client.get_metric_history(trained["mlflow_run_id"], "val/mAP")
    assert "<td>judged after epochs</td><td>1</td>" in told["way"]
    assert f"<td>mAP</td><td>{first.value:.1%}</td>" in told["way"]
    assert f"<td>mAP</td><td>{last.value:.1%}</td>" in told["end"]
    wanted = {"queries and what they found", "largest", "pairs of clustered images", "t-SNE"}
    assert wanted <= set(pictures(told["way"]))
    assert wanted | {"by epoch"} <= set(pictures(told["end"]))
    assert not any("objects and clusters" in pictures(text) for text in told.values())


def test_the_page_shows_the_run_and_is_in_its_mlflow_run(trained, toy_shards, tmp_path):
    found = reviewed(trained["checkpoint"], toy_shards, tmp_path / "page.html", identities=True)
    text = Path(found["out"]).read_text()
    shown = pictures(text)
    kinds = {"largest", "most cameras", "loosest"}
    wanted = {"by epoch", "queries and what they found", "pairs of clustered images", "t-SNE", "objects and clusters"}
    assert set(shown) - {"noise and its nearest"} == kinds | wanted
    assert all(picture.std() > 3 for picture in shown.values())
    assert "gracl review: toy/epoch-0002" in text
    assert f"<td>mAP</td><td>{trained['final']['mAP']:.1%}</td>" in text, "the same checkpoint was judged otherwise"
    assert found["mAP"] == pytest.approx(trained["final"]["mAP"], abs=1e-6)
    assert found["clusters"] >= 2
    client = mlflow.MlflowClient(trained["tracking_uri"])
    assert found["mlflow_run_id"] == trained["mlflow_run_id"]
    kept = client.download_artifacts(found["mlflow_run_id"], "review-epoch-0002.html", str(tmp_path))
    assert Path(kept).read_text() == text


@pytest.mark.long
def test_without_identities_nothing_of_them_is_on_the_page(trained, toy_shards, tmp_path):
    bare = reviewed(trained["checkpoint"], toy_shards, tmp_path / "bare.html", **{"data.query": "", "data.gallery": ""})
    text = Path(bare["out"]).read_text()
    assert "objects and clusters" not in pictures(text)
    assert "queries and what they found" not in pictures(text)
    assert "purity" not in text
    assert bare["mAP"] is None
    told = Path(reviewed(trained["checkpoint"], toy_shards, tmp_path / "told.html", identities=True)["out"]).read_text()
    objects = ShardStore.open(toy_shards, "train").identities().object_ids
    assert set(agreement(np.zeros(len(objects), np.int64), objects)) <= set(re.findall(r"<td>(\w+)</td>", told))


@pytest.mark.long
def test_a_page_that_mlflow_did_not_take_is_not_said_to_be_there(trained, toy_shards, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = {"tracking_uri": "http://127.0.0.1:9"}
    found = reviewed(trained["checkpoint"], toy_shards, tmp_path / "page.html", **away)
    assert found["mlflow_run_id"] is None
    assert Path(found["out"]).is_file()


@pytest.mark.long
def test_a_checkpoint_without_a_run_has_a_page_too(ray_cluster, toy_shards, tmp_path):
    save_state(learn(toy_config(toy_shards, epochs=1)), tmp_path / "alone")
    found = reviewed(tmp_path / "alone", toy_shards, tmp_path / "page.html")
    assert found["mlflow_run_id"] is None
    assert Path(found["out"]).stat().st_size == found["bytes"]


def test_what_cannot_be_reviewed_is_refused(trained, toy_shards, tmp_path):
    with pytest.raises(ConfigError, match="data.query and data.gallery together"):
        reviewed(trained["checkpoint"], toy_shards, tmp_path / "page.html", **{"data.query": ""})
    with pytest.raises(ConfigError, match="a split named 'other'"):
        reviewed(trained["checkpoint"], toy_shards, tmp_path / "page.html", **{"data.train": "other"})
    with pytest.raises(ConfigError, match="log=true beside tracking_uri"):
        reviewed(trained["checkpoint"], toy_shards, tmp_path / "page.html", log=False, tracking_uri="http://there")
    bare = {"data.query": "", "data.gallery": "", "queries": 3}
    with pytest.raises(ConfigError, match="data.query beside queries"):
        reviewed(trained["checkpoint"], toy_shards, tmp_path / "page.html", **bare)
    state = load_state(trained["checkpoint"])
    strange = replace(state, recipe={**state.recipe, "relations.moon": "full"})
    save_state(strange, tmp_path / "strange")
    with pytest.raises(CheckpointError, match="relations this version knows"):
        reviewed(tmp_path / "strange", toy_shards, tmp_path / "page.html")
