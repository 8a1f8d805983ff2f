import copy

import pytest
import torch
from torch import nn

from gracl.errors import ConfigError
from gracl.learning.optim import build_optimizer, load_optimizer, rate_factor, set_rate


def parameters(values=(1.0, -2.0)):
    return [nn.Parameter(torch.tensor([value])) for value in values]


def step(optimizer, trained, gradients):
    for parameter, gradient in zip(trained, gradients, strict=True):
        parameter.grad = torch.tensor([gradient])
    optimizer.step()


def test_one_group_of_what_is_trained():
    trained = parameters()
    frozen = nn.Parameter(torch.ones(1), requires_grad=False)
    for name in ("adam", "sgd"):
        groups = build_optimizer(iter([*trained, frozen]), optimizer=name).param_groups
        assert len(groups) == 1
        assert [id(one) for one in groups[0]["params"]] == [id(one) for one in trained]


def test_adam_takes_the_steps_of_its_formula():
    trained = parameters((1.0,))
    optimizer = build_optimizer(trained, rate=0.1, weight_decay=0.5)
    weight, mean, square = 1.0, 0.0, 0.0
    for count, gradient in enumerate((0.3, -0.7, 0.2), start=1):
        step(optimizer, trained, [gradient])
        pulled = gradient + 0.5 * weight
        mean, square = 0.9 * mean + 0.1 * pulled, 0.999 * square + 0.001 * pulled**2
        weight -= 0.1 * (mean / (1 - 0.9**count)) / ((square / (1 - 0.999**count)) ** 0.5 + 1e-8)
        assert trained[0].item() == pytest.approx(weight, rel=1e-5)


def test_sgd_takes_the_steps_of_its_formula():
    trained = parameters((1.0,))
    optimizer = build_optimizer(trained, optimizer="sgd", rate=0.1, weight_decay=0.5)
    weight, speed = 1.0, 0.0
    for gradient in (0.3, -0.7, 0.2):
        step(optimizer, trained, [gradient])
        speed = 0.9 * speed + gradient + 0.5 * weight
        weight -= 0.1 * speed
        assert trained[0].item() == pytest.approx(weight, rel=1e-5)


def test_defaults_are_those_of_the_method():
    group = build_optimizer(parameters()).param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (3.5e-4, 5e-4)


def test_set_rate_is_the_rate_of_the_next_step():
    trained = parameters((1.0,))
    optimizer = build_optimizer(trained, optimizer="sgd", rate=1.0, weight_decay=0.0)
    set_rate(optimizer, 0.25)
    step(optimizer, trained, [1.0])
    assert trained[0].item() == 0.75


@pytest.mark.parametrize(
    ("options", "match"),
    [({"optimizer": "adamw"}, "adamw"), ({"rate": 0.0}, "rate"), ({"weight_decay": -1.0}, "weight_decay")],
)
def test_wrong_options_are_refused(options, match):
    with pytest.raises(ConfigError, match=match):
        build_optimizer(parameters(), **options)


def test_nothing_to_train_is_refused():
    with pytest.raises(ConfigError, match="parameters to train"):
        build_optimizer([nn.Parameter(torch.ones(1), requires_grad=False)])


@pytest.mark.parametrize(
    ("epoch", "factor"), [(0, 1.0), (19, 1.0), (20, 0.1), (39, 0.1), (40, 0.01), (49, 0.01), (60, 0.001)]
)
def test_the_staircase(epoch, factor):
    assert rate_factor(epoch) == pytest.approx(factor)


def test_the_warm_up_is_linear_from_a_hundredth():
    rates = [rate_factor(epoch, warmup_epochs=10) for epoch in range(12)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[5] == pytest.approx(0.505)
    assert rates[10] == rates[11] == 1
    steps = [later - sooner for sooner, later in zip(rates[:10], rates[1:11], strict=True)]
    assert steps == pytest.approx([0.099] * 10)


def test_warm_up_and_staircase_multiply():
    assert rate_factor(5, warmup_epochs=10, decay_every=5, decay_factor=0.5) == pytest.approx(0.505 * 0.5)
    assert rate_factor(1000, decay_every=0) == 1


@pytest.mark.parametrize(
    ("epoch", "options"), [(-1, {}), (0, {"warmup_epochs": -1}), (0, {"decay_every": -1}), (0, {"decay_factor": 0.0})]
)
def test_a_schedule_out_of_bounds_is_refused(epoch, options):
    with pytest.raises(ConfigError, match="schedule"):
        rate_factor(epoch, **options)


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_moments_are_taken_up_and_settings_stay(kind):
    """Going on from another run's checkpoint with another weight decay is to mean that."""

    def made(decay):
        torch.manual_seed(0)
        layer = nn.Linear(3, 2)
        return layer, build_optimizer(layer.parameters(), optimizer=kind, rate=0.01, weight_decay=decay)

    def step(layer, optimizer):
        optimizer.zero_grad()
        layer(torch.ones(4, 3)).square().sum().backward()
        optimizer.step()

    before, optimizer = made(0.0)
    step(before, optimizer)
    layer, other = made(0.3)
    layer.load_state_dict(before.state_dict())
    left = copy.deepcopy(optimizer.state_dict())  # torch would share the moments, and a step moves them
    load_optimizer(other, copy.deepcopy(left))
    assert other.param_groups[0]["weight_decay"] == 0.3
    step(layer, other)
    by_hand, third = made(0.0)
    by_hand.load_state_dict(before.state_dict())
    third.load_state_dict(left)
    third.param_groups[0]["weight_decay"] = 0.3
    step(by_hand, third)
    torch.testing.assert_close(layer.weight, by_hand.weight, rtol=0, atol=0)
    step(before, optimizer)
    assert not torch.equal(layer.weight, before.weight)
