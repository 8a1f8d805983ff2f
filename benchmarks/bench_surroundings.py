"""Do groups of surroundings know cameras, which they never read, and not objects? And what do they cost?

    python -m benchmarks.bench_surroundings out=FILE.json picture=FILE.png height=64 width=32 shards/hard shards/middle

For each root the groups of its train split, of the edges of pictures and of whole pictures (the same 24 values of
their four quarters), at several numbers of groups: the share of images whose camera is the most frequent one of their
group, and how much groups tell of cameras and of objects (adjusted mutual information: 0 for what chance tells, 1 for
all). The picture shows some images of each of 8 groups of the first root.
"""

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from sklearn.metrics import adjusted_mutual_info_score

from benchmarks.bench_epoch import machine
from gracl.images.edges import describe_edges
from gracl.images.plans import scan_plan
from gracl.images.shards import ShardStore
from gracl.images.views import eval_view
from gracl.randomness import rng
from gracl.relations.surroundings import group_surroundings
from gracl.retrieval.agreement import purity
from gracl.types import UNKNOWN

GROUPS = (4, 8, 16, 32)
SHOWN_GROUPS, SHOWN = 8, 12


def quarters(store: ShardStore, height: int, width: int) -> np.ndarray:
    """Mean and deviation of the colours of the four quarters of each picture: as many values, of the whole picture."""
    view = partial(eval_view, height=height, width=width)
    rows = []
    for image in store.read(np.arange(len(store))):
        picture = view(image).astype(np.float32) / 255
        parts = [part for half in np.array_split(picture, 2) for part in np.array_split(half, 2, axis=1)]
        rows.append([value for how in (np.mean, np.std) for part in parts for value in how(part, axis=(0, 1))])
    return np.asarray(rows, np.float32)


def told(labels: np.ndarray, cameras: np.ndarray, objects: np.ndarray) -> dict[str, float]:
    """What groups tell of who took and who is on the images."""
    known = cameras != UNKNOWN
    labels, cameras = labels[known], cameras[known]
    return {
        "camera_purity": round(purity(labels, cameras), 3),
        "camera_information": round(float(adjusted_mutual_info_score(cameras, labels)), 3),
        "object_information": round(float(adjusted_mutual_info_score(objects[known], labels)), 3),
    }


def of_root(root: str, height: int, width: int) -> dict[str, Any]:
    """All figures of one train split."""
    store = ShardStore.open(root, "train")
    cameras, objects = store.camera_ids(), store.identities().object_ids
    started = time.perf_counter()
    edges = describe_edges(store, scan_plan(len(store), 256), height=height, width=width).features
    described = time.perf_counter() - started
    lines = []
    for of, values in (("edges", edges), ("whole pictures", quarters(store, height, width))):
        for groups in GROUPS:
            started = time.perf_counter()
            labels = group_surroundings(values, groups=groups)
            seconds = round(time.perf_counter() - started, 2)
            lines.append({"of": of, "groups": groups, **told(labels, cameras, objects), "kmeans_s": seconds})
    return {
        "root": Path(root).name,
        "images": len(store),
        "cameras": int(len(np.unique(cameras))),
        "largest_camera": round(float(np.bincount(cameras[cameras != UNKNOWN]).max() / len(cameras)), 3),
        "edges_s": round(described, 2),
        "groups": lines,
    }


def draw(root: str, height: int, width: int, picture: str) -> None:
    """Some images of each group, a row for each."""
    store = ShardStore.open(root, "train")
    edges = describe_edges(store, scan_plan(len(store), 256), height=height, width=width).features
    labels = group_surroundings(edges, groups=SHOWN_GROUPS)
    figure, axes = plt.subplots(SHOWN_GROUPS, SHOWN, figsize=(SHOWN * 0.42, SHOWN_GROUPS * 0.86))
    for group, line in enumerate(axes):
        mine = np.flatnonzero(labels == group)
        some = np.sort(rng(0, "shown", group).permutation(mine)[:SHOWN])
        for place, axis in enumerate(line):
            axis.set_axis_off()
            if place < len(some):
                axis.imshow(eval_view(store.read(some[place : place + 1])[0], height=height, width=width))
        line[0].set_title(f"group {group + 1}: {len(mine)} images", fontsize=7, loc="left", pad=2)
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.97, 0.05, 0.2)
    figure.savefig(picture, dpi=72)


def main() -> None:
    """Writes the figures and the picture, and prints the figures."""
    named = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
    roots = [word for word in sys.argv[1:] if "=" not in word]
    height, width = int(named["height"]), int(named["width"])
    facts = {"machine": machine(), "height": height, "width": width}
    facts["worlds"] = [of_root(root, height, width) for root in roots]
    if "picture" in named:
        draw(roots[0], height, width, named["picture"])
    text = json.dumps(facts, indent=1)
    Path(named["out"]).write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
