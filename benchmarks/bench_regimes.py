"""In which regime are GRACL's proxies? The figures of design 4.4, on the features of every epoch of a training.

    python -m benchmarks.bench_eps do=record out=FOLDER preset.yaml data.root=... [section.key=value ...]
    python -m benchmarks.bench_regimes FOLDER k1=20 threads=1

For each table of features: clusters by `eps=auto`; how much they share a direction; how often the two proxies are one
image; where the inter proxy lies in its cluster (0 most central, 1 farthest); and how often other rules pick the same
inter proxy as the mean. Then the same of the features less their mean. One JSON line for each.
"""

import json
import sys
from pathlib import Path

import numpy as np

from gracl.errors import ClusteringCollapsed
from gracl.relations.diagnostics import describe
from gracl.relations.proxies import mine_proxies
from gracl.relations.relate import relate

RULES = ("cluster_mean", "nearest_sample", "nearest_centroids", "log_sum_exp")


def regime(features: np.ndarray, labels: np.ndarray, threads: int) -> dict[str, float]:
    """The figures of one table and its clusters."""
    mean = mine_proxies(features, labels, threads=threads)
    figures = describe(features, labels, mean, threads=threads)
    kept = ("mean_feature_norm", "proxies_coincide", "inter_centrality_rank")
    picks = {f"same_as_{rule}": mine_proxies(features, labels, inter_rule=rule, threads=threads) for rule in RULES}
    return {name: figures[name] for name in kept} | {
        name: float((other.inter_image == mean.inter_image).mean()) for name, other in picks.items()
    }


def main() -> None:
    """One line for each epoch, as the features are and less their mean, with the same clusters."""
    folder, options = Path(sys.argv[1]), dict(argument.split("=", 1) for argument in sys.argv[2:])
    k1, threads = int(options.get("k1", 20)), int(options.get("threads", 1))
    for file in sorted(folder.glob("epoch*.npy")):
        features = np.load(file)
        try:
            found = relate(features, k1=k1, k2=min(6, k1), eps="auto", threads=threads)
        except ClusteringCollapsed as error:
            print(json.dumps({"table": file.stem, "collapsed": str(error)}), flush=True)
            continue
        centred = features - features.mean(0)
        centred /= np.linalg.norm(centred, axis=1, keepdims=True)
        for name, rows in (("as it is", features), ("less the mean", centred)):
            row = {"table": file.stem, "features": name, "images": len(rows), "clusters": found.clusters}
            figures = regime(rows.astype(np.float32), found.labels, threads)
            print(json.dumps(row | {key: round(value, 3) for key, value in figures.items()}), flush=True)


if __name__ == "__main__":
    main()
