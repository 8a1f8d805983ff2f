"""The points of a sweep: the training config of each, and what is refused before a cluster is touched."""

import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from numpy.random import RandomState
from ray import tune

from gracl.cli import checked_config, fields, merged, with_values
from gracl.config import TrainConfig
from gracl.errors import ConfigError, expected
from gracl.experiments import JudgedMetric, TuneConfig
from gracl.images import storage
from gracl.sections import Domain, Scalar, Tracking

Values = Mapping[str, Scalar]
# Combinations of the ends of ranges that are tried as configs; beyond, each end by itself.
_MOST_CORNERS = 256
STABILITY = "cluster/stability"
# The setting that says at which epochs a metric is told; of others every epoch tells.
_TOLD_EVERY = dict.fromkeys(get_args(JudgedMetric), "eval_every") | {STABILITY: "eval_stability"}
# What the sweep decides for all of its trials, and what makes another data set or start of it.
_OURS = ("name", "runs", "tracking")
_PLACES = (("data", "root"), ("data", "cache"), ("encoder", "weights"))
# The setting of a trial that goes on from a copy of another: the folder of that copy within the folder of runs.
START = "start"
_APART = (START, *(f"{section}.{key}" for section, key in _PLACES))
# What a trial could not change when it goes on from another one's weights.
_STAYS = ("encoder.", "data.", "optim.optimizer", "teacher_decay", "epochs")


def base_of(config: TuneConfig) -> dict[str, Any]:
    """The settings of all trials, nested, with whole paths: presets are read once, and here.

    Trials run in folders of their own, and a preset may be another one when a sweep goes on.

    Raises:
        ConfigError: arguments that cannot be read.
    """
    base = merged(config.base)
    for section, key in _PLACES:
        place = base.get(section, {}).get(key) if isinstance(base.get(section), dict) else None
        if isinstance(place, str):
            base = with_values(base, {f"{section}.{key}": storage.absolute(place)})
    if isinstance(base.get(START), str):
        base = with_values(base, {START: storage.absolute(base[START])})
    return base


def config_of(
    base: Mapping[str, Any], values: Values, *, runs: str = "runs", tracking: Tracking | None = None
) -> TrainConfig:
    """The training config of a trial, under a name that is the same wherever these values come again.

    Raises:
        ConfigError: there is none.
    """
    try:
        asked = checked_config(TrainConfig, with_values(base, values))
    except ConfigError as error:
        raise ConfigError(f"{told(values) or 'base'}: {error}") from None
    ours: dict[str, Any] = {"name": name_of(values), "runs": runs, "tracking": tracking or Tracking()}
    if START in values:
        ours[START] = storage.join(runs, str(values[START]))
    return asked.model_copy(update=ours)


def name_of(values: Values) -> str:
    """The name of a trial: a digest of its values."""
    return "t-" + hashlib.sha256(json.dumps(dict(sorted(values.items()))).encode()).hexdigest()[:10]


def told(values: Values) -> str:
    """The values of a trial in words."""
    words = {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in values.items()}
    return ", ".join(f"{name}={value}" for name, value in words.items())


def combinations(space: Mapping[str, Domain]) -> list[dict[str, Scalar]]:
    """Every combination of the ends or values of the domains, the last setting running fastest."""
    every = itertools.product(*(domain.ends for domain in space.values()))
    return [dict(zip(space, values, strict=True)) for values in every]


def check_sweep(config: TuneConfig, base: Mapping[str, Any]) -> None:
    """Refuses a sweep of which some trial could not be what it is to be, or that could not choose.

    Raises:
        ConfigError: with the setting to change.
    """
    known = {name for name, _, _ in fields(TrainConfig)}
    for name, domain in config.space.items():
        if name in _APART or name.split(".")[0] in _OURS:
            what = f"a space without {', '.join((*_OURS, *_APART))}"
            raise ConfigError(expected(what, name, "the sweep decides these, or pipelines/compare.py compares them"))
        if name not in known:
            checked_config(TrainConfig, with_values(base, {name: domain.ends[0]}))  # says which was meant
            raise ConfigError(expected("a setting of the training", name, "see pipelines/train.py --help"))
    taken = [name for name in _OURS if name in base]
    if taken:
        what = f"a base without {', '.join(taken)}"
        raise ConfigError(expected(what, " ".join(config.base), "use out=, runs= and tracking. of the sweep"))
    if config.search == "tpe" and (many := _points_of(config.space)) < config.trials:
        what = f"{config.trials} different points"
        raise ConfigError(expected(what, f"{many} in this space", "lower trials, or set search=grid"))
    for corner in corners(config.space):
        _check_objective(config, config_of(base, corner), corner)


def _points_of(space: Mapping[str, Domain]) -> float:
    """How many points there are; of a range of real numbers without end."""
    sizes = {"choice": lambda ends: len(ends), "integers": lambda ends: ends[1] - ends[0] + 1}
    return float(math.prod(sizes.get(one.kind, lambda ends: math.inf)(one.ends) for one in space.values()))


def corners(space: Mapping[str, Domain]) -> Sequence[dict[str, Scalar]]:
    """Where the space is most likely to hold what cannot be: all combinations of ends, or each end by itself."""
    many = 1
    for domain in space.values():
        many *= len(domain.ends)
    if many <= _MOST_CORNERS:
        return combinations(space)
    first = {name: domain.ends[0] for name, domain in space.items()}
    return [first | {name: end} for name, domain in space.items() for end in domain.ends]


def _check_objective(config: TuneConfig, one: TrainConfig, values: Values) -> None:
    where = told(values)
    if config.metric in get_args(JudgedMetric) and not one.data.query:
        raise ConfigError(
            expected(
                f"splits to be judged on with metric={config.metric}",
                f"none ({where})",
                "name data.query and data.gallery, or take metric=cluster/covered_silhouette",
            )
        )
    if config.metric == STABILITY and not one.eval_stability:
        what = f"eval_stability of 1 or more with metric={STABILITY}"
        raise ConfigError(expected(what, f"eval_stability=0 ({where})", "add eval_stability=1 to base"))
    if config.scheduler == "none":
        return
    setting = _TOLD_EVERY.get(config.metric)
    every = getattr(one, setting) if setting else 1
    if config.scheduler == "pbt":
        _check_exchanges(config, one, where)
        return
    # The first epoch that is told of at which asha may decide.
    first = -(-config.grace // every) * every
    if first >= one.epochs:
        raise ConfigError(
            expected(
                f"an epoch with {config.metric} from grace={config.grace} on, before the last, for asha to decide at",
                f"epochs={one.epochs}, the first at {first} ({where})",
                f"lower grace{f' or {setting}' if setting else ''}, raise epochs, or set scheduler=none",
            )
        )


def _check_exchanges(config: TuneConfig, one: TrainConfig, where: str) -> None:
    """Refuses a population that could not exchange anything, or not what is sought."""
    fixed = [name for name in config.space if name.startswith(_STAYS)]
    if fixed:
        what = "a space of what may change within a training with scheduler=pbt"
        raise ConfigError(expected(what, ", ".join(fixed), "leave these out, or set another scheduler"))
    if one.start is not None:
        what = "a base without start with scheduler=pbt, whose generations are counted from the first epoch"
        raise ConfigError(expected(what, one.start, "leave it out, or set another scheduler"))
    if config.exchange_every >= one.epochs:
        what = "an exchange before the last epoch with scheduler=pbt"
        came = f"exchange_every={config.exchange_every}, epochs={one.epochs} ({where})"
        raise ConfigError(expected(what, came, "lower exchange_every, or raise epochs"))


def points(config: TuneConfig) -> list[dict[str, Scalar]]:
    """The points of a sweep that are known before it begins: all of a grid, those drawn at random; none for tpe."""
    if config.search == "grid":
        return combinations(config.space)
    if config.search == "tpe":
        return []
    dice, found = RandomState(config.seed), dict[str, dict[str, Scalar]]()
    domains = distributions(config.space)
    # A choice among few values comes up twice; each point is tried once.
    for _ in range(1000 * config.trials):
        values = {name: plain_value(one.sample(random_state=dice), config.space[name]) for name, one in domains.items()}
        found.setdefault(name_of(values), values)
        if len(found) == config.trials:
            return list(found.values())
    raise ConfigError(
        expected(f"{config.trials} different points", f"{len(found)} in this space", "lower trials, or set search=grid")
    )


def distributions(space: Mapping[str, Domain]) -> dict[str, tune.search.sample.Domain]:
    """The domains as Ray Tune has them."""
    return {name: _distribution(domain) for name, domain in space.items()}


def _distribution(domain: Domain) -> tune.search.sample.Domain:
    low, high = domain.ends[0], domain.ends[-1]
    if domain.kind == "uniform":
        return tune.uniform(low, high)
    if domain.kind == "loguniform":
        return tune.loguniform(low, high)
    if domain.kind == "integers":
        return tune.randint(low, int(high) + 1)
    return tune.choice(list(domain.ends))


def plain_value(value: Scalar | Any, domain: Domain) -> Scalar:
    """A drawn value as Python has it: six digits of a float are more than a sweep tells apart; a choice stays."""
    plain: Scalar = value.item() if hasattr(value, "item") else value
    return float(f"{plain:.6g}") if isinstance(plain, float) and domain.kind != "choice" else plain
