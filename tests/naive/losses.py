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


def term_with_both(features, labels, bank, other, temperature):
    """The same, the foreign rows of another bank among the negatives (H2)."""
    total = 0.0
    for z, label in zip(features, labels, strict=True):
        logits = [dot(z, proxy) / temperature for proxy in bank]
        logits += [dot(z, proxy) / temperature for k, proxy in enumerate(other) if k != label]
        total += math.log(sum(math.exp(logit) for logit in logits)) - logits[label]
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
        bank[cluster] = towards(bank[cluster], features[row], momentum)
    return bank


def centroid(cluster, sums):
    """S_k brought to length 1."""
    return np.asarray(sums[cluster], np.float64) / math.sqrt(dot(sums[cluster], sums[cluster]))


def score(choice, z, cluster, bank, sums):
    """What the selected row has least of: E1, E2, E3, F1, F2 of method.md 4.5."""
    others = [other for other in range(len(sums)) if other != cluster]
    return {
        "foreign_sum": lambda: foreign_score(z, cluster, sums),
        "foreign_proxies": lambda: sum(dot(z, bank[other]) for other in others),
        "nearest_centroid": lambda: max((dot(z, centroid(other, sums)) for other in others), default=-math.inf),
        "own_sum": lambda: own_score(z, cluster, sums),
        "own_proxy": lambda: dot(z, bank[cluster]),
    }[choice]()


def towards(old, new, momentum):
    """unit(m * old + (1 - m) * new)"""
    entry = momentum * np.asarray(old, np.float64) + (1 - momentum) * np.asarray(new, np.float64)
    return entry / math.sqrt(dot(entry, entry))


def followed(update, choice, bank, sums, features, labels, momentum):
    """A bank after one update: G1 and G4 (selected), G2 (every), the mean, G3 (frozen)."""
    bank = [np.asarray(row, np.float64) for row in bank]
    if update == "selected":
        found = [score(choice, z, label, bank, sums) for z, label in zip(features, labels, strict=True)]
        return moved(bank, features, labels, found, momentum)
    if update == "every":
        for z, label in zip(features, labels, strict=True):
            bank[label] = towards(bank[label], z, momentum)
    if update == "mean":
        for label in set(labels):
            shown = [z for z, one in zip(features, labels, strict=True) if one == label]
            bank[label] = towards(bank[label], sum(np.asarray(z, np.float64) for z in shown) / len(shown), momentum)
    return np.array(bank)
