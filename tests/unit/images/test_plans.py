"""Plans: exact cover, and the sampler's rules, checked against their definitions by a slow judge."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gracl.errors import ClusteringCollapsed
from gracl.images.plans import identity_plan, scan_plan
from gracl.types import EMPTY
from tests.naive.images import breaks_of_plan


@pytest.mark.parametrize(("images", "batch"), [(0, 4), (1, 4), (4, 4), (5, 4), (7, 1), (13, 5)])
def test_scan_shows_every_index_once_in_order(images: int, batch: int) -> None:
    plan = scan_plan(images, batch, epoch=3)
    places = plan.tickets.ravel()
    assert plan.epoch == 3
    assert places[:images].tolist() == list(range(images))
    assert (places[images:] == EMPTY).all()
    assert plan.tickets.shape == (-(-images // batch), batch)


def test_scan_refuses_impossible_sizes() -> None:
    with pytest.raises(ValueError, match="batch >= 1"):
        scan_plan(3, 0)
    with pytest.raises(ValueError, match="images >= 0"):
        scan_plan(-1, 4)


worlds = st.integers(0, 2**32 - 1).map(np.random.default_rng)


@settings(max_examples=60, deadline=None)
@given(
    dice=worlds,
    images=st.integers(1, 60),
    clusters=st.integers(1, 12),
    objects=st.integers(1, 7),
    per_object=st.integers(1, 6),
    steps=st.integers(1, 9),
    camera_count=st.integers(0, 4),
)
def test_sampler_keeps_its_rules(
    dice: np.random.Generator,
    images: int,
    clusters: int,
    objects: int,
    per_object: int,
    steps: int,
    camera_count: int,
) -> None:
    labels = dice.integers(-1, clusters, images)
    labels[0] = 3 * labels.max() + 3  # at least one cluster, and numbers with gaps
    cameras = dice.integers(-1, camera_count - 1, images) if camera_count else None
    plan = identity_plan(
        labels, epoch=2, objects=objects, images_per_object=per_object, steps=steps, cameras=cameras, seed=5
    )
    assert plan.tickets.shape == (steps, objects * per_object)
    assert breaks_of_plan(plan.tickets, labels, objects, per_object, cameras) == []


def test_the_judge_sees_what_is_wrong() -> None:
    labels, cameras = np.array([0, 0, 0, 1, 1, 1, -1]), np.array([0, 1, 2, 0, 1, 2, 0])
    right = np.array([[0, 1, 2, 3, 4, 5]])
    assert breaks_of_plan(right, labels, 2, 3, cameras) == []
    for wrong in ([0, 1, 2, 3, 4, 6], [0, 1, 3, 2, 4, 5], [0, 1, 2, 0, 1, 2], [0, 1, 1, 3, 4, 5]):
        assert breaks_of_plan(np.array([wrong]), labels, 2, 3, cameras)
        assert breaks_of_plan(np.array([wrong]), labels, 2, 3, None)
    same_camera = np.array([0, 0, 1, 0, 1, 2, 0])
    assert breaks_of_plan(right, labels, 2, 3, same_camera)


def test_same_inputs_same_plan_other_epoch_other_plan() -> None:
    labels = np.arange(40) % 10
    options = {"objects": 4, "images_per_object": 2, "steps": 6}
    first = identity_plan(labels, epoch=1, seed=3, **options).tickets
    assert (first == identity_plan(labels, epoch=1, seed=3, **options).tickets).all()
    assert (first != identity_plan(labels, epoch=2, seed=3, **options).tickets).any()
    assert (first != identity_plan(labels, epoch=1, seed=4, **options).tickets).any()


def test_plan_without_cameras_knows_nothing_of_them() -> None:
    labels = np.repeat(np.arange(6), 8)
    one_camera = np.zeros(48, np.int64)
    free = identity_plan(labels, epoch=0, objects=3, images_per_object=4, steps=4)
    blind = identity_plan(labels, epoch=0, objects=3, images_per_object=4, steps=4, cameras=one_camera)
    assert set(free.tickets.ravel()) <= set(range(48))
    assert all(len(set(row)) == 12 for row in blind.tickets)  # one camera: companions from the anchor's own, all new


def test_companions_take_turns_among_the_other_cameras() -> None:
    labels, cameras = np.zeros(40, np.int64), np.repeat(np.arange(5), 8)
    plan = identity_plan(labels, epoch=0, objects=1, images_per_object=9, steps=30, cameras=cameras)
    for row in plan.tickets:
        anchor, companions = cameras[row[0]], cameras[row[1:]]
        assert anchor not in companions
        assert len(set(companions[:4])) == 4
        assert (companions[:4] == companions[4:]).all()


def test_companions_repeat_when_other_cameras_have_too_few() -> None:
    labels, cameras = np.zeros(9, np.int64), np.array([0] * 8 + [1])
    plan = identity_plan(labels, epoch=0, objects=1, images_per_object=5, steps=40, cameras=cameras)
    for row in plan.tickets:
        assert (row[1:] == 8).all() if row[0] != 8 else len(set(row)) == 5


def test_every_image_of_every_cluster_is_seen() -> None:
    labels = np.repeat(np.arange(4), [1, 5, 9, 17])
    plan = identity_plan(labels, epoch=0, objects=4, images_per_object=3, steps=6)
    assert set(plan.tickets.ravel()) == set(range(32))


def test_rows_are_shared_in_whole_clusters() -> None:
    labels = np.repeat(np.arange(8), 4)
    plan = identity_plan(labels, epoch=0, objects=8, images_per_object=4, steps=5)
    for rank in range(2):
        blocks = labels[plan.share(rank, 2)].reshape(5, 4, 4)
        assert (blocks == blocks[..., :1]).all()


def test_nothing_but_noise_is_refused() -> None:
    for labels in (np.full(5, -1), np.empty(0, np.int64)):
        with pytest.raises(ClusteringCollapsed, match="all noise"):
            identity_plan(labels, epoch=0)


def test_wrong_sizes_are_refused() -> None:
    labels = np.zeros(4, np.int64)
    for wrong in ("objects", "images_per_object", "steps"):
        with pytest.raises(ValueError, match=f"{wrong}=0"):
            identity_plan(labels, epoch=0, **{wrong: 0})
    with pytest.raises(Exception, match="cameras"):  # by the shape in the signature here, by a ValueError in use
        identity_plan(labels, epoch=0, cameras=np.zeros(3, np.int64))


def test_very_many_clusters_are_not_walked_through() -> None:
    labels = np.arange(300_000) // 3
    plan = identity_plan(labels, epoch=0, cameras=np.arange(300_000) % 3)
    assert plan.tickets.shape == (200, 256)
    assert len(np.unique(labels[plan.tickets])) == 3200
