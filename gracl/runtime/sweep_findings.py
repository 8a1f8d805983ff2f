"""What a sweep leaves: table, CSV file, the best preset and pictures, in its folder and in its MLflow run."""

import csv
import io
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from mlflow import MlflowClient
from mlflow.entities import Metric

from gracl.config import TrainConfig
from gracl.experiments import TuneConfig, UnjudgedMetric
from gracl.images import storage
from gracl.retrieval.sweep_charts import Axis, Tried, metric_chart, parallel_chart
from gracl.runtime.points import START, config_of, told
from gracl.runtime.population import lineage
from gracl.runtime.progress import say
from gracl.runtime.runs import review_command
from gracl.runtime.sweep_trial import Point
from gracl.runtime.tracking import attempt

NOTES = """\
- `{metric}` is that of the last epoch; trials that did all epochs come first. Those that were stopped early stand with
  the epoch at which they were, and are not candidates for the best.{chosen}
- Rank correlation (Spearman) over the trials that did all epochs: how well a figure that needs no identities would
  have ordered them by mAP. {few}"""
CHOSEN = (
    "\n- The best is **chosen on the query and gallery splits that it is reported on**: measure it again on others,"
    "\n  or over other seeds, before it is quoted."
)


def report(
    config: TuneConfig, base: Mapping[str, Any], points: Sequence[Point], uri: str, parent: str
) -> dict[str, Any]:
    """Writes everything into `out` and the sweep's MLflow run; what the door prints."""
    out = storage.absolute(config.out)
    ranked = in_order(points, config.metric)
    best = next((one for one in ranked if one.state == "done"), None)
    files = written(config, base, ranked, best)
    for name, content in files.items():
        storage.write_bytes(storage.join(out, name), content)
    attempt(uri, lambda client: keep(client, parent, files, best, config.metric), "the sweep")
    say(files["table.md"].decode().partition("## What")[0].strip())
    say(f"table:      {storage.join(out, 'table.md')}")
    if best:
        say(f"best:       {storage.join(out, 'best.yaml')}, a preset for pipelines/train.py ({told(best.values)})")
    say(f"review:     {review_command(uri)}")
    return {
        "out": out,
        "table": storage.join(out, "table.md"),
        "best": {"run": best.name, "values": best.values, config.metric: best.reached(config.metric)} if best else None,
        "best_preset": storage.join(out, "best.yaml") if best else None,
        "trials": {state: sum(one.state == state for one in points) for state in ("done", "stopped", "failed")},
        "rank_correlations": correlations(ranked),
        "mlflow_run_id": parent,
        "tracking_uri": uri,
    }


def in_order(points: Sequence[Point], metric: str) -> list[Point]:
    """Those that did all epochs, best first; then the stopped, longest first; then the failed."""
    places = {"done": 0, "stopped": 1, "failed": 2, "begun": 3}

    def key(one: Point) -> tuple[int, int, float, str]:
        reached = one.reached(metric)
        longest = 0 if one.state == "done" else -one.epochs
        return places[one.state], longest, -reached if reached is not None else math.inf, one.name

    return sorted(points, key=key)


def written(
    config: TuneConfig, base: Mapping[str, Any], ranked: Sequence[Point], best: Point | None
) -> dict[str, bytes]:
    """The files of a sweep, by name; no preset and no picture where nothing was reached."""
    texts = {
        "table.md": table(config, ranked),
        "trials.csv": as_csv(config, ranked),
        "sweep.yaml": yaml.safe_dump(config.model_dump(mode="json", exclude_none=True), sort_keys=False),
    }
    if best:
        texts["best.yaml"] = preset(config, base, best, lineage(best, {one.name: one for one in ranked}))
    tried = [
        Tried(one.values, 100 * reached if "val/" in config.metric else reached, one.state == "done")
        for one in ranked
        if one.state in ("done", "stopped") and (reached := one.reached(config.metric)) is not None
    ]
    pictures = {}
    if tried:
        axes = [Axis(name, domain.kind == "loguniform") for name, domain in config.space.items()]
        how = {
            "metric": config.metric + (" in %" if "val/" in config.metric else ""),
            "title": f"Sweep {Path(config.out).name}: {len(tried)} trials",
        }
        pictures = {"metric.png": metric_chart(tried, axes, **how), "parallel.png": parallel_chart(tried, axes, **how)}
    return {name: text.encode() for name, text in texts.items()} | pictures


def table(config: TuneConfig, ranked: Sequence[Point]) -> str:
    """The trials as Markdown, the failures with their reasons, and what the columns mean."""
    heads = ["run", *config.space, config.metric, "epochs", "state", *_copied(config)]
    lines = [f"# Sweep {Path(config.out).name}", f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}"]
    for one in ranked:
        reached = one.reached(config.metric)
        cells = [one.name, *(_cell(one.values[name]) for name in config.space)]
        cells += ["" if reached is None else f"{reached:.4f}", str(one.epochs), one.state]
        cells += [str(one.values.get(name, "")) for name in _copied(config)]
        lines[-1] += f"\n| {' | '.join(cells)} |"
    best = ranked[0] if ranked and ranked[0].state == "done" else None
    steps = lineage(best, {one.name: one for one in ranked}) if best and _copied(config) else []
    if steps:
        lines += ["## How the best came to be", "\n".join(f"- {step}" for step in steps)]
    failed = [f"- `{one.name}` ({told(one.values)}): {' '.join(one.why.split())}" for one in ranked if one.why]
    if failed:
        lines += ["## Failed", "\n".join(failed)]
    found = correlations(ranked)
    if found:
        rows = [f"| `{name}` | {value:.2f} |" for name, value in found.items()]
        heads = ["| figure | rank correlation with mAP |", "| --- | --- |"]
        lines += ["## Figures without identities", "\n".join([*heads, *rows])]
    done = sum(one.state == "done" for one in ranked)
    chosen = CHOSEN if config.metric.startswith("val/") else ""
    notes = NOTES.format(metric=config.metric, chosen=chosen, few=f"Here over {done} trials.")
    return "\n\n".join([*lines, "## What the columns mean", notes]) + "\n"


def _copied(config: TuneConfig) -> tuple[str, ...]:
    """The column that says of which trial, after how many epochs, a trial began as a copy."""
    return (START,) if config.scheduler == "pbt" else ()


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def correlations(points: Sequence[Point]) -> dict[str, float]:
    """Spearman's rank correlation with mAP of each figure that needs none, over the trials that did all epochs.

    Empty where fewer than three were judged; a figure that is the same for all has none.
    """
    from scipy.stats import spearmanr  # a second of the start of every process that trains in a sweep

    rows = [one.history[-1] for one in points if one.state == "done" and "val/mAP" in one.history[-1]]
    found = {}
    for name in get_args(UnjudgedMetric):
        values = [row[name] for row in rows if name in row]
        if len(values) == len(rows) > 2 and len(set(values)) > 1:
            value = float(spearmanr(values, [row["val/mAP"] for row in rows]).statistic)
            if math.isfinite(value):
                found[name] = value
    return found


def as_csv(config: TuneConfig, ranked: Sequence[Point]) -> str:
    """Every trial a line, with all figures of its last epoch that is known."""
    figures = sorted({name for one in ranked if one.history for name in one.history[-1]})
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["run", "state", "epochs", *config.space, *_copied(config), *figures, "why"])
    for one in ranked:
        last: Mapping[str, float] = one.history[-1] if one.history else {}
        cells = [one.values.get(name, "") for name in (*config.space, *_copied(config))]
        cells += [last.get(name, "") for name in figures]
        writer.writerow([one.name, one.state, one.epochs, *cells, " ".join(one.why.split())])
    return out.getvalue()


def preset(config: TuneConfig, base: Mapping[str, Any], best: Point, steps: Sequence[str] = ()) -> str:
    """The settings of a trial that differ from what a training has by itself, as a file for the training door.

    Left out are the place of the data, which is given anew, and what the sweep decided for all trials. Where the trial
    came to its settings in several `steps`, they stand above as comments.
    """
    settings = config_of(base, best.values).flat()
    plain = TrainConfig.model_validate({"data": {"root": ""}}).flat()
    nested: dict[str, Any] = {}
    copied = (START,) if START in best.values else ()  # a start of the base belongs to all trials, and to the preset
    for name, value in settings.items():
        if value == plain[name] or name.startswith(("data.root", "data.cache", "tracking.", "runs", "name", *copied)):
            continue
        *sections, key = name.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
    reached = f"{config.metric} {best.history[-1][config.metric]:.4f} after {best.epochs} epochs"
    head = f"# The best of sweep {Path(config.out).name}: {reached}.\n# pipelines/train.py best.yaml data.root=...\n"
    if len(steps) > 1:
        head += "# It was not trained with them from its first epoch on; it came to them so:\n"
        head += "".join(f"# - {step}\n" for step in steps)
    return head + yaml.safe_dump(nested, sort_keys=False)


def keep(client: MlflowClient, parent: str, files: Mapping[str, bytes], best: Point | None, metric: str) -> None:
    """Files and the best figures into the sweep's MLflow run."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            Path(folder, name).write_bytes(content)
        client.log_artifacts(parent, folder)
    if best:
        now = int(time.time() * 1000)
        client.log_batch(parent, metrics=[Metric(f"best/{metric}", best.history[-1][metric], now, 0)])
        for name, value in best.values.items():
            client.set_tag(parent, f"best.{name}", str(value))
