"""A training run on its storage: what can be checked before it starts, what it leaves, what it comes to.

A run's folder holds `run.json` (recipe, MLflow run, epochs done when it last ended, whether MLflow has all of it),
`config.yaml`, one folder per kept checkpoint, the ranked sheet, and the groups of surroundings where there are any.
"""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from gracl.config import TrainConfig
from gracl.errors import CheckpointError, ConfigError, expected
from gracl.images import storage
from gracl.images.manifests import Manifest, read_manifest
from gracl.learning.checkpoint import STATE_FILE, TrainState, check_recipe
from gracl.learning.encoder import build_encoder
from gracl.learning.epoch_report import PHASES
from gracl.runtime.checkpoints import EPOCH, epoch_folder, load_run_state
from gracl.runtime.progress import say
from gracl.runtime.records import RECORD, read_run
from gracl.runtime.terminal import table
from gracl.runtime.tracking import DataSplit, mend, nesting, reopen_run, start_run

PICTURE = "ranked.png"


@dataclass(frozen=True)
class Run:
    """A run that may start: everything that can be checked without Ray has been.

    `record` is what `run.json` in the run's folder holds: recipe, MLflow run, epochs done when it last ended, and those
    that were done by another run. `start` is the state that it begins with; None for the first weights, and for a run
    that has an epoch of its own.
    """

    config: TrainConfig
    name: str
    runs: str
    root: str
    manifests: Mapping[str, Manifest]
    recipe: Mapping[str, Any]
    record: Mapping[str, Any]
    start: TrainState | None = field(default=None, repr=False)

    @property
    def folder(self) -> str:
        """Where the run's record, checkpoints and pictures are."""
        return storage.join(self.runs, self.name)

    @property
    def sizes(self) -> dict[str, int]:
        """Images of each split."""
        return {split: manifest.num_images for split, manifest in self.manifests.items()}

    @property
    def digests(self) -> dict[str, str]:
        """The digest of each split's manifest."""
        return {split: manifest.digest for split, manifest in self.manifests.items()}


def prepare(config: TrainConfig) -> Run:
    """Everything that can be found wrong without Ray is found wrong here."""
    config = _with_whole_paths(config)
    root, runs = config.data.root, config.runs
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
    name = config.name or time.strftime("gracl-%Y%m%d-%H%M%S")
    if "/" in name:
        raise ConfigError(expected("a name without '/'", name, "choose the folder with runs="))
    recipe = config.recipe() | {f"data.{role}_digest": digest for role, digest in _digests(config, manifests).items()}
    storage.require_arrow(runs)
    saved = read_run(storage.join(runs, name))
    if saved:
        check_recipe(saved["recipe"], recipe)
    _check_relations(config, manifests[config.data.train])
    # An unknown backbone or unfit weights fail here. A run that has an epoch needs its first weights no more.
    begun = bool(latest_epoch(storage.join(runs, name)))
    first = {"weights": None} if begun or config.start else {}
    encoder = build_encoder(**(config.encoder.options() | first), seed=config.seed)
    start = None if begun or config.start is None else _start_of(config, recipe, encoder.options)
    return Run(config, name, runs, root, manifests, recipe, saved, start)


def _start_of(config: TrainConfig, recipe: Mapping[str, Any], encoder: Mapping[str, Any]) -> TrainState:
    """The state to begin with, where this run can go on from it.

    Raises:
        CheckpointError: there is none, or it is torn.
        ConfigError: of another encoder, optimizer or data, or of a run that went as far.
    """
    place = str(config.start)
    state = load_run_state(place)
    theirs = {"encoder": _form(state.encoder), "a teacher": state.teacher is not None}
    ours: dict[str, Any] = {"encoder": _form(encoder), "a teacher": config.teacher_decay > 0}
    same = ["optim.optimizer", *(name for name in recipe if name.endswith("_digest"))]
    theirs |= {name: state.recipe.get(name) for name in same}
    ours |= {name: recipe[name] for name in same}
    differing = [f"{name}: {theirs[name]!r} there, {ours[name]!r} here" for name in ours if theirs[name] != ours[name]]
    if differing:
        what = f"the encoder, optimizer and data of {place}"
        raise ConfigError(expected(what, "; ".join(differing), "leave out start=, or give these settings as they were"))
    if state.epoch >= config.epochs:
        what = f"more epochs than the {state.epoch} of {place}"
        raise ConfigError(expected(what, f"epochs={config.epochs}", "raise epochs: those of the start are counted"))
    return state


def _form(encoder: Mapping[str, Any]) -> dict[str, Any]:
    """What decides which weights an encoder has: not the dice of the first ones, nor how many images a norm sees."""
    return {name: value for name, value in encoder.items() if name not in ("seed", "bn_group")}


def _check_relations(config: TrainConfig, train: Manifest) -> None:
    """Refuses what the first epoch would find out after its scan."""
    relations = config.relations
    for switch, on, off in (
        ("camera_balanced=true", config.camera_balanced, "camera_balanced=false"),
        ("relations.camera_aware=true", relations.camera_aware, "relations.camera_aware=false"),
        ("relations.camera_proxies=true", relations.camera_proxies, "relations.camera_proxies=false"),
        ("relations.centre=camera", relations.centre == "camera", "relations.centre=none"),
    ):
        if on and config.cameras_from == "recorded" and train.num_cameras < 2:
            raise ConfigError(
                expected(
                    f"a train split of two cameras or more for {switch}",
                    f"{train.num_cameras} known cameras",
                    f"set {off}, or cameras_from=surroundings",
                )
            )
    if config.cameras_from == "surroundings" and config.surroundings.groups > train.num_images:
        raise ConfigError(
            expected(
                f"surroundings.groups of at most the {train.num_images} images of the train split",
                config.surroundings.groups,
                "lower surroundings.groups",
            )
        )
    if not relations.camera_aware and relations.k1 > train.num_images:
        raise ConfigError(
            expected(
                f"relations.k1 of at most the {train.num_images} images of the train split",
                relations.k1,
                "lower relations.k1 to about the images of one object",
            )
        )
    if relations.centre == "local" and relations.centre_k > train.num_images:
        raise ConfigError(
            expected(
                f"relations.centre_k of at most the {train.num_images} images of the train split",
                relations.centre_k,
                "lower relations.centre_k to about a tenth of them",
            )
        )
    needed = {"infomap": relations.clustering == "infomap"}
    needed["faiss"] = relations.search == "approximate" or relations.backend == "faiss"
    for package in (name for name, asked in needed.items() if asked and find_spec(name) is None):
        extra = {"infomap": "infomap", "faiss": "cpu"}[package]
        raise ConfigError(
            expected(
                f"the package {package}",
                "no such package",
                f"install gracl[{extra}] here and on every node, or do without",
            )
        )


def _with_whole_paths(config: TrainConfig) -> TrainConfig:
    """Ray's workers run in other folders, so a relative path would be another one there."""
    encoder, data = config.encoder, config.data
    if encoder.weights:
        encoder = encoder.model_copy(update={"weights": storage.absolute(encoder.weights)})
    places = {"root": storage.absolute(data.root)} | ({"cache": storage.absolute(data.cache)} if data.cache else {})
    data = data.model_copy(update=places)
    whole = {"encoder": encoder, "data": data, "runs": storage.absolute(config.runs)}
    return config.model_copy(update=whole | ({"start": _folder_of(config.start)} if config.start else {}))


def _folder_of(checkpoint: str) -> str:
    """The folder of a checkpoint that may be named by its file: its name and its run's stand in the recipe."""
    return storage.absolute(checkpoint).removesuffix(STATE_FILE).rstrip("/")


def _digests(config: TrainConfig, manifests: Mapping[str, Manifest]) -> dict[str, str]:
    return {role: manifests[split].digest for role, split in _roles(config).items()}


def _roles(config: TrainConfig) -> dict[str, str]:
    roles = {"train": config.data.train, "query": config.data.query, "gallery": config.data.gallery}
    return {role: split for role, split in roles.items() if split}


def _profile(run: Run, split: str) -> dict[str, int]:
    manifest = run.manifests[split]
    return {"images": manifest.num_images, "cameras": manifest.num_cameras}


def register(run: Run, uri: str) -> Run:
    """Makes the MLflow run and the run's record, or takes up those that are there."""
    under = nesting(run.config.tracking.parent)
    if run.record:
        reopen_run(uri, run.record["mlflow_run_id"], under)
        return run
    tags = {"gracl.fingerprint": run.config.fingerprint(), "gracl.data": run.recipe["data.train_digest"]} | under
    run_id = start_run(
        uri,
        experiment=run.config.tracking.experiment,
        name=run.name,
        artifacts=storage.join(run.runs, "artifacts"),
        splits=[
            DataSplit(role, split, storage.join(run.root, split), run.manifests[split].digest, _profile(run, split))
            for role, split in _roles(run.config).items()
        ],
        parameters=run.config.flat() | {name: run.recipe[name] for name in run.recipe if name.endswith("_digest")},
        tags=tags,
        wait_s=run.config.tracking.wait_s,
    )
    begins = run.start.epoch if run.start else 0
    run = record(run, recipe=dict(run.recipe), mlflow_run_id=run_id, tracking_uri=uri, finished=0, begins=begins)
    if run.start:
        mend(uri, run_id, run.start.history)
    settings = yaml.safe_dump(run.config.model_dump(mode="json"), sort_keys=False)
    storage.write_bytes(storage.join(run.folder, "config.yaml"), settings.encode())
    return run


def record(run: Run, **news: Any) -> Run:
    """The run with news in its record, on the disk first."""
    changed = {**run.record, **news}
    storage.write_bytes(storage.join(run.folder, RECORD), json.dumps(changed, indent=1).encode())
    return replace(run, record=changed)


def latest_epoch(folder: str) -> int:
    """The epochs done according to the checkpoints in a run's folder."""
    return max(epochs_in(folder), default=0)


def epochs_in(folder: str) -> list[int]:
    """The epochs of which a run's folder has a checkpoint, whole or not, in order."""
    return sorted(int(match[1]) for name in storage.names_in(folder) if (match := EPOCH.fullmatch(name)))


@dataclass(frozen=True)
class Origin:
    """Where a checkpoint comes from: its run and epoch by name, its MLflow run, and which MLflow has it, if known."""

    run: str
    epoch: str
    mlflow_run_id: str
    tracking_uri: str | None


def origin(checkpoint: str) -> Origin | None:
    """The run that a checkpoint (its folder, or its `state.pt`) lies in; None where it lies in none."""
    folder, _, epoch = storage.absolute(checkpoint).removesuffix(STATE_FILE).rstrip("/").rpartition("/")
    saved = read_run(folder)
    if not saved:
        return None
    return Origin(folder.rpartition("/")[2], epoch, str(saved["mlflow_run_id"]), saved.get("tracking_uri"))


def history_of(run: Run) -> list[dict[str, float]]:
    """The figures of all epochs that are done, from the last checkpoint."""
    return load_run_state(storage.join(run.folder, epoch_folder(latest_epoch(run.folder)))).history


def conclude(run: Run, uri: str) -> dict[str, Any]:
    """The result of a run that is done, read from its last checkpoint, with its table for the terminal."""
    last = storage.join(run.folder, epoch_folder(latest_epoch(run.folder)))
    state = load_run_state(last)
    say(table(state.history))
    best = storage.join(run.folder, epoch_folder(state.best_epoch)) if state.best_epoch else last
    if not storage.exists(best):
        raise CheckpointError(expected(f"the best checkpoint at {best}", "no such folder", "was it deleted?"))
    picture = storage.join(run.folder, PICTURE)
    say(f"checkpoint: {last}" + (f"\nbest:       {best}" if best != last else ""))
    if storage.exists(picture):
        say(f"pictures:   {picture}")
    say(f"review:     {review_command(uri)}")
    own = state.history[run.record.get("begins", 0) :]  # what was done by the run that it started from took time there
    if not own:
        what = f"a run that began before epoch {state.epoch} in {storage.join(run.folder, RECORD)}"
        raise CheckpointError(expected(what, f"begins={run.record['begins']}", "restore the file"))
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
            name.removeprefix("time/").removesuffix("_s"): round(sum(row.get(name, 0.0) for row in own), 2)
            for name in (f"time/{phase}_s" for phase in PHASES)
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
