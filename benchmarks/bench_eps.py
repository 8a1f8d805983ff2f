"""Which eps? Ways to choose it without identities, beside the best fixed one of a grid by the true identities.

    python -m benchmarks.bench_eps do=record out=FOLDER/demo preset.yaml data.root=... [section.key=value ...]
    python -m benchmarks.bench_eps do=made case=s4k generator=PATH/gen_features.py out=FOLDER/s4k
    python -m benchmarks.bench_eps do=judge tables=FOLDER/demo:20,FOLDER/s4k:30 threads=1 out=FILE
    python -m benchmarks.bench_eps do=cost tables=FOLDER/s4k threads=1 out=FILE

`record` trains a config in this process and keeps the features of every epoch's scan (that of epoch 0: before any
training) and the true identities, which nothing but the judge sees. A table is a folder and its k1. The ARI leaves
images of nobody out and takes each noise image for a class of its own, as in `bench_clusterings`.
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from benchmarks.bench_clusterings import ari
from benchmarks.bench_epoch import machine
from benchmarks.bench_relate import prepare, warm
from benchmarks.features import load
from benchmarks.local_twin import learn
from benchmarks.measuring import in_a_child, measured
from gracl import local
from gracl.cli import load_config
from gracl.config import TrainConfig
from gracl.images.shards import ShardStore
from gracl.randomness import rng
from gracl.relations.clusters import dbscan
from gracl.relations.diagnostics import silhouette
from gracl.relations.infomap import infomap
from gracl.relations.jaccard import reciprocal_weights, shared_distance
from gracl.relations.lists import invert
from gracl.relations.radius import CANDIDATES, choose_eps
from gracl.relations.relate import relate
from gracl.similarity import nearest
from gracl.types import Assignment, FeatureTable

GRID = np.arange(8, 33) / 40
ALLOWED = (CANDIDATES[0] <= GRID) & (CANDIDATES[-1] >= GRID)
SHAKEN = 5
ME = "benchmarks.bench_eps"


class Recorder(local.DirectRelator):
    """Keeps the features of every epoch."""

    def __init__(self, images: int, *, folder: Path, **options: Any) -> None:
        super().__init__(images, **options)
        self._folder, self._all = folder, images

    def relate(self, epoch: int, part: FeatureTable, previous: np.ndarray | None = None) -> Assignment:
        """Labels and proxies as ever."""
        np.save(self._folder / f"epoch{epoch:02d}.npy", FeatureTable.gather([part], self._all))
        return super().relate(epoch, part, previous)


def record(folder: Path, arguments: list[str]) -> None:
    """Trains `arguments` and keeps features, identities and the history of figures in `folder`."""
    folder.mkdir(parents=True)
    config = load_config(TrainConfig, arguments)
    store = ShardStore.open(config.data.root, config.data.train, cache=config.data.cache)
    np.save(folder / "truth.npy", store.identities().object_ids)
    state = learn(config, kind=partial(Recorder, folder=folder))
    (folder / "history.json").write_text(json.dumps(state.history))


class Graph:
    """The Jaccard graph of one table of features, and the clusters at every eps of the grid."""

    def __init__(self, features: np.ndarray, k1: int, threads: int) -> None:
        self.weights = reciprocal_weights(nearest(features, k1), features, k1=k1, k2=min(6, k1), threads=threads)
        self.inverted = invert(self.weights)
        self.whole = shared_distance(self.weights, self.inverted, limit=0.99, threads=threads)
        self.labels = [dbscan(self.whole, eps=eps) for eps in GRID]
        self.noise = np.array([(labels < 0).mean() for labels in self.labels])
        self.clusters = np.array([labels.max() + 1 for labels in self.labels])
        self.silhouettes = np.array(
            [silhouette(self.weights, self.inverted, labels, threads=threads) for labels in self.labels]
        )
        self.auto = choose_eps(self.whole, self.weights, self.inverted, threads=threads)


def core_distances(distance: csr_array, min_samples: int = 4) -> np.ndarray:
    """Rising: how far the min_samples-th nearest row is, itself counted; 1 where fewer are stored."""
    rows = (np.sort(distance.data[a:b]) for a, b in zip(distance.indptr[:-1], distance.indptr[1:], strict=True))
    return np.sort([row[min_samples - 1] if len(row) >= min_samples else 1.0 for row in rows])


def knee(graph: Graph) -> float:
    """Where the rising core distances are farthest below the chord of their ends."""
    rising = core_distances(graph.whole)
    chord = np.linspace(rising[0], rising[-1], len(rising))
    return float(rising[np.argmax(chord - rising)])


def noise_at_most(target: float, graph: Graph) -> float:
    """The smallest eps of the grid with at most this share of noise."""
    return float(GRID[np.argmax(graph.noise <= target)]) if (graph.noise <= target).any() else float(GRID[-1])


def highest(scores: Callable[[Graph], np.ndarray], graph: Graph) -> float:
    """The eps with the highest score among those that auto may choose."""
    return float(GRID[ALLOWED][np.argmax(scores(graph)[ALLOWED])])


def steadiness(graph: Graph) -> np.ndarray:
    """Minus how much the number of clusters changes from two steps below to two steps above."""
    logs = np.log(np.maximum(graph.clusters, 1))
    return -np.abs(np.pad(logs, (0, 4), "edge")[2:-2] - np.pad(logs, (4, 0), "edge")[2:-2])


def covered(graph: Graph) -> np.ndarray:
    """Mean silhouette over all rows, noise counted as 0."""
    return np.asarray(graph.silhouettes * (1 - graph.noise))


WAYS: dict[str, Callable[[Graph], float]] = {
    "auto": lambda graph: graph.auto,
    "covered silhouette, highest": partial(highest, covered),
    "silhouette, highest": partial(highest, lambda graph: graph.silhouettes),
    "most clusters": partial(highest, lambda graph: graph.clusters),
    "steadiest number of clusters": partial(highest, steadiness),
    "knee": lambda graph: float(np.clip(knee(graph), GRID[0], GRID[-1])),
    **{f"noise <= {target}": partial(noise_at_most, target) for target in (0.1, 0.2, 0.3, 0.4)},
    **{f"fixed {eps}": partial(lambda eps, graph: eps, eps) for eps in (0.4, 0.45, 0.5, 0.6)},
}


def shaken(features: np.ndarray, draw: int, strength: float = 0.1) -> np.ndarray:
    """Features plus noise of this length (a turn by some 6 degrees), brought back to length 1."""
    noise = rng(draw, "shaken").standard_normal(features.shape, np.float32)
    rows = features + strength * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def judge(path: Path, k1: int, threads: int) -> dict[str, Any]:
    """Every way on one table: its eps, the ARI there, that over the best of the grid, and how far it jumps."""
    features = np.asarray(np.load(path), np.float32)
    truth = np.load(path.parent / "truth.npy")
    graph = Graph(features, k1, threads)
    curve = [ari(truth, labels) for labels in graph.labels]
    others = [Graph(shaken(features, draw), k1, threads) for draw in range(SHAKEN)]
    best, found = max(curve), {}
    for name, way in WAYS.items():
        eps = way(graph)
        value, all_eps = ari(truth, dbscan(graph.whole, eps=eps)), [eps, *(way(other) for other in others)]
        jump = round(max(all_eps) - min(all_eps), 3)
        found[name] = {"eps": round(eps, 4), "ari": value, "of_best": round(value / best, 3), "jump": jump}
    return {
        "table": f"{path.parent.name} {path.stem}",
        "k1": k1,
        "rows": len(features),
        "identities": len(np.unique(truth[truth >= 0])),
        "best": {"eps": float(GRID[np.argmax(curve)]), "ari": best},
        "ari_by_eps": dict(zip(map(str, GRID.tolist()), curve, strict=True)),
        "ways": found,
        "infomap": by_infomap(graph, truth),
    }


def by_infomap(graph: Graph, truth: np.ndarray) -> dict[str, Any]:
    """Infomap at the eps chosen by DBSCAN's clusters, beside the best of a coarser grid."""
    curve = {str(eps): ari(truth, infomap(graph.whole, eps=eps)) for eps in (0.3, 0.4, 0.5, 0.6, 0.7)}
    chosen = ari(truth, infomap(graph.whole, eps=graph.auto))
    best = max(*curve.values(), chosen)
    return {"ari_by_eps": curve, "ari": chosen, "of_best": round(chosen / best, 3)}


def cost(path: Path, threads: int, eps: str) -> dict[str, Any]:
    """`relate` with a given table at this eps, in this process."""
    features, table, _, _ = load(path)
    features = np.array(features)
    warm()
    given = float(eps) if eps != "auto" else "auto"
    found, spent = measured(lambda: relate(features, find=lambda *_, **__: table, eps=given, threads=threads))
    weights = reciprocal_weights(table, features, threads=threads)
    limit = CANDIDATES[-1] if given == "auto" else float(given)
    entries = shared_distance(weights, invert(weights), limit=limit, threads=threads).nnz
    steps = {name: round(found.stats[f"{name}_s"], 3) for name in ("jaccard", "cluster")}
    return {"eps": eps, "rows": len(features), "entries_a_row": round(entries / len(features), 1), **spent, **steps}


def summary(judged: list[dict[str, Any]]) -> dict[str, Any]:
    """For every way the mean and the lowest of its shares of the best, and its mean and widest jump."""
    every = {name: [one["ways"][name] for one in judged] for name in WAYS} | {
        "infomap at auto": [one["infomap"] | {"jump": 0.0} for one in judged]
    }
    return {
        name: {
            "of_best_mean": round(float(np.mean([one["of_best"] for one in ones])), 3),
            "of_best_lowest": min(one["of_best"] for one in ones),
            "jump_mean": round(float(np.mean([one["jump"] for one in ones])), 3),
            "jump_widest": max(one["jump"] for one in ones),
        }
        for name, ones in every.items()
    }


def judge_all(specs: list[str], threads: int) -> dict[str, Any]:
    """All tables, told on stderr one by one; then the summary."""
    judged = []
    for spec in specs:
        folder, k1 = spec.split(":")
        for path in sorted([*Path(folder).glob("epoch*.npy"), *Path(folder).glob("features.npy")]):
            judged.append(judge(path, int(k1), threads))
            told = {name: (one["eps"], one["of_best"]) for name, one in judged[-1]["ways"].items()}
            print(judged[-1]["table"], k1, judged[-1]["best"], told, file=sys.stderr, flush=True)
    for name, line in (figures := summary(judged)).items():
        print(f"{name:30s}", *(f"{value:7.3f}" for value in line.values()), file=sys.stderr)
    return {"summary": figures, "tables": judged}


def main() -> None:
    """Does what is asked."""
    named = dict(argument.split("=", 1) for argument in sys.argv[1:] if "=" in argument)
    threads, own = int(named.get("threads", "1")), ("do=", "out=")
    report = {"machine": machine(), "threads": threads, "shaken": SHAKEN}
    if named["do"] == "record":
        record(Path(named["out"]), [argument for argument in sys.argv[1:] if not argument.startswith(own)])
    elif named["do"] == "made":
        Path(named["out"]).mkdir(parents=True)
        prepare(named["case"], named["generator"], Path(named["out"]))
    elif named["do"] == "one":
        print(json.dumps(cost(Path(named["folder"]), threads, named["eps"])))
    elif named["do"] == "cost":
        asked = [(folder, eps) for folder in named["tables"].split(",") for eps in ("0.6", "0.7", "auto")]
        report["cost"] = [in_a_child(ME, do="one", folder=folder, threads=threads, eps=eps) for folder, eps in asked]
        Path(named["out"]).write_text(json.dumps(report, indent=1) + "\n")
    else:
        report |= judge_all(named["tables"].split(","), threads)
        Path(named["out"]).write_text(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
