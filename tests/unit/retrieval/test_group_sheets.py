"""Which groups are shown, and how large groups are."""

import io

import numpy as np
import pytest
from PIL import Image

from gracl.randomness import rng
from gracl.retrieval.group_sheets import groups_to_show, mean_confidences, sizes_chart


def drawn(seed, images=80, groups=9):
    dice = rng(seed, "groups")
    labels = dice.integers(-1, groups, images)
    labels[:groups] = np.arange(groups)
    confidence = np.where(labels < 0, 0, dice.integers(0, 5, images) / 4).astype(np.float32)
    centres = np.array([np.flatnonzero(labels == one)[-1] for one in range(groups)])
    return labels, confidence, centres, dice.integers(0, 3, images)


@pytest.mark.parametrize("seed", range(8))
def test_the_groups_shown_are_the_extreme_ones(seed):
    labels, confidence, centres, cameras = drawn(seed)
    sizes = {one: int((labels == one).sum()) for one in range(9)}
    sure = {one: float(confidence[labels == one].astype(np.float64).mean()) for one in range(9)}
    np.testing.assert_allclose(mean_confidences(labels, confidence), list(sure.values()))
    found = groups_to_show(labels, confidence, centres, cameras, each=3, members=4)
    for kind, measure in (
        ("largest", {one: -size for one, size in sizes.items()}),
        ("least sure", sure),
        ("surest", {one: -value for one, value in sure.items()}),
    ):
        assert [one.group for one in found[kind]] == sorted(measure, key=lambda one: (measure[one], one))[:3]
        for one in found[kind]:
            mine = set(np.flatnonzero(labels == one.group).tolist())
            assert one.centre == centres[one.group]
            assert set(one.members.tolist()) <= mine - {one.centre}
            assert len(one.members) == min(4, len(mine) - 1)
            assert (np.diff(confidence[one.members]) >= 0).all()
            assert one.size == len(mine)
            assert one.cameras == len(set(cameras[sorted(mine)].tolist()))
            assert one.confidence == pytest.approx(sure[one.group])


def test_members_go_from_the_least_sure_to_the_surest():
    labels, confidence = np.zeros(30, np.int64), np.linspace(1, 0, 30).astype(np.float32)
    (one,) = groups_to_show(labels, confidence, np.array([4]), np.full(30, -1), members=3)["all"]
    assert one.members.tolist() == [29, 15, 0]
    assert one.cameras == 0


def test_few_groups_are_one_sheet_and_one_image_has_no_others():
    labels = np.array([0, 0, 1, -1])
    found = groups_to_show(labels, np.ones(4, np.float32), np.array([0, 2]), np.zeros(4, np.int64))
    assert list(found) == ["all"]
    assert [one.members.tolist() for one in found["all"]] == [[1], []]


@pytest.mark.parametrize("sizes", [[1], [4] * 50, [20_000, 300, 9, 4, 4]])
def test_the_chart_is_a_picture(sizes):
    picture = Image.open(io.BytesIO(sizes_chart(np.array(sizes))))
    assert picture.size[0] > 300
    assert len(set(picture.convert("L").tobytes())) > 10
