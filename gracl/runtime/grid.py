"""The runs of a comparison: arms x data x seeds, each a whole training config that was checked."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from gracl.cli import load_config
from gracl.config import TrainConfig
from gracl.errors import ConfigError, expected
from gracl.experiments import CompareConfig, TuneConfig
from gracl.images import storage

# What the comparison decides for all of its runs.
OURS = ("seed", "name", "runs", "tracking")


@dataclass(frozen=True)
class Trial:
    """One run of a comparison."""

    arm: str
    data: str
    seed: int
    config: TrainConfig

    @property
    def name(self) -> str:
        """The run's name, unlike all others of its comparison."""
        return self.config.name


def grid(config: CompareConfig) -> list[Trial]:
    """Every run of a comparison: data set by data set, in each seed by seed, so that pairs are soon there.

    Raises:
        ConfigError: arguments that make no training config, that decide what the comparison decides, that leave
            nothing to judge by; two runs of one name; two arms that are the same.
    """
    trials = [
        Trial(arm, data, seed, _training(config, arm, data, seed))
        for data in config.data
        for seed in config.seeds
        for arm in config.presets
    ]
    _check_names(trials)
    _check_arms(trials)
    return trials


def runs_of(config: CompareConfig | TuneConfig) -> str:
    """Where the runs are kept."""
    return storage.absolute(config.runs) if config.runs else storage.join(storage.absolute(config.out), "runs")


def _training(config: CompareConfig, arm: str, data: str, seed: int) -> TrainConfig:
    """The training config of one run."""
    arguments = [*config.presets[arm], *config.data[data], *config.common]
    try:
        asked = load_config(TrainConfig, arguments)
    except ConfigError as error:
        raise ConfigError(f"arm {arm!r} on {data!r}: {error}") from None
    taken = [name for name in OURS if name in asked.model_fields_set]
    if taken:
        raise ConfigError(
            expected(
                f"arm {arm!r} on {data!r} without {', '.join(taken)}, which the comparison decides",
                " ".join(arguments),
                "use seeds=, out=, runs= and tracking. of the comparison",
            )
        )
    if not asked.data.query:
        raise ConfigError(
            expected(f"arm {arm!r} on {data!r} with splits to be judged on", "none", "name data.query and data.gallery")
        )
    ours = {"seed": seed, "name": f"{arm}-{data}-s{seed}", "runs": runs_of(config), "tracking": config.tracking}
    return asked.model_copy(update=ours)


def _check_names(trials: Sequence[Trial]) -> None:
    twice = [name for name, times in Counter(trial.name for trial in trials).items() if times > 1]
    if twice:
        raise ConfigError(
            expected("a name for each run", f"{', '.join(twice)} for two", "name arms and data sets without '-'")
        )


def _check_arms(trials: Sequence[Trial]) -> None:
    """Two arms whose settings are all the same would only be said to differ."""
    seen: dict[str, Trial] = {}
    for trial in trials:
        settings = repr({**trial.config.flat(), "name": trial.data})
        if settings in seen:
            raise ConfigError(
                expected(
                    "arms that differ",
                    f"the same settings for {seen[settings].name} and {trial.name}",
                    "common= wins over an arm's own settings: does it set what they differ in?",
                )
            )
        seen[settings] = trial
