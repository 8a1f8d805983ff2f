"""Slow twins of gracl.retrieval, written from the definitions: one query at a time, one gallery row at a time."""

import numpy as np

from gracl.types import Identities


def counts(object_id: int, camera_id: int, gallery: Identities, row: int) -> bool:
    """The rule of Market-1501 for one gallery row: junk is left out, and the same object from the same camera."""
    if gallery.object_ids[row] == -1:
        return False
    same_object = gallery.object_ids[row] == object_id
    same_camera = gallery.camera_ids[row] == camera_id and camera_id != -1
    return not (same_object and same_camera)


def ranked_rows(
    query: np.ndarray,
    gallery: np.ndarray,
    who: Identities | None,
    seen: Identities | None,
    number: int,
) -> list[tuple[float, int]]:
    """(similarity, gallery row) of all rows that count for one query, most similar first, then by index."""
    rows = []
    for row in range(len(gallery)):
        if who is None or counts(who.object_ids[number], who.camera_ids[number], seen, row):
            rows.append((float(np.dot(query[number], gallery[row])), row))
    return sorted(rows, key=lambda pair: (-pair[0], pair[1]))


def judge_one(
    query: np.ndarray, gallery: np.ndarray, who: Identities, seen: Identities, number: int
) -> tuple[float, float, int] | None:
    """Average precision, inverse negative penalty and first correct rank of a query; None: no correct row counts."""
    hits, precisions, first, last = 0, [], 0, 0
    for rank, (_, row) in enumerate(ranked_rows(query, gallery, who, seen, number), 1):
        if seen.object_ids[row] == who.object_ids[number]:
            hits += 1
            first, last = first or rank, rank
            precisions.append(hits / rank)
    return (sum(precisions) / hits, hits / last, first) if hits else None


def evaluate(
    query: np.ndarray, gallery: np.ndarray, who: Identities, seen: Identities, ranks: tuple[int, ...]
) -> tuple[float, float, dict[int, float], list[tuple[float, float, int] | None]]:
    """Mean average precision, mean inverse negative penalty, CMC, and what `judge_one` says of every query."""
    judged = [judge_one(query, gallery, who, seen, number) for number in range(len(query))]
    kept = [one for one in judged if one is not None]
    cmc = {rank: sum(first <= rank for _, _, first in kept) / len(kept) for rank in ranks}
    mean_ap, mean_inp = (sum(one[place] for one in kept) / len(kept) for place in (0, 1))
    return mean_ap, mean_inp, cmc, judged


def rerank(query: np.ndarray, gallery: np.ndarray, k1: int, k2: int, weight: float) -> np.ndarray:
    """The dense distance of k-reciprocal re-ranking (Zhong et al., CVPR 2017): queries x gallery, from its equations.

    d is the squared Euclidean distance over the largest of its row; neighbours are sorted by it (by the float32
    similarity, which cannot tell copies apart), the row itself first, equal ones by index.
    """
    rows = np.concatenate([query, gallery]).astype(np.float64)
    n = len(rows)
    squared = np.array([[float(np.sum((rows[i] - rows[j]) ** 2)) for j in range(n)] for i in range(n)])
    d = np.array([[squared[i, j] / squared[i].max() for j in range(n)] for i in range(n)])
    alike = np.array([[np.float32(np.dot(rows[i], rows[j])) for j in range(n)] for i in range(n)])
    order = [sorted(range(n), key=lambda j, i=i: (j != i, -alike[i, j], j)) for i in range(n)]

    def reciprocal(i: int, k: int) -> set[int]:
        return {j for j in order[i][: k + 1] if i in order[j][: k + 1]}

    vectors = np.zeros((n, n))
    for i in range(n):
        members = reciprocal(i, k1)
        for q in reciprocal(i, k1):
            half = reciprocal(q, round(k1 / 2))
            if len(reciprocal(i, k1) & half) * 3 > 2 * len(half):
                members |= half
        for j in members:
            vectors[i, j] = np.exp(-d[i, j]) / sum(np.exp(-d[i, other]) for other in members)
    vectors = np.array([np.mean([vectors[j] for j in order[i][:k2]], axis=0) for i in range(n)])
    final = np.empty((len(query), len(gallery)))
    for i in range(len(query)):
        for j in range(len(query), n):
            least = sum(min(vectors[i, c], vectors[j, c]) for c in range(n))
            most = sum(max(vectors[i, c], vectors[j, c]) for c in range(n))
            final[i, j - len(query)] = (1 - weight) * (1 - least / most) + weight * d[i, j]
    return final


def expand(rows: np.ndarray, gallery: np.ndarray, k: int, alpha: float, itself: bool) -> np.ndarray:
    """Unit sums of each row and its k most similar gallery rows times similarity**alpha, those at 0 or below left out.

    `itself`: rows are the gallery's own, and none is its own neighbour.
    """
    expanded = []
    for number, row in enumerate(rows):
        pairs = [(np.float32(np.dot(row, other)), index) for index, other in enumerate(gallery)]
        near = sorted((pair for pair in pairs if not (itself and pair[1] == number)), key=lambda p: (-p[0], p[1]))
        total = row.astype(np.float64)
        for similarity, index in near[:k]:
            if similarity > 0:
                total = total + float(similarity) ** alpha * gallery[index].astype(np.float64)
        expanded.append(total / np.sqrt(np.sum(total**2)))
    return np.array(expanded)
