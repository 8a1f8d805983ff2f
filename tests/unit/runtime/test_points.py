"""The points of a sweep, and what is refused before a cluster is touched."""

import math

import pytest
import yaml
from pydantic import ValidationError

from gracl.cli import load_config
from gracl.config import TrainConfig
from gracl.errors import ConfigError
from gracl.experiments import TuneConfig
from gracl.runtime.points import base_of, check_sweep, combinations, config_of, corners, name_of, points
from gracl.sections import Domain
from tests.architecture.imports import ROOT

GIVEN = {
    "base": ["data.root=shards", "epochs=9", "eval_every=3"],
    "space": {
        "loss.inter_temperature": {"loguniform": [0.02, 0.2]},
        "loss.momentum": {"uniform": [0.0, 0.9]},
        "relations.k1": {"integers": [10, 12]},
        "encoder.pooling": {"choice": ["gem", "average"]},
    },
    "trials": 40,
    "out": "out",
}


def asked(**changes):
    return TuneConfig(**(GIVEN | changes))


def test_drawn_points_lie_in_the_space_and_come_again_with_the_same_seed():
    found = points(asked())
    assert len({name_of(values) for values in found}) == 40
    assert found == points(asked())
    assert found != points(asked(seed=1))
    assert found[:12] == points(asked(trials=12)), "more trials are meant to go on with the same points"
    temperatures = [values["loss.inter_temperature"] for values in found]
    assert all(0.02 <= value <= 0.2 for value in temperatures)
    assert 0.3 < sum(value < math.sqrt(0.02 * 0.2) for value in temperatures) / 40 < 0.7
    assert {values["relations.k1"] for values in found} == {10, 11, 12}
    assert {values["encoder.pooling"] for values in found} == {"gem", "average"}
    assert {type(values["relations.k1"]) for values in found} == {int}


def test_a_grid_is_every_combination():
    space = {"loss.momentum": {"choice": [0.1, 0.5]}, "relations.k1": {"choice": [10, 20, 30]}}
    found = points(asked(search="grid", trials=0, space=space))
    assert len(found) == 6
    assert found[1] == {"loss.momentum": 0.1, "relations.k1": 20}


def test_points_that_there_are_not_are_not_looked_for_forever():
    with pytest.raises(ConfigError, match="4 different points; came 3 in this space"):
        points(asked(space={"relations.k1": {"integers": [10, 12]}}, trials=4))


def checked(**changes):
    config = asked(**changes)
    check_sweep(config, base_of(config))


def test_a_trial_is_the_training_that_one_would_type():
    values = {"loss.inter_temperature": 0.03, "encoder.pooling": "average"}
    base = base_of(asked())
    made = config_of(base, values, runs="there")
    typed = load_config(TrainConfig, [*GIVEN["base"], "loss.inter_temperature=0.03", "encoder.pooling=average"])
    assert made.recipe() == typed.recipe()
    assert (made.name, made.runs) == (name_of(values), "there")
    assert name_of(values) == name_of(dict(reversed(values.items())))
    assert config_of(base, {"loss.inter_temperature": 0.05}).name != made.name
    assert base == base_of(asked()), "a trial is not meant to change what all have in common"


def test_presets_are_read_once_and_places_are_whole(tmp_path, monkeypatch):
    (tmp_path / "preset.yaml").write_text("epochs: 7\nencoder: {weights: net.pth}")
    monkeypatch.chdir(tmp_path)
    base = base_of(asked(base=["preset.yaml", "data.root=shards", "data.cache=s3://bucket/cache"]))
    monkeypatch.chdir("/")
    made = config_of(base, {"loss.momentum": 0.5})
    assert (made.epochs, made.loss.momentum) == (7, 0.5)
    assert (made.data.root, made.encoder.weights) == (str(tmp_path / "shards"), str(tmp_path / "net.pth"))
    assert made.data.cache == "s3://bucket/cache"


@pytest.mark.parametrize(
    ("name", "value"),
    [("optim.rate", 1e-05), ("camera_balanced", True), ("encoder.pooling", "average"), ("relations.k1", 7)],
)
def test_every_kind_of_value_arrives(name, value):
    arrived = config_of(base_of(asked()), {name: value}).flat()[name]
    assert (arrived, type(arrived)) == (value, type(value))


def test_corners_are_all_combinations_of_ends_or_each_end_by_itself():
    space = {name: Domain(uniform=(0.0, 1.0)) for name in "abc"}
    assert len(corners(space)) == 8
    many = {f"s{number}": Domain(uniform=(0.0, 1.0)) for number in range(20)}
    found = corners(many)
    assert len(found) == 40
    assert {(name, one[name]) for one in found for name in many} == {(name, end) for name in many for end in (0.0, 1.0)}
    assert combinations({"a": Domain(choice=(1, 2, 3))}) == [{"a": 1}, {"a": 2}, {"a": 3}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {"loss.inter_temprature": {"uniform": [0.1, 0.2]}}}, "did you mean loss.inter_temperature"),
        (
            {"space": {"loss.inter_temperature": {"uniform": [-0.1, 0.2]}}},
            "loss.inter_temperature=-0.1: .*greater than 0",
        ),
        ({"space": {"relations.k2": {"integers": [2, 60]}}}, "relations.k2=60: .*relations.k2 of at most relations.k1"),
        ({"space": {"runs": {"choice": ["a", "b"]}}}, "the sweep decides these"),
        ({"space": {"name": {"choice": ["a", "b"]}}}, "the sweep decides these"),
        ({"space": {"data.root": {"choice": ["a", "b"]}}}, "the sweep decides these, or pipelines/compare.py"),
        ({"space": {"loss": {"choice": [1, 2]}}}, "loss: Input should be"),
        ({"search": "tpe", "space": {"relations.k1": {"integers": [10, 12]}}}, "40 different points; came 3"),
        ({"base": ["data.root=x", "name=mine"]}, "a base without name"),
        ({"base": ["data.root=x", "epocs=3"]}, "did you mean epochs"),
        ({"base": ["data.root=x", "data.query=''", "data.gallery=''"]}, "splits to be judged on with metric=val/mAP"),
        ({"scheduler": "asha", "grace": 7}, "asha to decide at; came epochs=9, the first at 9"),
        ({"scheduler": "asha", "base": ["data.root=x", "epochs=9"]}, "the first at 10 .*lower grace or eval_every"),
        ({"scheduler": "asha", "grace": 9, "metric": "cluster/silhouette"}, "the first at 9"),
        ({"scheduler": "asha", "space": {"epochs": {"integers": [2, 20]}}}, "came epochs=2, the first at 3"),
        ({"metric": "cluster/stability"}, "eval_stability of 1 or more with metric=cluster/stability"),
        (
            {
                "base": ["data.root=x", "epochs=9", "eval_stability=5"],
                "metric": "cluster/stability",
                "scheduler": "asha",
                "grace": 6,
            },
            "the first at 10 .*lower grace or eval_stability",
        ),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        checked(**changes)


def test_sweeps_that_can_be_are_not_refused():
    checked()
    checked(scheduler="asha", grace=4)
    bare = ["data.root=x", "data.query=''", "data.gallery=''"]
    checked(base=bare, metric="cluster/covered_silhouette", scheduler="asha", grace=8)
    checked(base=[*bare, "eval_stability=1"], metric="cluster/stability", scheduler="asha", grace=8)
    # The base alone is no training here, and every trial is.
    checked(base=["data.root=x", "relations.instances=16"], space={"loss.instance_weight": {"choice": [0.5, 1.0]}})
    checked(search="tpe", trials=3, space={"relations.k1": {"integers": [10, 12]}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {}}, "at least 1 item"),
        ({"space": {"seed": {}}}, "one of uniform, loguniform, integers and choice; came none"),
        ({"space": {"seed": {"uniform": [1, 2], "choice": [1]}}}, "came uniform, choice"),
        ({"space": {"seed": {"integers": [3, 3]}}}, "integers from a lower end to a higher"),
        ({"space": {"seed": {"loguniform": [0.0, 3]}}}, "loguniform above 0"),
        ({"space": {"seed": {"choice": [1, 1.0]}}}, "a choice of different values"),
        ({"space": {"seed": {"lognormal": [0, 1]}}}, "Extra inputs"),
        ({"metric": "val/map"}, "Input should be 'val/mAP'"),
        ({"search": "grid", "trials": 0}, "a choice for every setting with search=grid"),
        ({"search": "grid", "space": {"seed": {"choice": [1, 2]}}}, "trials with search=random or tpe"),
        ({"trials": 0}, "trials with search=random or tpe"),
        ({"grace": 3}, "scheduler=asha beside grace"),
        ({"scheduler": "asha", "reduction": 1}, "greater than or equal to 2"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        asked(**changes)


@pytest.mark.parametrize("file", sorted(ROOT.glob("tune_configs/*.yaml")), ids=lambda file: file.stem)
def test_the_sweeps_that_we_give_are_accepted(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load_config(TuneConfig, [str(file)])
    check_sweep(config, base_of(config))
    assert set(yaml.safe_load(file.read_text())["space"]) == set(config.space)
