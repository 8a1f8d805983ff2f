"""HDBSCAN and the map equation by definition: dense, slow, double loops."""

import math
from fractions import Fraction

import numpy as np

from tests.naive.relations import by_first_member


class Hdbscan:
    """Campello, Moulavi & Sander, PAKDD 2013: falling levels, all edges of a level removed at once; excess of mass.

    Attributes:
        labels: numbered by first member.
        margin: the smallest relative difference of stability that a choice hung on; 0 is a tie.
        unsure: rows that fall off a set as it breaks into several clusters: by definition they are in none of these,
            but who removes one edge of a level after the other may leave them in any.
        ambiguous: at some level enough rows fall off to make a cluster: who removes one edge after the other may see
            one there, which by definition never was, and see a set break that goes on. Where a set ends it takes two
            such clusters to be seen, and as they have no stability they matter only where the set itself is no choice
            or its stability is infinite.
    """

    def __init__(self, distance, min_samples, min_cluster_size):
        n = len(distance)
        self.least, self.margin, self.unsure, self.ambiguous = min_cluster_size, math.inf, set(), False
        self.reach = mutual_reachability(distance, min_samples)
        labels = [-1] * n
        for cluster, members in enumerate(self._best(self._fall(set(range(n)), Fraction(0)))[1]):
            for i in members:
                labels[i] = cluster
        self.labels = by_first_member(labels)

    def _fall(self, rows, birth):
        """(rows, stability, children) of a set that began at `birth`, 1 / level."""
        stability, alive = Fraction(0), rows
        while True:
            level = bottleneck(self.reach, alive)
            death = 1 / Fraction(level) if level else math.inf
            parts = components(self.reach, alive, level)
            large = [part for part in parts if len(part) >= self.least]
            lost = alive - set().union(*large)
            if len(large) > 1:
                self.unsure |= lost
            if large:
                self.ambiguous |= len(lost) >= self.least
            elif not birth or not level:
                self.ambiguous |= len(lost) >= 2 * self.least
            if len(large) != 1:
                return rows, stability + (death - birth) * len(alive), [self._fall(part, death) for part in large]
            stability += (death - birth) * len(lost)
            alive = large[0]

    def _best(self, node, whole=True):
        """(stability, sets) of the best choice within a set; the set of all rows is no choice."""
        rows, own, children = node
        best = [self._best(child, whole=False) for child in children]
        total = sum(value for value, _ in best)
        if children and not whole and own != total:
            self.margin = min(self.margin, 1 if math.inf in (own, total) else abs(own - total) / max(own, total))
        elif children and not whole:
            self.margin = 0
        if whole or total > own:
            return total, [members for _, sets in best for members in sets]
        return own, [rows]


def mutual_reachability(distance, min_samples):
    """max(distance, both core distances); a row's own distance counts as 0, a core distance without rows as 1."""
    n = len(distance)
    rows = [sorted(0.0 if j == i else float(distance[i][j]) for j in range(n)) for i in range(n)]
    core = [row[min_samples - 1] if min_samples <= n else 1.0 for row in rows]
    return np.array([[max(float(distance[i][j]), core[i], core[j]) for j in range(n)] for i in range(n)]).reshape(n, n)


def bottleneck(reach, rows):
    """The lowest level at which the rows hang together: grow by the nearest row outside, keep the longest step."""
    outside, level = dict.fromkeys(sorted(rows), math.inf), 0.0
    last, _ = outside.popitem()
    while outside:
        outside = {j: min(step, reach[last][j]) for j, step in outside.items()}
        last = min(outside, key=lambda j: outside[j])
        level = max(level, outside.pop(last))
    return level


def components(reach, rows, level):
    """The parts of the rows that hang together by pairs strictly below the level."""
    left, parts = set(rows), []
    while left:
        part, border = set(), {min(left)}
        while border:
            part |= border
            border = {j for j in left - part if any(reach[i][j] < level for i in border)}
        parts.append(part)
        left -= part
    return parts


def codelength(weights, modules):
    """Bits a step of a random walk in two levels, the map equation (Rosvall & Bergstrom, PNAS 2008), undirected.

    Args:
        weights: symmetric, dense, no weight on the diagonal.
        modules: of each row; rows without a link are never visited and cost nothing.
    """
    n = len(modules)
    double = sum(weights[i][j] for i in range(n) for j in range(n))
    visits = [sum(weights[i]) / double for i in range(n)]
    exits = {
        m: sum(weights[i][j] for i in range(n) for j in range(n) if modules[i] == m != modules[j]) / double
        for m in set(modules)
    }
    total = sum(exits.values()) * entropy(exits.values())
    for m, leaving in exits.items():
        rates = [leaving, *(visits[i] for i in range(n) if modules[i] == m)]
        total += sum(rates) * entropy(rates)
    return total


def entropy(rates):
    """In bits, of rates that need not sum to 1."""
    rates = [rate for rate in rates if rate > 0]
    return -sum(rate / sum(rates) * math.log2(rate / sum(rates)) for rate in rates)


def partitions(n):
    """Every partition of n rows, as modules numbered by first member."""
    if not n:
        yield []
        return
    for rest in partitions(n - 1):
        for module in range(max(rest, default=-1) + 2):
            yield [*rest, module]
