r"""A comparison on one GPU without Ray: many small trainings side by side, each a process of its own on the same card.

    python -m benchmarks.bench_recipes pipelines/comparisons/momentum.yaml processes=15 out=FOLDER \
        'common=["scale.workers=1","eval_every=5","scale.worker_gpus=0.05"]'

For a card that is lent by the minute. The runs are those of `pipelines/compare.py` (the same file, the same configs),
learnt by `local_twin.learn`, which one Ray worker equals bit for bit; what is left out is Ray's start of each run, its
checkpoints, MLflow, and the labels of the final weights. `runs.csv` grows as runs end: what was done when the time was
up is kept. Writes `runs.csv`, `table.md` and `facts.json` into `out`.
"""

import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

from benchmarks.bench_epoch import machine
from benchmarks.local_twin import learn
from gracl.cli import load_config
from gracl.experiments import CompareConfig
from gracl.retrieval.comparison import RunRecord, summarise
from gracl.retrieval.tables import markdown, runs_csv
from gracl.runtime.grid import Trial, grid
from gracl.runtime.trial import describe_run


def one(trial: Trial, metric: str) -> tuple[str, RunRecord | None, str]:
    """A run from its first epoch to its last: name, record, and why there is none."""
    try:
        return trial.name, describe_run(trial, learn(trial.config).history, metric), ""
    except Exception as error:  # of one run, told in the table; a card that is full too
        return trial.name, None, f"{type(error).__name__}: {error}"


def main() -> None:
    """Runs all and tells on stderr what is done."""
    arguments = [word for word in sys.argv[1:] if not word.startswith("processes=")]
    processes = int(next(word for word in sys.argv[1:] if word.startswith("processes=")).partition("=")[2])
    config = load_config(CompareConfig, arguments)
    trials, out, started = grid(config), Path(config.out), time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    records, failures = list[RunRecord](), dict[str, str]()
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes to be started: each has a core
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        for done in as_completed([pool.submit(one, trial, config.metric) for trial in trials]):
            name, record, why = done.result()  # a process that was killed ends the bench here; the CSV file stays
            if record:
                records.append(record)
            else:
                failures[name] = why
            reached = f"{record.mean_ap:.3f} {record.epoch_seconds:.2f} s an epoch" if record else why
            print(f"{time.perf_counter() - started:.0f}s {name} {reached}", file=sys.stderr, flush=True)
            (out / "runs.csv").write_text(runs_csv(records, failures))
    seconds = time.perf_counter() - started
    how = {"baseline": config.baseline or next(iter(config.presets)), "metric": config.metric}
    on_gpu = {trial.config.scale.worker_gpus > 0 for trial in trials}
    place = "GPU and CPU" if len(on_gpu) > 1 else torch.cuda.get_device_name() if on_gpu == {True} else "the CPU"
    title = f"{len(records)} runs on {place}, {processes} at a time"
    summaries = summarise(records, **how)
    (out / "table.md").write_text(markdown(summaries, failures, title=title, concurrent=processes, **how))
    facts = {
        "machine": machine(),
        "learnt_on": place,
        "processes": processes,
        "runs": len(trials),
        "seconds": round(seconds),
    }
    (out / "facts.json").write_text(json.dumps(facts | {"config": config.model_dump(mode="json")}, indent=1) + "\n")
    print(json.dumps({"runs": len(records), "failed": failures, "seconds": round(seconds)}))


if __name__ == "__main__":
    main()
