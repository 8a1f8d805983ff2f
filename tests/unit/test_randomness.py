import numpy as np

from gracl.randomness import rng


def test_the_same_key_gives_the_same_dice():
    np.testing.assert_array_equal(rng(1, "view", 2, 3).random(4), rng(1, "view", 2, 3).random(4))


def test_any_other_key_gives_other_dice():
    keys = [(1, "view", 2, 3), (2, "view", 2, 3), (1, "plan", 2, 3), (1, "view", 3, 2), (1, "view", 2)]
    draws = {rng(*key).integers(2**62) for key in keys}
    assert len(draws) == len(keys)


def test_the_global_generator_is_left_alone():
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    rng(0, "anything").random(10)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
