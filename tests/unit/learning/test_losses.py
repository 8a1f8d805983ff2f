from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gracl.errors import CheckpointError, ConfigError
from gracl.learning import camera_bank
from gracl.learning.losses import ProxyContrast, proxy_loss
from gracl.relations.camera_proxies import mine_camera_proxies
from gracl.types import Assignment, Consensus, Instances, Proxies
from tests.naive import extras as naive_extras
from tests.naive import losses as naive


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def world(seed, *, clusters=5, members=6, dim=8):
    """An assignment of random unit features, its proxies drawn among the members."""
    dice = np.random.default_rng(seed)
    features = unit(dice.normal(size=(clusters * members, dim)) + 0.5)
    labels = np.repeat(np.arange(clusters), members)
    sums = np.stack([features[labels == cluster].sum(0) for cluster in range(clusters)])
    inter = np.arange(clusters) * members
    intra = inter + 1
    proxies = Proxies(features[inter], features[intra], inter, intra, sums)
    return Assignment(0, labels, proxies)


def extended(seed, *, each=4, members=6):
    """The same with instances and with a consensus in which some say nothing."""
    assignment, dice = world(seed, members=members), np.random.default_rng([seed, 2])
    images = np.stack([dice.choice(np.flatnonzero(assignment.labels == c), each) for c in range(assignment.clusters)])
    features = unit(dice.normal(size=(len(assignment.labels), 8)))
    clusters = np.stack([dice.permutation(assignment.clusters)[:3] for _ in assignment.labels]).astype(np.int32)
    shares = dice.random(clusters.shape).astype(np.float32)
    clusters[::4, 2], shares[::4, 2] = -1, 0
    shares /= shares.sum(1, keepdims=True)
    clusters[5], shares[5] = -1, 0
    return replace(
        assignment, instances=Instances(images, features[np.unique(images)]), consensus=Consensus(clusters, shares)
    ), features


def batch(seed, *, clusters=5, rows=12, dim=8):
    dice = np.random.default_rng([seed, 1])
    return unit(dice.normal(size=(rows, dim))), dice.integers(0, clusters, rows)


def begun(assignment, **options):
    criterion = ProxyContrast(**options)
    criterion.begin_epoch(assignment, "cpu")
    return criterion


def tensors(features, labels):
    return torch.tensor(features), torch.tensor(labels)


def shown(features, labels):
    """The features, and images of a `world` that have these labels."""
    return torch.as_tensor(features), images_of(torch.as_tensor(labels))


def images_of(labels, *, members=6):
    return labels * members + torch.arange(len(labels)) % members


@pytest.mark.parametrize("seed", range(5))
def test_terms_equal_the_double_loop(seed):
    assignment, (features, labels) = world(seed), batch(seed)
    criterion = begun(assignment, inter_temperature=0.07, intra_temperature=0.2, intra_weight=0.3)
    terms = criterion(*shown(features, labels))
    inter = naive.term(features, labels, assignment.proxies.inter, 0.07)
    intra = naive.term(features, labels, assignment.proxies.intra, 0.2)
    assert terms.inter.item() == pytest.approx(inter, rel=1e-5)
    assert terms.intra.item() == pytest.approx(intra, rel=1e-5)
    assert terms.loss.item() == pytest.approx(inter + 0.3 * intra, rel=1e-5)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("momentum", [0.0, 0.1, 0.9])
def test_update_equals_the_double_loop(seed, momentum):
    assignment, (features, labels) = world(seed), batch(seed)
    criterion = begun(assignment, momentum=momentum)
    proxies = assignment.proxies
    batch_of = (proxies.cluster_sums, features, labels, momentum)
    inter = naive.followed("selected", "foreign_sum", proxies.inter, *batch_of)
    intra = naive.followed("selected", "own_sum", proxies.intra, *batch_of)
    criterion.update(*shown(features, labels))
    np.testing.assert_allclose(criterion.inter.numpy(), inter, atol=1e-6)
    np.testing.assert_allclose(criterion.intra.numpy(), intra, atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_both_banks_as_negatives_equal_the_double_loop(seed):
    assignment, (features, labels) = world(seed), batch(seed)
    criterion = begun(assignment, intra_temperature=0.2, inter_weight=0.5, negatives="both")
    terms = criterion(*shown(features, labels))
    inter, intra = assignment.proxies.inter, assignment.proxies.intra
    one = naive.term_with_both(features, labels, inter, intra, 0.05)
    other = naive.term_with_both(features, labels, intra, inter, 0.2)
    assert terms.inter.item() == pytest.approx(one, rel=1e-5)
    assert terms.intra.item() == pytest.approx(other, rel=1e-5)
    assert terms.loss.item() == pytest.approx(0.5 * one + other, rel=1e-5)


@pytest.mark.parametrize("inter", [True, False])
def test_a_term_without_weight_is_told_and_gives_no_gradient(inter):
    features, labels = tensors(*batch(2))
    criterion = begun(world(2), **{"inter_weight" if inter else "intra_weight": 0.0})
    features.requires_grad_()
    terms = criterion(features, images_of(labels))
    terms.loss.backward()
    alone = features.detach().clone().requires_grad_()
    bank = criterion.intra if inter else criterion.inter
    proxy_loss(alone, labels, bank, 0.05).backward()
    assert torch.equal(features.grad, alone.grad)
    assert min(terms.inter.item(), terms.intra.item()) > 0


def test_the_two_branches_choose_by_their_own_rule():
    # Cluster 0 points to x; the others sum up to -x + y. Row 0 is far from its own, row 1 far from the others.
    sums = np.array([[2, 0, 0], [-1, 1, 0]], np.float32)
    proxies = Proxies(unit(sums), unit(sums), np.array([0, 1]), np.array([0, 1]), sums)
    criterion = begun(Assignment(0, np.array([0, 1]), proxies), momentum=0.0)
    rows = np.array([[0, 0, 1], [1, 0, 0]], np.float32)
    criterion.update(torch.tensor(rows), torch.tensor([0, 0]))
    np.testing.assert_array_equal(criterion.intra[0].numpy(), rows[0])
    np.testing.assert_array_equal(criterion.inter[0].numpy(), rows[1])


def test_absent_clusters_stay_and_all_rows_keep_length_one():
    assignment = world(3)
    features, labels = batch(3, clusters=2)
    criterion = begun(assignment)
    for _ in range(20):
        criterion.update(*shown(features, labels))
    np.testing.assert_array_equal(criterion.inter[2:].numpy(), assignment.proxies.inter[2:])
    np.testing.assert_array_equal(criterion.intra[2:].numpy(), assignment.proxies.intra[2:])
    assert (criterion.inter[:2] != torch.tensor(assignment.proxies.inter[:2])).any(1).all()
    for bank in (criterion.inter, criterion.intra):
        np.testing.assert_allclose(bank.norm(dim=1).numpy(), 1, atol=1e-6)


def test_the_assignment_is_copied_and_each_epoch_starts_from_its_own():
    assignment = world(0)
    before = assignment.proxies.inter.copy()
    criterion = begun(assignment)
    criterion.update(*shown(*batch(0)))
    np.testing.assert_array_equal(assignment.proxies.inter, before)
    other = world(1, clusters=3)
    criterion.begin_epoch(other, torch.device("cpu"))
    np.testing.assert_array_equal(criterion.inter.numpy(), other.proxies.inter)
    assert len(criterion.intra) == 3


def test_forward_and_backward_leave_the_banks_and_give_them_no_gradient():
    criterion = begun(world(0))
    features, labels = tensors(*batch(0))
    features.requires_grad_()
    before = criterion.inter.clone(), criterion.intra.clone()
    criterion(features, images_of(labels)).loss.backward()
    assert features.grad is not None
    assert features.grad.abs().sum() > 0
    for bank, old in zip((criterion.inter, criterion.intra), before, strict=True):
        assert not bank.requires_grad
        assert bank.grad is None
        assert torch.equal(bank, old)


def test_a_bank_that_asks_for_a_gradient_gets_none():
    bank = torch.eye(3, requires_grad=True)
    features = torch.eye(3, requires_grad=True)
    proxy_loss(features, torch.arange(3), bank, 0.5).backward()
    assert bank.grad is None


def test_update_carries_no_gradient():
    criterion = begun(world(0))
    features, labels = tensors(*batch(0))
    criterion.update(features.requires_grad_(), images_of(labels))
    assert not criterion.inter.requires_grad
    assert not criterion.intra.requires_grad


def test_without_intra_and_with_centroids_it_is_cluster_contrast_bit_for_bit():
    assignment = world(4)
    criterion = begun(assignment, intra_weight=0.0, inter_start="centroid", inter_update="every", momentum=0.1)
    bank = F.normalize(torch.tensor(assignment.proxies.cluster_sums), dim=1)
    for step in range(5):
        ours, labels = tensors(*batch(10 + step))
        theirs = ours.clone().requires_grad_()
        ours.requires_grad_()
        loss = criterion(ours, images_of(labels)).loss
        plain = F.cross_entropy(theirs @ bank.T / 0.05, labels)
        assert torch.equal(loss, plain)
        loss.backward()
        plain.backward()
        assert torch.equal(ours.grad, theirs.grad)
        criterion.update(ours, images_of(labels))
        for row, label in zip(theirs.detach(), labels.tolist(), strict=True):  # one instance after the other
            bank[label] = F.normalize(0.1 * bank[label] + 0.9 * row, dim=0)
        assert torch.equal(criterion.inter, bank)


def test_one_cluster_costs_nothing_and_still_moves():
    criterion = begun(world(0, clusters=1))
    features, _ = tensors(*batch(0))
    labels = torch.zeros(len(features), dtype=torch.int64)
    assert criterion(features, images_of(labels)).loss.item() == 0
    before = criterion.intra.clone()
    criterion.update(features, images_of(labels))
    assert not torch.equal(criterion.intra, before)


def test_terms_are_float32_and_exact_under_autocast():
    criterion = begun(world(0))
    features, labels = tensors(*batch(0))
    outside = criterion(features, images_of(labels)).loss
    with torch.autocast("cpu", torch.bfloat16):
        inside = criterion(features, images_of(labels)).loss
        low = criterion(features.bfloat16(), images_of(labels)).loss
    assert inside.dtype == low.dtype == torch.float32
    assert torch.equal(inside, outside)


@pytest.mark.parametrize(
    "options",
    [
        {"inter_temperature": 0.0},
        {"intra_temperature": -1.0},
        {"intra_weight": -0.1},
        {"inter_weight": -0.1},
        {"inter_weight": 0.0, "intra_weight": 0.0},
        {"momentum": 1.1},
        {"momentum": -0.1},
        {"instance_weight": -1.0},
        {"instance_temperature": 0.0},
        {"smoothing": 1.1},
        {"camera_weight": -1.0},
        {"camera_temperature": 0.0},
    ],
)
def test_options_out_of_bounds_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        ProxyContrast(**options)


@pytest.mark.parametrize("seed", range(6))
def test_the_instance_term_is_the_double_loop_and_its_rows_follow(seed):
    (assignment, rows), (features, labels) = extended(seed), batch(seed)
    criterion = begun(assignment, instance_weight=0.7, instance_temperature=0.3, momentum=0.2)
    images = images_of(torch.tensor(labels))
    for _ in range(3):
        terms = criterion(torch.tensor(features), images)
        wanted = naive_extras.instance_term(features, labels, assignment.instances.images, rows, 0.3)
        assert terms.instance.item() == pytest.approx(wanted, rel=1e-4)
        assert terms.loss.item() == pytest.approx((terms.inter + terms.intra + 0.7 * terms.instance).item(), rel=1e-6)
        criterion.update(torch.tensor(features), images)
        for z, image in zip(features, images.tolist(), strict=True):
            rows[image] = naive.towards(rows[image], z, 0.2)


@pytest.mark.parametrize("negatives", ["own", "both"])
@pytest.mark.parametrize("seed", range(3))
def test_soft_targets_are_the_double_loop(seed, negatives):
    (assignment, _), (features, labels) = extended(seed), batch(seed)
    images = images_of(torch.tensor(labels))
    images[0], labels[0] = 5, 0  # an image whose neighbours say nothing
    criterion = begun(assignment, smoothing=0.4, negatives=negatives, intra_temperature=0.2)
    terms = criterion(torch.tensor(features), images)
    told = assignment.consensus
    targets = [naive_extras.target(image, label, told, 0.4, 5) for image, label in zip(images, labels, strict=True)]
    np.testing.assert_allclose(np.sum(targets, 1), 1, rtol=1e-6)
    assert targets[0] == [1, 0, 0, 0, 0]
    banks = assignment.proxies.inter, assignment.proxies.intra
    more = banks[::-1] if negatives == "both" else (None, None)
    inter = naive_extras.soft_term(features, targets, banks[0], 0.05, more[0], labels)
    intra = naive_extras.soft_term(features, targets, banks[1], 0.2, more[1], labels)
    assert terms.inter.item() == pytest.approx(inter, rel=1e-5)
    assert terms.intra.item() == pytest.approx(intra, rel=1e-5)


def test_targets_as_hard_as_the_labels_give_the_plain_loss():
    (assignment, _), (features, labels) = extended(0), batch(0)
    sure = Consensus(assignment.labels[:, None].astype(np.int32), np.ones((len(assignment.labels), 1), np.float32))
    images = images_of(torch.tensor(labels))
    for negatives in ("own", "both"):
        soft = begun(replace(assignment, consensus=sure), smoothing=0.5, negatives=negatives)
        plain = begun(assignment, negatives=negatives)
        features = torch.tensor(features).requires_grad_()
        one, other = (criterion(features, images).loss for criterion in (soft, plain))
        assert one.item() == pytest.approx(other.item(), rel=1e-5)
        torch.testing.assert_close(*(torch.autograd.grad(loss, features)[0] for loss in (one, other)))
        features = features.detach().numpy()


def test_the_instance_term_pulls_to_the_hardest_and_gives_its_rows_no_gradient():
    assignment, rows = extended(1)
    tau, images = 0.3, assignment.instances.images
    options = {"instance_weight": 1.0, "instance_temperature": tau, "inter_weight": 0.0, "intra_weight": 0.0}
    criterion = begun(assignment, **options)
    z = torch.tensor(unit(np.random.default_rng(9).normal(size=(1, 8)))).requires_grad_()
    criterion(z, torch.tensor([0])).loss.backward()
    similar = rows[images] @ z.detach().numpy()[0]
    places = [similar[0].argmin(), *similar[1:].argmax(1)]
    chosen = rows[images[np.arange(5), places]].astype(np.float64)
    shares = np.exp(chosen @ z.detach().numpy()[0] / tau)
    wanted = ((shares / shares.sum() - np.eye(5)[0]) @ chosen) / tau
    np.testing.assert_allclose(z.grad[0].numpy(), wanted, atol=1e-5)
    assert not criterion._instances.rows.requires_grad


def in_cameras(seed, *, cameras=3):
    """A world with camera proxies: cluster 0 is seen by one camera alone."""
    assignment, dice = world(seed), np.random.default_rng([seed, 3])
    where = np.where(assignment.labels == 0, 1, dice.integers(0, cameras, len(assignment.labels)))
    features = unit(dice.normal(size=(len(assignment.labels), 8)))
    return replace(assignment, camera_proxies=mine_camera_proxies(features, assignment.labels, where, threads=1)), where


@pytest.mark.parametrize("negatives", [50, 2])
@pytest.mark.parametrize("seed", range(4))
def test_the_camera_term_is_the_double_loop_and_its_rows_follow(seed, negatives, monkeypatch):
    monkeypatch.setattr(camera_bank, "NEGATIVES", negatives)
    (assignment, where), (features, labels) = in_cameras(seed), batch(seed)
    criterion = begun(assignment, camera_weight=0.6, camera_temperature=0.3, momentum=0.2)
    images, seen = images_of(torch.tensor(labels)), assignment.camera_proxies
    keys = [(int(label), int(where[image])) for label, image in zip(labels, images, strict=True)]
    rows = dict(zip(zip(seen.clusters.tolist(), seen.cameras.tolist(), strict=True), seen.rows, strict=True))
    for _ in range(3):
        z = torch.tensor(features).requires_grad_()
        terms = criterion(z, images)
        wanted = naive_extras.camera_term(features, keys, rows, 0.3, negatives)
        assert terms.camera.item() == pytest.approx(wanted, rel=1e-4)
        assert terms.loss.item() == pytest.approx((terms.inter + terms.intra + 0.6 * terms.camera).item(), rel=1e-6)
        assert torch.isfinite(torch.autograd.grad(terms.loss, z)[0]).all()
        criterion.update(torch.tensor(features), images)
        for row, key in zip(features, keys, strict=True):
            rows[key] = naive.towards(rows[key], row, 0.2)


@pytest.mark.parametrize(
    ("weight", "missing"),
    [
        ("instance_weight", "instances"),
        ("smoothing", "consensus"),
        ("camera_weight", "camera_proxies"),
    ],
)
def test_an_assignment_that_lacks_what_a_term_needs_is_refused(weight, missing):
    with pytest.raises(ConfigError, match=f"an assignment with {missing}.*set relations.{missing}, or"):
        begun(world(0), **{weight: 0.5})


def test_without_an_epoch_there_is_no_loss():
    with pytest.raises(RuntimeError, match="begin_epoch"):
        ProxyContrast()(*shown(*batch(0)))
    with pytest.raises(RuntimeError, match="begin_epoch"):
        ProxyContrast().update(*shown(*batch(0)))


def test_banks_that_are_taken_up_go_on_as_if_they_had_never_left():
    assignment, features = extended(3)
    options = {"instance_weight": 0.5, "smoothing": 0.2, "momentum": 0.3, "intra_update": "every"}
    one, other = begun(assignment, **options), begun(assignment, **options)
    one.update(*tensors(features[:12], np.arange(12)))
    moved = {name: rows.clone() for name, rows in one.moved().items()}
    assert {*moved} == {"inter", "intra", "instances"}
    assert not any(torch.equal(rows, other.moved()[name]) for name, rows in moved.items())
    other.take_up(moved)
    for criterion in (one, other):
        criterion.update(*tensors(features[8:20], np.arange(8, 20)))
    for name, rows in one.moved().items():
        assert torch.equal(rows, other.moved()[name]), name
    (first, second) = (criterion(*tensors(features[:9], np.arange(9))).loss for criterion in (one, other))
    assert torch.equal(first, second)


def test_banks_of_another_loss_are_refused():
    criterion = begun(world(0))
    for moved in (
        {},
        {"inter": criterion.inter},
        {"inter": criterion.inter, "intra": criterion.intra[:2]},
        {**criterion.moved(), "cameras": criterion.intra},
    ):
        with pytest.raises(CheckpointError, match="the settings that the epoch was begun with"):
            criterion.take_up(moved)
