"""What a run is refused for before Ray starts."""

from dataclasses import replace

import pytest

from gracl.errors import ConfigError
from gracl.images.manifests import read_manifest
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
