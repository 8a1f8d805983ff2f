"""The proxies by every rule, by definition: double loops over pairs, sums in order, in Python's doubles."""

import math

from tests.naive.relations import cosine


def proxies(features, labels, inter_rule="mean", intra_rule="mean", centroids=10, temperature=0.05):
    """(inter, intra): per cluster the member with the lowest score by each rule; ties to the lowest index."""
    clusters = [[i for i in range(len(labels)) if labels[i] == c] for c in range(max(labels, default=-1) + 1)]
    inter, intra = [], []
    for c, members in enumerate(clusters):
        others = clusters[:c] + clusters[c + 1 :]
        inter.append(
            lowest(members, [foreign(features, i, others, inter_rule, centroids, temperature) for i in members])
        )
        intra.append(lowest(members, [own(features, i, [j for j in members if j != i], intra_rule) for i in members]))
    return inter, intra


def foreign(features, i, others, rule, centroids, temperature):
    """How similar image i is to the other clusters, a list of lists of images."""
    if not others:
        return 0.0
    by_cluster = [[cosine(features[i], features[j]) for j in cluster] for cluster in others]
    pairs = [s for cluster in by_cluster for s in cluster]
    if rule == "mean":
        return mean(pairs)
    if rule == "cluster_mean":
        return mean([mean(cluster) for cluster in by_cluster])
    if rule == "nearest_sample":
        return max(pairs)
    if rule == "nearest_centroids":
        to_centroids = [cosine(features[i], centroid(features, cluster)) for cluster in others]
        return mean(sorted(to_centroids, reverse=True)[:centroids])
    assert rule == "log_sum_exp"
    return temperature * math.log(mean([math.exp(s / temperature) for s in pairs]))


def own(features, i, others, rule):
    """How similar image i is to the other members of its cluster."""
    pairs = [cosine(features[i], features[j]) for j in others] or [1.0]
    return {"mean": mean, "minimum": min}[rule](pairs)


def centroid(features, cluster):
    """The mean of the members, of length 1; zero where it is zero."""
    centre = [mean([float(features[j][d]) for j in cluster]) for d in range(len(features[0]))]
    length = math.sqrt(sum(x * x for x in centre))
    return [x / length for x in centre] if length else centre


def mean(values):
    return sum(values) / len(values)


def lowest(members, scores):
    return next(i for i, score in zip(members, scores, strict=True) if score <= min(scores) + 1e-12)
