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
