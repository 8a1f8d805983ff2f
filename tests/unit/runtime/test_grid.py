"""The runs of a comparison, made and refused without Ray."""

import pytest

from gracl.cli import load_config
from gracl.errors import ConfigError
from gracl.experiments import CompareConfig
from gracl.runtime.grid import grid, runs_of

GIVEN = {
    "presets": {"plain": "epochs=3", "cameras": ["epochs=3", "camera_balanced=true"]},
    "data": {"world": "data.root=shards/world", "city": ["data.root=shards/city", "data.height=64", "epochs=4"]},
    "seeds": [0, 5],
    "out": "out",
}


def comparison(**changes):
    return CompareConfig(**(GIVEN | changes))


def test_every_arm_learns_every_data_set_with_every_seed():
    trials = grid(comparison())
    assert [trial.name for trial in trials[:3]] == ["plain-world-s0", "cameras-world-s0", "plain-world-s5"]
    assert len({trial.name for trial in trials}) == 8
    last = trials[-1].config
    assert (last.seed, last.camera_balanced, last.data.root, last.data.height) == (5, True, "shards/city", 64)
    assert {trial.config.runs for trial in trials} == {runs_of(comparison())}


def test_what_comes_later_wins_and_common_comes_last():
    assert [trial.config.epochs for trial in grid(comparison(seeds=[0]))] == [3, 3, 4, 4]
    assert [trial.config.epochs for trial in grid(comparison(seeds=[0], common=["epochs=9"]))] == [9, 9, 9, 9]


def test_runs_are_kept_in_out_or_where_it_is_said():
    assert runs_of(comparison(out="/o")) == "/o/runs"
    assert runs_of(comparison(out="s3://bucket/o")) == "s3://bucket/o/runs"
    assert runs_of(comparison(runs="/r")) == "/r"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"common": "epochs=0"}, r"arm 'plain' on 'world': epochs: Input should be greater than or equal to 1"),
        ({"presets": {"a": "nowhere.yaml"}}, "arm 'a' on 'world': .*nowhere.yaml, which is not there"),
        ({"data": {"world": "epochs=2"}}, "arm 'plain' on 'world': data: needed"),
        ({"common": ["seed=3", "name=x"]}, "without seed, name, which the comparison decides"),
        ({"common": "tracking.experiment=x"}, "without tracking, which"),
        ({"common": ["data.query=''", "data.gallery=''"]}, "splits to be judged on"),
        ({"common": "camera_balanced=true"}, "the same settings for plain-world-s0 and cameras-world-s0"),
        (
            {"presets": {"a": [], "a-b": "epochs=3"}, "data": {"b-c": "data.root=r", "c": "data.root=s"}},
            "a-b-c-s0, a-b-c-s5 for two",
        ),
    ],
)
def test_a_run_that_cannot_be_what_was_asked_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        grid(comparison(**changes))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("baseline=third", "a baseline of the arms plain, cameras; came 'third'"),
        ("seeds=[1,1]", "each seed once"),
        ("seeds=[]", "seeds: Tuple should have at least 1 item"),
        ("presets={}", "presets: Dictionary should have at least 1 item"),
        ("presets.a/b=[]", "should match pattern"),
        ("metric=loss", "metric: Input should be 'val/mAP' or 'val/rank1'"),
    ],
)
def test_a_comparison_that_cannot_be_made_is_refused(argument, message, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("{presets: {plain: [], cameras: []}, data: {w: data.root=r}, out: o}")
    arguments = [str(file), argument] if argument != "presets={}" else [argument, "data.w=data.root=r", "out=o"]
    with pytest.raises(ConfigError, match=message):
        load_config(CompareConfig, arguments)
