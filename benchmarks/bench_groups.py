"""Groups and their confidence against the identities, which the door never reads; and what grouping costs by size.

    python -m benchmarks.bench_groups table=FEATURES data.root=SHARDS split=gallery threads=2 rows=10000,30000 out=FILE

An image is *wrong* when its object is not the most frequent one of its group. Of a table of a split: how often that is
so by confidence; how well confidence, and three other measures, tell wrong images from right ones (AUC: the chance that
a right one has more than a wrong one) at several settings; and what tracks change, a track being the images of an
object by one camera. Then seconds and memory on made-up features of 512 dimensions (`features.district`).
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench_epoch import machine
from benchmarks.features import EACH, IDENTITIES, RANK, district
from benchmarks.measuring import in_a_child, measured
from gracl.images.embeddings import EmbeddingTable
from gracl.images.shards import ShardStore
from gracl.randomness import rng
from gracl.relations.grouping import Groups, group
from gracl.relations.jaccard import jaccard_distance
from gracl.relations.tracks import fewer_neighbours
from gracl.runtime.checkpoints import load_any_state, relations_of
from gracl.sections import Grouping
from gracl.similarity import nearest
from gracl.types import NOISE

BANDS = (0.0, 0.5, 0.6, 0.7, 0.8, 1.0)
GRID = [{"k1": k1, "k2": k2, "eps": eps} for k1, k2 in ((15, 3), (20, 6), (30, 6)) for eps in (0.4, 0.5, 0.6, 0.7)]
DIM = 512


def wrong_of(labels: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Which images are wrong; noise is not."""
    wrong = np.zeros(len(labels), bool)
    for number in range(int(labels.max()) + 1):
        mine = np.flatnonzero(labels == number)
        names, counts = np.unique(objects[mine], return_counts=True)
        wrong[mine] = objects[mine] != names[counts.argmax()]
    return wrong


def auc(scores: np.ndarray, wrong: np.ndarray) -> float:
    """The chance that a right image has a higher score than a wrong one; ties count half."""
    right, other = scores[~wrong], scores[wrong]
    return float((right[:, None] > other).mean() + 0.5 * (right[:, None] == other).mean())


def by_confidence(found: Groups, wrong: np.ndarray) -> list[dict[str, float]]:
    """Images and the share of wrong ones in each band of confidence."""
    lines = []
    for low, high in zip(BANDS, BANDS[1:], strict=False):
        here = (found.labels != NOISE) & (found.confidence >= low) & (found.confidence < (high if high < 1 else 2))
        lines.append({"from": low, "to": high, "images": int(here.sum()), "wrong": round(float(wrong[here].mean()), 4)})
    return lines


def by_group(found: Groups, wrong: np.ndarray) -> list[dict[str, float]]:
    """Thirds of the groups by mean confidence: how many hold another object, and the share of wrong images."""
    groups = int(found.labels.max()) + 1
    sure = np.array([found.confidence[found.labels == one].mean() for one in range(groups)])
    lines = []
    for some in np.array_split(np.argsort(sure, kind="stable"), 3):
        here = np.isin(found.labels, some)
        mixed = float(np.mean([wrong[found.labels == one].any() for one in some]))
        ends = {"from": round(float(sure[some].min()), 3), "to": round(float(sure[some].max()), 3)}
        lines.append(
            ends | {"groups": len(some), "mixed": round(mixed, 4), "wrong": round(float(wrong[here].mean()), 4)}
        )
    return lines


def pairs(labels: np.ndarray, objects: np.ndarray) -> dict[str, float]:
    """Precision and recall over pairs of images; noise is in no pair that was found."""
    same, together = objects[:, None] == objects, (labels[:, None] == labels) & (labels != NOISE)
    upper = np.triu(np.ones(same.shape, bool), 1)
    hits = (same & together & upper).sum()
    return {
        "precision": round(float(hits / max(1, (together & upper).sum())), 4),
        "recall": round(float(hits / (same & upper).sum()), 4),
    }


def others(features: np.ndarray, labels: np.ndarray, k1: int, k2: int, threads: int) -> dict[str, np.ndarray]:
    """Other measures of confidence, of each image, from the dense matrix of 1 - distance."""
    table = nearest(features, k1, threads=threads)
    alike = np.zeros((len(labels), len(labels)))
    found = jaccard_distance(table, features, k1=k1, k2=k2, threads=threads).tocoo()
    alike[found.row, found.col] = 1 - found.data
    sizes = np.bincount(labels[labels != NOISE])
    sums = np.stack([alike[:, labels == one].sum(1) for one in range(len(sizes))], 1)
    means, each = sums / sizes, np.arange(len(labels))
    own = (sums[each, labels] - 1) / np.maximum(1, sizes[labels] - 1)
    means[each, labels] = 0
    best = means.max(1)
    return {
        "less_the_next_group": own - best,
        "silhouette": (own - best) / np.maximum(1 - own, 1 - best).clip(1e-9),
        "share_of_nearest": (labels[table.indices[:, 1:11]] == labels[:, None]).mean(1),
    }


def judged(found: Groups, objects: np.ndarray) -> dict[str, Any]:
    """The figures of one grouping."""
    wrong, known = wrong_of(found.labels, objects), found.labels != NOISE
    return {
        "rows": found.rows,
        "eps": found.stats.get("eps"),
        "groups": int(found.labels.max()) + 1,
        "in_no_group": round(float((~known).mean()), 4),
        "wrong": round(float(wrong[known].mean()), 4),
        **pairs(found.labels, objects),
    }


def of_a_table(options: dict[str, str]) -> dict[str, Any]:
    """All that is measured on the images of a split."""
    table, threads = EmbeddingTable(options["table"]), int(options["threads"])
    rows = table.read()
    told = ShardStore.open(options["data.root"], options["split"]).identities()
    objects, cameras = told.object_ids[rows.indices], told.camera_ids[rows.indices]
    state = relations_of(load_any_state(table.checkpoint))
    settings = {name: getattr(state, name) for name in Grouping.model_fields}
    found = group(rows.features, **settings, threads=threads)
    wrong, known = wrong_of(found.labels, objects), found.labels != NOISE
    grid = []
    for one in GRID:
        other = group(rows.features, **one, threads=threads)
        bad, inside = wrong_of(other.labels, objects), other.labels != NOISE
        scores = {"confidence": other.confidence, **others(rows.features, other.labels, one["k1"], one["k2"], threads)}
        told_apart = {name: round(auc(score[inside], bad[inside]), 3) for name, score in scores.items()}
        grid.append(one | judged(other, objects) | {"auc": told_apart})
    tracks = objects * (cameras.max() + 1) + cameras
    tracked = []
    fewer = fewer_neighbours({"k1": settings["k1"], "k2": settings["k2"]}, len(rows), len(np.unique(tracks)))
    for k1, k2 in ((settings["k1"], settings["k2"]), (12, 4), (8, 3), (fewer["k1"], fewer["k2"]), (5, 2)):
        for name, some in (("ignore", None), ("use", tracks)):
            seen = group(rows.features, tracks=some, **(settings | {"k1": k1, "k2": k2}), threads=threads)
            tracked.append({"tracks": name, "k1": k1, "k2": k2} | judged(seen, objects))
    return {
        "images": len(rows),
        "objects": len(np.unique(objects)),
        "settings": settings,
        "found": judged(found, objects) | {"auc": round(auc(found.confidence[known], wrong[known]), 4)},
        "by_confidence": by_confidence(found, wrong),
        "by_group": by_group(found, wrong),
        "grid": grid,
        "tracks": tracked,
    }


def made_up(rows: int) -> np.ndarray:
    """Features float32 [rows, DIM] in random order."""
    basis = (rng(7, "basis").standard_normal((RANK, DIM)) / np.sqrt(DIM)).astype(np.float32)
    each = IDENTITIES * EACH
    parts = [district(n, min(each, rows - first), basis)[0] for n, first in enumerate(range(0, rows, each))]
    return np.concatenate(parts)[rng(7, "order").permutation(rows)]


def by_size(rows: int, threads: int) -> dict[str, Any]:
    """Cost of grouping, kernels compiled before."""
    group(made_up(300), threads=threads)
    features = made_up(rows)
    found, cost = measured(lambda: group(features, threads=threads))
    seconds = {name: round(value, 2) for name, value in found.stats.items() if name.endswith("_s")}
    return {"images": rows, "groups": int(found.labels.max()) + 1} | cost | {"phases": seconds}


def main() -> None:
    """Writes everything; with `only=`, the cost at one size, for a process of its own."""
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    threads = int(options["threads"])
    if "only" in options:
        print(json.dumps(by_size(int(options["only"]), threads)))
        return
    facts = machine() | {"threads": threads}
    result = {"machine": facts, "split": options["split"], **of_a_table(options), "cost": []}
    Path(options["out"]).write_text(json.dumps(result, indent=1) + "\n")
    for rows in filter(None, options.get("rows", "").split(",")):
        result["cost"].append(in_a_child("benchmarks.bench_groups", only=rows, threads=threads))
        print(json.dumps(result["cost"][-1]), flush=True)
        Path(options["out"]).write_text(json.dumps(result, indent=1) + "\n")  # the next size may take long


if __name__ == "__main__":
    main()
