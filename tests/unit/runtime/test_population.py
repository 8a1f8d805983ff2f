"""Population-based training from records alone: what a generation is, who ends, and what goes on instead."""

import math
from dataclasses import replace

import numpy as np
import pytest

from gracl.errors import CheckpointError, TrainingFailed
from gracl.experiments import TuneConfig
from gracl.images import storage
from gracl.randomness import rng
from gracl.runtime.points import START, base_of, check_sweep, config_of, name_of, points
from gracl.runtime.population import changed, evolve, exchanges, generation, lineage, remove_starts, try_again
from gracl.runtime.sweep_trial import Point, Sweep
from gracl.sections import Domain

SPACE = {"loss.inter_temperature": {"loguniform": [0.02, 0.3]}, "loss.momentum": {"uniform": [0.0, 0.9]}}
GIVEN = {
    "base": ["data.root=shards", "epochs=10", "eval_every=10"],
    "space": SPACE,
    "scheduler": "pbt",
    "exchange_every": 4,
    "trials": 8,
    "out": "out",
}


def asked(**changes):
    return TuneConfig(**(GIVEN | changes))


def trained(values, until, score):
    """The record of a trial that has come to `until`."""
    return Point(name_of(values), dict(values), "begun", until, [{"epoch": float(until), "val/mAP": score}])


def test_a_generation_is_the_first_that_somebody_has_not_done():
    config = asked()
    first = points(config)
    now = generation(config, 10, first, {})
    assert (now.until, now.members, now.left, now.replaced) == (4, tuple(first), tuple(first), {})
    known = {name_of(values): trained(values, 4, place / 10) for place, values in enumerate(first[:5])}
    assert generation(config, 10, first, known).left == tuple(first[5:])
    known |= {name_of(values): trained(values, 4, place / 10) for place, values in enumerate(first)}
    now = generation(config, 10, first, known)
    assert now.until == 8
    assert now.left == now.members
    assert {name_of(first[0]), name_of(first[1])} == now.replaced.keys(), "the two lowest of eight"
    assert now.members[2:] == tuple(first[2:])
    for place in (0, 1):
        donor, _, copy = now.members[place][START].partition("/")
        assert donor in {name_of(first[6]), name_of(first[7])}, "the two highest"
        assert copy == "start-0004"
        assert now.replaced[name_of(first[place])] == name_of(now.members[place])
    assert generation(config, 10, first, known) == now, "the same records are meant to give the same exchanges"
    assert generation(asked(seed=1), 10, first, known).members != now.members


def further(point, until, score):
    """The record of a trial that has gone on."""
    return replace(point, epochs=until, history=[*point.history, {"epoch": float(until), "val/mAP": score}])


def test_the_last_generation_ends_without_an_exchange():
    config = asked(trials=2, exchange_every=9)
    first = points(config)
    known = {name_of(values): trained(values, 9, float(place)) for place, values in enumerate(first)}
    now = generation(config, 10, first, known)
    assert (now.until, now.left) == (10, now.members)
    known[name_of(first[1])] = further(known[name_of(first[1])], 10, 0.2)
    copy = now.members[0]
    assert generation(config, 10, first, known).left == (copy,)
    known[name_of(copy)] = further(trained(copy, 9, 1.0), 10, 0.7)
    assert generation(config, 10, first, known) == replace(now, left=())
    assert lineage(known[name_of(copy)], known) == [
        f"epochs 1 to 9, {name_of(first[1])}: {words(first[1])}",
        f"epochs 10 to 10, {name_of(copy)}: {words(copy)}",
    ]


def words(values):
    return ", ".join(f"{name}={values[name]:.4g}" for name in values if name != START)


def test_what_failed_goes_on_as_a_copy_and_where_all_failed_there_is_an_end():
    config = asked(trials=4)
    first = points(config)
    known = {name_of(values): trained(values, 4, float(place)) for place, values in enumerate(first)}
    for place in (0, 2):
        known[name_of(first[place])] = Point(name_of(first[place]), dict(first[place]), "failed", why="collapsed")
    now = generation(config, 10, first, known)
    assert now.replaced.keys() == {name_of(first[0]), name_of(first[2])}, "both failed, though one in four is asked for"
    assert all(values[START].startswith(name_of(first[3])) for values in (now.members[0], now.members[2]))
    failed = {name: replace(point, state="failed", epochs=0, history=[]) for name, point in known.items()}
    assert generation(config, 10, first, failed).left == ()
    assert generation(config, 10, first, failed).until == 4


def test_of_equal_ones_the_earlier_place_is_ahead():
    config = asked(trials=4)
    first = points(config)
    found = exchanges(config, first, [0.5, 0.5, 0.5, 0.5], 4)
    assert found.keys() == {3}
    assert found[3][START] == f"{name_of(first[0])}/start-0004"
    both = exchanges(asked(trials=4, exchanged=0.5), first, [-math.inf, -math.inf, 0.1, -math.inf], 4)
    assert both.keys() == {0, 1, 3}
    assert {values[START] for values in both.values()} == {f"{name_of(first[2])}/start-0004"}


def test_changed_values_are_near_by_or_new_and_stay_in_their_ranges():
    space = {
        "loss.inter_temperature": Domain(loguniform=[0.02, 0.3]),
        "relations.k1": Domain(integers=[2, 40]),
        "relations.inter_rule": Domain(choice=["mean", "cluster_mean", "nearest_sample"]),
    }
    values = {"loss.inter_temperature": 0.1, "relations.k1": 3, "relations.inter_rule": "cluster_mean"}
    dice = rng(3, "test")
    found = [changed(values, space, dice) for _ in range(400)]
    near = [one["loss.inter_temperature"] for one in found if one["loss.inter_temperature"] in (0.08, 0.12)]
    assert 0.65 < len(near) / 400 < 0.85
    assert 0.4 < np.mean(np.array(near) == 0.08) < 0.6
    assert all(0.02 <= one["loss.inter_temperature"] <= 0.3 for one in found)
    whole = [one["relations.k1"] for one in found]
    assert {2, 4} <= set(whole) <= set(range(2, 41))
    assert sum(number in (2, 4) for number in whole) > 250, "a factor that moves nothing is meant to move by one"
    assert {one["relations.inter_rule"] for one in found} == {"mean", "cluster_mean", "nearest_sample"}
    assert sum(one["relations.inter_rule"] != "cluster_mean" for one in found) > 300
    ends = [changed(values | {"loss.inter_temperature": 0.29, "relations.k1": 40}, space, dice) for _ in range(100)]
    assert max(one["loss.inter_temperature"] for one in ends) == 0.3
    assert max(one["relations.k1"] for one in ends) == 40


def test_a_copy_is_a_training_that_goes_on_from_a_folder_of_the_runs():
    base = base_of(asked())
    values = {"loss.inter_temperature": 0.1, "loss.momentum": 0.5, START: "t-1/start-0004"}
    made = config_of(base | {START: "/another"}, values, runs="s3://bucket/runs")
    assert made.start == "s3://bucket/runs/t-1/start-0004"
    assert made.recipe()["start"] == "t-1/start-0004"
    assert made.name == name_of(values) != name_of({name: values[name] for name in SPACE})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"exchange_every": 10}, "an exchange before the last epoch"),
        ({"space": SPACE | {"encoder.pooling": {"choice": ["gem", "average"]}}}, "came encoder.pooling; leave these"),
        ({"space": SPACE | {"optim.optimizer": {"choice": ["adam", "sgd"]}}}, "came optim.optimizer; leave these"),
        ({"base": [*GIVEN["base"], "start=x"]}, "a base without start with scheduler=pbt"),
        ({"space": {"start": {"choice": ["a", "b"]}}}, "a space without .* start, .*; came start"),
    ],
)
def test_populations_that_cannot_be(changes, words):
    config = asked(**changes)
    with pytest.raises(Exception, match=words):
        check_sweep(config, base_of(config))


def sweep_in(tmp_path, **changes):
    config = asked(out=str(tmp_path), **changes)
    return Sweep(config, base_of(config), str(tmp_path / "runs"), str(tmp_path / "trials"))


def test_a_failure_later_on_changes_no_exchange_that_was_made():
    config = asked(trials=4)
    first = points(config)
    known = {name_of(values): trained(values, 4, float(place)) for place, values in enumerate(first)}
    now = generation(config, 10, first, known)
    best = name_of(first[3])
    known[best] = replace(known[best], state="failed", why="its machine was lost")
    again = generation(config, 10, first, known)
    assert (again.members, again.replaced) == (now.members, now.replaced)
    assert name_of(first[3]) not in {name_of(values) for values in again.left}
    for values in now.members[:3]:
        known[name_of(values)] = further(known.get(name_of(values), trained(values, 4, 0.0)), 8, 0.5)
    last = generation(config, 10, first, known)
    assert last.until == 10
    assert best in last.replaced, "what failed on the way to this exchange is meant to be replaced at it"


@pytest.mark.parametrize("space", [SPACE, {"loss.momentum": {"choice": [0.1, 0.33333333333, 0.9]}}])
def test_no_two_places_hold_the_same_trial(space):
    for seed in range(30):
        config = asked(seed=seed, space=space, exchanged=0.5, trials=3 if space is not SPACE else 8, exchange_every=2)
        first, known = points(config), {}
        for until in (2, 4, 6, 8, 10):
            now = generation(config, 10, first, known)
            assert now.until == until
            names = [name_of(values) for values in now.members]
            assert len({*names}) == len(names)
            for place, values in enumerate(now.left):
                before = known.get(name_of(values)) or Point(name_of(values), dict(values))
                known[name_of(values)] = further(before, until, float((place * 7 + seed) % 5))
        assert generation(config, 10, first, known).left == ()


class Worker:
    """Stands for the trainings of a population: records, and a checkpoint that the next one deletes."""

    def __init__(self, swept, fails=()):
        self.swept, self.fails, self.seen = swept, set(fails), []

    def __call__(self, now, some):
        self.seen.append((now.until, len(some)))
        for number, values in enumerate(some):
            name = name_of(values)
            before = self.swept.read(name) or Point(name, dict(values))
            if START in values and before.epochs == 0:
                kept = storage.read_bytes(storage.join(self.swept.runs, values[START], "state.pt")).decode()
                assert kept == f"after {int(values[START][-4:])}"
            if (now.until, number) in self.fails:
                self.swept.write(replace(before, state="failed", why="lost"))
                continue
            state = "done" if now.until == 10 else "begun"
            row = {"epoch": float(now.until), "val/mAP": values["loss.momentum"]}
            self.swept.write(replace(before, state=state, epochs=now.until, history=[*before.history, row]))
            for old in (4, 8):
                storage.remove(storage.join(self.swept.runs, name, f"epoch-{old:04d}"))
            place = storage.join(self.swept.runs, name, f"epoch-{now.until:04d}", "state.pt")
            storage.write_bytes(place, f"after {now.until}".encode())


@pytest.mark.parametrize("seed", range(12))
def test_generation_after_generation_with_the_copies_that_they_need(tmp_path, seed):
    swept = sweep_in(tmp_path, trials=4, exchanged=0.5, seed=seed)
    first, learn = points(swept.config), Worker(swept)
    evolve(swept, first, learn)
    assert learn.seen == [(4, 4), (8, 4), (10, 4)]
    known = {point.name: point for point in swept.known()}
    assert sorted(point.state for point in known.values()) == ["done"] * 4 + ["stopped"] * 4
    remove_starts(swept)
    assert not list((tmp_path / "runs").glob("*/start-*/*")), "copies are meant to go with the end"
    evolve(swept, first, learn)
    assert len(learn.seen) == 3, "nothing is left to do"


def test_failures_are_followed_by_copies_and_at_the_end_are_tried_again(tmp_path):
    swept = sweep_in(tmp_path, trials=4)
    first, learn = points(swept.config), Worker(swept, fails=[(4, 1), (8, 0), (10, 2)])
    evolve(swept, first, learn)
    assert [until for until, _ in learn.seen] == [4, 8, 10]
    assert sorted(point.state for point in swept.known()).count("failed") == 3
    learn.fails = set()
    try_again(swept, first)
    evolve(swept, first, learn)
    assert learn.seen[3:] == [(10, 1)], "only what failed in the last generation is meant to be tried again"
    assert sorted(point.state for point in swept.known()).count("done") == 4


def test_where_all_failed_all_are_tried_again(tmp_path):
    swept = sweep_in(tmp_path, trials=2)
    first, learn = points(swept.config), Worker(swept, fails=[(4, 0), (4, 1)])
    evolve(swept, first, learn)
    assert {point.state for point in swept.known()} == {"failed"}
    learn.fails = set()
    try_again(swept, first)
    evolve(swept, first, learn)
    assert [until for until, _ in learn.seen] == [4, 4, 8, 10]


def test_a_copy_without_its_checkpoint_is_refused(tmp_path):
    swept = sweep_in(tmp_path, trials=2)
    first = points(swept.config)
    for place, values in enumerate(first):
        swept.write(trained(values, 4, float(place)))
    with pytest.raises(CheckpointError, match=f"the checkpoint .*{name_of(first[1])}/epoch-0004/state.pt that"):
        evolve(swept, first, Worker(swept))


def test_a_generation_that_comes_no_further_is_no_endless_loop(tmp_path):
    swept = sweep_in(tmp_path, trials=2)
    with pytest.raises(TrainingFailed, match="trials that come to epoch 4 or fail"):
        evolve(swept, points(swept.config), lambda now, some: None)
