import jaxtyping
import numpy as np
import pytest

from gracl.randomness import rng


def test_the_same_key_gives_the_same_dice():
    np.testing.assert_array_equal(rng(1, "view", 2, 3).random(4), rng(1, "view", 2, 3).random(4))


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1, 2**32, 2**40 + 7, 2**70])
def test_dice_are_those_of_the_plain_seed_sequence(seed):
    for key in ((), (0,), (5, 0, 2**32 - 1), (2**33, 4)):
        plain = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *key])))
        np.testing.assert_array_equal(rng(seed, *key).random(4), plain.random(4))


@pytest.fixture
def unchecked():
    """As in production, where nobody looks at hints."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("seed", [-1, np.int64(-1)])
def test_a_seed_below_zero_is_refused(seed, unchecked):
    with pytest.raises(ValueError, match="non-negative"):
        rng(seed, "view")


def test_numbers_of_numpy_are_taken_whole_and_broken_ones_refused(unchecked):
    np.testing.assert_array_equal(rng(0, np.int64(2**33 + 5)).random(4), rng(0, 2**33 + 5).random(4))
    with pytest.raises(TypeError):
        rng(0, 1.5)


def test_any_other_key_gives_other_dice():
    keys = [(1, "view", 2, 3), (2, "view", 2, 3), (1, "plan", 2, 3), (1, "view", 3, 2), (1, "view", 2)]
    draws = {rng(*key).integers(2**62) for key in keys}
    assert len(draws) == len(keys)


def test_the_global_generator_is_left_alone():
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    rng(0, "anything").random(10)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
