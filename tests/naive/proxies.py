"""The proxies by every rule, by definition: double loops over pairs, sums in order, in Python's doubles."""

import math

from tests.naive.relations import cosine


def proxies(
    features, labels, inter_rule="mean", intra_rule="mean", centroids=10, temperature=0.05, strangers="samples", trim=0
):
    """(inter, intra): per cluster the member with the lowest score by each rule; ties to the lowest index."""
    clusters = [[i for i in range(len(labels)) if labels[i] == c] for c in range(max(labels, default=-1) + 1)]
    noise = [[i] for i in range(len(labels)) if labels[i] < 0] if strangers == "noise_too" else []
    fit = eligible(features, clusters, trim)
    rule = (inter_rule, centroids, temperature)
    inter, intra = [], []
    for c, members in enumerate(clusters):
        able, others = [i for i in members if i in fit], clusters[:c] + clusters[c + 1 :] + noise
        if strangers == "centroids":
            scores = [over_items(features[i], [centroid(features, other) for other in others], *rule) for i in able]
        else:
            scores = [foreign(features, i, others, *rule) for i in able]
        inter.append(lowest(able, scores))
        intra.append(lowest(able, [own(features, i, [j for j in members if j != i], intra_rule) for i in able]))
    if strangers == "proxies":
        first, inter = inter, []
        for c, members in enumerate(clusters):
            able, items = [i for i in members if i in fit], [features[i] for k, i in enumerate(first) if k != c]
            inter.append(lowest(able, [over_items(features[i], items, *rule) for i in able]))
    return inter, intra


def over_items(z, items, rule, count, temperature):
    """How similar a row is to one item of each other cluster."""
    if not items:
        return 0.0
    near = sorted((cosine(z, item) for item in items), reverse=True)
    if rule == "log_sum_exp":
        return temperature * math.log(mean([math.exp(s / temperature) for s in near]))
    return mean(near[: count if rule == "nearest_centroids" else len(near)])


def eligible(features, clusters, trim):
    """The images that may be proxies: a share of those with the lowest own similarity goes, a cluster's last stays."""
    large = [cluster for cluster in clusters if len(cluster) > 1]
    scored = [(round(own(features, i, [j for j in c if j != i], "mean"), 12), -i) for c in large for i in c]
    gone = {-minus for _, minus in sorted(scored)[: int(trim * len(scored))]}
    for cluster in large:
        if gone.issuperset(cluster):
            gone.discard(-max((s, minus) for s, minus in scored if -minus in cluster)[1])
    return {i for cluster in clusters for i in cluster} - gone


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
