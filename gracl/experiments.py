"""What the doors may ask for that train many times: `compare` and `tune`."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from gracl.config import Arguments, Name, refuse_unless
from gracl.sections import Count, Domain, Positive, Section, Tracking

# Of what a sweep may seek: what every judged epoch tells, and what every epoch tells without any identity.
JudgedMetric = Literal["val/mAP", "val/mINP", "val/rank1", "val/rank5", "val/rank10"]
UnjudgedMetric = Literal["cluster/silhouette", "cluster/covered_silhouette", "cluster/stability"]


class CompareConfig(Section):
    """Trainings to be compared: every arm on every data set with every seed.

    The arguments of a run are those of its arm, its data and `common`, in this order: what comes later wins.
    """

    presets: dict[Name, Arguments] = Field(
        min_length=1, description="each arm's name, and what one would type behind pipelines/train.py for it"
    )
    data: dict[Name, Arguments] = Field(
        min_length=1, description="each data set's name, and its settings: data.root=..., what its images need"
    )
    common: Arguments = Field((), description="settings of all runs; they win over those of arms and data")
    seeds: tuple[Count, ...] = Field((0, 1, 2), min_length=1, description="every arm learns every data set with each")
    baseline: str = Field("", description="arm whose runs the others' are compared with, seed by seed; '': the first")
    metric: Literal["val/mAP", "val/rank1"] = Field(
        "val/mAP", description="what is compared, at the last epoch; the best epoch is reported beside it"
    )
    out: str = Field(description="folder or URI for table, figures and picture")
    runs: str = Field("", description="folder or URI where the runs are kept; '': runs in out")
    concurrent: Positive = Field(1, description="runs at a time")
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _fits(self) -> "CompareConfig":
        refuse_unless(
            self.baseline in ("", *self.presets),
            f"a baseline of the arms {', '.join(self.presets)}",
            repr(self.baseline),
            "name one of presets",
        )
        refuse_unless(
            len(set(self.seeds)) == len(self.seeds), "each seed once", list(self.seeds), "leave out the second"
        )
        return self


class TuneConfig(Section):
    """A sweep over settings of the training config, each trial a training as at its own door."""

    base: Arguments = Field(min_length=1, description="what one would type behind pipelines/train.py for every trial")
    space: dict[str, Domain] = Field(min_length=1, description="dotted settings, and the values they may take")
    metric: JudgedMetric | UnjudgedMetric = Field(
        "val/mAP", description="what is sought, the more the better, at the last epoch; cluster/... needs no identities"
    )
    search: Literal["random", "grid", "tpe"] = Field(
        "random", description="points drawn, every combination of choices, or proposed by what is known (optuna)"
    )
    trials: Count = Field(0, description="trials in all; 0: every combination, with search=grid")
    scheduler: Literal["none", "asha", "pbt"] = Field(
        "none",
        description="asha stops trials early that fall behind the others; pbt (population-based training) lets them go "
        "on from copies of the best, with their settings changed a little",
    )
    grace: Positive = Field(1, description="asha: epochs that every trial may do")
    reduction: Annotated[int, Field(ge=2)] = Field(3, description="asha: of so many trials one goes on")
    exchange_every: Positive = Field(5, description="pbt: epochs between exchanges")
    exchanged: Annotated[float, Field(gt=0, le=0.5)] = Field(
        0.25,
        description="pbt: share of the trials, one at least, that end at an exchange; copies of the best follow",
    )
    concurrent: Positive = Field(1, description="trials at a time")
    seed: Count = Field(0, description="of the points; the seed of the trainings is one of their settings")
    out: str = Field(description="folder or URI for records, table, pictures and the best preset")
    runs: str = Field("", description="folder or URI where the runs are kept; '': runs in out")
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _fits(self) -> "TuneConfig":
        refuse_unless(
            self.search != "grid" or all(domain.kind == "choice" for domain in self.space.values()),
            "a choice for every setting with search=grid",
            ", ".join(f"{name}: {domain.kind}" for name, domain in self.space.items()),
            "take choice for each, or search=random",
        )
        refuse_unless(
            (self.search == "grid") == (self.trials == 0),
            "trials with search=random or tpe, and none with search=grid",
            f"search={self.search}, trials={self.trials}",
            "set trials=12" if self.search != "grid" else "leave out trials: every combination is tried once",
        )
        for scheduler, settings in (("asha", ("grace", "reduction")), ("pbt", ("exchange_every", "exchanged"))):
            refuse_unless(
                self.scheduler == scheduler or self.model_fields_set.isdisjoint(settings),
                f"scheduler={scheduler} beside {' and '.join(settings)}",
                f"scheduler={self.scheduler}",
                f"set scheduler={scheduler}, or leave them out",
            )
        refuse_unless(
            self.scheduler != "pbt" or (self.search == "random" and self.trials > 1),
            "search=random and two trials or more with scheduler=pbt, whose first points are drawn",
            f"search={self.search}, trials={self.trials}",
            "set search=random and trials=8, or another scheduler",
        )
        return self
