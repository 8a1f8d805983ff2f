"""The slow twins of what may join the two terms (consensus, centring, instances, camera proxies, soft targets), and
of the test of clusters at neighbouring eps."""

import math

import numpy as np
from sklearn.cluster import DBSCAN


def consensus(weights, labels, image, kept):
    """[(cluster, share)] of one image, from dense weights by image."""
    by_cluster = {}
    for other, weight in enumerate(weights[image]):
        if weight > 0 and labels[other] >= 0:
            by_cluster[int(labels[other])] = by_cluster.get(int(labels[other]), 0.0) + float(weight)
    best = sorted(by_cluster.items(), key=lambda pair: (-pair[1], pair[0]))[:kept]
    total = sum(weight for _, weight in best)
    return [(cluster, weight / total) for cluster, weight in best]


def centred(features, cameras):
    """Each row less (sum of its camera + 16 * overall mean) / (n + 16), of length 1."""
    overall = features.astype(np.float64).mean(0)
    out = []
    for row, camera in zip(features, cameras, strict=True):
        ours = [other.astype(np.float64) for other, theirs in zip(features, cameras, strict=True) if theirs == camera]
        left = row - (sum(ours) + 16 * overall) / (len(ours) + 16)
        out.append(left / math.sqrt((left**2).sum()))
    return np.array(out)


def hardest(z, label, images, rows):
    """By cluster: the least similarity to an instance of the own one, the largest to one of each other."""
    of = [[float(np.dot(z, rows[image])) for image in members] for members in images]
    return [min(values) if cluster == label else max(values) for cluster, values in enumerate(of)]


def instance_term(features, labels, images, rows, temperature):
    """The mean InfoNCE over `hardest`."""
    total = 0.0
    for z, label in zip(features, labels, strict=True):
        logits = [value / temperature for value in hardest(z, label, images, rows)]
        total += math.log(sum(math.exp(logit) for logit in logits)) - logits[label]
    return total / len(labels)


def target(image, label, told, smoothing, clusters):
    """The softened target of one image."""
    row = [0.0] * clusters
    spent = 0.0
    for cluster, share in zip(told.clusters[image], told.shares[image], strict=True):
        if cluster >= 0:
            row[cluster] += smoothing * float(share)
            spent += smoothing * float(share)
    row[label] += 1 - spent
    return row


def soft_term(features, targets, bank, temperature, more=None, labels=None):
    """The mean cross entropy with rows of targets; the foreign rows of `more` have target 0."""
    total = 0.0
    for row, (z, wanted) in enumerate(zip(features, targets, strict=True)):
        logits = [float(np.dot(z, proxy)) / temperature for proxy in bank]
        rest = (
            [] if more is None else [float(np.dot(z, p)) / temperature for k, p in enumerate(more) if k != labels[row]]
        )
        norm = math.log(sum(math.exp(logit) for logit in [*logits, *rest]))
        total += sum(share * (norm - logit) for share, logit in zip(wanted, logits, strict=True))
    return total / len(targets)


def camera_proxies(features, labels, cameras):
    """{(cluster, camera): mean direction}, in order."""
    found = {}
    for row, label, camera in zip(features, labels, cameras, strict=True):
        if label >= 0:
            found.setdefault((int(label), int(camera)), []).append(row.astype(np.float64))
    sums = {key: sum(found[key]) for key in sorted(found)}
    return {key: total / math.sqrt((total**2).sum()) for key, total in sums.items()}


def camera_term(features, keys, proxies, temperature, negatives):
    """within + 0.5 * across, by loops over the proxies {(cluster, camera): row}; `keys` are those of the batch."""
    total = 0.0
    for z, (cluster, camera) in zip(features, keys, strict=True):
        logit = {key: float(np.dot(z, row)) / temperature for key, row in proxies.items()}
        here = [value for key, value in logit.items() if key[1] == camera]
        total += math.log(sum(math.exp(value) for value in here)) - logit[cluster, camera]
        positives = [value for key, value in logit.items() if key[0] == cluster and key[1] != camera]
        others = sorted((value for key, value in logit.items() if key[0] != cluster), reverse=True)[:negatives]
        norm = math.log(sum(math.exp(value) for value in [*positives, *others])) if positives or others else 0.0
        total += 0.5 * sum(norm - value for value in positives) / max(len(positives), 1)
    return total / len(features)


def less_the_nearest(features, k):
    """Each row less the mean of its k nearest, of length 1."""
    out = []
    for i, row in enumerate(features):
        order = sorted(range(len(features)), key=lambda j: (j != i, -float(np.dot(row, features[j])), j))[:k]
        left = row - features[order].astype(np.float64).mean(0)
        out.append(left / math.sqrt((left**2).sum()))
    return np.array(out)


def reliable(distance, labels, eps, min_samples, least):
    """Which rows stay: dense distances, sets of rows, both neighbouring eps."""

    def members(given, row):
        return {row} if given[row] < 0 else {other for other, label in enumerate(given) if label == given[row]}

    kept = []
    for row, label in enumerate(labels):
        stays = label >= 0
        for gap in (-0.02, 0.02):
            given = DBSCAN(eps=eps + gap, min_samples=min_samples, metric="precomputed").fit_predict(distance)
            ours, theirs = members(labels, row), members(given, row)
            stays = stays and len(ours & theirs) / len(ours | theirs) >= least
        kept.append(stays)
    return kept
