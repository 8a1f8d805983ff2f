"""What a run is refused for before Ray starts."""

from dataclasses import replace

import pytest
import torch

from gracl.errors import CheckpointError, ConfigError
from gracl.idle import idle
from gracl.images.manifests import read_manifest
from gracl.learning.checkpoint import TrainState, save_state
from gracl.learning.encoder import build_encoder
from gracl.runtime import runs
from gracl.runtime.runs import prepare
from tests.toy import toy_config


def test_more_neighbours_than_images(toy_shards, tmp_path):
    with pytest.raises(ConfigError, match="relations.k1 of at most the .* images of the train split; came 9999"):
        prepare(toy_config(toy_shards, tmp_path, relations__k1=9999))
    prepare(toy_config(toy_shards, tmp_path, relations__k1=9999, relations__camera_aware=True))


def test_more_surroundings_than_images(toy_shards, tmp_path):
    with pytest.raises(ConfigError, match="relations.centre_k of at most the .* images of the train split; came 9999"):
        prepare(toy_config(toy_shards, tmp_path, relations__centre="local", relations__centre_k=9999))
    prepare(toy_config(toy_shards, tmp_path, relations__centre_k=9999))


@pytest.mark.parametrize(
    ("switch", "value", "more"),
    [
        ("camera_balanced", "true", {}),
        ("relations.camera_aware", "true", {}),
        ("relations.centre", "camera", {}),
        ("relations.camera_proxies", "true", {"loss__camera_weight": 1.0}),
    ],
)
def test_cameras_asked_of_a_split_of_one(toy_shards, tmp_path, monkeypatch, switch, value, more):
    config = toy_config(toy_shards, tmp_path, **{switch.replace(".", "__"): value}, **more)
    prepare(config)
    monkeypatch.setattr(runs, "read_manifest", lambda *where: replace(read_manifest(*where), num_cameras=1))
    with pytest.raises(ConfigError, match=f"two cameras or more for {switch}={value}; came 1 known cameras"):
        prepare(config)


@pytest.mark.parametrize(
    ("package", "setting"),
    [
        ("infomap", {"relations__clustering": "infomap"}),
        ("faiss", {"relations__search": "approximate"}),
        ("faiss", {"relations__backend": "faiss"}),
    ],
)
def test_packages_that_are_missing(toy_shards, tmp_path, monkeypatch, package, setting):
    monkeypatch.setattr(runs, "find_spec", lambda name: None)
    prepare(toy_config(toy_shards, tmp_path))
    with pytest.raises(ConfigError, match=f"expected the package {package}; came no such package; install gracl"):
        prepare(toy_config(toy_shards, tmp_path, **setting))


@pytest.fixture(scope="module")
def left(toy_shards, tmp_path_factory):
    """The checkpoint that a run of one epoch has left, and the config that goes on from it."""
    run = prepare(toy_config(toy_shards, tmp_path_factory.mktemp("runs")))
    encoder = build_encoder(**run.config.encoder.options(), seed=1)
    optimizer = torch.optim.Adam(encoder.parameters())
    fresh = TrainState.fresh(encoder, run.recipe, height=32, width=16)
    folder = tmp_path_factory.mktemp("left") / "one" / "epoch-0002"
    save_state(
        fresh.after({"epoch": 1.0}, encoder=encoder, optimizer=optimizer).after(
            {"epoch": 2.0, "val/mAP": 0.5}, encoder=encoder, optimizer=optimizer
        ),
        folder,
    )
    return str(folder)


def test_a_run_begins_with_the_state_of_another(toy_shards, tmp_path, left):
    run = prepare(toy_config(toy_shards, tmp_path, start=left, epochs=3, encoder__weights="gone.pth"))
    assert (run.start.epoch, len(run.start.history)) == (2, 2)
    assert run.recipe["start"] == "one/epoch-0002"
    by_file = prepare(toy_config(toy_shards, tmp_path, start=f"{left}/state.pt", epochs=3))
    assert by_file.recipe == prepare(toy_config(toy_shards, tmp_path, start=left, epochs=3)).recipe
    assert "start" not in prepare(toy_config(toy_shards, tmp_path)).recipe
    assert "encoder.weights is not used with start" in " ".join(idle(run.config))
    elsewhere = run.start.elsewhere(run.recipe, height=64, width=32)
    assert (elsewhere.best, elsewhere.best_epoch, elsewhere.epoch) == (None, None, 2)
    assert elsewhere.view == {"height": 64, "width": 32}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encoder__backbone": "resnet34"}, r"encoder: .*'resnet18'.* there, .*'resnet34'.* here"),
        ({"optim__optimizer": "sgd"}, "optim.optimizer: 'adam' there, 'sgd' here"),
        ({"teacher_decay": 0.9}, "a teacher: False there, True here"),
        ({"data__query": "", "data__gallery": "", "data__train": "gallery"}, "data.train_digest: "),
        ({"epochs": 2}, "more epochs than the 2 of .*; came epochs=2; raise epochs"),
    ],
)
def test_starts_that_do_not_fit(toy_shards, tmp_path, left, changes, words):
    with pytest.raises(ConfigError, match=words):
        prepare(toy_config(toy_shards, tmp_path, start=left, **changes))


def test_a_start_that_is_not_there(toy_shards, tmp_path):
    with pytest.raises(CheckpointError, match="a checkpoint at .*nowhere"):
        prepare(toy_config(toy_shards, tmp_path, start=tmp_path / "nowhere"))
