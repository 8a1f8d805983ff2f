"""Proposals of a sweep, without Ray."""

import pytest

from gracl.experiments import TuneConfig
from gracl.runtime.points import name_of
from gracl.runtime.sweep import _proposals
from gracl.runtime.sweep_trial import POINT, Point

pytest.importorskip("optuna")


def proposals(known=(), **space):
    given = space or {"relations.k1": {"choice": [10, 20, 30]}, "relations.k2": {"integers": [2, 3]}}
    config = TuneConfig(base=["data.root=x"], space=given, search="tpe", trials=6, out="out")
    return _proposals(config, list(known))


def drawn(searcher, count):
    return [searcher.suggest(f"trial{number}") for number in range(count)]


def test_every_point_is_proposed_once_and_then_there_is_an_end():
    searcher = proposals()
    found = drawn(searcher, 7)
    assert len({name_of(one[POINT]) for one in found[:6]}) == 6
    assert found[6] == searcher.FINISHED
    for number in range(6):  # each draw is known by the name of its trial
        searcher.on_trial_complete(f"trial{number}", {"val/mAP": 0.1 * number, "config": found[number]})


def test_what_was_begun_comes_first_and_what_is_done_never_again():
    done = [Point("", {"relations.k1": k1, "relations.k2": 2}, "done", 3, [{"val/mAP": k1 / 100}]) for k1 in (10, 20)]
    done = [Point(name_of(one.values), one.values, one.state, one.epochs, one.history) for one in done]
    begun = Point(name_of({"relations.k1": 30, "relations.k2": 3}), {"relations.k1": 30, "relations.k2": 3})
    found = drawn(proposals([*done, begun]), 5)
    assert found[0][POINT] == begun.values
    names = [name_of(one[POINT]) for one in found[:4]]
    assert len(set(names)) == 4
    assert not {one.name for one in done} & set(names)
    assert found[4] == "FINISHED"


def test_proposals_learn_from_what_is_known():
    space = {"loss.momentum": {"uniform": [0.0, 1.0]}}
    known = []
    for number in range(40):
        values = {"loss.momentum": number / 40}
        known.append(Point(name_of(values), values, "done", 3, [{"val/mAP": -abs(values["loss.momentum"] - 0.8)}]))
    found = [one[POINT]["loss.momentum"] for one in drawn(proposals(known, **space), 12)]
    assert sum(abs(value - 0.8) < 0.2 for value in found) >= 8
