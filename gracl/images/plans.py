"""Which image is seen when: the two plans of an epoch, as values that every rank computes alike.

`scan_plan` shows every image once; `identity_plan` draws P clusters x K images a step (method.md 4.6, 5.2).
"""

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from gracl.errors import ClusteringCollapsed, expected
from gracl.randomness import rng
from gracl.types import EMPTY, Plan


def scan_plan(images: int, batch: int, *, epoch: int = 0) -> Plan:
    """Every index from 0 to `images - 1` once and in order; the end of the last ticket is `EMPTY`."""
    if images < 0 or batch < 1:
        raise ValueError(expected("images >= 0 and batch >= 1", f"{images} and {batch}", "check the split and batch"))
    places = np.full(-(-images // batch) * batch, EMPTY, np.int64)
    places[:images] = np.arange(images)
    return Plan(epoch=epoch, tickets=places.reshape(-1, batch))


def identity_plan(
    labels: Int64[ndarray, "images"],
    *,
    epoch: int,
    objects: int = 16,
    images_per_object: int = 16,
    steps: int = 200,
    cameras: Int64[ndarray, "images"] | None = None,
    seed: int = 0,
) -> Plan:
    """Draws `steps` tickets of `objects` clusters x `images_per_object` images; noise (-1) is never drawn.

    The images of one cluster stand in adjacent places, which batch norm over groups relies on (method.md 5.1).
    Clusters come from a running shuffle: each once before any comes twice, and within a ticket all different, or as
    even as can be when there are fewer clusters than `objects`. A cluster's images come from a running shuffle of
    their own in the same way, so a small cluster repeats its images evenly and a large one shows all of them.

    With `cameras` the first of the K images is an anchor, and its companions come from the other cameras of the
    cluster, one per camera in turn (method.md 5.2); they repeat when these have too few, and only a cluster of one
    camera takes companions from the anchor's own. -1 (unknown) counts as a camera like any other. Without `cameras`
    the plan knows nothing of them.

    Args:
        labels: -1 for noise, else the cluster of each image. Numbers may have gaps.
        epoch: of the plan; other epochs draw other images.
        objects: P, clusters in a ticket.
        images_per_object: K.
        steps: tickets.
        cameras: who took each image, for camera-balanced companions.
        seed: of the run.

    Raises:
        ClusteringCollapsed: all is noise.
        ValueError: a size below 1, or cameras of another length than labels.
    """
    if min(objects, images_per_object, steps) < 1:
        sizes = f"objects={objects}, images_per_object={images_per_object}, steps={steps}"
        raise ValueError(expected("sizes of at least 1", sizes, "correct the sampling settings"))
    if cameras is not None and len(cameras) != len(labels):
        raise ValueError(expected(f"{len(labels)} cameras", len(cameras), "give one camera per image"))
    order, starts = _members(labels)
    dice = rng(seed, "plan", epoch)
    clusters = _Deck(len(starts) - 1, dice)
    hands: dict[int, _Hand | _CameraHand] = {}
    tickets = np.empty((steps, objects, images_per_object), np.int64)
    for ticket in tickets:
        for place, cluster in enumerate(clusters.draw(objects).tolist()):
            if cluster not in hands:  # only what is drawn is looked at: there may be very many clusters
                rows = order[starts[cluster] : starts[cluster + 1]]
                hands[cluster] = _Hand(rows, dice) if cameras is None else _CameraHand(rows, cameras[rows], dice)
            ticket[place] = hands[cluster].draw(images_per_object)
    return Plan(epoch=epoch, tickets=tickets.reshape(steps, -1))


def _members(labels: Int64[ndarray, "images"]) -> tuple[Int64[ndarray, "members"], Int64[ndarray, "bounds"]]:
    """The images that have a cluster, cluster by cluster and in order of index, and where each cluster starts."""
    order = np.argsort(labels, kind="stable")
    order = order[np.searchsorted(labels, 0, sorter=order) :]
    if not len(order):
        raise ClusteringCollapsed(
            expected("at least one cluster to draw from", f"{len(labels)} images, all noise", "raise relations.eps")
        )
    grouped = labels[order]
    changes = np.flatnonzero(grouped[1:] != grouped[:-1]) + 1
    return order, np.concatenate([[0], changes, [len(order)]])


class _Deck:
    """Cards 0..n-1 in a running shuffle: each card once before any comes twice, across as many draws as it takes."""

    def __init__(self, cards: int, dice: np.random.Generator) -> None:
        self._cards = cards
        self._dice = dice
        self._left = np.empty(0, np.int64)

    def draw(self, count: int) -> Int64[ndarray, "count"]:
        """The next `count` cards, as different as they can be: how often two cards come differs by one at most."""
        drawn, self._left = self._left[:count], self._left[count:]
        while len(drawn) < count:
            fresh = self._dice.permutation(self._cards)
            # Cards that this draw has already given go to the end of the new round.
            times = np.bincount(drawn, minlength=self._cards)[fresh]
            fresh = fresh[np.argsort(times, kind="stable")]
            need = count - len(drawn)
            drawn, self._left = np.concatenate([drawn, fresh[:need]]), fresh[need:]
        return drawn


class _Hand:
    """The images of one cluster, drawn without regard to cameras."""

    def __init__(self, rows: Int64[ndarray, "members"], dice: np.random.Generator) -> None:
        self._rows = rows
        self._deck = _Deck(len(rows), dice)

    def draw(self, count: int) -> Int64[ndarray, "count"]:
        """The next `count` images."""
        images: ndarray = self._rows[self._deck.draw(count)]
        return images


class _CameraHand:
    """The images of one cluster, drawn as an anchor and companions from the other cameras."""

    def __init__(
        self, rows: Int64[ndarray, "members"], cameras: Int64[ndarray, "members"], dice: np.random.Generator
    ) -> None:
        self._rows = rows
        self._dice = dice
        self._anchors = _Deck(len(rows), dice)
        _, self._camera_of_row = np.unique(cameras, return_inverse=True)
        shots = range(int(self._camera_of_row.max()) + 1)
        self._by_camera = [_Hand(rows[self._camera_of_row == camera], dice) for camera in shots]
        self._sizes = np.bincount(self._camera_of_row)

    def draw(self, count: int) -> Int64[ndarray, "count"]:
        """One anchor and `count - 1` companions."""
        if len(self._by_camera) == 1:
            return self._by_camera[0].draw(count)
        anchor = int(self._anchors.draw(1)[0])
        places = self._turns(int(self._camera_of_row[anchor]), count - 1)
        hand = np.empty(count, np.int64)
        hand[0] = self._rows[anchor]
        for camera in np.unique(places):
            hand[1:][places == camera] = self._by_camera[camera].draw(int((places == camera).sum()))
        return hand

    def _turns(self, anchor_camera: int, count: int) -> Int64[ndarray, "count"]:
        """The camera of each companion: one per camera in turn until all their images are used, then again."""
        others = self._dice.permutation(np.delete(np.arange(len(self._sizes)), anchor_camera))
        turn = np.concatenate([np.arange(size) for size in self._sizes[others]])
        cycle = np.repeat(others, self._sizes[others])[np.argsort(turn, kind="stable")]
        return np.resize(cycle, count)
