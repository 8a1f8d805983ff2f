import copy

import numpy as np
import pytest
import torch
from torch import nn

from gracl.errors import ConfigError
from gracl.learning.layers import (
    AveragePool,
    GeneralizedMeanPool,
    GroupBatchNorm1d,
    GroupBatchNorm2d,
    at_once,
    group_batch_norm,
)
from gracl.learning.resnet import ResNet

SHAPES = {nn.BatchNorm1d: (12, 5), nn.BatchNorm2d: (12, 5, 3, 2)}


def rows_of(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def norm_of(kind):
    norm = kind(5)
    with torch.no_grad():
        norm.weight.copy_(rows_of(5, 7))
        norm.bias.copy_(rows_of(5, 8))
    return norm


def grouped(norm, group):
    box = nn.Sequential(copy.deepcopy(norm))
    group_batch_norm(box, group)
    return box


def gem_by_loop(maps, p, eps):
    out = np.zeros(maps.shape[:2])
    for image in range(maps.shape[0]):
        for channel in range(maps.shape[1]):
            places = [max(float(value), eps) ** p for value in maps[image, channel].flatten()]
            out[image, channel] = (sum(places) / len(places)) ** (1 / p)
    return out


@pytest.mark.parametrize("p", [1.0, 3.0, 6.5])
def test_gem_equals_the_loop(p):
    maps = rows_of((3, 4, 5, 2))
    np.testing.assert_allclose(GeneralizedMeanPool(p=p)(maps).detach().numpy(), gem_by_loop(maps, p, 1e-6), rtol=1e-5)


def test_gem_learns_p_and_survives_maps_without_a_positive_value():
    pool = GeneralizedMeanPool()
    assert pool.p.item() == 3
    maps = torch.cat([rows_of((2, 3, 4, 4)), torch.zeros(1, 3, 4, 4), -torch.ones(1, 3, 4, 4)]).requires_grad_()
    pool(maps).sum().backward()
    assert torch.isfinite(pool.p.grad).all()
    assert pool.p.grad.abs().sum() > 0
    assert torch.isfinite(maps.grad).all()


def test_average_pool_is_the_mean():
    maps = rows_of((3, 4, 5, 2))
    np.testing.assert_allclose(AveragePool()(maps).numpy(), maps.numpy().mean((2, 3)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("group", [2, 3, 4, 6])
def test_groups_equal_separate_batch_norms_gradients_included(kind, group):
    norm = norm_of(kind)
    ours, whole = rows_of(SHAPES[kind]).requires_grad_(), grouped(norm, group)
    theirs = rows_of(SHAPES[kind]).requires_grad_()
    alone = [copy.deepcopy(norm) for _ in range(12 // group)]
    pull = rows_of(SHAPES[kind], 3)
    seen = whole(ours)
    parts = torch.cat([one(part) for one, part in zip(alone, theirs.split(group), strict=True)])
    assert torch.equal(seen, parts)
    (seen * pull).sum().backward()
    (parts * pull).sum().backward()
    assert torch.equal(ours.grad, theirs.grad)
    for name in ("weight", "bias"):
        torch.testing.assert_close(getattr(whole[0], name).grad, sum(getattr(one, name).grad for one in alone))
    # Only the first group's statistics survive, as the first replica's do.
    for name, value in alone[0].state_dict().items():
        assert torch.equal(whole[0].state_dict()[name], value), name
    assert not torch.equal(whole[0].running_mean, alone[-1].running_mean)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("group", [2, 3, 4, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_groups_at_once_equal_groups_in_turn(kind, group, dtype):
    near = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.02}
    seen = {}
    for way in ("in turn", "at once"):
        (norm,) = grouped(norm_of(kind), group)
        rows = rows_of(SHAPES[kind]).to(dtype).requires_grad_()
        out = norm(rows) if way == "in turn" else at_once(norm, rows)
        (out * rows_of(SHAPES[kind], 3).to(dtype)).sum().backward()
        assert out.dtype == dtype
        seen[way] = [out.detach(), rows.grad, norm.weight.grad, norm.bias.grad, *norm.buffers()]
    for one, other in zip(*seen.values(), strict=True):
        torch.testing.assert_close(one, other, **near)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("group", [0, 12, 64])
def test_a_group_of_none_or_of_the_whole_batch_is_plain(kind, group):
    norm = norm_of(kind)
    box = grouped(norm, group)
    assert torch.equal(box(rows_of(SHAPES[kind])), norm(rows_of(SHAPES[kind])))
    assert torch.equal(box[0].running_var, norm.running_var)


@pytest.mark.parametrize("kind", SHAPES)
def test_evaluation_is_plain_for_any_number_of_rows(kind):
    norm = norm_of(kind).eval()
    rows = rows_of(SHAPES[kind])[:7]
    assert torch.equal(grouped(norm, 4)(rows), norm(rows))


def test_channels_last_gives_the_same_and_stays_channels_last():
    rows = rows_of((8, 5, 4, 3))
    box = grouped(nn.BatchNorm2d(5), 4)
    last = box(rows.contiguous(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, grouped(nn.BatchNorm2d(5), 4)(rows))


def test_a_batch_that_is_no_multiple_is_refused():
    with pytest.raises(ConfigError, match="multiple of bn_group=5; came 12 rows"):
        grouped(nn.BatchNorm1d(5), 5)(rows_of((12, 5)))


@pytest.mark.parametrize("group", [-1, 1])
def test_groups_without_variance_are_refused(group):
    with pytest.raises(ConfigError, match="bn_group"):
        group_batch_norm(nn.Sequential(nn.BatchNorm1d(5)), group)


def test_what_cannot_be_replaced_is_refused():
    with pytest.raises(ConfigError, match="itself"):
        group_batch_norm(nn.BatchNorm1d(5), 4)
    with pytest.raises(ConfigError, match="SyncBatchNorm"):
        group_batch_norm(nn.Sequential(nn.SyncBatchNorm(5)), 4)
    group_batch_norm(nn.Sequential(nn.SyncBatchNorm(5)), 0)


def test_every_norm_of_a_network_is_converted_and_nothing_else_changes():
    network = ResNet("resnet18", ibn=True)
    keys, parameters = list(network.state_dict()), {id(parameter) for parameter in network.parameters()}
    group_batch_norm(network, 4)
    group_batch_norm(network, 8)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert len(norms) == 20
    assert all(isinstance(norm, GroupBatchNorm1d | GroupBatchNorm2d) and norm.group == 8 for norm in norms)
    assert list(network.state_dict()) == keys
    assert {id(parameter) for parameter in network.parameters()} == parameters
    network.eval()
    assert not any(norm.training for norm in norms)
    with torch.no_grad():
        network.bn1.weight.fill_(2)
    assert network.state_dict()["bn1.weight"].eq(2).all()
    network.double()
    assert network.bn1.running_mean.dtype == torch.float64


@pytest.mark.parametrize("group", [0, 4])
@pytest.mark.parametrize("kind", SHAPES)
def test_running_statistics_have_no_part_in_training(kind, group):
    """So a checkpoint within an epoch may hold those of rank 0 alone (docs/decisions/0023)."""
    seen = []
    for start in (0.0, 5.0):
        box, rows = grouped(norm_of(kind), group), rows_of(SHAPES[kind]).requires_grad_()
        box[0].running_mean.fill_(start)
        box[0].running_var.fill_(start + 1)
        box[0].num_batches_tracked.fill_(int(start))
        answer = box(rows)
        answer.pow(3).sum().backward()
        seen.append((answer.detach(), rows.grad, box[0].weight.grad, box[0].bias.grad))
    assert all(torch.equal(one, other) for one, other in zip(*seen, strict=True))
