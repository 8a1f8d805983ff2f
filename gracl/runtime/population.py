"""Population-based training (Jaderberg et al., 2017): trials that are behind go on from copies of the best.

Every `exchange_every` epochs the worst trials of a sweep end, and in the place of each a new one goes on from a copy of
one of the best, weights and optimizer, with its settings changed a little. What is to be done next follows from the
records of the trials alone, so a sweep that was killed goes on with the same exchanges (docs/decisions/0022).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import RandomState

from gracl.errors import CheckpointError, TrainingFailed, expected
from gracl.experiments import TuneConfig
from gracl.images import storage
from gracl.learning.checkpoint import STATE_FILE
from gracl.randomness import rng
from gracl.runtime.points import START, Values, distributions, name_of, plain_value, told
from gracl.runtime.progress import say
from gracl.runtime.sweep_trial import Point, Sweep
from gracl.sections import Domain, Scalar

# As Ray Tune and the paper have them: a setting is drawn anew with this chance, else times one of the factors.
ANEW = 0.25
FACTORS = (0.8, 1.2)
# Draws after which there is no other copy to be had.
_MOST_DRAWS = 200


@dataclass(frozen=True)
class Generation:
    """What a population does between two exchanges.

    Attributes:
        until: epochs of every trial at its end.
        members: the trials, by place; one that goes on from a copy of another names it (`START`).
        left: those of them that are not there yet; none: the sweep is done.
        replaced: which trials ended at an exchange, and for which.
    """

    until: int
    members: tuple[Values, ...]
    left: tuple[Values, ...]
    replaced: Mapping[str, str]


def generation(config: TuneConfig, epochs: int, first: Sequence[Values], known: Mapping[str, Point]) -> Generation:
    """The first generation of which some trial is not there yet, or else the last one.

    Args:
        config: of the sweep.
        epochs: of every trial in all.
        first: the points that the population begins with.
        known: what is known of the trials, by name.
    """
    members, replaced = [*first], dict[str, str]()
    for until in [*range(config.exchange_every, epochs, config.exchange_every), epochs]:
        left = [values for values in members if not _is_there(known.get(name_of(values)), until)]
        reached = [_reached(known.get(name_of(values)), until, config.metric) for values in members]
        if left or until == epochs or max(reached) == -math.inf:
            break
        for place, values in exchanges(config, members, reached, until).items():
            replaced[name_of(members[place])] = name_of(values)
            members[place] = values
    return Generation(until, tuple(members), tuple(left), replaced)


def exchanges(config: TuneConfig, members: Sequence[Values], reached: Sequence[float], until: int) -> dict[int, Values]:
    """The places of the trials that end here, and what goes on there instead.

    The `exchanged` share that is the lowest ends, and whatever failed; each is followed by a copy of one of as many of
    the best, drawn by dice of its own. No two are the same: in a space of few values where nothing else is to be drawn
    a trial stays as it is.

    Args:
        config: of the sweep.
        members: the trials, by place.
        reached: the metric of each at epoch `until`; -inf: it failed.
        until: epochs that they have done.
    """
    many = max(1, int(len(members) * config.exchanged))
    order = sorted(range(len(members)), key=lambda place: (-reached[place], place))
    best = [place for place in order[:many] if reached[place] > -math.inf]
    behind = [place for place in order if place in order[-many:] or reached[place] == -math.inf]
    found, names = dict[int, Values](), {name_of(values) for values in members}
    for place in sorted({*behind} - {*best}):
        dice = rng(config.seed, "exchange", until, place)
        for _ in range(_MOST_DRAWS):
            donor = members[best[int(dice.integers(len(best)))]]
            copy = changed(donor, config.space, dice) | {START: f"{name_of(donor)}/start-{until:04d}"}
            if name_of(copy) not in names:
                names.add(name_of(copy))
                found[place] = copy
                break
    return found


def changed(values: Values, space: Mapping[str, Domain], dice: np.random.Generator) -> dict[str, Scalar]:
    """The values of another trial near by: each setting times 0.8 or 1.2 within its range, or drawn anew.

    Whole numbers move by one at least, and of a list the value before or after is taken.
    """
    fresh = distributions(space)
    found = dict[str, Scalar]()
    for name, domain in space.items():
        anew, up = dice.random() < ANEW, bool(dice.integers(2))
        draws = RandomState(int(dice.integers(2**31)))
        drawn = plain_value(fresh[name].sample(random_state=draws), domain)
        found[name] = drawn if anew else _moved(values[name], domain, up)
    return found


def _moved(value: Scalar, domain: Domain, up: bool) -> Scalar:
    low, high = domain.ends[0], domain.ends[-1]
    if domain.kind == "choice":
        place = domain.ends.index(value) + (1 if up else -1)
        return domain.ends[min(max(place, 0), len(domain.ends) - 1)]
    number, factor = float(value), FACTORS[up]
    if domain.kind == "integers":
        other = max(number + 1, round(number * factor)) if up else min(number - 1, round(number * factor))
        return int(min(max(other, int(low)), int(high)))
    return plain_value(min(max(number * factor, float(low)), float(high)), domain)


def evolve(swept: Sweep, first: Sequence[Values], learn: Callable[[Sweep, Sequence[Values]], None]) -> None:
    """Generation after generation, until all trials of the last one have ended.

    Args:
        swept: the sweep.
        first: the points that the population begins with.
        learn: trains the trials of a generation that are left; what came of each is in its record then.

    Raises:
        TrainingFailed: a generation came no further, nobody knows why.
    """
    config, epochs, before = swept.config, swept.training(first[0]).epochs, None
    while True:
        now = generation(config, epochs, first, {point.name: point for point in swept.known()})
        for name, other in now.replaced.items():
            _end(swept, name, other)
        if not now.left:
            return
        if now == before:
            what = f"trials that come to epoch {now.until} or fail"
            raise TrainingFailed(expected(what, "trials without any news", "look at the lines above, and run it again"))
        say(f"epochs to {now.until} of {epochs}: {len(now.left)} of {len(now.members)} trials")
        for values in now.left:
            _put_start(swept, values)
        learn(replace(swept, until=now.until), now.left)
        before = now


def remove_starts(swept: Sweep) -> None:
    """The copies that trials began with go when nobody needs them any more."""
    for point in swept.known():
        if START in point.values:
            storage.remove(storage.join(swept.runs, str(point.values[START])))


def try_again(swept: Sweep, first: Sequence[Values]) -> None:
    """What failed where nothing follows it any more is to be tried again: in the last generation, or where all failed.

    Elsewhere a copy of another trial has taken its place.
    """
    config, known = swept.config, {point.name: point for point in swept.known()}
    now = generation(config, swept.training(first[0]).epochs, first, known)
    failed = [point for values in now.members if (point := known.get(name_of(values))) and point.state == "failed"]
    for point in failed if not now.left else ():
        swept.write(replace(point, state="begun", why=""))


def _is_there(point: Point | None, until: int) -> bool:
    """Whether a trial has come to an epoch, or failed on the way to it or beyond."""
    return point is not None and (point.state == "failed" or point.epochs >= until)


def _reached(point: Point | None, until: int, metric: str) -> float:
    """The metric at that epoch; -inf for a trial that failed on the way there. What came later is of no account."""
    return next((row[metric] for row in point.history if row["epoch"] == until), -math.inf) if point else -math.inf


def _end(swept: Sweep, name: str, other: str) -> None:
    """A trial was replaced: said once, and written down."""
    point = swept.read(name)
    if point and point.state == "begun":
        swept.write(replace(point, state="stopped"))
        say(f"{name} ends after {point.epochs} epochs; {other} goes on from a copy of one of the best")


def _put_start(swept: Sweep, values: Values) -> None:
    """The copy that a trial begins with, before the run that it is of moves on and deletes it."""
    if START not in values:
        return
    place = storage.join(swept.runs, str(values[START]), STATE_FILE)
    donor, _, copy = str(values[START]).partition("/")
    theirs = storage.join(swept.runs, donor, copy.replace("start-", "epoch-"), STATE_FILE)
    if storage.exists(place) or swept.read(name_of(values)):
        return
    if not storage.exists(theirs):
        what = f"the checkpoint {theirs} that {name_of(values)} is to go on from"
        raise CheckpointError(expected(what, "no such file", "was it deleted? Begin the sweep anew with another out="))
    storage.write_bytes(place, storage.read_bytes(theirs))


def lineage(point: Point, known: Mapping[str, Point]) -> list[str]:
    """The steps by which a trial came to its settings, first to last, in words."""
    steps, until = list[str](), point.epochs
    while True:
        donor, _, copy = str(point.values.get(START, "")).partition("/")
        begin = int(copy.removeprefix("start-")) if copy else 0
        values = {name: value for name, value in point.values.items() if name != START}
        steps.insert(0, f"epochs {begin + 1} to {until}, {point.name}: {told(values)}")
        if not copy or donor not in known:
            return steps
        point, until = known[donor], begin
