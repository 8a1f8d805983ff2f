"""train(config): shards -> checkpoints, on Ray Train with the relation actor beside it, recorded in MLflow."""

import fnmatch
import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer

from gracl.config import TrainConfig
from gracl.errors import ConfigError, TrainingFailed, WaitedTooLong, expected
from gracl.idle import idle
from gracl.images import storage
from gracl.images.shards import ShardStore
from gracl.learning.fit import Splits
from gracl.locks import holding
from gracl.runtime.board import open_board, refusal_on
from gracl.runtime.midway import MidwayCallback
from gracl.runtime.onlooker import PAGES, Onlooker, draw_last_page, onlooker_of
from gracl.runtime.progress import say
from gracl.runtime.relation_actor import start_relation_actor
from gracl.runtime.runs import PICTURE, Run, conclude, history_of, latest_epoch, prepare, record, register
from gracl.runtime.salvage import is_whole, set_torn_aside
from gracl.runtime.session import Demand, interruptible, session, unreachable
from gracl.runtime.sheets import draw_ranked
from gracl.runtime.stream import open_stream
from gracl.runtime.surroundings import cameras_of_run
from gracl.runtime.terminal import EpochsShown, watching
from gracl.runtime.tracking import MlflowCallback, attempt, closing, is_complete, leave_text, mend, tracking_uri
from gracl.runtime.waiting import answer_of
from gracl.runtime.worker import Job, Lesson, Source, train_worker


def train(config: TrainConfig, callbacks: Sequence[UserCallback] = ()) -> dict[str, Any]:
    """Trains until `config.epochs` are done, resuming the run of that name where there is one.

    Args:
        config: the run.
        callbacks: hear of each epoch in the controller of Ray Train, after MLflow; their hooks must not raise.

    Returns:
        The result that the door prints: names, paths, first, best and final retrieval, seconds by phase.

    Raises:
        ConfigError, ShardError, CheckpointError: before Ray starts, when the run cannot be what was asked for; from a
            cluster that can never hold it, before anything is written; and where another process is training it.
        ClusteringCollapsed, NonFiniteValue, RanksDiffer: from the training.
        TrainingFailed: it ended for a reason outside gracl.
    """
    run = prepare(config)
    for words in idle(config):
        say(f"note: {words}")
    uri = tracking_uri(config.tracking.uri, run.runs)
    if is_told(run) and is_whole(run.folder):
        say(f"run {run.name} has done its {config.epochs} epochs already")
        return conclude(run, uri)
    with holding(run.folder, f"run {run.name} in {run.runs}"):
        set_torn_aside(run.folder)
        # Anew, since another one may have trained it until just now. The name may be of the moment.
        return _trained(prepare(config.model_copy(update={"name": run.name})), uri, callbacks)


def is_told(run: Run) -> bool:
    """Whether a run has done its epochs, and MLflow has all of it."""
    return run.record.get("finished", 0) >= run.config.epochs and bool(run.record.get("told", True))


def _trained(run: Run, uri: str, callbacks: Sequence[UserCallback]) -> dict[str, Any]:
    config = run.config
    if run.record.get("finished", 0) >= config.epochs:
        say(f"run {run.name} has done its {config.epochs} epochs already")
        if not run.record.get("told", True):
            run = tell_rest(run, uri)
        return conclude(run, uri)
    try:
        run = learn_on(run, uri, callbacks)
    except KeyboardInterrupt:
        say(f"stopped; the epochs that are done are kept. To go on, run the same command with name={run.name}")
        raise
    return conclude(tell_rest(record(run, finished=config.epochs, told=False), uri), uri)


def pixels_of(run: Run) -> int:
    """Bytes of all pictures of a run's splits, decoded."""
    return 3 * run.config.data.height * run.config.data.width * sum(run.sizes.values())


class ControllerLost(TrainingFailed):
    """Ray Train's controller died or does not answer; Ray begins it again by itself as little as a driver."""


def learn_on(run: Run, uri: str, callbacks: Sequence[UserCallback] = ()) -> Run:
    """Learns; where the controller dies, once more from what is kept, as often as a lost group of ranks.

    Each time with a connection to Ray of its own: what the lost controller had (ranks, a placement group, the
    controller itself where it only did not answer) ends with the one before, as it does when the same command is typed
    again after a driver was killed.

    Raises:
        TrainingFailed: the cluster that it joined is gone, or the controller died too often.
    """
    lost, limit, ours, head = 0, run.config.scale.max_failures, not ray.is_initialized(), ""
    while True:
        try:
            with session(demand(run.config)):
                head = ray.get_runtime_context().gcs_address if os.environ.get("RAY_ADDRESS") else ""
                run = register(run, uri)
                say(f"run {run.name} in {run.folder}; Ctrl-C stops it, name={run.name} resumes it")
                if run.config.scale.keep_pixels is True:
                    place = run.config.data.cache or "its cache folder"
                    say(f"each node keeps decoded pictures, {pixels_of(run) / 1e9:.1f} GB in {place}")
                with closing(uri, run.record["mlflow_run_id"]):
                    learn(run, uri, callbacks)
            return run
        except (TrainingFailed, ConfigError, ConnectionError, ray.exceptions.RayError) as error:
            # Whatever it looks like from here: where the cluster's head is gone, that is what the user must hear.
            if ours and head and (why := unreachable(head)):
                given = os.environ.get("RAY_ADDRESS", "")  # as it was said; Ray knows loopback by another number
                named = head if given == "auto" or "://" in given else given
                what, do = f"the Ray cluster at {named} to stay", "start it again, or name another in RAY_ADDRESS"
                raise TrainingFailed(expected(what, why, f"{do}, and resume with name={run.name}")) from error
            if not isinstance(error, ControllerLost):
                raise
            lost += 1
            if not ours or 0 <= limit < lost:
                raise
            say(f"{error}: so this one does, the {lost}. time")
        set_torn_aside(run.folder)
        run = prepare(run.config)


def tell_rest(run: Run, uri: str) -> Run:
    """Tells MLflow of a run that is done what it does not have yet; the record says whether it has all now."""
    with closing(uri, run.record["mlflow_run_id"]):
        left = leave_files(run, uri)
    told = left and is_complete(uri, run.record["mlflow_run_id"], history_of(run))
    if not told:
        say(f"MLflow at {uri} has not taken all of this run; once it is back, the same command tells it the rest")
    return record(run, told=told)


def leave_files(run: Run, uri: str) -> bool:
    """The epochs that MLflow lacks, the settings, the pictures that lie in the run's folder; whether it took all."""
    run_id, settings = run.record["mlflow_run_id"], run.config.model_dump(mode="json")
    if not attempt(uri, lambda client: client.get_run(run_id), "a first question at the end"):
        return False  # each of the others would wait for it as long
    late = mend(uri, run_id, history_of(run))
    if late:
        say(f"MLflow was away: epochs {', '.join(map(str, late))} were written to it at the end")
    taken = attempt(uri, lambda client: client.log_dict(run_id, settings, "config.yaml"), "the settings")
    picture = storage.join(run.folder, PICTURE)
    if storage.exists(picture):
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder, PICTURE)
            copy.write_bytes(storage.read_bytes(picture))
            taken &= attempt(uri, lambda client: client.log_artifact(run_id, str(copy)), PICTURE)
    for name in fnmatch.filter(storage.names_in(run.folder), PAGES):
        text = storage.read_bytes(storage.join(run.folder, name)).decode()
        taken &= attempt(uri, partial(leave_text, run_id, text, name), name)
    return taken and late is not None


def demand(config: TrainConfig) -> Demand:
    """What the run holds of the cluster at one time."""
    scale, shards = config.scale, config.relations.shards if config.relations.shards > 1 else 0
    stream, workers = scale.stream_cpus if scale.stream == "ray" else 0, min(scale.crews())
    return Demand(
        cpus=workers * scale.worker_cpus + scale.relation_cpus + shards * scale.shard_cpus + stream,
        gpus=workers * scale.worker_gpus + scale.relation_gpus + shards * scale.shard_gpus,
        largest=max((scale.worker_gpus, scale.worker_cpus), (scale.shard_gpus, scale.shard_cpus) if shards else (0, 0)),
        parts=(f"{workers} to " if scale.min_workers else "")
        + f"{scale.workers} workers, the relation actor"
        + (f", {shards} shards" if shards else "")
        + " and one task of the stream",
        waits=scale.autoscaling,
        elastic=(workers, scale.workers, scale.worker_cpus, scale.worker_gpus) if scale.min_workers else None,
    )


def learn(run: Run, uri: str, callbacks: Sequence[UserCallback] = ()) -> None:
    """The run itself: board, relation actor, stream, ranks; then its pictures."""
    config, run_id = run.config, run.record["mlflow_run_id"]
    board, data = open_board(), config.data
    # A remote train split is not copied to the driver's node for nothing: only its cameras may be wanted here.
    # Beside who asks for them, the figures of clusters do, where the split lies here and has any.
    known = storage.is_local(run.root) and run.manifests[data.train].num_cameras > 0
    wanted = config.camera_balanced or config.relations.wants_cameras
    needed = [split for split in (data.query, data.gallery) if split]
    stores = {split: ShardStore.open(run.root, split, cache=data.cache) for split in needed}
    judged_by = [ray.put((stores[data.query].identities(), stores[data.gallery].identities()))] if data.query else []
    cameras = [ray.put(cameras_of_run(run))] if wanted or known else []
    actor = start_relations(run, board, cameras, onlooker_of(run, uri) if config.review_every else None)
    trainer = TorchTrainer(
        partial(train_worker, describe_job(run, board, actor, judged_by, cameras if config.camera_balanced else None)),
        scaling_config=scaling(config),
        run_config=RunConfig(
            name=run.name,
            storage_path=run.runs,
            failure_config=failures(config),
            checkpoint_config=CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute="val/mAP" if config.data.query else None
            ),  # the best and, whatever its score, the last
            callbacks=[MlflowCallback(uri, run_id), MidwayCallback(run.folder), EpochsShown(board), *callbacks],
        ),
        **streamed(run, board),
    )
    done = latest_epoch(run.folder) or run.record.get("begins", 0)
    threads, stream = config.scale.decode_threads, config.scale.stream
    with watching(board, epochs=config.epochs, done=done, threads=threads, stream=stream), interruptible():
        fit_or_explain(trainer, board, run)
    if config.data.query:
        draw_pictures(run, actor, stores)
    if config.review_every:
        draw_last_page(run, actor)


def draw_pictures(run: Run, actor: Any, stores: Mapping[str, ShardStore]) -> None:
    """The ranked sheet of the last evaluation, into the run's folder."""
    why = "the relation actor was restarted after the last evaluation"
    try:
        judged = answer_of(actor.ranking.remote(10), "the ranking of the last evaluation", run.config.scale.wait_s)
    except WaitedTooLong as error:  # the training is done all the same
        judged, why = None, str(error)
    if judged is None:
        say(f"no pictures: {why}; pipelines/evaluate.py draws them")
        return
    query, gallery = stores[run.config.data.query], stores[run.config.data.gallery]
    title = f"{run.name}: mAP {judged[0].mean_ap:.1%}"
    picture = draw_ranked(*judged, query=query, gallery=gallery, title=title)
    storage.write_bytes(storage.join(run.folder, PICTURE), picture)


def start_relations(run: Run, board: Any, cameras: list[ray.ObjectRef], onlooker: Onlooker | None = None) -> Any:
    """The relation actor of a run, and its shards."""
    scale = run.config.scale
    return start_relation_actor(
        cpus=scale.relation_cpus,
        gpus=scale.relation_gpus,
        shards=(scale.shard_cpus, scale.shard_gpus),
        cameras=cameras,
        images=run.manifests[run.config.data.train].num_images,
        # Ray does not hide the GPUs from an actor that reserved none.
        options=run.config.relations.options() | {"device": "cuda" if scale.relation_gpus else "cpu"},
        threads=scale.relation_threads,
        # With overlap the ranks' training is under way at the same time, and that is the progress to show.
        board=None if run.config.relations.overlap else board,
        onlooker=onlooker,
        wait_s=scale.wait_s,
    )


def describe_job(
    run: Run, board: Any, actor: Any, judged_by: list[ray.ObjectRef], cameras: list[ray.ObjectRef] | None
) -> Job:
    """The config, unpacked into what each rank's functions take."""
    config = run.config
    return Job(
        source=Source(
            root=run.root,
            cache=config.data.cache,
            sizes=run.sizes,
            digests=run.digests,
            train=config.data.train,
            height=config.data.height,
            width=config.data.width,
            scan_batch=config.scan_batch,
            stream=config.scale.stream,
            views=config.views.options(),
            seed=config.seed,
            decode_threads=config.scale.decode_threads,
            keep_pixels=config.scale.keep_pixels,
            views_on=config.scale.views_on,
        ),
        lesson=describe_lesson(config, cameras=cameras),
        splits=Splits(config.data.train, config.data.query, config.data.gallery),
        board=board,
        relation_actor=actor,
        judged_by=judged_by,
        threads=config.scale.worker_threads,
        recipe=run.recipe,
        start=config.start,
        precision=config.relations.precision,
        wait_s=config.scale.wait_s,
        folder=run.folder,
        deterministic=config.scale.deterministic,
    )


def describe_lesson(config: TrainConfig, *, cameras: list[ray.ObjectRef] | None = None) -> Lesson:
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
            "eval_stability": config.eval_stability,
            "precision": config.precision,
            "clip_norm": config.clip_norm,
            "overlap": config.relations.overlap,
            "teacher_decay": config.teacher_decay,
            **config.checkpoint.options(),
            "fall_back": config.relations.on_collapse == "keep_previous",
            "check_ranks_every": config.scale.check_ranks_every,
        },
        seed=config.seed,
        cameras=cameras,
        compile=config.scale.compile,
    )


def scaling(config: TrainConfig) -> ScalingConfig:
    """The ranks, how few they may become, and what each of them reserves."""
    scale = config.scale
    resources = {"CPU": scale.worker_cpus} | ({"GPU": scale.worker_gpus} if scale.worker_gpus else {})
    return ScalingConfig(
        num_workers=(scale.min_workers, scale.workers) if scale.min_workers else scale.workers,
        use_gpu=bool(scale.worker_gpus),
        resources_per_worker=resources,
        elastic_resize_monitor_interval_s=scale.resize_s,
    )


def failures(config: TrainConfig) -> FailureConfig:
    """How often a group of ranks is begun again: after it was lost, and where it does not come about.

    Ray would try the latter without end. A cluster that is to grow may take as long as it likes.
    """
    tries = config.scale.max_failures
    return FailureConfig(max_failures=tries, controller_failure_limit=-1 if config.scale.autoscaling else tries)


def streamed(run: Run, board: Any) -> dict[str, Any]:
    """The stream's part of the trainer; nothing where ranks read their own disk."""
    config = run.config
    if config.scale.stream != "ray":
        return {}
    image_bytes = sum(manifest.image_bytes for manifest in run.manifests.values())
    datasets, order = open_stream(
        board,
        root=run.root,
        cache=config.data.cache,
        digests=run.digests,
        image_bytes=image_bytes / sum(run.sizes.values()),
        task_cpus=config.scale.stream_cpus,
        ranks=config.scale.workers,
    )
    return {"datasets": datasets, "dataset_config": order}


def fit_or_explain(trainer: TorchTrainer, board: Any, run: Run) -> None:
    """Fits; a failure becomes the refusal behind it, or says how to go on."""
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        refusal = refusal_on(board)
        if refusal is not None:
            raise refusal from error
        raise TrainingFailed(
            expected("a training that ends by itself", str(error), f"mend the cause and resume with name={run.name}")
        ) from error
    except (ray.exceptions.ActorDiedError, ray.exceptions.ActorUnavailableError) as error:
        died = str(error).partition("\n")[0]
        raise ControllerLost(
            expected("a controller of Ray Train that answers", died, f"resume with name={run.name}")
        ) from error
    refusal = refusal_on(board)
    if refusal is not None:
        raise refusal
