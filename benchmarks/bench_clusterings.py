"""Clusterings on the same Jaccard graph, and rules of proxies on the same labels: what they cost and find.

Features of the golden generator, whose identities are known; images of nobody are left out of the ARI, and each noise
image is a class of its own in it.

    python -m benchmarks.bench_clusterings case=market generator=PATH/gen_features.py threads=2 out=FILE
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench_epoch import machine
from benchmarks.bench_relate import prepare, warm
from benchmarks.features import load
from benchmarks.measuring import measured
from gracl.relations.clustering import cluster
from gracl.relations.jaccard import jaccard_distance, reciprocal_weights
from gracl.relations.lists import invert
from gracl.relations.proxies import mine_proxies
from gracl.retrieval.agreement import agreement

CLUSTERINGS: list[dict[str, Any]] = [
    {"clustering": "dbscan"},
    {"clustering": "infomap"},
    {"clustering": "hdbscan", "min_cluster_size": 4},
    {"clustering": "hdbscan", "min_cluster_size": 8},
    {"clustering": "hdbscan", "min_cluster_size": 8, "min_samples": 8},
]
RULES: list[dict[str, Any]] = [
    {"inter_rule": "mean"},
    {"inter_rule": "cluster_mean"},
    {"inter_rule": "nearest_sample", "neighbors": True},
    {"inter_rule": "nearest_sample"},
    {"inter_rule": "nearest_centroids"},
    {"inter_rule": "log_sum_exp"},
    {"intra_rule": "minimum"},
    {"foreign": "centroids"},
    {"foreign": "centroids", "inter_rule": "nearest_sample"},
    {"foreign": "centroids", "inter_rule": "log_sum_exp"},
    {"foreign": "proxies"},
    {"foreign": "noise_too"},
    {"foreign": "noise_too", "inter_rule": "nearest_centroids"},
    {"space": "jaccard"},
    {"space": "jaccard", "foreign": "proxies"},
    {"trim": 0.02},
    {"trim": 0.02, "intra_rule": "minimum"},
]
IMAGES = ("inter_image", "intra_image")


def ari(truth: np.ndarray, labels: np.ndarray) -> float:
    """Agreement with the identities, noise apart from everything."""
    return round(agreement(labels, truth)["ari_all"], 4)


def main() -> None:
    """Prints and writes a line for each clustering and each rule."""
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    facts, threads = machine(), int(options["threads"])
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        prepare(options["case"], options["generator"], Path(name))
        features, table, truth, _ = load(Path(name))
        features = np.array(features)
    warm()
    near, whole = (jaccard_distance(table, features, limit=limit, threads=threads) for limit in (0.6, 1.0))
    found = []
    for chosen in CLUSTERINGS:
        graph = whole if chosen["clustering"] == "hdbscan" else near
        cluster(near[:0, :0], **chosen)  # its packages are loaded
        labels, cost = measured(lambda graph=graph, chosen=chosen: cluster(graph, **chosen))
        figures = {"clusters": int(labels.max()) + 1, "noise": int((labels < 0).sum()), "ari": ari(truth, labels)}
        found.append(chosen | figures | cost)
    labels, rules, weights = cluster(near), [], reciprocal_weights(table, features, threads=threads)
    graph, first = (weights, invert(weights)), None
    few = np.where(np.arange(len(features)) < 500, np.arange(len(features)) % 20, -1)
    for rule in RULES:
        given = rule | ({"neighbors": table} if "neighbors" in rule else {})
        given |= {"graph": graph} if "space" in rule else {}
        mine_proxies(features, few, **{**given, "neighbors": None})
        mined, cost = measured(lambda given=given: mine_proxies(features, labels, threads=threads, **given))
        # The first rule is the default: how many clusters have another proxy.
        first = first or mined
        moved = {kind: (getattr(mined, kind) != getattr(first, kind)).mean().round(4) for kind in IMAGES}
        rules.append(rule | {f"{kind}_moved": float(share) for kind, share in moved.items()} | cost)
    identities = len(np.unique(truth[truth >= 0]))
    report = {"machine": facts, "case": options["case"], "rows": len(features), "identities": identities}
    report |= {"threads": threads, "clusterings": found, "rules": rules}
    if "out" in options:
        Path(options["out"]).write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
