"""Presets of methods: each a config, and the method it is named after."""

from pathlib import Path

import pytest
import torch
import yaml

from benchmarks import local_twin
from gracl.cli import load_config
from gracl.config import TrainConfig
from gracl.idle import idle
from tests.naive.cluster_contrast import ClusterContrast
from tests.toy import TOY

METHODS = Path(__file__).resolve().parents[2] / "pipelines" / "presets" / "methods"
PRESETS = sorted(METHODS.glob("*.yaml"))


def config(method, root="x", **changes):
    settings = {**TOY, "data.root": root, "epochs": 2} | changes
    return load_config(TrainConfig, [str(METHODS / f"{method}.yaml"), *(f"{k}={v}" for k, v in settings.items())])


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_a_method_can_be_laid_over_any_other(preset):
    assert len(PRESETS) >= 5
    values = [yaml.safe_load(path.read_text()) for path in (preset, METHODS / "gracl.yaml")]
    # The sampler is the data preset's, but for a method that cannot do without cameras.
    names = [
        {f"{section}.{name}" for section in one if section in ("relations", "loss") for name in one[section]}
        for one in values
    ]
    assert {"cameras_from"} <= {*values[0]} - {"relations", "loss"} <= {"camera_balanced", "cameras_from"}
    assert names[0] == names[1], "a method must set all that another may have set"


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_a_method_sets_nothing_in_vain(preset):
    assert idle(config(preset.stem)) == []


def test_gracl_is_the_default():
    assert config("gracl") == load_config(
        TrainConfig, [f"{k}={v}" for k, v in {**TOY, "data.root": "x", "epochs": 2}.items()]
    )


def test_cluster_contrast_is_cluster_contrast_bit_for_bit(toy_shards, monkeypatch):
    ours = local_twin.learn(config("cluster_contrast", toy_shards))
    build = local_twin.build

    def with_theirs(lesson, device):
        encoder, _, optimizer = build(lesson, device)
        return encoder, ClusterContrast(), optimizer

    monkeypatch.setattr(local_twin, "build", with_theirs)
    theirs = local_twin.learn(config("cluster_contrast", toy_shards))
    for name, tensor in ours.model.items():
        torch.testing.assert_close(tensor, theirs.model[name], rtol=0, atol=0, msg=name)
    assert [epoch["train/loss"] for epoch in ours.history] == [epoch["train/loss"] for epoch in theirs.history]


def test_no_two_methods_learn_the_same(toy_shards):
    configs = [config(preset.stem, toy_shards, epochs=1, **{"relations.centre_k": 20}) for preset in PRESETS]
    losses = [local_twin.learn(one).history[0]["train/loss"] for one in configs]
    assert len(set(losses)) == len(losses)
    assert all(0 < loss < 20 for loss in losses)
