"""What the doors may ask for that use a checkpoint: extract, evaluate, review, publish. As `config.py`."""

from typing import Any, Literal

from pydantic import Field, model_validator

from gracl.config import Name, refuse_unless
from gracl.sections import Crew, Expansion, Judged, Place, Positive, Reranking, Reviewed, Section


class ModelConfig(Section):
    """What extract and evaluate have in common: a model and the part of the cluster to use."""

    checkpoint: str = Field(description="folder of a checkpoint (or its state.pt); it knows its image size")
    batch: Positive = Field(256, description="images of a worker's batch")
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="as in training")
    flip: bool = Field(False, description="average the features of an image and its mirror image; twice the work")
    scale: Crew = Crew()


class ExtractConfig(ModelConfig):
    """Features of one split, written as Arrow files."""

    data: Place
    split: str = Field("gallery", description="the split to describe")
    out: str = Field(description="folder for the feature table")


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
