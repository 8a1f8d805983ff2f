"""train(config): shards -> checkpoints, on Ray Train with the relation actor beside it, recorded in MLflow."""

import json
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
import yaml
from mlflow import MlflowClient
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from gracl.config import TrainConfig
from gracl.errors import ConfigError, TrainingFailed, expected
from gracl.images import storage
from gracl.images.manifests import Manifest, read_manifest
from gracl.images.shards import ShardStore
from gracl.learning.checkpoint import check_recipe
from gracl.learning.encoder import build_encoder
from gracl.learning.fit import Splits
from gracl.runtime.board import open_board
from gracl.runtime.checkpoints import load_run_state
from gracl.runtime.relation_actor import start_relation_actor
from gracl.runtime.session import Demand, interruptible, session
from gracl.runtime.sheets import draw_ranked
from gracl.runtime.stream import open_stream
from gracl.runtime.terminal import say, table, watching
from gracl.runtime.tracking import MlflowCallback, closing, reopen_run, start_run, tracking_uri
from gracl.runtime.worker import Job, Lesson, Source, train_worker

RECORD = "run.json"


@dataclass(frozen=True)
class Run:
    """A run that may start: everything that can be checked without Ray has been.

    `record` is what `run.json` in the run's folder holds: recipe, MLflow run, epochs done when it last ended.
    """

    config: TrainConfig
    name: str
    runs: str
    root: str
    manifests: Mapping[str, Manifest]
    recipe: Mapping[str, Any]
    record: Mapping[str, Any]

    @property
    def folder(self) -> str:
        """Where the run's record, checkpoints and pictures are."""
        return storage.join(self.runs, self.name)


def train(config: TrainConfig) -> dict[str, Any]:
    """Trains until `config.epochs` are done, resuming the run of that name where there is one.

    Returns:
        The result that the door prints: names, paths, first, best and final retrieval, seconds by phase.

    Raises:
        ConfigError, ShardError, CheckpointError: before Ray starts, when the run cannot be what was asked for.
        ClusteringCollapsed, NonFiniteLoss: from the training.
        TrainingFailed: it ended for a reason outside gracl.
    """
    run = prepare(config)
    uri = tracking_uri(config.tracking.uri, run.runs)
    if run.record.get("finished", 0) >= config.epochs:
        say(f"run {run.name} has done its {config.epochs} epochs already")
        return conclude(run, uri)
    run = register(run, uri)
    say(f"run {run.name} in {run.folder}; Ctrl-C stops it, name={run.name} resumes it")
    try:
        with closing(uri, run.record["mlflow_run_id"]) as client, session(demand(config)):
            learn(run, uri, client)
    except KeyboardInterrupt:
        say(f"stopped; the epochs that are done are kept. To go on, run the same command with name={run.name}")
        raise
    run = record(run, finished=config.epochs)
    return conclude(run, uri)


def prepare(config: TrainConfig) -> Run:
    """Everything that can be found wrong without Ray is found wrong here."""
    root, runs = storage.absolute(config.data.root), storage.absolute(config.runs)
    splits = [split for split in (config.data.train, config.data.query, config.data.gallery) if split]
    for split in splits:
        if storage.is_in_memory(root):
            raise ConfigError(expected("shards that Ray's workers can read", root, "ingest to a folder or a store"))
        if not storage.exists(storage.join(root, split, "manifest.json")):
            raise ConfigError(
                expected(
                    f"a split named {split!r} in {root}",
                    f"splits {storage.names_in(root)}",
                    "run pipelines/ingest.py, or set data.query= data.gallery= to train without evaluation",
                )
            )
    manifests = {split: read_manifest(root, split) for split in splits}
    build_encoder(**config.encoder.options(), seed=config.seed)  # an unknown backbone or unfit weights fail here
    name = config.name or time.strftime("gracl-%Y%m%d-%H%M%S")
    if "/" in name:
        raise ConfigError(expected("a name without '/'", name, "choose the folder with runs="))
    recipe = config.recipe() | {"data.digest": manifests[config.data.train].digest}
    record_uri = storage.join(runs, name, RECORD)
    saved = json.loads(storage.read_bytes(record_uri)) if storage.exists(record_uri) else {}
    if saved:
        check_recipe(saved["recipe"], recipe)
    return Run(config, name, runs, root, manifests, recipe, saved)


def register(run: Run, uri: str) -> Run:
    """Makes the MLflow run and the run's record, or takes up those that are there."""
    if run.record:
        reopen_run(uri, run.record["mlflow_run_id"])
        return run
    tags = {"gracl.fingerprint": run.config.fingerprint(), "gracl.data": run.recipe["data.digest"]}
    run_id = start_run(
        uri,
        experiment=run.config.tracking.experiment,
        name=run.name,
        artifacts=storage.join(run.runs, "artifacts"),
        parameters=run.config.flat() | {"data.digest": run.recipe["data.digest"]},
        tags=tags,
    )
    run = record(run, recipe=dict(run.recipe), mlflow_run_id=run_id, finished=0)
    settings = yaml.safe_dump(run.config.model_dump(mode="json"), sort_keys=False)
    storage.write_bytes(storage.join(run.folder, "config.yaml"), settings.encode())
    return run


def record(run: Run, **news: Any) -> Run:
    """The run with news in its record, on the disk first."""
    changed = {**run.record, **news}
    storage.write_bytes(storage.join(run.folder, RECORD), json.dumps(changed, indent=1).encode())
    return Run(run.config, run.name, run.runs, run.root, run.manifests, run.recipe, changed)


def demand(config: TrainConfig) -> Demand:
    """What the run holds of the cluster at one time."""
    scale = config.scale
    stream = scale.stream_cpus if scale.stream == "ray" else 0
    return Demand(
        cpus=scale.workers * scale.worker_cpus + scale.relation_cpus + stream,
        gpus=scale.workers * scale.worker_gpus + scale.relation_gpus,
        parts=f"{scale.workers} workers, the relation actor and one task of the stream",
        waits=scale.autoscaling,
    )


def learn(run: Run, uri: str, client: MlflowClient) -> None:
    """The run itself: board, relation actor, stream, ranks; then its pictures and tables."""
    config = run.config
    board = open_board()
    stores = {split: ShardStore.open(run.root, split, cache=config.data.cache) for split in run.manifests}
    data = config.data
    who = ray.put((stores[data.query].identities(), stores[data.gallery].identities()) if data.query else (None, None))
    actor = start_relations(run, [who], board)
    trainer = TorchTrainer(
        partial(train_worker, describe_job(run, stores, board, actor)),
        scaling_config=scaling(config),
        run_config=RunConfig(
            name=run.name,
            storage_path=run.runs,
            failure_config=FailureConfig(max_failures=config.scale.max_failures),
            checkpoint_config=CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute="val/mAP" if config.data.query else None
            ),  # the best and, whatever its score, the last
            callbacks=[MlflowCallback(uri, run.record["mlflow_run_id"])],
        ),
        **streamed(run, board),
    )
    done = latest_epoch(run.folder)
    with watching(board, epochs=config.epochs, done=done), interruptible():
        fit_or_explain(trainer, board, run)
    judged = ray.get(actor.ranking.remote(10)) if config.data.query else None
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if judged:
            picture = folder / "ranked.png"
            query, gallery = stores[config.data.query], stores[config.data.gallery]
            title = f"{run.name}: mAP {judged[0].mean_ap:.1%}"
            draw_ranked(picture, *judged, query=query, gallery=gallery, title=title)
            storage.write_bytes(storage.join(run.folder, picture.name), picture.read_bytes())
            client.log_artifact(run.record["mlflow_run_id"], str(picture))
        client.log_dict(run.record["mlflow_run_id"], config.model_dump(mode="json"), "config.yaml")


def start_relations(run: Run, judged_by: list[ray.ObjectRef], board: Any) -> Any:
    """The relation actor of a run. The train split's identities are not among what it is given."""
    scale = run.config.scale
    return start_relation_actor(
        cpus=scale.relation_cpus,
        gpus=scale.relation_gpus,
        images=run.manifests[run.config.data.train].num_images,
        judged_by=judged_by,
        options=run.config.relations.options(),
        threads=scale.relation_threads,
        board=board,
    )


def describe_job(run: Run, stores: Mapping[str, ShardStore], board: Any, actor: Any) -> Job:
    """The config, unpacked into what each rank's functions take."""
    config = run.config
    cameras = [ray.put(stores[config.data.train].camera_ids())] if config.camera_balanced else None
    return Job(
        source=Source(
            root=run.root,
            cache=config.data.cache,
            sizes={split: manifest.num_images for split, manifest in run.manifests.items()},
            train=config.data.train,
            height=config.data.height,
            width=config.data.width,
            scan_batch=config.scan_batch,
            stream=config.scale.stream,
            views=config.views.options(),
            seed=config.seed,
            decode_threads=config.scale.decode_threads,
        ),
        lesson=describe_lesson(config, cameras),
        splits=Splits(config.data.train, config.data.query, config.data.gallery),
        board=board,
        relation_actor=actor,
        threads=config.scale.worker_threads,
        recipe=run.recipe,
    )


def describe_lesson(config: TrainConfig, cameras: Any = None) -> Lesson:
    """What is learnt, as keyword values."""
    return Lesson(
        encoder=config.encoder.options(),
        loss=config.loss.options(),
        optim=config.optim.options(),
        schedule=config.schedule.options(),
        sampling=config.sampling.options(),
        fit={
            "epochs": config.epochs,
            "eval_every": config.eval_every,
            "eval_untrained": config.eval_untrained,
            "precision": config.precision,
            "clip_norm": config.clip_norm,
        },
        seed=config.seed,
        cameras=cameras,
    )


def scaling(config: TrainConfig) -> ScalingConfig:
    """The ranks and what each of them reserves."""
    scale = config.scale
    resources = {"CPU": scale.worker_cpus} | ({"GPU": scale.worker_gpus} if scale.worker_gpus else {})
    return ScalingConfig(num_workers=scale.workers, use_gpu=bool(scale.worker_gpus), resources_per_worker=resources)


def streamed(run: Run, board: Any) -> dict[str, Any]:
    """The stream's part of the trainer; nothing where ranks read their own disk."""
    config = run.config
    if config.scale.stream != "ray":
        return {}
    manifests = run.manifests.values()
    datasets, order = open_stream(
        board,
        root=run.root,
        cache=config.data.cache,
        ranks=config.scale.workers,
        image_bytes=sum(manifest.image_bytes for manifest in manifests) / sum(m.num_images for m in manifests),
        task_cpus=config.scale.stream_cpus,
    )
    return {"datasets": datasets, "dataset_config": order}


def fit_or_explain(trainer: TorchTrainer, board: Any, run: Run) -> None:
    """Fits; a failure becomes the refusal behind it, or says how to go on."""
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        refusal = ray.get(board.refusal.remote())
        if refusal is not None:
            raise refusal from error
        raise TrainingFailed(
            expected("a training that ends by itself", str(error), f"mend the cause and resume with name={run.name}")
        ) from error
    refusal = ray.get(board.refusal.remote())
    if refusal is not None:
        raise refusal


def latest_epoch(folder: str) -> int:
    """The epochs done according to the checkpoints in a run's folder."""
    return max((int(name.removeprefix("epoch-")) for name in storage.names_in(folder) if _is_epoch(name)), default=0)


def _is_epoch(name: str) -> bool:
    return name.startswith("epoch-") and name.removeprefix("epoch-").isdigit()


def conclude(run: Run, uri: str) -> dict[str, Any]:
    """The result of a run that is done, read from its last checkpoint, with its table for the terminal."""
    last = storage.join(run.folder, f"epoch-{latest_epoch(run.folder):04d}")
    state = load_run_state(last)
    say(table(state.history))
    best = storage.join(run.folder, f"epoch-{state.best_epoch:04d}") if state.best_epoch else last
    picture = storage.join(run.folder, "ranked.png")
    say(f"checkpoint: {last}" + (f"\nbest:       {best}" if best != last else ""))
    if storage.exists(picture):
        say(f"pictures:   {picture}")
    say(f"review:     {review_command(uri)}")
    untrained = {
        name.removeprefix("untrained/"): value for name, value in state.history[0].items() if "untrained/" in name
    }
    return {
        "run": run.name,
        "mlflow_run_id": run.record["mlflow_run_id"],
        "tracking_uri": uri,
        "checkpoint": last,
        "best_checkpoint": best,
        "pictures": picture if storage.exists(picture) else None,
        "epochs": state.epoch,
        "untrained": untrained or None,
        "final": judged_figures(state.history[-1]),
        "best": judged_figures(state.history[state.best_epoch - 1]) if state.best_epoch else None,
        "best_is_selected_on": run.config.data.query and "the query and gallery splits that it is reported on",
        "seconds": {
            name.removeprefix("time/").removesuffix("_s"): round(sum(row.get(name, 0.0) for row in state.history), 2)
            for name in state.history[0]
            if name.startswith("time/")
        },
    }


def review_command(uri: str) -> str:
    """What opens MLflow on the run: the program that stands beside this Python, or the server that has it."""
    if uri.startswith(("http://", "https://")):
        return uri
    beside = Path(sys.executable).with_name("mlflow")
    return f"{beside if beside.exists() else 'mlflow'} ui --backend-store-uri {uri}"


def judged_figures(metrics: Mapping[str, float]) -> dict[str, float] | None:
    """The retrieval figures of an epoch; None when it was not judged."""
    return {name.removeprefix("val/"): value for name, value in metrics.items() if name.startswith("val/")} or None
