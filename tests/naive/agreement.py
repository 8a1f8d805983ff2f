"""Slow twins of gracl.retrieval.agreement: pair by pair, cluster by cluster, from the definitions."""

import math


def adjusted_rand_index(labels: list[int], objects: list[int]) -> float:
    """Hubert and Arabie 1985, eq. 5, by counting pairs of images: (together - by chance) / (most - by chance)."""
    together = by_label = by_object = pairs = 0
    for i in range(len(labels)):
        for j in range(i):
            same_label, same_object = labels[i] == labels[j], objects[i] == objects[j]
            pairs += 1
            by_label += same_label
            by_object += same_object
            together += same_label and same_object
    chance = by_label * by_object / pairs if pairs else 0.0
    most = (by_label + by_object) / 2
    return 1.0 if most == chance else (together - chance) / (most - chance)


def normalized_mutual_information(labels: list[int], objects: list[int]) -> float:
    """Mutual information over the arithmetic mean of the entropies, in nats; 1 where both have one part."""
    size = len(labels)
    information = 0.0
    for label in set(labels):
        for owner in set(objects):
            both = sum(1 for pair in zip(labels, objects, strict=True) if pair == (label, owner)) / size
            if both:
                information += both * math.log(both / (labels.count(label) / size * objects.count(owner) / size))
    mean = (entropy(labels) + entropy(objects)) / 2
    return 1.0 if mean == 0 else information / mean


def entropy(parts: list[int]) -> float:
    """In nats."""
    shares = [parts.count(part) / len(parts) for part in set(parts)]
    return -sum(share * math.log(share) for share in shares)


def purity(labels: list[int], objects: list[int]) -> float:
    """For each cluster the images of its most frequent object, summed, over all."""
    right = 0
    for label in set(labels):
        members = [owner for mine, owner in zip(labels, objects, strict=True) if mine == label]
        right += max(members.count(owner) for owner in members)
    return right / len(labels)
