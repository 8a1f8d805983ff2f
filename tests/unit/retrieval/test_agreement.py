import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gracl.retrieval.agreement import agreement, purity
from tests.naive import agreement as naive

cases = st.lists(st.tuples(st.integers(-1, 4), st.integers(-1, 4)), max_size=20)


def arrays(*columns):
    return [np.array(column, np.int64) for column in columns]


@settings(max_examples=200, deadline=None)
@given(cases)
def test_figures_equal_the_definitions(rows):
    labels, objects = zip(*rows, strict=True) if rows else ((), ())
    figures = agreement(*arrays(labels, objects))
    known = [pair for pair in rows if pair[1] != -1]
    clustered = [pair for pair in known if pair[0] != -1]
    if not known:
        assert figures == {}
        return
    alone = [label if label != -1 else 100 + place for place, (label, _) in enumerate(known)]
    wanted = {
        "ari_all": naive.adjusted_rand_index(alone, [pair[1] for pair in known]),
        "objects": len({pair[1] for pair in known}),
    }
    if clustered:
        columns = [list(column) for column in zip(*clustered, strict=True)]
        wanted |= {
            "ari": naive.adjusted_rand_index(*columns),
            "nmi": naive.normalized_mutual_information(*columns),
            "purity": naive.purity(*columns),
        }
    assert figures == pytest.approx(wanted, abs=1e-9)


def test_the_true_partition_under_other_names_agrees_wholly():
    figures = agreement(*arrays([2, 2, 0, 0, 1], [7, 7, 9, 9, 8]))
    assert figures == pytest.approx({"ari": 1, "nmi": 1, "purity": 1, "ari_all": 1, "objects": 3})


def test_noise_counts_in_ari_all_alone():
    figures = agreement(*arrays([0, 0, 1, 1, -1, -1], [7, 7, 9, 9, 7, 9]))
    assert (figures["ari"], figures["purity"]) == (1, 1)
    assert 0 < figures["ari_all"] < 1


def test_all_noise_leaves_what_counts_noise():
    assert agreement(*arrays([-1, -1, -1], [1, 1, 2])) == {"ari_all": 0, "objects": 2}


def test_one_cluster_is_as_pure_as_its_largest_object():
    assert purity(*arrays([0, 0, 0, 0], [1, 1, 1, 2])) == 0.75


def test_the_labels_are_left_as_they_were():
    labels, objects = arrays([0, -1], [1, 1])
    agreement(labels, objects)
    assert labels.tolist() == [0, -1]
