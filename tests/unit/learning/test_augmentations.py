"""Training views made on the device, held against `train_view`, which makes them one by one."""

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from gracl.images.loading import Ticket, load
from gracl.images.views import draw_augmentation, eval_view, train_view
from gracl.learning.pixels import augmented, normalise, to_device
from gracl.types import Augmentations
from tests.chaos.mutations import encoded

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")]),
]
SIZES = [(32, 16), (17, 23), (5, 4)]
WAYS = {
    "the default": {"pad": 3},
    "nothing": {"flip": 0.0, "pad": 0, "erase": 0.0},
    "always, far": {"flip": 1.0, "pad": 3, "erase": 1.0},
    "light, too": {"pad": 2, "jitter": 0.4},
    "light alone": {"flip": 0.0, "pad": 0, "erase": 0.0, "jitter": 0.9},
}


def pictures(count: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (count, height, width, 3), np.uint8)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("way", WAYS)
def test_the_device_makes_what_the_decoding_threads_make_byte_for_byte(way, size, device):
    options = {"height": size[0], "width": size[1], **WAYS[way]}
    plain = pictures(200, *size)
    wanted = np.stack([train_view(one, np.random.default_rng(seed), **options) for seed, one in enumerate(plain)])
    drawn = [draw_augmentation(np.random.default_rng(seed), **options) for seed in range(len(plain))]
    augmentations = Augmentations.of(drawn)
    made = augmented(torch.from_numpy(plain).to(device), augmentations)
    np.testing.assert_array_equal(made.cpu().numpy(), wanted)


def test_the_cases_above_have_all_there_is():
    drawn = [
        draw_augmentation(np.random.default_rng(seed), height=32, width=16, pad=3, jitter=0.4) for seed in range(200)
    ]
    assert {one.mirrored for one in drawn} == {True, False}
    assert {one.down for one in drawn} == {one.right for one in drawn} == {*range(-3, 4)}
    assert 60 < sum(one.rows > 0 for one in drawn) < 140
    assert len({one.brightness for one in drawn}) == len({one.contrast for one in drawn}) == 200


def test_no_augmentations_are_none():
    plain = pictures(9, 12, 8)
    np.testing.assert_array_equal(augmented(torch.from_numpy(plain), Augmentations.none(9)).numpy(), plain)


def batches(view, drawer=None, bad=None):
    images = [encoded(Image.fromarray(one), "png") for one in pictures(12, 32, 16)]
    if bad is not None:
        images[bad] = b"no picture"
    tickets = [Ticket(number, 5, 4, np.arange(6) + 6 * number, images[6 * number :][:6]) for number in range(2)]
    return list(load(tickets, view, height=32, width=16, seed=3, drawer=drawer, on_bad=lambda index, error: None))


@pytest.mark.parametrize("bad", [None, 2])
def test_what_a_network_sees_is_the_same_whoever_makes_the_views(bad):
    options = {"height": 32, "width": 16, "pad": 3, "erase": 1.0, "jitter": 0.1}
    eager = batches(partial(train_view, **options), bad=bad)
    late = batches(partial(eval_view, height=32, width=16), partial(draw_augmentation, **options), bad)
    assert all(batch.augmentations is None for batch in eager)
    for one, other in zip(eager, late, strict=True):
        assert other.augmentations is not None
        np.testing.assert_array_equal(one.indices, other.indices)
        cpu = torch.device("cpu")
        assert torch.equal(to_device(one, cpu), to_device(other, cpu))
        assert torch.equal(to_device(one, cpu), normalise(torch.from_numpy(one.images)))
    assert bad is None or not eager[0].images[bad].any()


def test_a_drawer_without_a_seed_is_refused():
    with pytest.raises(ValueError, match="a seed for the drawer's dice"):
        load([], eval_view, height=32, width=16, seed=None, drawer=partial(draw_augmentation, height=32, width=16))
