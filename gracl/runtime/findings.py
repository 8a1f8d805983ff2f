"""What a comparison leaves: table, CSV files, picture and settings, in its folder and in its MLflow run."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from mlflow import MlflowClient
from mlflow.entities import Metric

from gracl.experiments import CompareConfig
from gracl.images import storage
from gracl.retrieval.charts import comparison_chart
from gracl.retrieval.comparison import ArmSummary, RunRecord, summarise
from gracl.retrieval.tables import arms_csv, markdown, runs_csv
from gracl.runtime.grid import Trial, runs_of
from gracl.runtime.progress import say
from gracl.runtime.runs import review_command
from gracl.runtime.tracking import attempt
from gracl.runtime.trial import recorded


def report(
    config: CompareConfig, trials: Sequence[Trial], failures: Mapping[str, str], uri: str, parent: str
) -> dict[str, Any]:
    """Writes table, CSV files, picture and settings into `out` and the comparison's MLflow run."""
    out, baseline = storage.absolute(config.out), config.baseline or next(iter(config.presets))
    records = [found for trial in trials if (found := recorded(trial, config.metric))]
    summaries = summarise(records, baseline=baseline, metric=config.metric)
    files = written(config, records, summaries, failures, baseline)
    for name, content in files.items():
        storage.write_bytes(storage.join(out, name), content)
    keep(uri, parent, files, summaries, config.metric)
    say(files["table.md"].decode().partition("## What the columns mean")[0].strip())
    say(f"table:      {storage.join(out, 'table.md')}\nreview:     {review_command(uri)}")
    return {
        "out": out,
        "table": storage.join(out, "table.md"),
        "runs": runs_of(config),
        "mlflow_run_id": parent,
        "tracking_uri": uri,
        "done": len(records),
        "arms": [outcome(one, config.metric) for one in summaries],
    }


def written(
    config: CompareConfig,
    records: Sequence[RunRecord],
    summaries: Sequence[ArmSummary],
    failures: Mapping[str, str],
    baseline: str,
) -> dict[str, bytes]:
    """The files of a comparison, by name; no picture where no run is done."""
    title = f"Comparison {Path(config.out).name}: {len(config.presets)} arms, {len(records)} runs"
    how: dict[str, Any] = {"baseline": baseline, "metric": config.metric}
    table = markdown(summaries, failures, title=title, concurrent=config.concurrent, **how)
    texts = {
        "table.md": table,
        "runs.csv": runs_csv(records, failures),
        "arms.csv": arms_csv(summaries),
        "comparison.yaml": yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False),
    }
    picture = {"chart.png": comparison_chart(summaries, title=title, **how)} if summaries else {}
    return {name: text.encode() for name, text in texts.items()} | picture


def keep(uri: str, parent: str, files: Mapping[str, bytes], summaries: Sequence[ArmSummary], metric: str) -> None:
    """Files and figures into the comparison's MLflow run."""

    def write(client: MlflowClient) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                Path(folder, name).write_bytes(content)
            client.log_artifacts(parent, folder)
        figures = {
            f"{one.data}/{one.arm}/{name}": value
            for one in summaries
            for name, value in outcome(one, metric).items()
            if isinstance(value, float)
        }
        now = int(time.time() * 1000)  # of figures of one time and step MLflow shows the highest, not the last
        client.log_batch(parent, metrics=[Metric(name, value, now, 0) for name, value in figures.items()])

    attempt(uri, write, "the comparison")


def outcome(one: ArmSummary, metric: str) -> dict[str, Any]:
    """An arm on a data set in short, for programs."""
    reached = one.reached(metric)
    return {
        "data": one.data,
        "arm": one.arm,
        "seeds": [record.seed for record in one.records],
        "mean": reached.mean,
        "deviation": reached.deviation,
        "difference": one.difference.mean,
        "difference_deviation": one.difference.deviation,
        "better": one.better,
        "seconds_per_epoch": one.figures["epoch_seconds"].mean,
    }
