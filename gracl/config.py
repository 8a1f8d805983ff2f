"""What a run may ask for: typed, frozen, unknown keys refused. Only doors and `runtime/` see these.

A root for each door, made of `sections.py`. A section is unpacked where its function is called,
and no config object travels further.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from gracl.errors import expected
from gracl.sections import (
    Checkpoints,
    Count,
    Data,
    EncoderSection,
    Loss,
    Optim,
    Positive,
    Relations,
    Sampling,
    Scale,
    Schedule,
    Section,
    Share,
    Surroundings,
    Tracking,
    Views,
)

# Part of a run's name, and so of a folder's.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
# What one would type behind a door: preset files and section.key=value; one of them may stand alone.
Arguments = Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]


class TrainConfig(Section):
    """Everything that a training run may ask for."""

    data: Data
    views: Views = Views()
    sampling: Sampling = Sampling()
    camera_balanced: bool = Field(
        False,
        description="draw companions from other cameras (method.md 5.2); reads the train split's camera ids, "
        "or what cameras_from says",
    )
    cameras_from: Literal["recorded", "surroundings"] = Field(
        "recorded",
        description="what the sampler, relations and loss take for cameras: the train split's camera ids, or groups of "
        "images with like surroundings, found without any label",
    )
    surroundings: Surroundings = Surroundings()
    relations: Relations = Relations()
    encoder: EncoderSection = EncoderSection()
    loss: Loss = Loss()
    optim: Optim = Optim()
    schedule: Schedule = Schedule()
    checkpoint: Checkpoints = Checkpoints()
    epochs: Positive = Field(50, description="epochs in all, those before a resume counted")
    eval_every: Positive = Field(10, description="epochs between evaluations; the last epoch is always evaluated")
    eval_untrained: bool = Field(True, description="evaluate before the first epoch too")
    review_every: Count = Field(
        0, description="epochs between pages on what is learnt, drawn by the relation actor; the last too; 0: none"
    )
    eval_stability: Count = Field(
        0, description="epochs between looks at cluster/stability, for which all images are described twice; 0: none"
    )
    scan_batch: Positive = Field(256, description="images of a batch while features are computed, all workers together")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 autocast on a GPU, float32 on a CPU"
    )
    clip_norm: float = Field(0.0, ge=0, description="largest gradient norm; 0: no clipping")
    teacher_decay: float = Field(
        0.0, ge=0, lt=1, description="decay of a mean of the weights that clusters, is judged and is kept; 0: none"
    )
    seed: Count = Field(0, description="the seed of everything")
    start: str | None = Field(
        None,
        description="folder of a checkpoint of another run to go on from: its weights, optimizer and epochs; other "
        "settings may differ",
    )
    runs: str = Field("runs", description="folder or URI where runs are kept")
    name: str = Field("", description="the run's name; a run of that name is resumed; default: made from the time")
    scale: Scale = Scale()
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _fits(self) -> "TrainConfig":
        self._crews_fit()
        refuse_unless(
            self.relations.k2 <= self.relations.k1,
            "relations.k2 of at most relations.k1",
            f"k2={self.relations.k2}, k1={self.relations.k1}",
            "lower relations.k2",
        )
        relations = self.relations
        refuse_unless(
            self.cameras_from == "recorded" or self.camera_balanced or relations.wants_cameras,
            "cameras_from=surroundings beside something that takes cameras",
            "camera_balanced=false, no relations.centre=camera, camera_aware or camera_proxies",
            "lay methods/gracl_surroundings.yaml over this preset, or set cameras_from=recorded",
        )
        refuse_unless(
            not (self.eval_stability and relations.overlap),
            "eval_stability=0 with relations.overlap, whose labels are of other weights",
            f"eval_stability={self.eval_stability}",
            "set eval_stability=0, or relations.overlap=false",
        )
        refuse_unless(
            relations.shards == 1
            or (relations.search == "exact" and not relations.camera_aware and relations.centre == "none"),
            "relations.shards of 1 with an approximate search, camera_aware or a centre: they are made in one place",
            f"shards={relations.shards}, search={relations.search}, camera_aware={relations.camera_aware}, "
            f"centre={relations.centre}",
            "set relations.shards=1",
        )
        refuse_unless(
            relations.search == "exact" or not (relations.camera_aware or relations.backend == "torch"),
            "relations.search=exact with camera_aware or backend=torch",
            f"search={relations.search}, camera_aware={relations.camera_aware}, backend={relations.backend}",
            "set relations.search=exact, or leave these two as they are",
        )
        refuse_unless(
            relations.k2_intra <= relations.k1_intra + 1 and relations.k2_inter <= relations.k1_inter + 1,
            "relations.k2_intra and k2_inter of at most k1_intra + 1 and k1_inter + 1",
            f"{relations.k2_intra} and {relations.k2_inter}",
            "lower them",
        )
        refuse_unless(
            any(getattr(self.loss, f"{term}_weight") for term in ("inter", "intra", "instance", "camera")),
            "loss.inter_weight, intra_weight, instance_weight or camera_weight above 0",
            "all 0",
            "give one of them a weight",
        )
        refuse_unless(
            relations.eps != "auto" or relations.clustering == "dbscan",
            "relations.eps as a number, or auto with clustering=dbscan",
            f"eps={relations.eps}, clustering={relations.clustering}",
            "leave relations.eps as it is",
        )
        refuse_unless(
            not relations.reliability
            or (
                relations.clustering == "dbscan"
                and (relations.eps == "auto" or 0.02 < relations.eps * relations.eps_first <= relations.eps < 0.98)
            ),
            "relations.clustering=dbscan and an eps between 0.02 and 0.98 with relations.reliability, which moves it",
            f"reliability={relations.reliability:g}, clustering={relations.clustering}, eps={relations.eps}, "
            f"eps_first={relations.eps_first:g}",
            "set relations.reliability=0",
        )
        refuse_unless(
            relations.eps_first == 1 or relations.clustering != "hdbscan",
            "relations.eps_first=1 with clustering=hdbscan, which has no eps",
            f"eps_first={relations.eps_first:g}",
            "leave out relations.eps_first, or take another clustering",
        )
        refuse_unless(
            relations.on_collapse != "relax_eps" or relations.clustering == "dbscan",
            "relations.clustering=dbscan with relations.on_collapse=relax_eps",
            f"clustering={relations.clustering}",
            "set relations.on_collapse=keep_previous, or stop",
        )
        for name, weight, usual in (
            ("instances", "instance_weight", 16),
            ("consensus", "smoothing", 8),
            ("camera_proxies", "camera_weight", "true"),
        ):
            given, asked = getattr(relations, name), getattr(self.loss, weight)
            refuse_unless(
                bool(asked) == bool(given),
                f"relations.{name} and loss.{weight} together, or neither",
                f"relations.{name}={given}, loss.{weight}={asked:g}",
                f"set relations.{name}={usual} beside loss.{weight}, or leave out both",
            )
        self._rules_fit()
        gpus = self.scale.worker_gpus
        refuse_unless(
            gpus == int(gpus) or (gpus < 1 and self.scale.workers == 1),
            "scale.worker_gpus in whole numbers (nccl refuses two ranks on one GPU; a single worker may share one)",
            f"worker_gpus={gpus:g}, workers={self.scale.workers}",
            "use whole GPUs, or one worker",
        )
        smaller = min(self.data.height, self.data.width)
        refuse_unless(
            self.views.pad < smaller,
            "views.pad smaller than the image",
            f"pad={self.views.pad}, {self.data.height}x{self.data.width} pixels",
            f"choose views.pad below {smaller}",
        )
        refuse_unless(
            bool(self.data.query) == bool(self.data.gallery),
            "data.query and data.gallery together, or neither",
            f"query={self.data.query!r}, gallery={self.data.gallery!r}",
            "name both splits, or set both to ''",
        )
        return self

    def _crews_fit(self) -> None:
        """Whatever number of workers a run has, its batches are the same and each worker has an equal part."""
        scale, group = self.scale, self.encoder.bn_group
        batch = self.sampling.objects * self.sampling.images_per_object
        refuse_unless(
            scale.min_workers <= scale.workers,
            "scale.min_workers of at most scale.workers",
            f"min_workers={scale.min_workers}, workers={scale.workers}",
            "lower scale.min_workers; 0 for a run that always has scale.workers",
        )
        refuse_unless(
            group > 0 or not scale.min_workers,
            "encoder.bn_group above 0 with scale.min_workers: else another number of workers trains another network",
            f"bn_group={group}",
            "set encoder.bn_group to what the smallest part of a worker holds, or scale.min_workers=0",
        )
        advice = ", or raise scale.min_workers" if scale.min_workers else ""
        for workers in scale.crews():
            refuse_unless(
                self.sampling.objects % workers == 0,
                "sampling.objects that the workers can share equally",
                f"{self.sampling.objects} objects and {workers} workers",
                f"make sampling.objects a multiple of the number of workers{advice}",
            )
            part = batch // workers
            refuse_unless(
                not group or group >= batch or part % group == 0,
                "encoder.bn_group that divides each worker's part, so that the number of workers changes nothing",
                f"bn_group={group} and {part} images for each of {workers} workers",
                f"choose a smaller bn_group, fewer workers, or 0 for 'whatever a worker has'{advice}",
            )
            refuse_unless(
                not group or group < batch or workers == 1,
                "encoder.bn_group that one worker can hold",
                f"bn_group={group} for {part} images of each worker",
                "choose a smaller bn_group or one worker",
            )
            refuse_unless(
                self.scan_batch % workers == 0,
                "scan_batch that the workers can share equally",
                f"{self.scan_batch} images and {workers} workers",
                f"make scan_batch a multiple of the number of workers{advice}",
            )

    def _rules_fit(self) -> None:
        """What goes together where proxies are mined; why, says `relations/choices.py`."""
        relations = self.relations
        came = f"inter_rule={relations.inter_rule}, foreign={relations.foreign}"
        refuse_unless(
            relations.foreign != "centroids" or relations.inter_rule not in ("cluster_mean", "nearest_centroids"),
            "relations.inter_rule among mean, nearest_sample, log_sum_exp with relations.foreign=centroids",
            came,
            "take mean for cluster_mean, and nearest_centroids with relations.foreign=samples",
        )
        refuse_unless(
            relations.space == "cosine"
            or (relations.foreign != "centroids" and relations.inter_rule not in ("nearest_centroids", "log_sum_exp")),
            "inter_rule among mean, cluster_mean, nearest_sample and no foreign=centroids with relations.space=jaccard",
            came,
            "set relations.space=cosine",
        )

    def recipe(self) -> dict[str, Any]:
        """The settings that decide what is learnt: a run can be resumed only with the same ones."""
        apart: tuple[str, ...] = ("scale.", "tracking.", "runs", "name", "epochs", "data.root", "data.cache")
        apart += ("eval_", "review_every", "start", "checkpoint.")
        # Neighbour tables do not depend on who finds them, nor what is learnt on where the first weights lay.
        apart += ("relations.backend", "relations.block_rows", "relations.shards", "encoder.weights")
        recipe = {name: value for name, value in self.flat().items() if not name.startswith(apart)}
        recipe["encoder.weights"] = Path(self.encoder.weights).name if self.encoder.weights else None
        # Runs that were begun before there were these settings have no such lines.
        if self.relations.eps_first == 1:
            del recipe["relations.eps_first"], recipe["relations.eps_rise"]
        if self.relations.on_collapse != "relax_eps":
            del recipe["relations.relax_factor"], recipe["relations.relax_tries"]
        if self.relations.on_collapse == "stop":
            del recipe["relations.on_collapse"]
        if self.relations.least_clusters == 2:
            del recipe["relations.least_clusters"]
        if self.cameras_from == "recorded":
            recipe = {name: value for name, value in recipe.items() if not name.startswith("surroundings.")}
            del recipe["cameras_from"]
        if self.start:
            recipe["start"] = "/".join(Path(self.start).parts[-2:])
        if not self.encoder.bn_group:
            recipe["scale.workers"] = self.scale.workers
        return recipe

    def fingerprint(self) -> str:
        """A short digest of the recipe."""
        return hashlib.sha256(json.dumps(self.recipe(), sort_keys=True).encode()).hexdigest()[:12]


class IngestConfig(Section):
    """A raw folder to be packed into shards."""

    raw: str = Field(description="folder or URI of the raw images (for layout=manifest: of the CSV or Parquet file)")
    out: str = Field(description="folder or URI that will hold the splits")
    layout: Literal["market1501", "msmt17", "veri776", "folder", "unlabelled", "manifest"] = Field(
        description="how the raw folder is arranged; market1501 also reads DukeMTMC-reID and PersonX"
    )
    on_bad_image: Literal["error", "skip"] = Field("error", description="what to do with images that cannot be read")
    shard_mb: Positive = Field(64, description="size of a shard, in MB")
    resize: tuple[Positive, Positive] | None = Field(
        None, description="[height,width] to store, as in resize=[256,128]; none: as found"
    )
    overwrite: bool = Field(False, description="replace splits that exist")
    allow_shared_identities: bool = Field(False, description="let train share identities with query or gallery")
    tasks: Count = Field(0, description="shards written at a time; 0: as many as there are CPUs")


class SynthesizeConfig(Section):
    """A synthetic world, written as a raw folder in Market-1501 naming."""

    out: str = Field(description="folder for the pictures")
    train_objects: Positive = Field(100, description="identities to learn from")
    test_objects: Positive = Field(50, description="other identities, for query and gallery")
    cameras: int = Field(6, ge=2, description="cameras")
    shots: int = Field(4, ge=2, description="pictures of an identity by one camera")
    height: int = Field(128, ge=8, description="pixels")
    width: int = Field(64, ge=8, description="pixels")
    difficulty: Share = Field(0.5, description="0 easy, 1 hard")
    distractors: Count = Field(0, description="gallery pictures of nobody (identity 0)")
    junk: Count = Field(0, description="gallery pictures cut badly (identity -1)")
    quality: int = Field(90, ge=1, le=100, description="of the JPEG files")
    scenes: Count = Field(
        0, description="0: each camera has a background of its own; n: all share n, any of them in a picture"
    )
    seed: Count = Field(0, description="the same seed draws the same world")
    processes: Positive = Field(1, description="processes that draw")


def refuse_unless(holds: bool, what: str, came: object, do: str) -> None:
    """A fault of settings that do not go together, in the words of `expected`; for validators."""
    if not holds:
        raise ValueError(expected(what, came, do))
