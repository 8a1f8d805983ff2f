"""Groups of surroundings: planted ones are found, and each image is in the group whose mean is nearest."""

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from gracl.errors import GraclError
from gracl.randomness import rng
from gracl.relations import surroundings
from gracl.relations.surroundings import group_surroundings


def planted(groups=5, images=40, spread=0.02, seed=0):
    """Images of some places, in no order: their edges, and which place each has."""
    dice = rng(seed, "planted")
    places = dice.uniform(0, 1, (groups, 24))
    truth = dice.permutation(np.repeat(np.arange(groups), images))
    return (places[truth] + dice.normal(0, spread, (len(truth), 24))).astype(np.float32), truth


def same_partition(one, other):
    return (
        len(set(zip(one.tolist(), other.tolist(), strict=True))) == len(set(one.tolist())) == len(set(other.tolist()))
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_places_are_found(seed):
    edges, truth = planted(seed=seed)
    found = group_surroundings(edges, groups=5, seed=seed)
    assert found.dtype == np.int64
    assert same_partition(found, truth)


def test_each_image_is_where_the_mean_is_nearest():
    """The naive twin: a step of Lloyd's algorithm in loops moves nobody."""
    edges = rng(3, "noise").uniform(0, 1, (120, 24)).astype(np.float32)
    found = group_surroundings(edges, groups=6)
    rows = [[float(value) for value in row] for row in (edges - edges.mean(0)) / edges.std(0)]
    members = {group: [row for row, label in zip(rows, found, strict=True) if label == group] for group in range(6)}
    means = {group: [sum(column) / len(own) for column in zip(*own, strict=True)] for group, own in members.items()}
    for row, label in zip(rows, found.tolist(), strict=True):
        far = {group: sum((a - b) ** 2 for a, b in zip(row, mean, strict=True)) for group, mean in means.items()}
        assert min(far, key=far.__getitem__) == label


def test_a_column_counts_as_much_as_any_other_whatever_its_scale():
    edges, truth = planted(groups=2)
    loud = edges.copy()
    loud[:, 0] = rng(4, "loud").uniform(0, 1, len(edges)) * 1000
    assert same_partition(group_surroundings(loud, groups=2), truth)


def test_threads_and_repetition_change_nothing():
    edges = rng(5, "noise").uniform(0, 1, (3000, 24)).astype(np.float32)
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            found.append(group_surroundings(edges, groups=9, seed=4))
    np.testing.assert_array_equal(*found)
    assert not same_partition(found[0], group_surroundings(edges, groups=9, seed=5))


def test_more_images_than_a_sample_are_given_to_the_nearest_of_its_centres(monkeypatch):
    monkeypatch.setattr(surroundings, "SAMPLE", 60)
    edges, truth = planted(images=100)
    assert same_partition(group_surroundings(edges, groups=5), truth)


def test_fewer_different_pictures_than_groups_make_fewer_groups():
    edges, truth = planted(groups=3, spread=0)
    assert same_partition(group_surroundings(edges, groups=8), truth)


def test_pictures_whose_edges_are_all_alike_are_refused():
    with pytest.raises(GraclError, match="pictures whose edges differ.*gracl_plus"):
        group_surroundings(np.full((50, 24), 0.9, np.float32), groups=4)


def test_what_cannot_be_grouped_is_refused():
    edges, _ = planted(groups=2, images=2)
    with pytest.raises(GraclError, match="as many images as the 5 groups.*lower surroundings.groups"):
        group_surroundings(edges, groups=5)
    edges[1, 3] = np.nan
    with pytest.raises(GraclError, match="finite colours"):
        group_surroundings(edges, groups=2)
