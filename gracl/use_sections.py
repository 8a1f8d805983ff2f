"""The sections of the doors that use a checkpoint, as `sections.py`: where their pictures are, and what comes after."""

from pydantic import Field

from gracl.sections import Judged, Place, Positive, Section, Share


class Packed(Place):
    """Where shards are, if the pictures are in shards."""

    root: str = Field("", description="folder or URI (s3://, gs://) that holds the splits made by pipelines/ingest.py")


class Clustered(Place):
    """Where shards are, and which split is clustered."""

    split: str = Field("train", description="split that is clustered; best one like the pictures of later")


class Reviewed(Judged):
    """Where shards are, which split is clustered, and which splits are judged."""

    train: str = Field("train", description="split that is clustered")
    query: str = Field("query", description="split of queries; '' for none")
    gallery: str = Field("gallery", description="split that queries are looked up in; '' for none")


class Reranking(Section):
    """k-reciprocal re-ranking of query and gallery (method.md Evaluation)."""

    k1: Positive = Field(20, description="rerank: neighbours of the k-reciprocal sets, the image itself not counted")
    k2: Positive = Field(6, description="rerank: nearest images whose weights are averaged, the image itself counted")
    original_weight: Share = Field(0.3, description="rerank: weight of the original beside the Jaccard distance")


class Expansion(Section):
    """Expansion of queries by what they find (method.md Evaluation)."""

    k: Positive = Field(5, description="expand: nearest gallery images that join a query")
    alpha: float = Field(3.0, ge=0, description="expand: they count similarity**alpha; 0: all alike")
    database: bool = Field(False, description="expand: gallery images are expanded by their nearest others, too")
