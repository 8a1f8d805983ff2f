import copy

import pytest
import torch

from gracl.learning.encoder import build_encoder
from gracl.learning.identity import model_digest

VIEW = {"height": 32, "width": 16}


@pytest.fixture(scope="module")
def encoder():
    return build_encoder(backbone="mobilenet_v2", feature_size=8)


def test_the_same_model_elsewhere_has_the_same_digest(encoder):
    twin = build_encoder(backbone="mobilenet_v2", feature_size=8, seed=1, bn_group=0).eval()
    twin.load_state_dict(encoder.state_dict())
    twin = twin.to(memory_format=torch.channels_last)
    assert model_digest(twin, dict(reversed(VIEW.items()))) == model_digest(encoder, VIEW)
    assert len(model_digest(encoder, VIEW)) == 64


def test_every_weight_and_statistic_counts_to_the_last_bit(encoder):
    known = {model_digest(encoder, VIEW)}
    for name in ("neck.running_mean", "pool.p", "embed.weight", "trunk.features.0.0.weight"):
        other = copy.deepcopy(encoder)
        word = other.state_dict()[name].reshape(-1)[-1:].view(torch.int32)
        word ^= 1
        known.add(model_digest(other, VIEW))
    assert len(known) == 5


def test_batches_that_were_counted_do_not(encoder):
    other = copy.deepcopy(encoder)
    other.neck.num_batches_tracked += 1
    assert model_digest(other, VIEW) == model_digest(encoder, VIEW)


def test_what_leaves_no_trace_in_the_weights_counts_too(encoder):
    strided = build_encoder(backbone="mobilenet_v2", feature_size=8, last_stride=2)
    digests = {
        model_digest(encoder, VIEW),
        model_digest(strided, VIEW),
        model_digest(encoder, VIEW | {"width": 32}),
        model_digest(encoder, VIEW | {"height": 16, "width": 32}),
    }
    assert all(torch.equal(strided.state_dict()[name], value) for name, value in encoder.state_dict().items())
    assert len(digests) == 4
