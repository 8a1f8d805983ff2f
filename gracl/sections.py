"""The sections of a config: each is the keyword list of one function below the doors, with bounds and meanings.

`tests/unit/test_config.py` compares names and defaults with that function. `config.py` makes the roots of the doors
of them.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gracl.errors import expected
from gracl.types import MAX_SIDE

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Scalar = bool | int | float | str


class Section(BaseModel):
    """The manners of every section: frozen, unknown keys forbidden, defaults checked too."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    def flat(self, prefix: str = "") -> dict[str, Any]:
        """Every setting under its dotted name, as plain values."""
        values: dict[str, Any] = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, Section):
                values |= value.flat(f"{prefix}{name}.")
            else:
                values[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
        return values

    def left(self, *names: str) -> bool:
        """Whether these settings are what they are when nobody says anything."""
        return all(getattr(self, name) == type(self).model_fields[name].get_default() for name in names)

    def options(self) -> dict[str, Any]:
        """The section as keyword arguments."""
        return {name: getattr(self, name) for name in type(self).model_fields}


class Place(Section):
    """Where shards are."""

    root: str = Field(description="folder or URI (s3://, gs://) that holds the splits made by pipelines/ingest.py")
    cache: str | None = Field(None, description="node-local folder for shards of a remote root; default: user cache")


class Judged(Place):
    """Where shards are, and which splits are judged."""

    query: str = Field("query", description="split of queries")
    gallery: str = Field("gallery", description="split that queries are looked up in")


class Data(Place):
    """Which shards, and at which size they are seen."""

    train: str = Field("train", description="split to learn from; its identities are never read")
    query: str = Field("query", description="split of queries for the evaluation; '' for none")
    gallery: str = Field("gallery", description="split that queries are looked up in; '' for none")
    height: Positive = Field(256, le=MAX_SIDE, description="pixels")
    width: Positive = Field(128, le=MAX_SIDE, description="pixels")


class Views(Section):
    """How a training image is altered (method.md 4.8)."""

    flip: Share = Field(0.5, description="chance of a left-right flip; 0 where mirrored objects are other objects")
    pad: Count = Field(10, description="pixels added on each side before the random crop")
    erase: Share = Field(0.5, description="chance of random erasing")
    jitter: Share = Field(0.0, description="strength of the change of brightness and contrast")


class Surroundings(Section):
    """Groups of images with like edges, which stand for cameras where nobody knows them (method.md)."""

    groups: Annotated[int, Field(ge=2)] = Field(
        8, description="how many there are; of 4, 8 and 16 eight did best on worlds of 3 to 12 cameras"
    )
    edge: float = Field(
        0.1, gt=0, le=0.5, description="width of the four edges that are looked at, as a share of the image's side"
    )


class Sampling(Section):
    """How batches are composed: P clusters x K images."""

    objects: Positive = Field(16, description="clusters in a batch (P), all workers together")
    images_per_object: Positive = Field(16, description="images of each cluster (K)")
    steps: Positive = Field(200, description="steps of an epoch")


class Grouping(Section):
    """How features become clusters, and nothing more."""

    centre: Literal["none", "camera", "local"] = Field(
        "none",
        description="what is taken from features before they are clustered: the mean of their camera's (reads the "
        "train split's camera ids), or of their relations.centre_k nearest",
    )
    centre_k: Annotated[int, Field(ge=2)] = Field(150, description="centre=local: nearest images, itself counted")
    k1: Positive = Field(30, description="neighbours of the k-reciprocal sets, the image itself counted")
    k2: Positive = Field(6, description="neighbours averaged in the query expansion, the image itself counted")
    camera_aware: bool = Field(
        False, description="lists of neighbours by camera, instead of k1 and k2; reads the train split's camera ids"
    )
    k1_intra: Positive = Field(5, description="camera_aware: neighbours of the same camera in the k-reciprocal sets")
    k1_inter: Positive = Field(20, description="camera_aware: neighbours of other cameras in the k-reciprocal sets")
    k2_intra: Positive = Field(2, description="camera_aware: of those, averaged in the query expansion, with the image")
    k2_inter: Count = Field(4, description="camera_aware: of other cameras, averaged in the query expansion")
    clustering: Literal["dbscan", "hdbscan", "infomap"] = Field("dbscan", description="who makes the clusters")
    eps: Annotated[float, Field(gt=0, lt=1)] | Literal["auto"] = Field(
        0.6, description="dbscan, infomap: largest Jaccard distance, 0..1, of neighbours; dbscan: auto, anew each epoch"
    )
    min_samples: Positive = Field(
        4, description="dbscan, hdbscan: neighbours of a core image, itself counted; infomap: smallest cluster"
    )
    min_cluster_size: Annotated[int, Field(ge=2)] = Field(8, description="hdbscan: smallest cluster")
    reliability: Share = Field(
        0.0,
        description="dbscan: an image whose clusters at eps and eps -+ 0.02 overlap by less is noise; 0: no test",
    )
    precision: Literal["float32", "float16"] = Field(
        "float32", description="features are rounded to this on their way: half the memory and traffic"
    )
    search: Literal["exact", "approximate"] = Field(
        "exact", description="how neighbours are found; approximate logs its recall"
    )
    index: Literal["ivf", "hnsw"] = Field("ivf", description="search=approximate: k-means cells, or a graph (CPU)")
    effort: Count = Field(0, description="search=approximate: cells looked into, or efSearch; 0: chosen")
    backend: Literal["auto", "faiss", "torch"] = Field("auto", description="search=exact: whose products")
    block_rows: Positive = Field(4096, description="rows whose neighbours are looked for at a time")

    @property
    def wants_cameras(self) -> bool:
        """Whether the camera ids of the images are read."""
        return self.camera_aware or self.centre == "camera"


class Relations(Grouping):
    """How features become pseudo labels and proxies."""

    eps_first: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="dbscan, infomap: the share of eps that the first epoch clusters with; 1: all of it"
    )
    eps_rise: Positive = Field(6, description="eps_first below 1: epochs until eps is whole, by even steps")
    noise: Literal["left_out", "own_clusters"] = Field(
        "left_out", description="what becomes of noise: nobody learns from it, or each image of it is a cluster of one"
    )
    on_collapse: Literal["stop", "keep_previous", "relax_eps"] = Field(
        "stop",
        description="what is done about fewer than least_clusters: the run ends, the labels of the epoch before are "
        "kept (with proxies mined anew), or (dbscan) eps is raised",
    )
    least_clusters: Annotated[int, Field(ge=2)] = Field(
        2, description="fewer clusters are a collapse; sampling.objects, where no cluster may stand in a batch twice"
    )
    relax_factor: Annotated[float, Field(gt=1, le=2)] = Field(
        1.1, description="on_collapse=relax_eps: eps is multiplied by this at each try, as long as it stays below 1"
    )
    relax_tries: Positive = Field(5, description="on_collapse=relax_eps: tries before the run ends")
    inter_rule: Literal["mean", "cluster_mean", "nearest_sample", "nearest_centroids", "log_sum_exp"] = Field(
        "mean", description="how the inter proxy is mined: least similar to other clusters by this"
    )
    intra_rule: Literal["mean", "minimum"] = Field(
        "mean", description="how the intra proxy is mined: least similar to its own cluster by this"
    )
    foreign: Literal["samples", "centroids", "proxies", "noise_too"] = Field(
        "samples", description="what of the other clusters an image is compared with where the inter proxy is mined"
    )
    space: Literal["cosine", "jaccard"] = Field("cosine", description="similarity by which both proxies are mined")
    centroids: Positive = Field(10, description="inter_rule=nearest_centroids: how many the mean is over")
    rule_temperature: float = Field(0.05, ge=1e-6, le=100, description="inter_rule=log_sum_exp: its temperature")
    trim: float = Field(
        0.0, ge=0, lt=0.5, description="share of clustered images, least like their own, that cannot become a proxy"
    )
    instances: Count = Field(0, description="members of each cluster that loss.instance_weight contrasts; 0: none")
    consensus: Count = Field(
        0, description="clusters of each image's neighbours that loss.smoothing is told of; 0: none"
    )
    camera_proxies: bool = Field(
        False,
        description="proxies by cluster and camera for loss.camera_weight; reads the train split's camera ids, or "
        "what cameras_from says",
    )
    shards: Positive = Field(1, description="actors that look for neighbours side by side (scale.shard_cpus, _gpus)")
    overlap: bool = Field(
        False, description="relate while the epoch trains: labels are one epoch old (a change of method)"
    )

    @property
    def wants_cameras(self) -> bool:
        """Whether cameras of the train split are asked for, recorded or not (`TrainConfig.cameras_from`)."""
        return super().wants_cameras or self.camera_proxies

    def options(self) -> dict[str, Any]:
        """The keywords of `relate`; when it is called, and so `overlap`, is the matter of `learning.fit.fit`."""
        return {name: value for name, value in super().options().items() if name != "overlap"}


class EncoderSection(Section):
    """The network that turns an image into a unit feature."""

    backbone: str = Field("resnet50", description="resnet18|34|50, resnet18|34|50_ibn_a, mobilenet_v2, timm:<name>")
    weights: str | None = Field(None, description="file of a state dict to start from; none: random")
    pooling: Literal["gem", "average", "token"] = Field(
        "gem", description="how the last map becomes a vector; token: the class token of a timm transformer"
    )
    last_stride: Literal[1, 2] = Field(1, description="stride of the last stage")
    bn_group: Count = Field(
        64, description="images that share batch-norm statistics (method.md 5.1); 0: a rank's batch"
    )
    feature_size: Count = Field(0, description="size of the feature; 0: the backbone's own")


class Loss(Section):
    """The two contrastive terms and the memory of proxies."""

    inter_temperature: float = Field(0.05, gt=0, description="temperature of the inter-ID term")
    intra_temperature: float = Field(0.05, gt=0, description="temperature of the intra-ID term")
    inter_weight: float = Field(1.0, ge=0, description="weight of the inter-ID term in the sum; 0: told, not learnt")
    intra_weight: float = Field(1.0, ge=0, description="weight of the intra-ID term in the sum; 0: told, not learnt")
    instance_weight: float = Field(
        0.0, ge=0, description="weight of the term over relations.instances of each cluster; 0: there is none"
    )
    instance_temperature: float = Field(0.1, gt=0, description="temperature of the instance term")
    camera_weight: float = Field(
        0.0, ge=0, description="weight of the term over relations.camera_proxies; 0: there is none"
    )
    camera_temperature: float = Field(0.07, gt=0, description="temperature of the camera term")
    smoothing: Share = Field(
        0.0, description="share of the targets that goes to the clusters of an image's neighbours (relations.consensus)"
    )
    momentum: Share = Field(0.9, description="weight of the old proxy when a new one is mixed in; 0: replaced")
    negatives: Literal["own", "both"] = Field(
        "own", description="what a term pushes away from: the other clusters' proxies in its own bank, or in both"
    )
    inter_start: Literal["mined", "centroid"] = Field("mined", description="what the inter bank is at an epoch's start")
    intra_start: Literal["mined", "centroid"] = Field("mined", description="what the intra bank is at an epoch's start")
    inter_choice: Literal["foreign_sum", "foreign_proxies", "nearest_centroid"] = Field(
        "foreign_sum", description="inter_update=selected: least similar to what of other clusters"
    )
    intra_choice: Literal["own_sum", "own_proxy"] = Field(
        "own_sum", description="intra_update=selected: least similar to what of its own cluster"
    )
    inter_update: Literal["selected", "every", "mean", "frozen"] = Field(
        "selected", description="what an inter proxy moves to after a step, of its cluster's images in the batch"
    )
    intra_update: Literal["selected", "every", "mean", "frozen"] = Field(
        "selected", description="what an intra proxy moves to after a step, of its cluster's images in the batch"
    )


class Optim(Section):
    """The optimizer."""

    optimizer: Literal["adam", "sgd"] = Field("adam", description="sgd is what the literature uses for ViT")
    rate: float = Field(3.5e-4, gt=0, description="learning rate after warm-up")
    weight_decay: float = Field(5e-4, ge=0, description="L2 weight decay")


class Schedule(Section):
    """The learning rate over the epochs."""

    warmup_epochs: Count = Field(0, description="epochs of linear warm-up")
    decay_every: Count = Field(20, description="epochs between decays; 0: none")
    decay_factor: float = Field(0.1, gt=0, le=1, description="the rate is multiplied by this at each decay")


class Checkpoints(Section):
    """Checkpoints within an epoch, for epochs that last hours; one at each epoch's end is always kept."""

    every_steps: Count = Field(0, description="steps of an epoch from one checkpoint within it to the next; 0: none")
    every_minutes: float = Field(
        0.0, ge=0, description="minutes from a checkpoint to the next one within an epoch, scan included; 0: none"
    )


class Crew(Section):
    """How many describe or learn at a time, and what each of them reserves."""

    workers: Positive = Field(1, description="processes that work side by side")
    worker_cpus: float = Field(1, gt=0, description="CPUs reserved by each worker")
    worker_gpus: float = Field(0, ge=0, description="GPUs reserved by each worker")
    worker_threads: Positive = Field(1, description="torch threads of each worker")
    decode_threads: Positive = Field(2, description="threads of each worker that decode and augment")
    autoscaling: bool = Field(False, description="the cluster may grow: wait for what it does not hold yet")
    wait_s: float = Field(
        14400, ge=60, description="seconds that one answer (an actor's start, labels, a block of images) may take"
    )


class Scale(Crew):
    """What a training takes of the cluster. Beyond float rounding nothing of this changes what is learnt, but for
    `workers` where `encoder.bn_group` is 0."""

    stream: Literal["ray", "mapped"] = Field(
        "ray", description="ray: Ray Data brings the bytes; mapped: each worker reads the shards on its own disk"
    )
    keep_pixels: bool | Literal["auto"] = Field(
        False,
        description="keep decoded pictures on each node's disk (in data.cache): made once, not twice an epoch; "
        "auto: where they take at most a tenth of what is free there",
    )
    views_on: Literal["cpu", "device"] = Field(
        "cpu", description="where training pictures are mirrored, shifted, relit and erased; the same values either way"
    )
    stream_cpus: float = Field(0.5, gt=0, description="CPUs of one Ray Data task")
    relation_cpus: float = Field(1, ge=0, description="CPUs reserved by the relation actor")
    relation_gpus: float = Field(0, ge=0, description="GPUs reserved by the relation actor")
    relation_threads: Positive = Field(1, description="threads of the relation actor, and of each shard")
    shard_cpus: float = Field(1, ge=0, description="CPUs reserved by each of relations.shards, from two on")
    shard_gpus: float = Field(0, ge=0, description="GPUs reserved by each of relations.shards, from two on")
    max_failures: int = Field(3, ge=-1, description="restarts after a lost worker; -1: without end")
    min_workers: Count = Field(
        0,
        description="elastic: go on with as few workers as this, with more as nodes come; 0: always scale.workers",
    )
    check_ranks_every: int = Field(
        0,
        ge=-1,
        description="steps between looks whether all workers hold the same weights, bit for bit, beside that at each "
        "epoch's end; 0: at its end alone; -1: never",
    )
    deterministic: bool = Field(
        False, description="workers use torch's deterministic algorithms alone: slower on a GPU, the same in every run"
    )
    compile: bool = Field(
        False,
        description="workers compile the network, which takes a minute or more at the start; meant for GPUs; other "
        "rounding",
    )
    resize_s: float = Field(60.0, gt=0, description="elastic: seconds between looks for room for more workers")

    def crews(self) -> range:
        """The numbers of workers that a run may have."""
        return range(self.min_workers or self.workers, self.workers + 1)


class Tracking(Section):
    """Where the figures go."""

    uri: str | None = Field(None, description="MLflow tracking URI; default: a SQLite file in the runs folder")
    experiment: str = Field("gracl", description="MLflow experiment")
    parent: str = Field("", description="id of the MLflow run that this one is shown under; '': of none")
    wait_s: float = Field(300, ge=0, description="seconds that the start waits for a server that does not answer")


class Domain(Section):
    """The values that a sweep may give to one setting: exactly one of these."""

    uniform: tuple[float, float] | None = Field(None, description="from, to")
    loguniform: tuple[float, float] | None = Field(None, description="from, to, both above 0; even in the logarithm")
    integers: tuple[int, int] | None = Field(None, description="from, to, both included")
    choice: tuple[Scalar, ...] | None = Field(None, min_length=1, description="one of these")

    @model_validator(mode="after")
    def _is_one(self) -> "Domain":
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            what = "one of uniform, loguniform, integers and choice"
            raise ValueError(expected(what, ", ".join(given) or "none", "write for example {loguniform: [0.02, 0.2]}"))
        for name in ("uniform", "loguniform", "integers"):
            ends = getattr(self, name)
            if ends is not None and not ends[0] < ends[1]:
                raise ValueError(expected(f"{name} from a lower end to a higher", list(ends), "swap or part the ends"))
        if self.loguniform is not None and self.loguniform[0] <= 0:
            raise ValueError(
                expected("loguniform above 0", list(self.loguniform), "take uniform, or a small lower end")
            )
        if self.choice is not None and len(set(self.choice)) < len(self.choice):
            raise ValueError(
                expected("a choice of different values (1 and 1.0 are equal)", list(self.choice), "name each once")
            )
        return self

    @property
    def kind(self) -> str:
        """Which of the four it is."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @property
    def ends(self) -> tuple[Scalar, ...]:
        """The ends of a range, or all values of a choice."""
        found: tuple[Scalar, ...] = getattr(self, self.kind)
        return found
