"""A checkpoint as a registered model, which loads where there is no Ray."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from benchmarks.local_twin import learn
from gracl.errors import ConfigError, GraclError
from gracl.images.shards import ShardStore
from gracl.images.views import eval_view
from gracl.learning.checkpoint import load_state, save_state
from gracl.learning.served import Served
from gracl.retrieval.card import model_card
from gracl.runtime.publish import crowned, judged_on, publish
from gracl.runtime.runs import prepare, register
from gracl.runtime.tracking import tracking_uri
from gracl.uses import PublishConfig
from tests.toy import toy_config

LOAD = """
import sys
for name in ("ray", "gracl.config"):
    sys.modules[name] = None  # importing it raises ImportError
import mlflow, numpy, torch
torch.set_num_threads(1)
mlflow.set_tracking_uri({uri!r})
model = mlflow.pyfunc.load_model("models:/toy@champion")
numpy.save({out!r}, model.predict(numpy.load({images!r})))
print(model.metadata.signature)
print("code of", sys.modules["gracl"].__file__)
"""


@pytest.fixture(scope="module")
def run(toy_shards, tmp_path_factory):
    """A run's folder with one epoch in it, as a training leaves it."""
    config = toy_config(toy_shards, tmp_path_factory.mktemp("published"), epochs=1, eval_every=1, name="toy")
    uri = tracking_uri(None, config.runs)
    begun = register(prepare(config), uri)
    state = learn(config)
    recipe = {**state.recipe, **begun.recipe}
    Path(begun.folder, "epoch-0001").mkdir()
    save_state(replace(state, recipe=recipe), Path(begun.folder, "epoch-0001"))
    return begun.folder, uri


def published(run, **more):
    folder, _ = run
    return publish(PublishConfig(checkpoint=f"{folder}/epoch-0001", **{"model": "toy"} | more))


@pytest.fixture(scope="module")
def first(run):
    return published(run)


def pictures(toy_shards, count):
    store = ShardStore.open(toy_shards, "gallery")
    return np.stack([eval_view(image, height=32, width=16) for image in store.read(np.arange(count))])


def test_the_model_loads_without_ray_and_gives_the_checkpoints_features(first, run, toy_shards, tmp_path):
    images = pictures(toy_shards, 5)
    np.save(tmp_path / "images.npy", images)
    names = {"uri": run[1], "out": str(tmp_path / "features.npy"), "images": str(tmp_path / "images.npy")}
    done = subprocess.run(
        [sys.executable, "-c", LOAD.format(**names)], cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert "Tensor('uint8', (-1, 32, 16, 3))" in done.stdout
    assert re.search(r"code of \S+/model-epoch-0001/code/gracl/__init__.py", done.stdout), "not the code of the model"
    found = np.load(tmp_path / "features.npy")
    np.testing.assert_allclose(found, Served(f"{run[0]}/epoch-0001").predict(images), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_the_first_is_the_champion_and_has_its_card(first, run, tmp_path):
    assert (first["version"], first["champion"]) == (1, True)
    client = MlflowClient(run[1])
    assert int(client.get_model_version_by_alias("toy", "champion").version) == 1
    record = json.loads(Path(run[0], "run.json").read_text())
    assert first["mlflow_run_id"] == record["mlflow_run_id"]
    model = Path(client.download_artifacts(first["mlflow_run_id"], "model-epoch-0001", str(tmp_path)))
    card, history = (model / "README.md").read_text(), load_state(Path(run[0], "epoch-0001")).history
    assert f"| mAP | {history[-1]['val/mAP']:.1%} |" in card
    assert "No camera ids were read." in card
    assert {"MLmodel", "state.pt"} <= {path.name for path in model.rglob("*")}
    needed = {line.partition("==")[0] for line in (model / "requirements.txt").read_text().splitlines()}
    assert "torch" in needed
    assert not needed & {"ray", "gracl"}


def test_one_that_is_not_better_does_not_take_its_place(first, run):
    again = published(run)
    assert (again["version"], again["champion"]) == (2, False)
    assert "stays the champion" in again["why"]
    assert int(MlflowClient(run[1]).get_model_version_by_alias("toy", "champion").version) == 1


def test_only_what_was_judged_on_the_same_images_is_compared(first, run):
    client, state = MlflowClient(run[1]), load_state(Path(run[0], "epoch-0001"))
    same = judged_on(state)
    assert same.count(",") == 1
    assert len(same) > 20
    assert crowned(client, "toy", first["mAP"] + 0.01, same) == (
        True,
        f"the champion: mAP {first['mAP'] + 0.01:.1%} after version 1 with {first['mAP']:.1%}",
    )
    assert crowned(client, "toy", first["mAP"] + 0.01, "others")[0] is False
    assert crowned(client, "toy", None, same)[0] is False
    assert crowned(client, "nobody", 0.1, same)[0] is True


def test_a_checkpoint_of_no_run_is_refused(run, tmp_path):
    with pytest.raises(ConfigError, match="a checkpoint in the folder of its run"):
        publish(PublishConfig(checkpoint=str(tmp_path / "epoch-0001"), model="toy"))
    folder = Path(run[0])
    record = json.loads((folder / "run.json").read_text())
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "run.json").write_text(json.dumps({k: v for k, v in record.items() if k != "tracking_uri"}))
    with pytest.raises(ConfigError, match="the run does not say it"):
        publish(PublishConfig(checkpoint=str(tmp_path / "old" / "epoch-0001"), model="toy"))


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 32, 16, 3), np.float32),
        np.zeros((2, 16, 32, 3), np.uint8),
        np.zeros((32, 16, 3), np.uint8),
        np.zeros((0, 32, 16, 3), np.uint8),
    ],
)
def test_pictures_of_another_kind_are_refused(run, images):
    with pytest.raises(GraclError, match=r"pictures as uint8 \[batch, 32, 16, 3\]"):
        Served(f"{run[0]}/epoch-0001").predict(images)


def test_a_card_says_what_read_cameras_and_that_nothing_was_judged():
    recipe = {"camera_balanced": True, "relations.centre": "camera", "relations.camera_proxies": False}
    card = model_card("run/epoch-0003", recipe, [{"epoch": 1.0}])
    assert "read by: sampler, features." in card
    assert "It was not judged." in card
    assert "| relations.centre | camera |" in card
    assert "another run" not in card
    started = model_card("run/epoch-0003", recipe | {"start": "first/epoch-0002"}, [{"epoch": 3.0}])
    assert "It went on from `first/epoch-0002`, a checkpoint of another run" in started
