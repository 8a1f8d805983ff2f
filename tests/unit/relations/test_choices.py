"""What the inter proxy is compared with (A), in which space (K), and who cannot become a proxy (L)."""

import itertools

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from gracl.config import TrainConfig
from gracl.errors import ConfigError, GraclError
from gracl.randomness import rng
from gracl.relations import rules
from gracl.relations.choices import check_rules
from gracl.relations.lists import invert
from gracl.relations.proxies import mine_proxies
from gracl.relations.trimming import able_members
from tests.clustered import case, errors_of_proposals, lists_of, mixed, random_weights
from tests.naive import proxies as naive
from tests.naive import relations

INTER = ["mean", "cluster_mean", "nearest_sample", "nearest_centroids", "log_sum_exp"]
FOREIGN = ["samples", "centroids", "proxies", "noise_too"]
PAIRS = [
    pair
    for pair in itertools.product(FOREIGN, INTER)
    if pair not in (("centroids", "cluster_mean"), ("centroids", "nearest_centroids"))
]
NEW = [pair for pair in PAIRS if pair[0] != "samples"]
IN_JACCARD = [pair for pair in PAIRS if pair[0] != "centroids" and pair[1] in INTER[:3]]
DEFAULTS = {
    "inter_rule": "mean",
    "intra_rule": "mean",
    "foreign": "samples",
    "space": "cosine",
    "centroids": 10,
    "rule_temperature": 0.05,
    "trim": 0.0,
}


def images(found):
    return found.inter_image.tolist(), found.intra_image.tolist()


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize(("foreign", "rule"), NEW)
def test_foreign_items_are_those_by_definition(foreign, rule, seed):
    features, labels = mixed(seed)
    count, temperature = 1 + seed % 4, (0.05, 0.5, 0.01)[seed % 3]
    expect = naive.proxies(features, labels, rule, "mean", count, temperature, foreign)
    options = {"inter_rule": rule, "foreign": foreign, "centroids": count, "rule_temperature": temperature}
    found = mine_proxies(features, labels, block_rows=1 + seed % 9, **options)
    assert images(found) == expect
    np.testing.assert_array_equal(found.inter, features[expect[0]])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("foreign", "rule"), NEW)
def test_settles_what_float32_cannot_tell(foreign, rule, seed):
    features, labels = case(100 + seed, 40, clusters=4, dim=12, spread=1e-5, copies=8)
    options = {"inter_rule": rule, "foreign": foreign, "trim": 0.2}
    found = mine_proxies(features, labels, intra_rule="minimum", **options)
    assert images(found) == naive.proxies(features, labels, rule, "minimum", foreign=foreign, trim=0.2)


@pytest.mark.parametrize("rule", INTER)
def test_the_foreign_sets_differ(rule):
    features, labels = case(7, 400, clusters=20, dim=8, noise=0.4)
    asked = [foreign for foreign, one in PAIRS if one == rule]
    found = {tuple(mine_proxies(features, labels, inter_rule=rule, foreign=one).inter_image) for one in asked}
    assert len(found) == len(asked)


@pytest.mark.parametrize("rule", INTER)
def test_without_noise_its_images_change_nothing(rule):
    features, labels = case(8, 120, clusters=9, dim=8, noise=0)
    one, other = (mine_proxies(features, labels, inter_rule=rule, foreign=foreign) for foreign in FOREIGN[::3])
    assert images(one) == images(other)


@pytest.mark.parametrize(("foreign", "rule"), NEW)
def test_one_cluster_has_nothing_foreign_but_noise(foreign, rule):
    features, _ = case(9, 7, clusters=1)
    options = {"inter_rule": rule, "foreign": foreign, "intra_rule": "minimum"}
    for labels in ([-1, 0, 0, -1, 0, 0, 0], [0] * 7, [-1, -1, 0, -1, -1, -1, -1]):
        expect = naive.proxies(features, labels, rule, "minimum", foreign=foreign)
        assert images(mine_proxies(features, np.array(labels), **options)) == expect
    assert mine_proxies(features, np.full(7, -1), **options).inter.shape == (0, 5)


@pytest.mark.parametrize("trim", [0.0, 0.3])
@pytest.mark.parametrize(("foreign", "rule"), NEW)
def test_depends_on_neither_threads_nor_blocks_nor_the_precision_of_rows(foreign, rule, trim):
    features, labels = case(10, 200, clusters=15, dim=130, spread=0.3, copies=50)
    features = features.astype(np.float16)
    options = {"inter_rule": rule, "intra_rule": "minimum", "foreign": foreign, "trim": trim, "device": "cpu"}
    reference = mine_proxies(features.astype(np.float32), labels, threads=1, **options)
    for other in ({"threads": 3}, {"block_rows": 9, "threads": 2}, {"block_rows": 64}):
        found = mine_proxies(features, labels, **options, **other)
        for name in ("inter", "intra", "inter_image", "intra_image", "cluster_sums"):
            np.testing.assert_array_equal(getattr(found, name), getattr(reference, name))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("foreign", ["proxies", "noise_too"])
def test_lists_of_neighbours_change_no_proxy(foreign, seed):
    features, labels = mixed(seed)
    options = {"inter_rule": "nearest_sample", "foreign": foreign, "trim": (0.0, 0.4)[seed % 2]}
    expect = mine_proxies(features, labels, **options)
    for k in (2, 6):
        lists = rules.Neighbors(*relations.nearest(features, min(k, len(features))))
        assert images(mine_proxies(features, labels, neighbors=lists, **options)) == images(expect)


@pytest.mark.parametrize("dim", [3, 64, 700])
@pytest.mark.parametrize(("foreign", "rule"), [pair for pair in NEW if pair[1] in INTER[2:]])
def test_proposals_are_within_their_bounds(foreign, rule, dim, monkeypatch):
    features, labels = case(15, 120, clusters=8, dim=dim, spread=0.5)
    off = errors_of_proposals(monkeypatch)
    for half, temperature in itertools.product((False, True), (1e-6, 0.05, 100.0)):
        given = features.astype(np.float16) if half else features
        options = {"inter_rule": rule, "foreign": foreign, "rule_temperature": temperature}
        mine_proxies(given, labels, block_rows=60, **options)
    assert len(off) == (12 if foreign == "proxies" else 6)
    assert max(part.max() for part in off) > 0


def graph_of(full, names=None):
    """Dense weights of images as a graph whose rows stand for these images."""
    names = np.arange(len(full)) if names is None else names
    weights = lists_of(full[names][:, names])._replace(names=names)
    return weights, invert(weights)


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize(("foreign", "rule"), IN_JACCARD)
def test_proxies_on_the_graph_are_those_by_definition(foreign, rule, seed):
    features, labels = mixed(seed)
    intra, trim = ("mean", "minimum")[seed // 2 % 2], (0.0, 0.3, 0.45)[seed % 3]
    full = random_weights(seed, len(labels), copies=len(labels) // 2 if seed % 2 else 0)
    graph, similarity = graph_of(full, rng(seed, "names").permutation(len(full))), naive.jaccard_similarity(full)
    expect = naive.proxies(features, labels, rule, intra, foreign=foreign, trim=trim, similarity=similarity)
    options = {"inter_rule": rule, "intra_rule": intra, "foreign": foreign, "trim": trim, "space": "jaccard"}
    found = mine_proxies(features, labels, graph=graph, **options)
    assert images(found) == expect
    np.testing.assert_array_equal(found.inter, features[expect[0]])
    np.testing.assert_array_equal(found.intra, features[expect[1]])


def test_members_without_a_shared_neighbour_are_not_alike():
    """0, 1, 2 share all they have, and so do 6, 7, 8; 3, 4 and 5 share with nobody, so that lowest scores are 0."""
    full = np.kron(np.diag([1.0, 0, 1]), np.full((3, 3), 1 / 3)) + np.diag([0, 0, 0, 1, 1, 1, 0, 0, 0])
    labels = np.array([0, 0, 1, 0, 1, 1, 1, 1, 1])
    graph = graph_of(full.astype(np.float32))
    features, _ = case(20, 9, clusters=1)
    for intra, expect in (("mean", [3, 2]), ("minimum", [0, 2])):
        options = {"space": "jaccard", "graph": graph, "intra_rule": intra}
        found = mine_proxies(features, labels, inter_rule="nearest_sample", **options)
        assert images(found) == ([3, 4], expect)


def test_the_graph_is_read_alike_by_any_number_of_threads():
    features, labels = case(21, 900, clusters=30, noise=0.3)
    graph = graph_of(random_weights(3, 900, copies=200))
    for foreign, rule in IN_JACCARD:
        options = {"inter_rule": rule, "foreign": foreign, "space": "jaccard", "graph": graph}
        one, three = (mine_proxies(features, labels, trim=0.1, threads=threads, **options) for threads in (1, 3))
        assert images(one) == images(three)


def test_refuses_a_missing_graph_and_that_of_other_images():
    features, labels = case(22, 10, clusters=2)
    with pytest.raises(ConfigError, match="space=jaccard; came none"):
        mine_proxies(features, labels, space="jaccard")
    with pytest.raises(GraclError, match="9 labels; came 10"):
        mine_proxies(features, labels, space="jaccard", graph=graph_of(np.eye(9, dtype=np.float32)))


@pytest.mark.parametrize("seed", range(35))
@pytest.mark.parametrize("rule", ["mean", "minimum"])
def test_trimmed_proxies_are_those_by_definition(rule, seed):
    features, labels = mixed(seed)
    inter = INTER[seed % 5]
    for trim in (0.05, 0.25, 0.49):
        found = mine_proxies(features, labels, inter_rule=inter, intra_rule=rule, trim=trim, block_rows=1 + seed % 9)
        assert images(found) == naive.proxies(features, labels, inter, rule, trim=trim)


def able(own, labels, trim):
    labels = np.array(labels)
    return able_members(np.array(own, float), labels, np.bincount(labels[labels >= 0]), trim).tolist()


def test_who_is_trimmed():
    labels = [0, 0, 0, -1, 1, 1, 1, 2, 0, 1]
    own = [0.5, 0.1, 0.7, -9, 0.9, 0.1, 0.2, 0, 0.8, 0.95]
    assert able(own, labels, 0.0) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert able(own, labels, 0.11) == [0, 1, 2, 4, 5, 6, 7, 8, 9]  # 0.11 x 9 is no whole image
    assert able(own, labels, 0.12) == [0, 2, 4, 5, 6, 7, 8, 9]  # 1 and 5 are equal: the lower goes
    assert able(own, labels, 0.34) == [0, 2, 4, 7, 8, 9]  # 7 is alone, and has no own similarity
    # Rounding is no order: 5 is lower than 1 by less than what counts.
    own[5] -= 1e-13
    assert able(own, labels, 0.12) == [0, 2, 4, 5, 6, 7, 8, 9]
    own[5] -= 1e-11
    assert able(own, labels, 0.12) == [0, 1, 2, 4, 6, 7, 8, 9]


def test_the_last_of_a_cluster_stays_and_nobody_goes_in_its_place():
    labels = [0, 0, 1, 1, 1, 1, 1]
    assert able([0.2, 0.1, 0.5, 0.6, 0.7, 0.8, 0.9], labels, 0.3) == [0, 2, 3, 4, 5, 6]
    # Both images of a pair are equal: the higher index stays.
    assert able([0.1, 0.1, 0.5, 0.6, 0.7, 0.8, 0.9], labels, 0.3) == [1, 2, 3, 4, 5, 6]
    assert able([0.1, 0.1, 0.05, 0.6, 0.7, 0.8, 0.9], labels, 0.45) == [1, 3, 4, 5, 6]
    assert able([0, 0, 0, 0, 0], [0, 1, 2, 3, -1], 0.49) == [0, 1, 2, 3]


def test_a_trimmed_outlier_is_no_proxy():
    features, labels = case(30, 60, clusters=3, dim=8, noise=0, spread=0.2)
    features[4], labels[4] = -features[4], 0
    assert mine_proxies(features, labels).intra_image[0] == 4
    found = mine_proxies(features, labels, trim=0.02)
    assert 4 not in (found.intra_image[0], found.inter_image[0])
    np.testing.assert_array_equal(found.cluster_sums, mine_proxies(features, labels).cluster_sums)


def accepted(asked):
    """Whether the library takes these choices, and whether the config does."""
    try:
        check_rules(**DEFAULTS | asked, block_rows=1)
    except ConfigError:
        below = False
    else:
        below = True
    try:
        TrainConfig(data={"root": "x"}, relations=asked)
    except ValidationError:
        return below, False
    return below, True


def test_library_and_config_refuse_the_same():
    taken = set()
    for foreign, rule, space in itertools.product(FOREIGN, INTER, ("cosine", "jaccard")):
        asked = {"foreign": foreign, "inter_rule": rule, "space": space}
        below, above = accepted(asked)
        assert below == above, asked
        if below:
            taken.add((foreign, rule, space))
    expect = {(*pair, "cosine") for pair in PAIRS} | {(*pair, "jaccard") for pair in IN_JACCARD}
    assert taken == expect
    for trim, good in ((0.0, True), (0.499, True), (0.5, False), (-0.01, False), (float("nan"), False)):
        assert accepted({"trim": trim}) == (good, good)
    for unknown in ({"foreign": "everyone"}, {"space": "euclidean"}):
        assert accepted(unknown) == (False, False)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"foreign": "others"}, "foreign among samples, centroids"),
        ({"space": "l2"}, "space among cosine, jaccard"),
        ({"foreign": "centroids", "inter_rule": "cluster_mean"}, "take mean for cluster_mean"),
        ({"space": "jaccard", "foreign": "centroids"}, "a centroid has no neighbours"),
        ({"space": "jaccard", "inter_rule": "log_sum_exp"}, "cluster_mean, nearest_sample and foreign without"),
        ({"trim": 0.5}, "0 <= trim < 0.5"),
    ],
)
def test_refusals_say_what_goes_together(bad, says):
    with pytest.raises(ConfigError, match=says):
        check_rules(**DEFAULTS | bad, block_rows=1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("foreign", "rule"), NEW)
def test_gpu_gives_the_proxies_of_the_cpu(foreign, rule):
    features, labels = case(14, 3000, clusters=150, dim=256, spread=0.3, copies=500)
    options = {"inter_rule": rule, "foreign": foreign, "intra_rule": "minimum", "trim": 0.05, "block_rows": 700}
    reference = mine_proxies(features, labels, device="cpu", **options)
    assert images(mine_proxies(features, labels, device="cuda", **options)) == images(reference)
