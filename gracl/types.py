"""What flows through gracl: frozen values, NumPy arrays, invariants checked at birth.

Letters in shapes: N images of a split, D feature size, B batch, C clusters, T tickets (steps), k neighbours, Q
queries. An image is known everywhere by its **index**: its row in its split, fixed at ingest.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import AbstractDtype, Bool, Float32, Float64, Int32, Int64, UInt8
from numpy import ndarray

from gracl.errors import CoverageError, expected

# Of the pictures that an encoder sees, in pixels: what settings may ask for and a checkpoint may claim.
MAX_SIDE = 4096
# The colours that pretrained networks count as zero and as one, as shares of 255, red first.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MEAN_COLOUR = tuple(round(255 * share) for share in IMAGENET_MEAN)

UNKNOWN = -1
NOISE = -1
EMPTY = -1


if TYPE_CHECKING:
    from typing import Annotated as Feature
else:

    class Feature(AbstractDtype):
        """Feature rows as they may come: float32, or float16 where memory or the network is short."""

        dtypes = ("float16", "float32")


@dataclass(frozen=True)
class ImageRecord:
    """One row of a shard: the image's bytes as they were found, and what is known of it."""

    index: int
    image: bytes
    object_id: int
    camera_id: int
    path: str


@dataclass(frozen=True)
class Plan:
    """Which image is seen when: row = ticket (one step of all ranks together), column = place in the global batch.

    `EMPTY` (-1) marks a place without an image. A rank's share is a run of columns, so the plan, and with it what is
    learnt, does not depend on how many ranks there are.
    """

    epoch: int
    tickets: Int64[ndarray, "tickets batch"]

    def share(self, rank: int, ranks: int) -> Int64[ndarray, "tickets part"]:
        """The places of one rank: columns `rank * part` up to `(rank + 1) * part`."""
        batch = self.tickets.shape[1]
        if batch % ranks:
            raise ValueError(
                expected(
                    f"a batch that {ranks} ranks can share equally",
                    f"{batch} places",
                    "choose a batch size that is a multiple of the number of workers",
                )
            )
        part = batch // ranks
        return self.tickets[:, rank * part : (rank + 1) * part]


@dataclass(frozen=True)
class Augmentations:
    """What is still to be done to each picture of a batch, drawn but not done: `images/views.py` draws it,
    `learning/pixels.py` does it where the network runs.

    `moves`: mirrored (0 or 1), pixels down and right, and of the erased box top, left, rows and columns (0 for none).
    `light`: brightness and contrast; 1 leaves them.
    """

    moves: Int64[ndarray, "rows 7"]
    light: Float64[ndarray, "rows 2"]

    @staticmethod
    def of(drawn: Sequence[Sequence[int | float]]) -> "Augmentations":
        """Those of a batch from what was drawn for each of its pictures: the numbers of `moves`, then of `light`."""
        numbers = np.array(drawn, np.float64).reshape(-1, 9)
        return Augmentations(numbers[:, :7].astype(np.int64), numbers[:, 7:])

    @staticmethod
    def none(rows: int) -> "Augmentations":
        """Those that leave so many pictures as they are."""
        return Augmentations(np.zeros((rows, 7), np.int64), np.ones((rows, 2)))


@dataclass(frozen=True)
class Batch:
    """One rank's part of one ticket: pictures and their indices, and never a label.

    `decoding_s` is the CPU time that making the pictures took, of all threads together. With `augmentations`
    the pictures are plain, and these make them what is learnt from.
    """

    ticket: int
    epoch: int
    indices: Int64[ndarray, "rows"]
    images: UInt8[ndarray, "rows height width 3"]
    decoding_s: float = 0.0
    augmentations: Augmentations | None = None


@dataclass(frozen=True)
class Identities:
    """Who is on the image and which camera took it. Made for query and gallery only; `UNKNOWN` is -1."""

    object_ids: Int64[ndarray, "images"]
    camera_ids: Int64[ndarray, "images"]


@dataclass(frozen=True)
class FeatureTable:
    """Unit feature rows and the index of the image each belongs to, in any order."""

    indices: Int64[ndarray, "rows"]
    features: Feature[ndarray, "rows dim"]

    @staticmethod
    def gather(parts: Iterable["FeatureTable"], images: int) -> Feature[ndarray, "images dim"]:
        """Puts the parts of all ranks in order of index; every image must be there exactly once.

        Parts of float16 give a table of float16.
        """
        parts = [part for part in parts if len(part.indices)]
        counts = np.zeros(images, np.int64)
        for part in parts:
            if part.indices.min() < 0 or part.indices.max() >= images:
                raise CoverageError(
                    expected(
                        f"indices from 0 to {images - 1}",
                        f"{part.indices.min()} to {part.indices.max()}",
                        "check that the manifest belongs to these shards",
                    )
                )
            counts += np.bincount(part.indices, minlength=images)
        if not images or (counts != 1).any():
            missing, twice = np.flatnonzero(counts == 0), np.flatnonzero(counts > 1)
            raise CoverageError(
                expected(
                    f"every index of 0..{images - 1} once",
                    f"{len(missing)} missing {missing[:5].tolist()}, {len(twice)} repeated {twice[:5].tolist()}",
                    "a rank died or two scans overlapped: rerun the epoch, or check manifest.json",
                )
            )
        table = np.empty((images, parts[0].features.shape[1]), parts[0].features.dtype)
        for part in parts:
            table[part.indices] = part.features
        return table


@dataclass(frozen=True)
class Neighbors:
    """The k nearest rows of every row by inner product; row i starts with i, also among exact copies.

    Similarities fall along a row (the first, with the row itself, excepted where a copy rounds higher); equal
    similarities stand in order of index. `recall` is the share of true neighbours in an approximate table, measured on
    some rows; 1 in an exact one.
    """

    indices: Int32[ndarray, "rows k"]
    similarities: Float32[ndarray, "rows k"]
    recall: float = 1.0


@dataclass(frozen=True)
class Proxies:
    """Two proxies per cluster, and the sums from which they were mined.

    `inter` is the member most different from the samples of other clusters, `intra` the member least similar to its
    own cluster; `*_image` says which image each is. `cluster_sums[c]` is the sum of the unit features of cluster c.
    """

    inter: Float32[ndarray, "clusters dim"]
    intra: Float32[ndarray, "clusters dim"]
    inter_image: Int64[ndarray, "clusters"]
    intra_image: Int64[ndarray, "clusters"]
    cluster_sums: Float32[ndarray, "clusters dim"]


@dataclass(frozen=True)
class Instances:
    """Members that stand for their cluster one by one; a cluster that has fewer than `each` repeats its own.

    `rows` are the features of the images that are there, each once, in order of index.
    """

    images: Int64[ndarray, "clusters each"]
    rows: Float32[ndarray, "distinct dim"]


@dataclass(frozen=True)
class CameraProxies:
    """A proxy for each cluster in each camera that sees it: the mean of its images there, of length 1.

    `of_image` is the row of each image, -1 for noise; `clusters` and `cameras` say whose each row is.
    """

    rows: Float32[ndarray, "proxies dim"]
    clusters: Int64[ndarray, "proxies"]
    cameras: Int64[ndarray, "proxies"]
    of_image: Int64[ndarray, "images"]


@dataclass(frozen=True)
class Consensus:
    """To which clusters the reciprocal neighbours of each image belong, and the weight they have there.

    Largest share first; the shares of an image add up to 1. `EMPTY` (-1, with share 0) fills rows, whole rows where no
    neighbour has a cluster.
    """

    clusters: Int32[ndarray, "images kept"]
    shares: Float32[ndarray, "images kept"]


@dataclass(frozen=True)
class Assignment:
    """What one epoch believes: a label for every image (-1 noise, else 0..C-1 by first member) and its proxies.

    `instances`, `consensus` and `camera_proxies` are there where they were asked for.
    """

    epoch: int
    labels: Int64[ndarray, "images"]
    proxies: Proxies
    stats: dict[str, float] = field(default_factory=dict)
    instances: Instances | None = None
    consensus: Consensus | None = None
    camera_proxies: CameraProxies | None = None

    @property
    def clusters(self) -> int:
        """The number of clusters."""
        return len(self.proxies.inter_image)

    def bare(self) -> "Assignment":
        """Labels and proxies alone."""
        return Assignment(self.epoch, self.labels, self.proxies)


@dataclass(frozen=True)
class Ranking:
    """For each query the gallery rows that count, most similar first; `EMPTY` fills the end of short rows."""

    indices: Int64[ndarray, "queries k"]
    similarities: Float32[ndarray, "queries k"]


@dataclass(frozen=True)
class RetrievalReport:
    """How well queries find their gallery: mAP, mINP and CMC, as shares between 0 and 1.

    `average_precisions` and `inverse_penalties` are those of each query, 0 where it was not `counted`.
    """

    mean_ap: float
    mean_inp: float
    cmc: dict[int, float]
    queries: int
    skipped_queries: int
    average_precisions: Float32[ndarray, "queries"]
    inverse_penalties: Float32[ndarray, "queries"]
    counted: Bool[ndarray, "queries"]

    def metrics(self) -> dict[str, float]:
        """The report under the names that MLflow and Tune see."""
        cmc = {f"val/rank{rank}": share for rank, share in self.cmc.items()}
        return {"val/mAP": self.mean_ap, "val/mINP": self.mean_inp, **cmc}


@dataclass(frozen=True)
class EpochReport:
    """What one epoch did: losses, clusters, rates, seconds by phase, and the retrieval when it was judged.

    `checksums` tell whether two runs (or two ranks) had the same labels and the same plan; `step_losses` is the loss
    of each step, the mean over the ranks.
    """

    epoch: int
    loss: float
    inter_loss: float
    intra_loss: float
    instance_loss: float
    camera_loss: float
    clusters: int
    noise_fraction: float
    images_per_second: float
    seconds: dict[str, float]
    stats: dict[str, float]
    checksums: dict[str, int] = field(default_factory=dict)
    retrieval: RetrievalReport | None = None
    untrained: RetrievalReport | None = None
    step_losses: tuple[float, ...] = ()

    def metrics(self) -> dict[str, float]:
        """Every figure of the epoch but those of its steps, flat, under the names that MLflow and Tune see."""
        figures = {
            "epoch": float(self.epoch + 1),
            "train/loss": self.loss,
            "train/inter_loss": self.inter_loss,
            "train/intra_loss": self.intra_loss,
            "train/instance_loss": self.instance_loss,
            "train/camera_loss": self.camera_loss,
            "train/images_per_second": self.images_per_second,
            "cluster/number": float(self.clusters),
            "cluster/noise_fraction": self.noise_fraction,
            **{f"cluster/{name}": value for name, value in self.stats.items()},
            **{f"time/{phase}_s": value for phase, value in self.seconds.items()},
            **{f"check/{name}": float(value) for name, value in self.checksums.items()},
        }
        if self.untrained:
            figures |= {name.replace("val/", "untrained/"): value for name, value in self.untrained.metrics().items()}
        return figures | (self.retrieval.metrics() if self.retrieval else {})
