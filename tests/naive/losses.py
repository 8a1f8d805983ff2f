"""The slow twins of gracl.learning.losses, written from method.md 4.2, 4.5 and 4.6."""

import math

import numpy as np


def dot(a, b):
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def term(features, labels, bank, temperature):
    """Mean over the batch of -log of the softmax share of the own proxy, by double loop."""
    total = 0.0
    for z, label in zip(features, labels, strict=True):
        logits = [dot(z, proxy) / temperature for proxy in bank]
        top = max(logits)
        total -= logits[label] - top - math.log(sum(math.exp(logit - top) for logit in logits))
    return total / len(labels)


def own_score(z, cluster, sums):
    """z . S_k"""
    return dot(z, sums[cluster])


def foreign_score(z, cluster, sums):
    """z . (S - S_k), as the sum over all other clusters."""
    return sum(dot(z, sums[other]) for other in range(len(sums)) if other != cluster)


def lowest(scores, labels):
    """For each label present, ascending: the first row of lowest score."""
    chosen = {}
    for row, (score, label) in enumerate(zip(scores, labels, strict=True)):
        if label not in chosen or score < scores[chosen[label]]:
            chosen[label] = row
    return dict(sorted(chosen.items()))


def moved(bank, features, labels, scores, momentum):
    """The bank after one entry per cluster moved to its lowest row."""
    bank = np.array(bank, np.float64)
    for cluster, row in lowest(scores, labels).items():
        entry = momentum * bank[cluster] + (1 - momentum) * np.asarray(features[row], np.float64)
        bank[cluster] = entry / math.sqrt(dot(entry, entry))
    return bank


def updated(inter, intra, sums, features, labels, momentum):
    """Both banks after one update with E1 and F1."""
    foreign = [foreign_score(z, label, sums) for z, label in zip(features, labels, strict=True)]
    own = [own_score(z, label, sums) for z, label in zip(features, labels, strict=True)]
    return (
        moved(inter, features, labels, foreign, momentum),
        moved(intra, features, labels, own, momentum),
    )
