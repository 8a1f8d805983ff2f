"""Labels that outlive another view, against the index by its definition over pairs."""

from itertools import combinations

import numpy as np
import pytest

from gracl.randomness import rng
from gracl.relations.relate import relate
from gracl.relations.stability import stability

OPTIONS = {"k1": 8, "k2": 3, "eps": 0.6, "min_samples": 2, "threads": 1}


def scene(shake: float = 0.0, seed: int = 3) -> np.ndarray:
    """Twelve heaps of six; `shake` moves every row."""
    dice = rng(seed, "heaps")
    heaps = np.repeat(dice.standard_normal((12, 16)), 6, axis=0) + 0.45 * dice.standard_normal((72, 16))
    heaps += shake * rng(seed, "shake").standard_normal(heaps.shape)
    return (heaps / np.linalg.norm(heaps, axis=1, keepdims=True)).astype(np.float32)


def by_pairs(one: np.ndarray, other: np.ndarray) -> float:
    """The adjusted Rand index by counting pairs, an image of noise together with nobody."""

    def together(labels: np.ndarray) -> np.ndarray:
        return np.array([labels[a] == labels[b] != -1 for a, b in combinations(range(len(labels)), 2)])

    mine, others = together(one), together(other)
    chance = mine.sum() * others.sum() / len(mine)
    return float(((mine & others).sum() - chance) / ((mine.sum() + others.sum()) / 2 - chance))


@pytest.mark.parametrize("shake", [0.6, 0.8, 1.0])
def test_stability_is_the_adjusted_rand_index_of_both_labels(shake):
    labels, others = relate(scene(), **OPTIONS).labels, relate(scene(shake), **OPTIONS).labels
    assert (labels != others).any()
    assert (others == -1).any()
    found = stability(scene(shake), labels, **OPTIONS)
    assert found == pytest.approx(by_pairs(labels, others), abs=1e-12)
    assert 0 < found < 1


def test_the_same_features_are_stable_and_a_collapse_is_not():
    labels = relate(scene(), **OPTIONS).labels
    assert stability(scene(), labels, **OPTIONS) == 1
    alone = np.eye(72, dtype=np.float32)
    assert stability(alone, labels, **OPTIONS) == 0
