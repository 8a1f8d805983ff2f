"""Draws the ranked results of a judged model: hard, middling and easy queries with the gallery images found."""

import tempfile
from pathlib import Path

import numpy as np

from gracl.images.decoding import decode
from gracl.images.shards import ShardStore
from gracl.retrieval.sheet import SheetRow, pick_queries, ranked_sheet
from gracl.types import EMPTY, Ranking, RetrievalReport


def draw_ranked(
    report: RetrievalReport,
    ranking: Ranking,
    *,
    query: ShardStore,
    gallery: ShardStore,
    title: str,
    queries: int = 9,
) -> bytes:
    """A PNG with one line per query, the hardest first.

    Args:
        ranking: gallery indices per query, best first.
        query, gallery: open stores; their identities colour the frames.
        queries: how many lines.
    """
    picked = pick_queries(report, queries)
    who, other = query.identities(), gallery.identities()
    rows = []
    for index in picked.tolist():
        found = ranking.indices[index][ranking.indices[index] != EMPTY].astype(np.int64)
        scores = ranking.similarities[index][: len(found)]
        rows.append(
            SheetRow(
                query=decode(query.read(np.array([index]))[0]),
                query_caption=f"camera {who.camera_ids[index]}",
                gallery=[decode(image) for image in gallery.read(found)],
                captions=[
                    f"{score:.2f}  c{camera}"
                    for score, camera in zip(scores, other.camera_ids[found].tolist(), strict=True)
                ],
                correct=[bool(same) for same in other.object_ids[found] == who.object_ids[index]],
                note=f"AP {report.average_precisions[index]:.2f}",
            )
        )
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder, "ranked.png")
        ranked_sheet(picture, rows, title=title)
        return picture.read_bytes()
