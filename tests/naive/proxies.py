"""The proxies by every rule, by definition: double loops over pairs, sums in order, in Python's doubles."""

import math

from tests.naive.relations import cosine


def proxies(
    features,
    labels,
    inter_rule="mean",
    intra_rule="mean",
    centroids=10,
    temperature=0.05,
    foreign="samples",
    trim=0.0,
    similarity=None,
):
    """(inter, intra): per cluster the member with the lowest score by each rule; ties to the lowest index.

    `similarity` is a table of all pairs of images; without it, cosines.
    """
    clusters = [[i for i in range(len(labels)) if labels[i] == c] for c in range(max(labels, default=-1) + 1)]
    noise = [(i,) for i in range(len(labels)) if labels[i] == -1]

    def alike(a, b):
        """The similarity of two items: images, or vectors."""
        if similarity is not None:
            return similarity[a][b]
        return cosine(*(features[x] if isinstance(x, int) else x for x in (a, b)))

    owns = [own(i, clusters[labels[i]], intra_rule, alike) if labels[i] >= 0 else None for i in range(len(labels))]
    able = untrimmed(owns, clusters, trim)

    def mined(groups, extra):
        """The lowest of each cluster against the groups of the other clusters, and the extra ones."""
        found = []
        for c, members in enumerate(able):
            others = groups[:c] + groups[c + 1 :] + extra
            scores = [foreign_score(features, i, others, inter_rule, centroids, temperature, alike) for i in members]
            found.append(lowest(members, scores))
        return found

    if foreign == "centroids":
        inter = mined([(centroid(features, cluster),) for cluster in clusters], [])
    else:
        inter = mined(clusters, noise if foreign == "noise_too" else [])
    if foreign == "proxies":
        inter = mined([(i,) for i in inter], [])
    return inter, [lowest(members, [owns[i] for i in members]) for members in able]


def foreign_score(features, i, groups, rule, centroids, temperature, alike):
    """How similar image i is to groups of foreign items: lists of members, tuples of one that stands for itself."""
    if not groups:
        return 0.0
    by_group = [[alike(i, x) for x in group] for group in groups]
    pairs = [s for group in by_group for s in group]
    if rule == "mean":
        return mean(pairs)
    if rule == "cluster_mean":
        return mean([mean(group) for group in by_group])
    if rule == "nearest_sample":
        return max(pairs)
    if rule == "nearest_centroids":
        middles = [centroid(features, group) if isinstance(group, list) else group[0] for group in groups]
        to_centroids = [alike(i, middle) for middle in middles]
        return mean(sorted(to_centroids, reverse=True)[:centroids])
    assert rule == "log_sum_exp"
    return temperature * math.log(mean([math.exp(s / temperature) for s in pairs]))


def own(i, cluster, rule, alike):
    """How similar image i is to the other members of its cluster."""
    pairs = [alike(i, j) for j in cluster if j != i] or [1.0]
    return {"mean": mean, "minimum": min}[rule](pairs)


def untrimmed(owns, clusters, trim):
    """Per cluster who can become a proxy: images leave one by one, least similar and lowest first; the last stays."""
    waiting = sorted((owns[i], i) for cluster in clusters if len(cluster) > 1 for i in cluster)
    count = min(int(trim * sum(len(cluster) for cluster in clusters)), len(waiting))
    if count:
        edge = waiting[count - 1][0]
        waiting.sort(key=lambda pair: (edge, pair[1]) if abs(pair[0] - edge) <= 1e-12 else pair)
    out = {i for _, i in waiting[:count]}
    able = []
    for cluster in clusters:
        left = [i for i in cluster if i not in out]
        able.append(left or [max(i for i in cluster if owns[i] >= max(owns[j] for j in cluster) - 1e-12)])
    return able


def jaccard_similarity(weights):
    """1 - Jaccard distance of all pairs of rows of dense weights."""
    n = len(weights)
    table = [[0.0] * n for _ in range(n)]
    for i in range(n):
        for j in range(n):
            shared = min(1.0, sum(min(float(weights[i, c]), float(weights[j, c])) for c in range(n)))
            table[i][j] = shared / (2 - shared)
    return table


def centroid(features, cluster):
    """The mean of the members, of length 1; zero where it is zero."""
    centre = [mean([float(features[j][d]) for j in cluster]) for d in range(len(features[0]))]
    length = math.sqrt(sum(x * x for x in centre))
    return [x / length for x in centre] if length else centre


def mean(values):
    return sum(values) / len(values)


def lowest(members, scores):
    return next(i for i, score in zip(members, scores, strict=True) if score <= min(scores) + 1e-12)
