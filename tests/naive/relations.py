"""The relations by definition: dense, slow, double loops."""

import math

import numpy as np


def cosine(a, b):
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def nearest(features, k):
    """Row i: itself, then the others by falling float32 similarity, equal ones by index."""
    lists, values = [], []
    for i, row in enumerate(features):
        scores = [np.float32(cosine(row, other)) for other in features]
        order = sorted(range(len(features)), key=lambda j: (j != i, -scores[j], j))[:k]
        lists.append(order)
        values.append([scores[j] for j in order])
    return np.array(lists, np.int32).reshape(len(features), -1), np.array(values, np.float32).reshape(len(features), -1)


def k_reciprocal(table, i, k):
    """Who is among the first k of i and has i among its first k."""
    return {int(j) for j in table[i][:k] if i in table[j][:k]}


def expanded(table, i, k1):
    """The full set of i, and the half set of each member of which more than two thirds are in the full set."""
    full = k_reciprocal(table, i, k1)
    result = set(full)
    for member in full:
        half = k_reciprocal(table, member, round(k1 / 2) + 1)
        if len(half & full) * 3 > 2 * len(half):
            result |= half
    return result


def jaccard(table, features, k1, k2):
    """The dense N x N Jaccard distance of the reference algorithm."""
    table = np.asarray(table)[:, :k1]
    n = len(table)
    weights = np.zeros((n, n))
    for i in range(n):
        members = sorted(expanded(table, i, k1))
        scores = [math.exp(-(2 - 2 * cosine(features[i], features[j]))) for j in members]
        for j, score in zip(members, scores, strict=True):
            weights[i, j] = score / sum(scores)
    weights = np.array([np.mean([weights[j] for j in table[i][:k2]], axis=0) for i in range(n)])
    distance = np.ones((n, n))
    for i in range(n):
        for j in range(n):
            shared = sum(min(weights[i, c], weights[j, c]) for c in range(n))
            distance[i, j] = max(0.0, 1 - shared / (2 - shared))
    return distance


def dbscan(distance, eps, min_samples):
    """Grows one cluster after the other from the lowest core row left; renumbered by first member."""
    n = len(distance)
    near = [[j for j in range(n) if j == i or distance[i][j] <= eps] for i in range(n)]
    labels, cluster = [-1] * n, 0
    for i in range(n):
        if labels[i] != -1 or len(near[i]) < min_samples:
            continue
        labels[i], border = cluster, [i]
        while border:
            row = border.pop()
            if len(near[row]) < min_samples:
                continue
            for j in near[row]:
                if labels[j] == -1:
                    labels[j] = cluster
                    border.append(j)
        cluster += 1
    return by_first_member(labels)


def by_first_member(labels):
    """The same partition, numbered 0, 1, ... in order of first member."""
    numbers = {}
    return np.array([-1 if c == -1 else numbers.setdefault(c, len(numbers)) for c in labels], np.int64)


def proxies(features, labels):
    """(inter, intra): per cluster the member with the lowest mean foreign, and own, similarity; ties to the lowest."""
    inter, intra = [], []
    for cluster in range(max(labels, default=-1) + 1):
        members = [i for i in range(len(labels)) if labels[i] == cluster]
        foreign = [j for j in range(len(labels)) if labels[j] not in (-1, cluster)]
        inter.append(_lowest(members, lambda i, foreign=foreign: _mean(features, i, foreign, 0.0)))
        intra.append(_lowest(members, lambda i, m=members: _mean(features, i, [j for j in m if j != i], 1.0)))
    return inter, intra


def _mean(features, i, others, default):
    return sum(cosine(features[i], features[j]) for j in others) / len(others) if others else default


def _lowest(members, score):
    scores = [score(i) for i in members]
    return next(i for i, value in zip(members, scores, strict=True) if value <= min(scores) + 1e-12)
