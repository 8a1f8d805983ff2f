"""What the doors may ask for that use a checkpoint or its embeddings: extract, group, evaluate,
review, publish. As `config.py`."""

from typing import Any, Literal

from pydantic import Field, model_validator

from gracl.config import Name, refuse_unless
from gracl.sections import Count, Crew, Expansion, Grouping, Judged, Packed, Positive, Reranking, Reviewed, Section


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
    part: Positive = Field(4096, description="pictures of one file, at most: what is lost with an actor")

    @model_validator(mode="after")
    def _fits(self) -> "ExtractConfig":
        refuse_unless(
            bool(self.data.root) != bool(self.images),
            "one of data.root and images",
            f"data.root={self.data.root!r} and images={self.images!r}",
            "name shards or pictures",
        )
        unused = [name for name in ("split", "data") if name in self.model_fields_set] if self.images else []
        refuse_unless(not unused, "nothing of shards beside images", ", ".join(unused), "leave it out")
        return self


class GroupConfig(Section):
    """An embedding table into groups: which images are of one object."""

    table: str = Field(description="folder of an embedding table made by pipelines/extract.py")
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


class ReviewConfig(ModelConfig):
    """One page on a checkpoint: figures, ranked results, clusters with their proxies, noise, a map of the features."""

    data: Reviewed
    out: str = Field(description="the HTML file to write; it holds the pictures it shows")
    identities: bool = Field(
        False, description="read the train split's identities, too: right and wrong in clusters, ARI, NMI, purity"
    )
    queries: Positive = Field(9, description="queries on the ranked sheet: hardest, most ordinary and easiest")
    clusters: Positive = Field(4, description="clusters of each kind on the sheets")
    relation_cpus: float = Field(1, ge=0, description="CPUs reserved by the task that clusters")
    relation_threads: Positive = Field(1, description="its threads")
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


class PublishConfig(Section):
    """A checkpoint as a registered MLflow model."""

    checkpoint: str = Field(description="folder of a checkpoint in the folder of its run")
    model: Name = Field(description="name under which it is registered")
    tracking_uri: str | None = Field(None, description="MLflow of the run; default: where the training wrote")
