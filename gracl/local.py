"""GRACL in one process, without Ray: the reference that the cluster is held against, and a library for small sets.

`fit` is `learning.fit.fit` with the ports filled by open stores and direct calls. One Ray worker gives bit-equal
results (`tests/ray/test_train.py`).
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Int64
from numpy import ndarray
from torch import Tensor, nn

from gracl.errors import ConfigError, expected
from gracl.images.batches import MappedBatches
from gracl.images.edges import describe_edges
from gracl.images.plans import identity_plan, scan_plan
from gracl.images.shards import ShardStore
from gracl.images.storage import write_bytes
from gracl.images.views import draw_augmentation, eval_view, train_view
from gracl.learning.checkpoint import TrainState
from gracl.learning.encoder import Encoder
from gracl.learning.fit import Progress, Relator, Reporter, Splits
from gracl.learning.fit import fit as fit_ports
from gracl.learning.guarded import GuardedRelator
from gracl.learning.guards import Study
from gracl.learning.losses import Criterion
from gracl.relations.relate import relate
from gracl.relations.stability import stability
from gracl.relations.surroundings import group_surroundings
from gracl.retrieval.metrics import evaluate_retrieval
from gracl.types import Assignment, FeatureTable, Identities, RetrievalReport


class OneRank:
    """The `Ranks` port of a process that learns alone."""

    rank = 0
    size = 1

    def parallel(self, encoder: Encoder) -> nn.Module:
        """The encoder as it is."""
        return encoder

    def gather(self, rows: Tensor) -> Tensor:
        """The rows as they are."""
        return rows

    def average(self, values: Tensor) -> Tensor:
        """The values as they are."""
        return values

    def share_buffers(self, encoder: Encoder) -> None:
        """Nothing to share."""


class DirectRelator:
    """The `Relator` port as plain calls.

    Args:
        images: images of the train split.
        query, gallery: who is on the images of these splits; None where nothing is judged.
        cameras: who took each image of the train split; None where nobody asks.
        options: of `relations.relate.relate`.
    """

    def __init__(
        self,
        images: int,
        *,
        query: Identities | None = None,
        gallery: Identities | None = None,
        cameras: Int64[ndarray, "images"] | None = None,
        **options: Any,
    ) -> None:
        self._cameras = cameras
        self._images, self._query, self._gallery, self._options = images, query, gallery, options

    def relate(self, epoch: int, part: FeatureTable, previous: Int64[ndarray, "images"] | None = None) -> Assignment:
        """Labels and proxies from the one part there is."""
        features = FeatureTable.gather([part], self._images)
        return relate(features, epoch=epoch, cameras=self._cameras, previous=previous, **self._options)

    def stability(self, epoch: int, part: FeatureTable, labels: Int64[ndarray, "images"]) -> float:
        """How far the features of the one part give the same labels."""
        features = FeatureTable.gather([part], self._images)
        return stability(features, labels, epoch=epoch, cameras=self._cameras, **self._options)

    def judge(self, epoch: int, query: FeatureTable, gallery: FeatureTable) -> RetrievalReport:
        """The report of the one part there is."""
        if self._query is None or self._gallery is None:
            raise RuntimeError("our mistake: nothing to judge by")
        return evaluate_retrieval(
            FeatureTable.gather([query], len(self._query.object_ids)),
            FeatureTable.gather([gallery], len(self._gallery.object_ids)),
            query_identities=self._query,
            gallery_identities=self._gallery,
        )


def direct_relator(
    stores: Mapping[str, ShardStore],
    splits: Splits,
    relations: Mapping[str, Any] | None = None,
    *,
    cameras: Int64[ndarray, "images"] | None = None,
    kind: Callable[..., DirectRelator] = DirectRelator,
) -> DirectRelator:
    """The relator of open stores; `kind` is called with the arguments of `DirectRelator`.

    `cameras` stand for those of the train split's shards, where they are given.
    """
    train = stores[splits.train]
    cameras = _cameras(train, cameras)
    return kind(
        len(train),
        query=stores[splits.query].identities() if splits.query else None,
        gallery=stores[splits.gallery].identities() if splits.gallery else None,
        cameras=cameras if (cameras >= 0).any() else None,
        **(relations or {}),
    )


def _cameras(train: ShardStore, given: Int64[ndarray, "images"] | None) -> Int64[ndarray, "images"]:
    """Those of the shards, or what stands for them.

    Raises:
        ConfigError: of another number of images.
    """
    if given is None:
        return train.camera_ids()
    if len(given) != len(train):
        raise ConfigError(expected(f"a camera for each of {len(train)} images", len(given), "take those of this split"))
    return given


def surroundings_of(
    store: ShardStore,
    *,
    height: int,
    width: int,
    groups: int = 8,
    edge: float = 0.1,
    seed: int = 0,
    threads: int = 2,
) -> Int64[ndarray, "images"]:
    """The group of each image by its surroundings, to stand for its camera (`fit(cameras=...)`).

    Args:
        height, width: pixels at which images are looked at; those of the network.
        groups, seed: see `relations.surroundings.group_surroundings`.
        edge: see `images.edges.edge_colours`.
    """
    plan = scan_plan(len(store), 256)
    part = describe_edges(store, plan, height=height, width=width, edge=edge, threads=threads)
    return group_surroundings(FeatureTable.gather([part], len(store)), groups=groups, seed=seed)


def fit(
    stores: Mapping[str, ShardStore],
    *,
    encoder: Encoder,
    criterion: Criterion,
    optimizer: torch.optim.Optimizer,
    state: TrainState,
    rate: Callable[[int], float],
    splits: Splits,
    height: int,
    width: int,
    views: Mapping[str, Any] | None = None,
    sampling: Mapping[str, Any] | None = None,
    relations: Mapping[str, Any] | None = None,
    camera_balanced: bool = False,
    cameras: Int64[ndarray, "images"] | None = None,
    scan_batch: int = 256,
    decode_threads: int = 2,
    views_on: Literal["cpu", "device"] = "cpu",
    seed: int = 0,
    relator: Relator | None = None,
    folder: str = "",
    reporter: Reporter = lambda report, state: None,
    progress: Progress = lambda phase, done, total: None,
    **options: Any,
) -> TrainState:
    """Trains in this process.

    Args:
        stores: open stores by name of split.
        state: where to start, e.g. `TrainState.fresh(...)` or a loaded one.
        rate: epoch -> learning rate.
        views, sampling, relations: options of `train_view`, `identity_plan` and `relate`.
        views_on: where training views are made of plain pictures: by the threads that decode, or where the network is.
        camera_balanced: companions from other cameras where possible.
        cameras: to stand for those of the train split's shards, e.g. from `surroundings_of`.
        relator: who makes labels and proxies; default: `relate` on the features of the train split.
        folder: where batches and features are left that are NaN or infinite; "" for nowhere.
        options: `epochs`, `eval_every`, `eval_untrained`, `eval_stability`, `precision`, `clip_norm`, `overlap`,
            `teacher_decay`, `every_steps`, `every_minutes`, `keeper`, `fall_back` (default: where `relations` say
            on_collapse="keep_previous") of `learning.fit.fit`.

    Returns:
        The state after the last epoch.
    """
    if views_on not in ("cpu", "device"):
        raise ConfigError(expected("views_on of cpu or device", views_on, "correct it"))
    train = stores[splits.train]
    size: dict[str, Any] = {"height": height, "width": width}
    batches = MappedBatches(
        stores,
        train=splits.train,
        eval_view=partial(eval_view, **size),
        train_view=partial(train_view, **size, **(views or {})),
        **size,
        scan_batch=scan_batch,
        seed=seed,
        threads=decode_threads,
        drawer=partial(draw_augmentation, **size, **(views or {})) if views_on == "device" else None,
    )
    cameras, study = _cameras(train, cameras), Study(folder, write_bytes)
    options.setdefault("fall_back", (relations or {}).get("on_collapse") == "keep_previous")
    return fit_ports(
        state,
        encoder=encoder,
        criterion=criterion,
        optimizer=optimizer,
        batches=batches,
        relator=GuardedRelator(relator or direct_relator(stores, splits, relations, cameras=cameras), study),
        ranks=OneRank(),
        planner=lambda epoch, labels: identity_plan(
            labels, epoch=epoch, cameras=cameras if camera_balanced else None, seed=seed, **(sampling or {})
        ),
        rate=rate,
        reporter=reporter,
        progress=progress,
        splits=splits,
        study=study,
        **options,
    )
