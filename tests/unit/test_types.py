import numpy as np
import pytest

from gracl.errors import CoverageError
from gracl.types import EpochReport, FeatureTable, Plan, RetrievalReport


def test_shares_of_all_ranks_are_the_plan():
    tickets = np.arange(24).reshape(3, 8)
    plan = Plan(epoch=0, tickets=tickets)
    for ranks in (1, 2, 4):
        shares = [plan.share(rank, ranks) for rank in range(ranks)]
        np.testing.assert_array_equal(np.concatenate(shares, axis=1), tickets)


def test_a_plan_that_ranks_cannot_share_is_refused():
    with pytest.raises(ValueError, match="3 ranks can share equally; came 8 places"):
        Plan(epoch=0, tickets=np.zeros((1, 8), np.int64)).share(0, 3)


def part(*indices):
    return FeatureTable(np.array(indices, np.int64), np.array([[index] for index in indices], np.float32))


def test_gather_puts_every_row_at_its_index():
    table = FeatureTable.gather([part(2, 0), part(1)], 3)
    np.testing.assert_array_equal(table, [[0], [1], [2]])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([part(0, 1)], "1 missing \\[2\\], 0 repeated"),
        ([part(0, 1), part(1, 2)], "0 missing \\[\\], 1 repeated \\[1\\]"),
        ([part(0, 1, 3)], "indices from 0 to 2; came 0 to 3"),
        ([], "3 missing"),
    ],
)
def test_gather_demands_every_image_once(parts, message):
    with pytest.raises(CoverageError, match=message):
        FeatureTable.gather(parts, 3)


def test_a_report_names_its_figures_as_mlflow_sees_them():
    judged = RetrievalReport(0.5, 0.25, {1: 0.75}, 4, 0, *np.zeros((2, 4), np.float32), np.ones(4, bool))
    report = EpochReport(
        0, 1.0, 0.5, 0.5, 0.0, 0.0, 7, 0.1, 100.0, {"scan": 2.0}, {"knn_s": 1.0}, {"plan": 9}, judged, judged
    )
    figures = report.metrics()
    assert figures["epoch"] == 1
    assert figures["val/mAP"] == figures["untrained/mAP"] == 0.5
    assert figures["val/mINP"] == figures["untrained/mINP"] == 0.25
    assert figures["val/rank1"] == 0.75
    assert figures["cluster/number"] == 7
    assert figures["time/scan_s"] == 2.0
    assert figures["check/plan"] == 9
