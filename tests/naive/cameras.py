"""The camera-aware relations and the figures of a clustering by definition: dense, slow, double loops."""

import math

import numpy as np

from tests.naive.relations import cosine


def camera_lists(features, cameras):
    """(intra, inter) of every row, whole: itself and its camera, the other cameras; nearest first, ties by index."""
    intra, inter = [], []
    for i, row in enumerate(features):
        scores = [np.float32(cosine(row, other)) for other in features]
        order = sorted(range(len(features)), key=lambda j, i=i, scores=scores: (j != i, -scores[j], j))
        intra.append([j for j in order if cameras[j] == cameras[i]])
        inter.append([j for j in order if cameras[j] != cameras[i]])
    return intra, inter


def camera_set(intra, inter, i, k1_intra, k1_inter):
    """The union of the k-reciprocal neighbours within the camera and of those beyond it."""
    within = {j for j in intra[i][: k1_intra + 1] if i in intra[j][: k1_intra + 1]}
    beyond = {j for j in inter[i][: k1_inter + 1] if i in inter[j][: k1_inter + 1]}
    return within | beyond


def camera_weights(features, cameras, k1_intra, k1_inter, k2_intra, k2_inter):
    """The dense N x N matrix of weights, after query expansion."""
    n = len(features)
    intra, inter = camera_lists(features, cameras)
    weights = np.zeros((n, n))
    for i in range(n):
        members = camera_set(intra, inter, i, k1_intra, k1_inter)
        scores = {j: math.exp(-(2 - 2 * cosine(features[i], features[j]))) for j in members}
        for j, score in scores.items():
            weights[i, j] = score / sum(scores.values())
    leaders = [intra[i][:k2_intra] + inter[i][:k2_inter] for i in range(n)]
    return np.array([np.mean([weights[j] for j in rows], axis=0) for rows in leaders]).reshape(n, n)


def distance(weights):
    """The dense Jaccard distance of dense weights; what differs by rounding alone is at distance 0."""
    n = len(weights)
    result = np.ones((n, n))
    for i in range(n):
        for j in range(n):
            shared = sum(min(float(weights[i, c]), float(weights[j, c])) for c in range(n))
            value = 1 - shared / (2 - shared)
            result[i, j] = 0.0 if i == j or value < 1e-6 else value
    return result


def silhouettes(distance, labels):
    """(b - a) / max(a, b) of every clustered row, in order; noise takes no part."""
    clusters = sorted({c for c in labels if c != -1})
    members = {c: [j for j in range(len(labels)) if labels[j] == c] for c in clusters}
    scores = []
    for i in range(len(labels)):
        own = labels[i]
        if own == -1:
            continue
        if len(members[own]) == 1:
            scores.append(0.0)
            continue
        a = sum(distance[i][j] for j in members[own] if j != i) / (len(members[own]) - 1)
        b = min(sum(distance[i][j] for j in members[c]) / len(members[c]) for c in clusters if c != own)
        scores.append((b - a) / max(a, b) if max(a, b) > 0 else 0.0)
    return scores


def camera_entropy(labels, cameras):
    """Per cluster: entropy of its cameras in natural units, over the logarithm of the number of all cameras."""
    result = []
    for c in range(max(labels) + 1):
        seen = [cameras[i] for i in range(len(labels)) if labels[i] == c]
        shares = [seen.count(camera) / len(seen) for camera in set(seen)]
        entropy = -sum(share * math.log(share) for share in shares)
        result.append(entropy / math.log(len(set(cameras))) if len(set(cameras)) > 1 else 0.0)
    return result
