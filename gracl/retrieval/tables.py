"""A comparison to be read: as Markdown for people, as CSV for programs."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields

from gracl.retrieval.comparison import METRICS, ArmSummary, RunRecord, Spread

NOTES = """\
- Mean ± sample standard deviation over the seeds, of the figures at the last epoch; one seed has no deviation.
- {metric} best epoch: each run's best evaluation. It is **chosen on the query and gallery splits that it is
  reported on**, so it is above what an honest choice would give; compare the last epochs.
- Difference: {metric} at the last epoch less that of `{baseline}` with the same seed, in points; better: on how many
  of these pairs it is above 0.
- s/epoch: median over a run's epochs, the evaluation not counted, with up to {concurrent} run(s) at a time.
- Clusters, noise, ARI, NMI, purity: of the labels that the final weights give, made once more after the training,
  which knows no identities. They are diagnostics. Agreement is with the train split's identities ({objects}), of the
  clustered images alone, but for ARI all, in which each noise image is a cluster of its own.
- Cameras: what of the training read the train split's camera ids."""


def markdown(
    summaries: Sequence[ArmSummary],
    failures: Mapping[str, str],
    *,
    title: str,
    baseline: str,
    metric: str,
    concurrent: int,
) -> str:
    """One table for each data set, the failures with their reasons, and what the columns mean.

    Args:
        failures: name of each run that failed, and why.
        title: of the page.
        baseline, metric, concurrent: as the comparison was made.
    """
    parts = [f"# {title}"]
    for data in dict.fromkeys(one.data for one in summaries):
        arms = [one for one in summaries if one.data == data]
        parts += [f"## {data}", _table(arms, METRICS[metric])]
    told = [(one.run, one.note) for summary in summaries for one in summary.records if one.note]
    for heading, lines in (("Failed", list(failures.items())), ("Without labels at the end", told)):
        if lines:
            parts += [f"## {heading}", "\n".join(f"- `{run}`: {' '.join(why.split())}" for run, why in lines)]
    objects = "; ".join(_objects(summaries)) or "none known"
    notes = NOTES.format(metric=METRICS[metric], baseline=baseline, concurrent=concurrent, objects=objects)
    return "\n\n".join([*parts, "## What the columns mean", notes]) + "\n"


def _objects(summaries: Sequence[ArmSummary]) -> list[str]:
    """How many objects each data set has, where that is known."""
    counts = {one.data: one.figures["objects"].mean for one in summaries if one.figures["objects"].mean is not None}
    return [f"{data}: {count:.0f} objects" for data, count in counts.items()]


def _table(arms: Sequence[ArmSummary], name: str) -> str:
    """The arms of one data set, a line each."""
    heads = ["arm", "cameras", "seeds", "mAP", "Rank-1", f"{name} best epoch", f"{name} untrained", "difference"]
    heads += ["better", "s/epoch", "clusters", "noise", "ARI", "NMI", "purity", "ARI all"]
    lines = [heads, ["---"] * 2 + ["---:"] * (len(heads) - 2), *(_line(one) for one in arms)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _line(one: ArmSummary) -> list[str]:
    pairs, seeds = one.difference.count, " ".join(str(record.seed) for record in one.records)
    shares = [_cell(one.figures[name], _percent) for name in ("mean_ap", "rank1", "best", "untrained")]
    agreed = [_cell(one.figures[name], "{:.3f}".format) for name in ("ari", "nmi", "purity", "ari_all")]
    return [
        *(one.arm, one.cameras, seeds, *shares),
        _cell(one.difference, lambda share: f"{100 * share:+.1f}", lambda share: f"{100 * share:.1f}"),
        f"{one.better}/{pairs}" if pairs else "-",
        _cell(one.figures["epoch_seconds"], "{:.1f}".format),
        _cell(one.figures["clusters"], "{:.0f}".format),
        _cell(one.figures["noise"], _percent),
        *agreed,
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _cell(spread: Spread, form: Callable[[float], str], plain: Callable[[float], str] | None = None) -> str:
    """`mean ± deviation`; `plain` forms the deviation where it is formed otherwise."""
    if spread.mean is None:
        return "-"
    return form(spread.mean) + (f" ± {(plain or form)(spread.deviation)}" if spread.deviation is not None else "")


def runs_csv(records: Sequence[RunRecord], failures: Mapping[str, str]) -> str:
    """A line for each run, with every field of `RunRecord`; a run that failed has its name and the reason."""
    names = [field.name for field in fields(RunRecord)]
    rows = [asdict(one) for one in records] + [{"run": run, "failed": why} for run, why in failures.items()]
    return _csv([*names, "failed"], rows)


def arms_csv(summaries: Sequence[ArmSummary]) -> str:
    """A line for each arm on each data set: mean, deviation and count of every figure."""
    rows = [
        {"data": one.data, "arm": one.arm, "runs": len(one.records), "cameras": one.cameras, "better": one.better}
        | {
            f"{name}_{part}": value
            for name, spread in {**one.figures, "difference": one.difference}.items()
            for part, value in asdict(spread).items()
        }
        for one in summaries
    ]
    return _csv(list(rows[0]) if rows else ["data", "arm"], rows)


def _csv(names: Sequence[str], rows: Sequence[Mapping[str, object]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
