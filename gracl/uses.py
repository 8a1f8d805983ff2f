"""What the doors may ask for that use a checkpoint or its embeddings: extract, group, evaluate,
review, publish, serve. As `config.py`."""

from typing import Any, Literal

from pydantic import Field, model_validator

from gracl.config import Name, refuse_unless
from gracl.sections import Count, Crew, Grouping, Judged, Positive, Section
from gracl.use_sections import Clustered, Expansion, Packed, Reranking, Reviewed


class ModelConfig(Section):
    """What extract and evaluate have in common: a model and the part of the cluster to use."""

    checkpoint: str = Field(description="folder of a checkpoint (or its state.pt); it knows its image size")
    batch: Positive = Field(256, description="images of a worker's batch")
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="as in training")
    flip: bool = Field(False, description="average the features of an image and its mirror image; twice the work")
    scale: Crew = Crew()


class ExtractConfig(ModelConfig):
    """Embeddings of a split of shards, or of pictures as they lie, written as Parquet."""

    data: Packed = Packed()
    split: str = Field("gallery", description="split of data.root to describe")
    images: str | None = Field(
        None,
        description="instead of data.root: a folder or a prefix of pictures, or a CSV or Parquet list of them with the "
        "column path and, where known, camera_id and track",
    )
    out: str = Field(description="folder for the embedding table; the same command goes on with an unfinished one")
    dtype: Literal["float32", "float16"] = Field("float32", description="of the embeddings in the files")
    part: int = Field(
        0, ge=0, le=2**20, description="pictures of one file; 0: 4096, or less, so that each worker has one"
    )

    @model_validator(mode="after")
    def _fits(self) -> "ExtractConfig":
        refuse_unless(
            bool(self.data.root) != bool(self.images),
            "one of data.root and images",
            f"data.root={self.data.root!r} and images={self.images!r}",
            "name shards or pictures",
        )
        refuse_unless(
            not self.images or self.left("split", "data"),
            "nothing of shards beside images",
            f"split={self.split!r}, data.cache={self.data.cache!r}",
            "leave it out",
        )
        return self


class GroupConfig(Section):
    """An embedding table into groups: which images are of one object."""

    embeddings: str = Field(description="folder of an embedding table made by pipelines/extract.py")
    out: str = Field(description="folder for groups.parquet, groups.json and groups.html")
    tracks: Literal["use", "ignore"] = Field(
        "use", description="use: images of one track stay together, where the table knows tracks"
    )
    relations: Grouping = Field(
        Grouping(), description="what is not given is as in the training of the checkpoint, see checkpoint"
    )
    checkpoint: str | None = Field(
        None,
        description="whose relations hold where none are given; default: that of the table, where it can still be "
        "read; '': none, so the defaults hold",
    )
    groups: Positive = Field(8, description="groups of each kind on the page: largest, least sure, surest")
    threads: Count = Field(0, description="CPU threads; 0: as many as torch takes")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where neighbours are looked for")
    cache: str | None = Field(None, description="node-local folder for shards of a remote root; default: user cache")


class EvaluateConfig(ModelConfig):
    """mAP, mINP and CMC of a checkpoint, plain, and after the post-processing that is asked for."""

    data: Judged
    out: str | None = Field(None, description="folder for the report, per-query results and the ranked sheet")
    expand: bool = Field(False, description="expand queries by what they find (post-processing; before rerank)")
    expansion: Expansion = Expansion()
    rerank: bool = Field(False, description="re-rank by k-reciprocal neighbours (post-processing)")
    reranking: Reranking = Reranking()

    @model_validator(mode="after")
    def _fits(self) -> "EvaluateConfig":
        for switch, on, section in (
            ("expand", self.expand, self.expansion),
            ("rerank", self.rerank, self.reranking),
        ):
            refuse_unless(
                on or section == type(section)(),
                f"{switch}=true beside settings of it",
                f"{switch}=false and {section!r}",
                f"set {switch}=true, or leave them out",
            )
        refuse_unless(
            self.reranking.k2 <= self.reranking.k1,
            "reranking.k2 of at most reranking.k1",
            f"k2={self.reranking.k2}, k1={self.reranking.k1}",
            "lower reranking.k2",
        )
        return self

    def processing(self) -> dict[str, Any]:
        """The post-processing that is asked for, with its settings, in the order in which it is done."""
        done: dict[str, Any] = {"flip": True} if self.flip else {}
        done |= {"expand": self.expansion.options()} if self.expand else {}
        return done | ({"rerank": self.reranking.options()} if self.rerank else {})


class ClusteringConfig(ModelConfig):
    """What review and calibrate have in common: they describe and cluster."""

    relation_cpus: float = Field(1, ge=0, description="CPUs reserved by the task that clusters")
    relation_threads: Positive = Field(1, description="its threads")


class ReviewConfig(ClusteringConfig):
    """One page on a checkpoint: figures, ranked results, clusters with their proxies, noise, a map of the features."""

    data: Reviewed
    out: str = Field(description="the HTML file to write; it holds the pictures it shows")
    identities: bool = Field(
        False, description="read the train split's identities, too: right and wrong in clusters, ARI, NMI, purity"
    )
    queries: Positive = Field(9, description="queries on the ranked sheet: hardest, most ordinary and easiest")
    clusters: Positive = Field(4, description="clusters of each kind on the sheets")
    log: bool = Field(True, description="put the page into the MLflow run of the training, where that is known")
    tracking_uri: str | None = Field(None, description="MLflow of that run; default: where the training wrote")

    @model_validator(mode="after")
    def _fits(self) -> "ReviewConfig":
        refuse_unless(
            bool(self.data.query) == bool(self.data.gallery),
            "data.query and data.gallery together, or neither",
            f"query={self.data.query!r}, gallery={self.data.gallery!r}",
            "name both splits, or set both to ''",
        )
        refuse_unless(
            bool(self.data.query) or "queries" not in self.model_fields_set,
            "data.query beside queries",
            "data.query=''",
            "leave out queries, or name the splits",
        )
        refuse_unless(
            self.log or self.tracking_uri is None,
            "log=true beside tracking_uri",
            "log=false",
            "leave out one of them",
        )
        refuse_unless(not self.flip, "flip=false: a review is of plain features", "flip=true", "leave it out")
        return self


class CalibrateConfig(ClusteringConfig):
    """Thresholds for rates of false matches, by the clusters of a split; kept beside the checkpoint."""

    data: Clustered
    identities: bool = Field(False, description="read the split's identities instead of clustering it")


class IndexConfig(Section):
    """A search index over an embedding table; no Ray."""

    embeddings: str = Field(description="folder of an embedding table, as pipelines/extract.py makes it")
    out: str = Field(description="folder of this machine for the index")
    add: bool = Field(False, description="put the table into the index that is there")
    kind: Literal["auto", "flat", "hnsw", "ivf_pq"] = Field(
        "auto",
        description="flat: every row is looked at; hnsw, ivf_pq: not all; auto: flat up to 200,000 rows, ivf_pq above",
    )
    effort: Count = Field(0, description="what a question looks at: efSearch of hnsw, cells of ivf_pq; 0: finds 95 %")
    threads: Count = Field(0, description="CPU threads; 0: as many as there are")

    @model_validator(mode="after")
    def _fits(self) -> "IndexConfig":
        refuse_unless(
            not self.add or self.left("kind", "effort"),
            "no kind or effort beside add=true",
            f"kind={self.kind}, effort={self.effort}",
            "leave them out: the index has its own",
        )
        return self


class SearchConfig(Section):
    """What of an index is most like some pictures; no Ray."""

    index: str = Field(description="folder of an index, as pipelines/index.py makes it")
    queries: str = Field(description="a picture, a folder or a list of pictures, or an embedding table")
    checkpoint: str | None = Field(None, description="folder of the model; default: where the index's table says")
    k: Positive = Field(10, description="results of each query")
    other_cameras: bool = Field(False, description="leave out what the query's own camera took, where both are known")
    cameras: tuple[str | int, ...] = Field((), description="look among these cameras only; []: all")
    rerank_first: Count = Field(0, description="re-rank the first so many by k-reciprocal neighbours; 0: do not")
    reranking: Reranking = Reranking()
    false_match_rate: float | None = Field(
        None, gt=0, lt=1, description="say for each result whether it is the same one, at this rate of false matches"
    )
    of: Literal["pair", "query"] = Field(
        "pair", description="the rate is that of one comparison, or of a query's best of the whole index"
    )
    out: str | None = Field(None, description="folder for results.json, results.parquet, results.png")
    shown: Count = Field(20, description="queries on results.png; 0: no picture")
    root: str | None = Field(None, description="where the gallery's pictures lie now; default: where they were found")
    flip: bool = Field(False, description="average the features of an image and its mirror image, as in the index")
    batch: Positive = Field(64, description="pictures at a time")
    threads: Count = Field(0, description="CPU threads; 0: as many as there are")
    device: str = Field("auto", description="for the encoder: cpu, cuda; auto: the GPU where torch finds one")

    @model_validator(mode="after")
    def _fits(self) -> "SearchConfig":
        refuse_unless(
            bool(self.rerank_first) or self.reranking == Reranking(),
            "rerank_first=N beside settings of it",
            f"rerank_first=0 and {self.reranking!r}",
            "set rerank_first, or leave them out",
        )
        refuse_unless(
            not self.rerank_first or self.rerank_first >= self.k,
            f"rerank_first of at least k={self.k}",
            self.rerank_first,
            "raise it",
        )
        refuse_unless(
            self.false_match_rate is not None or self.left("of"),
            "false_match_rate beside of",
            f"of={self.of} alone",
            "set it, or leave out of",
        )
        refuse_unless(
            self.out is not None or self.left("shown", "root"),
            "out= beside settings of its picture",
            f"shown={self.shown}, root={self.root}",
            "name out, or leave them out",
        )
        return self


class ServeConfig(Section):
    """A service over HTTP: embeddings of pictures that are sent, and what of an index is most like them."""

    checkpoint: str | None = Field(None, description="folder of the model; default: where the index's table says")
    index: str | None = Field(
        None, description="folder of an index, as pipelines/index.py makes it; without it only embeddings are served"
    )
    root: str | None = Field(None, description="where the gallery's pictures lie now; default: where they were found")
    flip: bool | None = Field(None, description="average with the mirror image's feature; default: as in the index")
    host: str = Field("127.0.0.1", description="address to listen at; others than loopback let everybody in")
    port: Positive = Field(8000, le=65535, description="port to listen at")
    batch: Positive = Field(16, description="pictures that are described together, at most")
    batch_wait_ms: Count = Field(5, description="how long the first picture of a batch waits for others")
    queue: Positive = Field(64, description="requests that are read, wait or are answered at one time; others get 503")
    max_mb: Positive = Field(16, description="size of a request, at most, in MiB")
    max_pixels: Positive = Field(50_000_000, le=178_956_970, description="pixels of a picture, at most")
    max_k: Positive = Field(100, description="results of a search, at most")
    body_s: Positive = Field(30, description="seconds that a request may take to arrive")
    replicas: Positive = Field(1, description="processes that describe pictures")
    replica_cpus: float = Field(1, ge=0, description="CPUs reserved by each of them")
    replica_gpus: float = Field(0, ge=0, description="GPUs reserved by each; with any it describes on a GPU")
    threads: Positive = Field(1, description="CPU threads of each, and of the search")

    @model_validator(mode="after")
    def _fits(self) -> "ServeConfig":
        refuse_unless(
            bool(self.checkpoint or self.index), "checkpoint or index", "neither", "name a model, an index, or both"
        )
        refuse_unless(bool(self.index) or self.root is None, "index beside root", "none", "leave out root")
        refuse_unless(
            bool(self.index) or "max_k" not in self.model_fields_set, "index beside max_k", "none", "leave out max_k"
        )
        return self


class PublishConfig(Section):
    """A checkpoint as a registered MLflow model."""

    checkpoint: str = Field(description="folder of a checkpoint in the folder of its run")
    model: Name = Field(description="name under which it is registered")
    tracking_uri: str | None = Field(None, description="MLflow of the run; default: where the training wrote")


class ExportConfig(Section):
    """A checkpoint as a folder that is used without gracl: the model as one file, preprocessing, card."""

    checkpoint: str = Field(description="folder of a checkpoint (or its state.pt)")
    out: str = Field(description="folder for the model, preprocess.py, README.md and export.json")
    format: Literal["onnx", "torch_export"] = Field("onnx", description="exported.onnx or exported.pt2")
    opset: int = Field(18, ge=18, le=25, description="version of ONNX's operators; for format=onnx alone")
    tolerance: float = Field(
        1e-4, gt=0, le=1e-2, description="largest difference of any number of a feature from PyTorch's that is let pass"
    )
    drawn: Positive = Field(16, description="pictures of random pixels to compare with PyTorch on")
    pictures: str | None = Field(None, description="folder of real pictures to compare on, too")
    real: Positive = Field(64, description="how many of them at most, the first by name")

    @model_validator(mode="after")
    def _fits(self) -> "ExportConfig":
        refuse_unless(
            self.format == "onnx" or self.opset == type(self).model_fields["opset"].default,
            "format=onnx beside opset",
            f"format={self.format}",
            "leave out opset",
        )
        refuse_unless(
            self.pictures is not None or self.real == type(self).model_fields["real"].default,
            "pictures beside real",
            "none",
            "leave out real, or name a folder of pictures",
        )
        return self
