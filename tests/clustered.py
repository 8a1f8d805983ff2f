"""Features with labels, and weights, as the tests of proxies and figures want them."""

import numpy as np
import torch

from gracl.randomness import rng
from gracl.relations import rules, vector_rules
from gracl.relations.lists import Lists
from gracl.relations.scoring import settled


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


def mixed(seed):
    """A small case of its own kind for every seed: one cluster to seven, with and without noise and copies."""
    rows = int(rng(seed, "rows").integers(2, 40))
    noise, copies = (0.0, 0.2, 0.5)[seed % 3], rows // 2 if seed % 2 else 0
    return case(seed, rows, 1 + seed % min(rows, 7), noise=noise, copies=copies)


def random_weights(seed, rows, copies=0, width=6):
    """Dense weights with few entries in a row; a row sums to 1; some rows are exact copies; values tie often."""
    dice = rng(seed, "weights")
    full = np.zeros((rows, rows))
    for row in range(rows):
        others = dice.choice(rows, min(rows, int(dice.integers(0, width))), replace=False)
        full[row, others] = dice.integers(1, 4, len(others))
        full[row, row] += 2
    if copies:
        full[dice.integers(0, rows, copies)] = full[dice.integers(0, rows, copies)]
    return (full / full.sum(axis=1, keepdims=True)).astype(np.float32)


def lists_of(full):
    rows, ids = np.nonzero(full)
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(full)))])
    return Lists(starts.astype(np.int64), ids.astype(np.int32), full[rows, ids], np.arange(len(full)))


def errors_of_proposals(monkeypatch):
    """How far float32 scores were off: a list that grows with each rule asked. It fails where a bound is too small."""
    off = []

    def watched(table, rows, proposed, errors, score):
        off.append(np.abs(proposed - score(rows, torch.float64)))
        assert (off[-1] <= errors).all()
        return settled(table, rows, proposed, errors, score)

    for module in (rules, vector_rules):
        monkeypatch.setattr(module, "settled", watched)
    return off
