"""Features with labels, as the tests of proxies want them."""

import numpy as np

from gracl.randomness import rng


def case(seed, rows, clusters, dim=5, noise=0.2, copies=0, spread=1.0):
    """Unit rows around one direction, labels 0..clusters-1 each present (some once), noise, some exact copies."""
    dice = rng(seed, "proxies")
    features = spread * dice.standard_normal((rows, dim)) + (1 - spread) * np.ones(dim)
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    labels = np.where(dice.random(rows) < noise, -1, dice.integers(0, clusters, rows))
    labels[dice.permutation(rows)[:clusters]] = np.arange(clusters)
    if copies:
        features[dice.integers(0, rows, copies)] = features[dice.integers(0, rows, copies)]
    return features, labels.astype(np.int64)
